"""Holds a streamed reply back: whole events leave in order, each as soon as all of its text is cleared."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import perf_counter

from msgspec.structs import replace

from service.errors import GuardFailed
from service.firewall.verdict import Verdict, decide
from service.interfaces import Piece, ReplyJudge, Wire

_SLICE_CHARS = 4_096
"""Of a long text the judge gets so much at once: it works on the event loop, and others want their turn."""
_SLICE_TEXTS = 32
"""And of many short ones so many."""
_KNOWN_BYTES = 65_536
_VALUE_BYTES = 256
"""What a value that is known takes beside its characters."""
_UNCOUNTED_CHARS = 32_768
_PARTS = 64
"""Texts come in a few characters: so many of them are put together, since each takes as much again and more."""
MAX_HELD_BYTES = 8_388_608
"""Of a stream: a call that writes a long file waits until it is whole. What holds back more is given up, not let go."""
_Span = tuple[str, int, int] | str
"""A range of a channel, or what is sent for a value that was judged by itself. A channel that begins with `=` is said
once more, from its start.
"""


class Release:
    """One reply between the judge and the caller.

    `judge_s` is the seconds spent in the judge; `headers` are those that may be passed on; `number` is that of the last
    event that may leave. `tokens` are what the provider delivered as `count` has counted it, and `texts`, by channel,
    what was not counted yet: of a long stream not all is kept, without `count` only its last.

    `echo_judge` judges what only repeats one of `echoes`, the request's own strings. Of a stream at most
    `max_held_bytes` and one event more are held.
    """

    def __init__(
        self,
        judge: ReplyJudge,
        wire: Wire,
        *,
        echo_judge: ReplyJudge | None = None,
        echoes: frozenset[str] = frozenset(),
        count: Callable[[Sequence[str]], Awaitable[int]] | None = None,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._judge = judge
        self._echo_judge = echo_judge
        self._echoes = echoes if echo_judge is not None else frozenset()
        self._wire = wire
        self._count = count
        self._max_held_bytes = max_held_bytes
        self._held: deque[tuple[Piece, tuple[_Span, ...]]] = deque()
        self._held_bytes = 0
        self._lengths: dict[str, int] = {}
        self._values: dict[tuple[str, str], str] = {}
        self._values_bytes = 0
        # Where something else was sent than what was said: (start, end, what was sent) by channel.
        self._changed: dict[str, list[tuple[int, int, str]]] = {}
        self._finished = False
        self._unwritable = False
        self.headers: list[tuple[str, str]] = []
        self.tokens = 0
        self.texts: dict[str, list[str]] = {}
        self._uncounted_chars = 0
        self.judge_s = 0.0
        self.number: int | None = None

    async def take(self, piece: Piece, *, last: bool = False) -> None:
        """Hand one piece to the judge and hold it. `last`: it is the whole reply, so no text in it will grow.

        Raises GuardFailed, besides what the judge raises, where too much is held already.
        """
        if self._held_bytes > self._max_held_bytes:
            raise GuardFailed("The reply holds back more than can be kept until it is judged.")
        spans: list[_Span] = []
        begun = perf_counter()
        if piece.calls:
            await self._judge.called(piece.calls)
        times = Counter(channel for channel, _ in piece.texts) if last else {}
        if last:
            self._glance(piece.texts)
        for number, (channel, text) in enumerate(piece.texts, 1):
            if number % _SLICE_TEXTS == 0:
                await asyncio.sleep(0)
            if channel.endswith("="):
                spans.append(await self._value(channel[:-1], text))
                if self.blocked:
                    break
                continue
            if channel.startswith("="):
                spans.append((channel, 0, self._lengths.get(channel[1:], 0)))
                continue
            start = self._lengths.get(channel, 0)
            self._lengths[channel] = start + len(text)
            spans.append((channel, start, start + len(text)))
            if not channel.partition("#")[1]:
                self._keep(channel, text)
            await self._feed(channel, text, last=times.get(channel) == 1)
            if self.blocked:
                break
        for channel in piece.ended:
            await self._judge.end(channel)
        self.judge_s += perf_counter() - begun
        self._held.append((piece, tuple(spans)))
        self._held_bytes += len(piece.raw)
        if self._uncounted_chars > _UNCOUNTED_CHARS and not last:
            await self._count_texts()

    async def take_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        """Judge the provider's headers; one that would have to be redacted is left out."""
        for name, value in headers:
            if await self._value(f"headers/{name}", value) == value:
                self.headers.append((name, value))

    def _keep(self, channel: str, text: str) -> None:
        parts = self.texts.setdefault(channel, [])
        parts.append(text)
        self._uncounted_chars += len(text)
        if len(parts) > _PARTS:
            parts[:] = ["".join(parts)]

    async def _count_texts(self) -> None:
        texts, self.texts, self._uncounted_chars = self.texts, {}, 0
        if self._count is not None:
            self.tokens += await self._count(["".join(parts) for parts in texts.values()])

    def _glance(self, texts: Iterable[tuple[str, str]]) -> None:
        """Clear a reply's ids and names together: looking at each by itself takes several times as long."""
        values = [(channel[:-1], text) for channel, text in texts if channel.endswith("=")]
        if values and self._judge.clears([text for _, text in values]):
            self._values.update({value: value[1] for value in values})

    async def _value(self, channel: str, text: str) -> str:
        """What is sent for a value. Ids come again with every event and are judged once."""
        known = self._values.get((channel, text))
        if known is None:
            judge = self._judge
            if self._echo_judge is not None and text in self._echoes and channel.startswith("echo/"):
                judge = self._echo_judge
            known = await judge.whole(channel, text)
            if self._values_bytes > _KNOWN_BYTES:
                self._values.clear()
                self._values_bytes = 0
            self._values_bytes += len(channel) + len(text) + _VALUE_BYTES
            self._values[channel, text] = known
        return known

    async def _feed(self, channel: str, text: str, *, last: bool) -> None:
        if len(text) <= _SLICE_CHARS:
            await self._judge.feed(channel, text, last=last)
            return
        for start in range(0, len(text), _SLICE_CHARS):
            end = start + _SLICE_CHARS
            await self._judge.feed(channel, text[start:end], last=last and end >= len(text))
            await asyncio.sleep(0)
            if self.blocked:
                return

    async def finish(self) -> None:
        """The reply has ended: have the rest judged."""
        begun = perf_counter()
        await self._judge.finish()
        self.judge_s += perf_counter() - begun
        self._finished = True

    def cleared(self) -> bytes:
        """Bytes of the events that may leave now; nothing once the judge has blocked."""
        out: list[bytes] = []
        judge = self._judge
        while self._held and not self.blocked:
            piece, spans = self._held[0]
            if (piece.final or piece.done or piece.failed) and not self._finished:
                break
            ranges = [span for span in spans if not isinstance(span, str)]
            if any(end > start and judge.cleared(channel.removeprefix("=")) < end for channel, start, end in ranges):
                break
            written = self._written(piece, spans)
            if written is None:
                self._unwritable = True
                break
            self._held.popleft()
            self._held_bytes -= len(piece.raw)
            self.number = piece.number if piece.number is not None else self.number
            out.append(written)
        return b"".join(out)

    @property
    def blocked(self) -> bool:
        """Nothing more may leave: the judge has blocked, or a redaction has no place where it could be written."""
        echoed = self._echo_judge is not None and self._echo_judge.blocked
        return self._judge.blocked or echoed or self._unwritable

    @property
    def verdict(self) -> Verdict:
        """The judge's, in which a redaction that could not be written has become a block."""
        verdict = self._judge.verdict
        if self._echo_judge is not None:
            echoed = self._echo_judge.verdict
            verdict = decide([*verdict.findings, *echoed.findings], dict.fromkeys(verdict.unjudged + echoed.unjudged))
        if not self._unwritable:
            return verdict
        found = (replace(f, action="block") if f.action == "redact" else f for f in verdict.findings)
        return decide(found, verdict.unjudged)

    def _written(self, piece: Piece, spans: tuple[_Span, ...]) -> bytes | None:
        texts = [
            span if isinstance(span, str) else self._render(*span, old)
            for span, (_, old) in zip(spans, piece.texts, strict=True)
        ]
        if all(new == old for new, (_, old) in zip(texts, piece.texts, strict=True)):
            return piece.raw
        return self._wire.rewrite(piece, texts)

    def _render(self, channel: str, start: int, end: int, old: str) -> str:
        if channel.startswith("="):
            return self._sent(channel[1:], old)
        text = self._judge.render(channel, start, end) if end > start else ""
        if text != old:
            self._changed.setdefault(channel, []).append((start, end, text))
        return text

    def _sent(self, channel: str, said: str) -> str:
        """What was sent of a channel that has said this so far. Most was sent as it came, so that is not kept."""
        parts: list[str] = []
        at = 0
        for start, end, text in self._changed.get(channel, ()):
            parts += (said[at:start], text)
            at = end
        return "".join((*parts, said[at:])) if parts else said
