"""Puts back into a reply what stood in the request for personal data, before anybody judges it.

The reply is read and written as `release` does it for its judge, so that it works in every protocol, however a stream
is cut: an event waits while a placeholder that has begun in it may go on, then the value stands where it began.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence

from service.errors import UpstreamInvalid
from service.firewall.asked import CallPart
from service.firewall.placeholders import Restored
from service.firewall.verdict import Verdict
from service.interfaces import Reply, Wire
from service.release import Release

_INLINE_BYTES = 65_536
_KEPT = 1
"""Characters before what is read: one of them may escape it."""


class RestoredReply:
    """A reply with its values (`interfaces.Reply`); it must be one of success. `values` are by placeholder."""

    def __init__(self, reply: Reply, wire: Wire, values: Mapping[str, str]) -> None:
        self._reply = reply
        self._wire = wire
        self._values = values
        self.status = reply.status
        self.content_type = reply.content_type
        self.headers = reply.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes as they come. Raises UpstreamError, UpstreamInvalid."""
        release = Release(Restorer(Restored(self._values)), self._wire)
        if self.content_type == "text/event-stream":
            reader = self._wire.open_stream()
            async for chunk in self._reply.chunks():
                large = reader.kept_bytes > _INLINE_BYTES
                for piece in await asyncio.to_thread(reader.feed, chunk) if large else reader.feed(chunk):
                    await release.take(piece)
                if out := release.cleared():
                    yield out
            for piece in reader.finish():
                await release.take(piece)
        else:
            body = b"".join([chunk async for chunk in self._reply.chunks()])
            read = self._wire.read_reply
            await release.take(
                read(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(read, body), last=True
            )
        await release.finish()
        out = release.cleared()
        if release.blocked:
            raise UpstreamInvalid("The provider's reply cannot be written with the caller's data in it.")
        yield out

    async def close(self) -> None:
        """Drop the connection unless everything was read."""
        await self._reply.close()


class Restorer:
    """Knows what is sent for each text of a reply (`interfaces.ReplyJudge`); it finds fault with none."""

    blocked = False
    verdict = Verdict()

    def __init__(self, restored: Restored) -> None:
        self._restored = restored
        self._channels: dict[str, _Channel] = {}
        self._json: set[str] = set()

    async def called(self, parts: Sequence[CallPart]) -> None:
        """Arguments of calls are JSON in a text: what is put into them must leave them that."""
        self._json.update(part.channel for part in parts if part.channel and not part.text)

    async def feed(self, channel: str, text: str, *, last: bool = False) -> None:
        """The next text of a channel."""
        state = self._channels.get(channel)
        if state is None:
            # What repeats another text in another form follows that, or stays as it is.
            state = self._channels[channel] = _Channel(None if "#" in channel else self._restored)
        state.take(text, last=last)

    async def end(self, channel: str) -> None:
        """The channel gets no more text."""
        if channel in self._channels:
            self._channels[channel].take("", last=True)

    async def finish(self) -> None:
        """The reply has ended."""
        for state in self._channels.values():
            state.take("", last=True)

    async def whole(self, channel: str, text: str) -> str:
        """A value that is complete in itself. The name of a member stays: there is no place to write another."""
        return text if channel.endswith("keys") else self._restored.whole(text)

    def clears(self, texts: Sequence[str]) -> bool:
        """Whether no placeholder stands in any of the values."""
        return all(self._restored.whole(text) == text for text in texts)

    def cleared(self, channel: str) -> int:
        """Characters of the channel, from its start, that may leave now."""
        state = self._channels.get(channel)
        return 0 if state is None else state.cleared

    def render(self, channel: str, start: int, end: int) -> str:
        """What is sent for these characters."""
        is_json = channel in self._json or channel.endswith(("/arguments", "/partial_json"))
        return self._channels[channel].render(start, end, is_json=is_json)


class _Channel:
    """One text; `cleared` is where no placeholder may still go on."""

    def __init__(self, restored: Restored | None) -> None:
        self._restored = restored
        self._text = ""
        self._base = 0
        self._read = 0
        self._spans: list[tuple[int, int, str]] = []
        self.cleared = 0

    def take(self, text: str, *, last: bool) -> None:
        self._text += text
        end = self._base + len(self._text)
        if self._restored is None:
            self.cleared = end
            return
        begun = self._read - self._base
        for first, beyond, value in self._restored.spans(self._text, begun):
            self._spans.append((self._base + first, self._base + beyond, value))
            begun = beyond
        self._read = max(self._read, self._base + (len(self._text) if last else self._restored.held(self._text)))
        if self._spans:
            self._read = max(self._read, self._spans[-1][1])
        self.cleared = self._read

    def render(self, start: int, end: int, *, is_json: bool) -> str:
        parts: list[str] = []
        at = start
        for first, beyond, value in self._spans:
            if beyond <= start or first >= end:
                continue
            parts.append(self._text[at - self._base : max(at, first) - self._base])
            if first >= start:
                parts.append(json.dumps(value)[1:-1] if is_json else value)
            at = max(at, min(beyond, end))
        parts.append(self._text[at - self._base : end - self._base])
        self._spans = [span for span in self._spans if span[1] > end]
        first = max(min(end, self._read) - _KEPT, self._base)
        self._text, self._base = self._text[first - self._base :], first
        return "".join(parts)
