"""Streams that do not end where they should: past the bound that was reserved, or saying the same over and over.

A provider bills every token of both. Text is counted as it comes; the bound has a margin, since providers count in
other ways than tiktoken does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from service.errors import RunawayReply

MARGIN_TOKENS = 64
"""Beside a quarter of the bound."""
SPAN_CHARS = 16_384
"""So much of one text must be nothing but repetitions (some 4,000 tokens) …"""
PERIOD_CHARS = 512
"""… of a piece no longer than this."""
_EVERY_CHARS = 4_096
_PROBE_CHARS = 64

Count = Callable[[Sequence[str]], Awaitable[int]]


class RunawayWatch:
    """Watches one reply. `bound_tokens` are those of all its choices together, None where there is no bound."""

    def __init__(self, bound_tokens: int | None, count: Count) -> None:
        self._allowed = None if bound_tokens is None else bound_tokens + bound_tokens // 4 + MARGIN_TOKENS
        self._count = count
        self._tokens = 0
        self._uncounted: list[str] = []
        self._most = 0  # tokens that the uncounted texts can have: none is shorter than a byte
        self._growing: set[str] = set()
        self._tails: dict[str, str] = {}
        self._new: dict[str, list[str]] = {}
        self._new_chars: dict[str, int] = {}

    async def take(self, texts: Sequence[tuple[str, str]]) -> None:
        """The (channel, text) of the next piece of the reply (`interfaces.Piece`). Raises RunawayReply."""
        for channel, text in texts:
            # Not values complete in themselves, nor what says again what another channel has said.
            if text and "#" not in channel and channel[0] != "=" and channel[-1] != "=":
                self._look_for_repetition(channel, text)
                # The first text of a channel may be all of it: what a provider's own search has found is no output.
                if self._allowed is not None and channel in self._growing:
                    self._uncounted.append(text)
                    self._most += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
                self._growing.add(channel)
        if self._allowed is not None and self._tokens + self._most > self._allowed:
            counted, self._uncounted, self._most = self._uncounted, [], 0
            self._tokens += await self._count(counted)
            if self._tokens > self._allowed:
                raise RunawayReply("The provider went on past the bound of its reply, which was cut.")

    def _look_for_repetition(self, channel: str, text: str) -> None:
        new = self._new.setdefault(channel, [])
        new.append(text)
        self._new_chars[channel] = self._new_chars.get(channel, 0) + len(text)
        if self._new_chars[channel] < _EVERY_CHARS:
            return
        tail = self._tails[channel] = (self._tails.get(channel, "") + "".join(new))[-SPAN_CHARS:]
        self._new[channel], self._new_chars[channel] = [], 0
        if repeats(tail):
            raise RunawayReply("The provider's reply only repeats itself, and was cut.")


def repeats(tail: str) -> bool:
    """Whether SPAN_CHARS of text are one piece of at most PERIOD_CHARS again and again."""
    if len(tail) < SPAN_CHARS:
        return False
    probe, end = tail[-_PROBE_CHARS:], len(tail)
    lowest = len(tail) - _PROBE_CHARS - PERIOD_CHARS
    # Each earlier place of the last characters is one candidate for the length of the piece.
    while (at := tail.rfind(probe, lowest, end - 1)) >= 0:
        period = len(tail) - _PROBE_CHARS - at
        if tail[period:] == tail[:-period]:
            return True
        end = at + _PROBE_CHARS
    return False
