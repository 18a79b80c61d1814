"""What translations between two protocols share: refusals that name their place, and replies told while they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from service.api.strict_json import pointer
from service.api.texts import Path
from service.errors import MalformedRequest
from service.interfaces import Reply

_INLINE_BYTES = 65_536  # larger replies are told in a thread
_SLICE_BYTES = 4_096


class Telling:
    """Tells a request member by member. `refusal` is what a caller is told of what cannot be said; `hints` are members
    that say nothing to a model, wherever they stand.
    """

    def __init__(self, refusal: str, hints: frozenset[str] = frozenset()) -> None:
        self._refusal = refusal
        self._hints = hints

    def untold(self, *path: str | int) -> MalformedRequest:
        """The refusal of what stands there."""
        return MalformedRequest(self._refusal, pointer=pointer(*path))

    def only(self, box: Any, names: set[str], path: Path, idle: dict[str, Any] | None = None) -> None:
        """Raises MalformedRequest for the first other member that says something."""
        if not isinstance(box, dict):
            raise self.untold(*path)
        for name, value in box.items():
            if name not in names and name not in self._hints and value is not None and value != (idle or {}).get(name):
                raise self.untold(*path, name)

    def string(self, box: dict[str, Any], name: str, path: Path) -> str:
        """A member that must be a string. Raises MalformedRequest."""
        value = box.get(name)
        if not isinstance(value, str):
            raise self.untold(*path, name)
        return value


class Events(Protocol):
    """A provider's events in, the caller's out. Both methods raise UpstreamInvalid."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What these bytes say."""

    def finish(self) -> Iterator[bytes]:
        """The end of the bytes."""


class TranslatedReply:
    """A provider's answer in the caller's protocol (`interfaces.Reply`): its stream by `events`, a whole one by
    `whole`, an error by `failed`.
    """

    def __init__(
        self, reply: Reply, *, events: Events, whole: Callable[[bytes], bytes], failed: Callable[[bytes], bytes]
    ) -> None:
        self.status = reply.status
        self.content_type = reply.content_type
        self.headers = reply.headers
        self._reply = reply
        self._events = events
        self._write = failed if reply.status >= 400 else whole

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they come. Raises UpstreamInvalid for what cannot be told in the caller's protocol."""
        if self.content_type == "text/event-stream" and self.status < 400:
            async for chunk in self._reply.chunks():
                # In slices: one chunk may hold a thousand events, and who reads gives others their turn between two.
                for at in range(0, len(chunk), _SLICE_BYTES):
                    out = b"".join(self._events.feed(chunk[at : at + _SLICE_BYTES]))
                    if out:
                        yield out
            yield b"".join(self._events.finish())
            return
        body = b"".join([chunk async for chunk in self._reply.chunks()])
        yield self._write(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(self._write, body)

    async def close(self) -> None:
        """Drop the connection unless everything was read."""
        await self._reply.close()
