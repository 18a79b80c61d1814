"""Holds a streamed reply back: whole events leave in order, each as soon as all of its text is cleared."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

from msgspec.structs import replace

from service.firewall.verdict import Verdict, decide
from service.interfaces import Piece, ReplyJudge, Wire

_SLICE_CHARS = 4_096
"""Of a long text the judge gets so much at once: it works on the event loop, and others want their turn."""


class Release:
    """One reply between the judge and the caller.

    `judge_s` is the seconds spent in the judge; `texts` keeps what the provider delivered, by channel, to count its
    tokens.
    """

    def __init__(self, judge: ReplyJudge, wire: Wire) -> None:
        self._judge = judge
        self._wire = wire
        self._held: deque[tuple[Piece, tuple[tuple[str, int, int], ...]]] = deque()
        self._lengths: dict[str, int] = {}
        self._finished = False
        self._unwritable = False
        self.texts: dict[str, list[str]] = {}
        self.judge_s = 0.0

    async def take(self, piece: Piece) -> None:
        """Hand one piece to the judge and hold it."""
        spans: list[tuple[str, int, int]] = []
        begun = perf_counter()
        for channel, text in piece.texts:
            start = self._lengths.get(channel, 0)
            self._lengths[channel] = start + len(text)
            spans.append((channel, start, start + len(text)))
            if not channel.partition("#")[1]:
                self.texts.setdefault(channel, []).append(text)
            await self._feed(channel, text)
            if self.blocked:
                break
        self.judge_s += perf_counter() - begun
        self._held.append((piece, tuple(spans)))

    async def _feed(self, channel: str, text: str) -> None:
        if len(text) <= _SLICE_CHARS:
            await self._judge.feed(channel, text)
            return
        for start in range(0, len(text), _SLICE_CHARS):
            await self._judge.feed(channel, text[start : start + _SLICE_CHARS])
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
            if any(end > start and judge.cleared(channel) < end for channel, start, end in spans):
                break
            written = self._written(piece, spans)
            if written is None:
                self._unwritable = True
                break
            self._held.popleft()
            out.append(written)
        return b"".join(out)

    @property
    def blocked(self) -> bool:
        """Nothing more may leave: the judge has blocked, or a redaction has no place where it could be written."""
        return self._judge.blocked or self._unwritable

    @property
    def verdict(self) -> Verdict:
        """The judge's, in which a redaction that could not be written has become a block."""
        verdict = self._judge.verdict
        if not self._unwritable:
            return verdict
        found = (replace(f, action="block") if f.action == "redact" else f for f in verdict.findings)
        return decide(found, verdict.unjudged)

    def _written(self, piece: Piece, spans: tuple[tuple[str, int, int], ...]) -> bytes | None:
        texts = [self._judge.render(*span) if span[2] > span[1] else "" for span in spans]
        if all(new == old for new, (_, old) in zip(texts, piece.texts, strict=True)):
            return piece.raw
        return self._wire.rewrite(piece, texts)
