"""The same as `patterns.PatternSet` for very many texts: 22 bytes a pattern instead of an automaton's thousands.

A pattern is kept as its first eight bytes, the number of its text and that of its disguise, in the order of the
patterns, and is written out anew where a text begins as it does. A text is looked up by its eight bytes at every place
(anchors: after Manber, "Finding similar files in a large file system", 1994); what begins as a pattern does is followed
through the sorted patterns, so that what is held is exactly what can still become a match. Bytes are those of UTF-8,
which keeps both order and beginnings.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence, Set
from copy import copy
from functools import lru_cache
from itertools import chain, groupby

import numpy as np
import numpy.typing as npt

from service.firewall.owners import Owner, Owners, ProtectedText, of_one_pattern
from service.firewall.patterns import (
    DISGUISES,
    LETTERS,
    MOST_BEGUN,
    VISIBLE,
    Begun,
    Form,
    begun,
    patterns_of,
    written,
)

HEAD = 8
_COLUMNS = 4
_KEY = HEAD * _COLUMNS
# Fewer places than this are looked up one by one: a call of numpy costs as much as so many.
_FEW = 24
_KEPT_PATTERNS = 8_192

Rows = npt.NDArray[np.int64]


class PatternIndex:
    """Patterns of one projection, shared by all replies."""

    def __init__(
        self,
        form: Form,
        texts: Sequence[ProtectedText],
        heads: npt.NDArray[np.uint64],
        owners: npt.NDArray[np.uint32],
        numbers: npt.NDArray[np.uint8],
    ) -> None:
        self.form: Form = form
        self._texts = texts
        self._heads = heads
        self._sorted = memoryview(heads.data)
        self._owners = owners
        self._numbers = numbers
        self.gone: Set[str] = frozenset()
        """Ids of texts that are found no longer."""
        # Looked up again and again where many secrets begin alike: the middles of every search among them.
        self.pattern = lru_cache(_KEPT_PATTERNS)(self._pattern)

    def __len__(self) -> int:
        return len(self._heads)

    @property
    def kept_bytes(self) -> int:
        """What the arrays take, without the secrets."""
        return self._heads.nbytes + self._owners.nbytes + self._numbers.nbytes

    def tracker(self) -> IndexTracker:
        """For one projected text."""
        return IndexTracker(self)

    def holds(self, text: str) -> bool:
        """Whether a pattern stands in a whole projected text."""
        return bool(self.tracker().feed(text, list(range(len(text)))))

    def _pattern(self, at: int) -> bytes:
        """The pattern at this place of the order."""
        value, number = self._texts[self._owners[at]].value, int(self._numbers[at])
        return next(text for form, text in written(value, number) if form == self.form).encode()

    def owner(self, at: int) -> Owner | None:
        """Whose it is; None where it is gone."""
        text = self._texts[self._owners[at]]
        if text.id in self.gone:
            return None
        disguise = DISGUISES[self._numbers[at]][0]
        if text.kind == "prompt" and disguise == "exact":
            disguise = "whole"
        return Owner(text.name, text.kind, disguise, text.tenant)

    def begins(self, text: bytes) -> bool:
        """Whether a pattern begins with these bytes, fewer than `HEAD`."""
        least = int.from_bytes(text.ljust(HEAD, b"\0"), "big")
        at = bisect_left(self._sorted, least)
        return at < len(self._sorted) and self._sorted[at] < least + (1 << 8 * (HEAD - len(text)))

    def beginning(self, text: str) -> list[tuple[str, Owners]]:
        """(pattern, whose it is) of patterns longer than `text` that begin with it; none where very many do."""
        raw = text.encode("utf-8", "surrogatepass")
        least = int.from_bytes(raw[:HEAD].ljust(HEAD, b"\0"), "big")
        low = bisect_left(self._sorted, least)
        high = bisect_left(self._sorted, least + (1 << 8 * max(HEAD - len(raw), 0)), low)
        if len(raw) >= HEAD:
            low = bisect_left(range(high), raw, low, high, key=self.pattern)
        elif high - low > MOST_BEGUN:
            return []
        found: list[tuple[str, Owners]] = []
        for at in range(low, min(high, low + MOST_BEGUN)):
            if not (pattern := self.pattern(at)).startswith(raw):
                break
            if len(pattern) > len(raw) and (owner := self.owner(at)) is not None:
                found.append((pattern.decode("utf-8", "surrogatepass"), (owner,)))
        return found

    def anchors(self, data: bytes, first: int, last: int) -> Iterable[tuple[int, int, int]]:
        """(start, first pattern, last pattern + 1) of the places from `first` until before `last` at which the first
        eight bytes are those of patterns.
        """
        heads, size = self._sorted, len(self._sorted)
        places: Iterable[int] = range(first, last)
        if last - first > _FEW:
            seen = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), HEAD)[first:last]
            asked = np.ascontiguousarray(seen).view(">u8").ravel().astype(np.uint64)
            at = np.minimum(np.searchsorted(self._heads, asked), size - 1)
            places = (np.flatnonzero(self._heads[at] == asked) + first).tolist()
        for start in places:
            head = int.from_bytes(data[start : start + HEAD], "big")
            low = bisect_left(heads, head)
            if low < size and heads[low] == head:
                yield start, low, bisect_right(heads, head, low)

    def follow(self, text: bytes, low: int, high: int) -> tuple[list[int], int]:
        """(patterns with which the text begins, the first that begins with the text and is longer, or -1) among those
        from `low` until before `high`.
        """
        whole: list[int] = []
        while low < high:
            pattern = self.pattern(low)
            if text.startswith(pattern):
                whole.append(low)
                low += 1
            elif pattern.startswith(text):
                return whole, low
            elif pattern > text:
                break
            else:
                shared = next(at for at, (a, b) in enumerate(zip(pattern, text, strict=False)) if a != b)
                low = bisect_left(range(high), text[: shared + 1], low + 1, high, key=self.pattern)
        return whole, -1


class IndexTracker:
    """Follows one projected text. `held` is the offset of the earliest character that may still begin a match."""

    def __init__(self, index: PatternIndex) -> None:
        self._index = index
        self._tail = b""
        self._offsets: list[int] = []  # one for each byte
        self._live: list[tuple[int, int, int]] = []  # (start in the tail, first pattern, last pattern + 1)
        self._next = 0  # the first place of the tail that was not looked up
        self.held: int | None = None

    def feed(self, text: str, offsets: list[int]) -> list[tuple[Owners, int, int]]:
        """(owners, start, end) of the matches that end in this projected text; offsets are those of the whole text."""
        if not text:
            return []
        index = self._index
        raw = text.encode("utf-8", "surrogatepass")
        if len(raw) > len(text):
            lengths = (len(char.encode("utf-8", "surrogatepass")) for char in text)
            offsets = [at for at, length in zip(offsets, lengths, strict=True) for _ in range(length)]
        data, places = self._tail + raw, self._offsets + offsets
        size = len(data)
        until = max(self._next, size - HEAD + 1)
        found: list[tuple[Owners, int, int]] = []
        live: list[tuple[int, int, int]] = []
        for start, low, high in chain(self._live, index.anchors(data, self._next, until)):
            whole, alive = index.follow(data[start:], low, high)
            # Patterns that begin in one place and are equally long are the same, of several texts.
            for length, same in groupby(whole, key=lambda at: len(index.pattern(at))):
                if owners := of_one_pattern(owner for at in same if (owner := index.owner(at)) is not None):
                    found.append((owners, places[start], places[start + length - 1] + 1))
            if alive >= 0:
                live.append((start, alive, high))
        begun = next((at for at in range(until, size) if index.begins(data[at:])), size)
        first = min(live[0][0], begun) if live else begun
        self._tail, self._offsets = data[first:], places[first:]
        self._live = [(start - first, low, high) for start, low, high in live]
        self._next = begun - first  # whatever is between the last place looked up and this begins nothing
        self.held = places[first] if first < size else None
        return found

    def begun(self) -> list[Begun]:
        """The patterns that the text so far ends in the middle of."""
        return begun(self._tail.decode("utf-8", "ignore"), self._index.beginning)

    def copy(self) -> IndexTracker:
        """One that goes on from here by itself."""
        return copy(self)

    @property
    def standing(self) -> tuple[bytes, list[int]]:
        """What may still become a match, and its offsets: all that matters of what it was told."""
        return self._tail, self._offsets


def build(texts: Sequence[ProtectedText]) -> tuple[PatternIndex, ...]:
    """One index for each form that has patterns; prompts are looked for by their letters. Slow (a tenth of a
    millisecond a text): not for the event loop.

    The work is done in strides, and sorting is numpy's, so that other threads get their turn.
    """
    collected: dict[Form, _Collected] = {LETTERS: _Collected(), VISIBLE: _Collected()}
    for owner, text in enumerate(texts):
        seen: set[str] = set()
        known: set[tuple[Form, str]] = set()
        for number, (disguise, write) in enumerate(DISGUISES):
            spelled = write(text.value)
            if spelled in seen:
                continue
            seen.add(spelled)
            for each in patterns_of(spelled, disguise):
                if each not in known and (text.kind == "secret" or each[0] == LETTERS):
                    known.add(each)
                    collected[each[0]].add(each[1], owner, number)
    made: list[PatternIndex] = []
    for form, patterns in collected.items():
        keys, owners, numbers = patterns.arrays()
        if not len(keys):
            continue
        index = PatternIndex(form, texts, keys[:, 0], owners, numbers)
        order = _order(index, keys, np.arange(len(keys)), 0)
        heads = np.ascontiguousarray(keys[order, 0])
        made.append(PatternIndex(form, texts, heads, owners[order], numbers[order]))
    return tuple(made)


class _Collected:
    """Patterns while they come: the first bytes of each, whose it is, and in which disguise."""

    def __init__(self) -> None:
        self._keys = bytearray()
        self._owners = array("I")
        self._numbers = bytearray()

    def add(self, pattern: str, owner: int, number: int) -> None:
        self._keys += pattern[:_KEY].encode()[:_KEY].ljust(_KEY, b"\0")
        self._owners.append(owner)
        self._numbers.append(number)

    def arrays(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        keys = np.frombuffer(self._keys, ">u8").reshape(-1, _COLUMNS).astype(np.uint64)
        return keys, np.frombuffer(self._owners, np.uint32), np.frombuffer(self._numbers, np.uint8)


def _order(index: PatternIndex, keys: npt.NDArray[np.uint64], rows: Rows, depth: int) -> Rows:
    """The rows in the order of their patterns; `keys` (n_rows, 4) are the bytes of each from `depth` on."""
    by_key = np.lexsort(tuple(keys[:, column] for column in reversed(range(_COLUMNS))))
    rows, keys = rows[by_key], keys[by_key]
    same = (keys[1:] == keys[:-1]).all(axis=1)
    # Where the last byte is filled the patterns may go on.
    open_ = same & ((keys[1:, -1] & np.uint64(0xFF)) != 0)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], open_, [False])).astype(np.int8)))
    for first, last in zip(edges[::2], edges[1::2] + 1, strict=True):
        group = rows[first:last]
        depth_bytes = b"".join(
            index.pattern(int(row))[depth + _KEY : depth + 2 * _KEY].ljust(_KEY, b"\0") for row in group
        )
        deeper = np.frombuffer(depth_bytes, ">u8").reshape(-1, _COLUMNS).astype(np.uint64)
        rows[first:last] = _order(index, deeper, group, depth + _KEY)
    return rows
