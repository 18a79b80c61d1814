"""Streams that do not end where they should: past the bound that was reserved, or saying the same over and over.

A provider bills every token of both. Text is counted as it comes; the bound has a margin, since providers count in
other ways than tiktoken does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from service.errors import RunawayReply

MARGIN_TOKENS = 64
"""Beside a quarter of the bound."""
SPAN_CHARS = 16_384
"""So much of one text must be nothing but repetitions (some 4,000 tokens) …"""
PERIOD_CHARS = 512
"""… of a piece no longer than this."""
COUNTED_SPAN_CHARS = 32_768
"""Where a counter runs through it, so much of a text (some 8,000 tokens) must say the same between its numbers."""
RUN_ITEMS = 24
"""As many of what stands between two numbers are looked at together: where each says but yes or no, hardly two such
runs are alike …"""
DISTINCT_SHARE = 1 / 128
"""… and of all runs at most this share, or one, may be different ones."""
_MIN_COUNTED = 2 * RUN_ITEMS
_MAX_WORDS = 256  # different ones: more are not said within PERIOD_CHARS
_EVERY_CHARS = 4_096
_PROBE_CHARS = 64
_MAX_DIGITS = 9

# Numbers, words, and single signs.
_WORD = re.compile(r"\d+|[^\W\d]+|[^\w\s]")

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
        tail = self._tails[channel] = (self._tails.get(channel, "") + "".join(new))[-COUNTED_SPAN_CHARS:]
        self._new[channel], self._new_chars[channel] = [], 0
        if repeats(tail[-SPAN_CHARS:]) or repeats_counting(tail):
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


def repeats_counting(tail: str) -> bool:
    """Whether COUNTED_SPAN_CHARS of text say the same again and again with a counter between: "1. foo 2. foo 3. foo …".

    A ratio of the different runs of words to all of them: data, however alike its rows are, has hardly two runs alike,
    since what differs in one row differs in all runs around it. Counting alone is none: it may have been asked for.
    """
    if len(tail) < COUNTED_SPAN_CHARS:
        return False
    words = _WORD.findall(tail)
    if len({word for word in words if not word[0].isdecimal()}) > _MAX_WORDS:
        return False
    counted = _counted(words)
    if len(counted) < _MIN_COUNTED:
        return False
    ends = zip([-1, *counted], [*counted, len(words)], strict=True)
    items = [" ".join(words[before + 1 : at]) for before, at in ends]
    if max(map(len, items)) > 2 * PERIOD_CHARS or not any(map(str.isalpha, items[1])):
        return False
    whole = items[1:-1]  # the first and the last may be parts
    runs = {tuple(whole[at : at + RUN_ITEMS]) for at in range(len(whole) - RUN_ITEMS + 1)}
    return len(runs) <= max(1, int((len(whole) - RUN_ITEMS + 1) * DISTINCT_SHARE))


def _counted(words: Sequence[str]) -> list[int]:
    """Where the longest counter among these words stands, up or down by one each time."""
    numbers = [(at, int(word)) for at, word in enumerate(words) if len(word) <= _MAX_DIGITS and word.isdecimal()]
    longest: list[int] = []
    for step in (1, -1):
        reached: dict[int, tuple[int, int]] = {}  # by number: how many the counter to it has counted, and its place
        previous: list[int] = []
        for place, (_, number) in enumerate(numbers):
            length, before = reached.get(number - step, (0, -1))
            previous.append(before)
            if length >= reached.get(number, (0, -1))[0]:
                reached[number] = (length + 1, place)
        _, place = max(reached.values(), default=(0, -1))
        counted: list[int] = []
        while place >= 0:
            counted.append(numbers[place][0])
            place = previous[place]
        longest = max(longest, counted[::-1], key=len)
    return longest
