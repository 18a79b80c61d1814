"""Very many words in arrays: which there are, what they begin with, and where a row of them stands.

A suffix array (Manber & Myers, "Suffix arrays: a new method for on-line string searches", 1990) that is sorted by the
first eight words only: 8 bytes a word, for rows of any length up to that, and no row is taken for another. Words are
told apart by 64-bit hashes that are seeded anew in each process.

Nothing here keeps other threads waiting: Python's part goes text by text, numpy's without the interpreter's lock.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterable, Sequence
from struct import Struct
from typing import Protocol

import numpy as np
import numpy.typing as npt

LONGEST = 8
"""Words of the longest row that can be looked up."""
# So many different words, and all that they begin with, are kept as they are; more of them as hashes.
_FEW = 32_768
# Words that are hashed, and places that are sorted, at a time. Blocks of 32 MiB are given back to the system whole.
_CHUNK = 4_194_304
_SLICE = 1_000_000
_MASK = (1 << 64) - 1
_ROWS = tuple(Struct(f">{size}I") for size in range(LONGEST + 1))

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.uint32]


class Numbered(Protocol):
    """Words, each with its number; 0 is no word's."""

    def __contains__(self, word: object, /) -> bool: ...

    def get(self, word: str, /) -> int | None:
        """The number of a word that is not empty, None where it is none of these."""


class _Hashed:
    """Strings that are not empty, by their hashes in order: 8 bytes each."""

    def __init__(self, hashes: Hashes) -> None:
        self._sorted = memoryview(hashes.data)

    def __contains__(self, word: object) -> bool:
        return self.get(word) is not None

    def get(self, word: object) -> int | None:
        wanted = hash(word) & _MASK
        at = bisect_left(self._sorted, wanted)
        return at if at < len(self._sorted) and self._sorted[at] == wanted else None


class WordIndex:
    """The words of texts, given one text after the other. Places are counted in words, over all texts."""

    def __init__(self, texts: Iterable[list[str]]) -> None:
        read = _Reading()
        for text in texts:
            read.add(text)
        read.end_chunk()
        self.words, self.heads = read.words()
        self.ends = np.frombuffer(read.ends, np.uint32)
        """After the last place of each text."""
        self._ends = memoryview(self.ends.data)
        tokens, counts = read.numbered()
        self._starts = np.concatenate(([0], np.cumsum(counts))).astype(np.uint32)
        self._order = _order(tokens, self._starts)
        # Big-endian, so that rows of numbers are in order where their bytes are; turned in place, part by part.
        for first in range(0, len(tokens) if sys.byteorder == "little" else 0, _CHUNK):
            tokens[first : first + _CHUNK].byteswap(inplace=True)
        self._row_bytes = memoryview(tokens.view(np.uint8).data)
        self._first_of = memoryview(self._starts.data)
        self._places = memoryview(self._order.data)

    def __len__(self) -> int:
        return len(self._order)

    def stands(self, row: Sequence[int]) -> bool:
        """Whether words of these numbers, `LONGEST` at the most, stand in a row in one of the texts."""
        wanted, at = self._asked(row)
        last = self._first_of[row[0] + 1]
        found = bisect_left(self._places, wanted, self._first_of[row[0]], last, key=at)
        return found < last and at(self._places[found]) == wanted

    def texts_with(self, row: Sequence[int]) -> Sequence[int] | npt.NDArray[np.intp]:
        """The numbers of the texts in which the row stands, in no order, one as often as it stands there."""
        wanted, at = self._asked(row)
        last = self._first_of[row[0] + 1]
        low = bisect_left(self._places, wanted, self._first_of[row[0]], last, key=at)
        high = bisect_right(self._places, wanted, low, last, key=at)
        if high - low <= 1:
            return [bisect_right(self._ends, place) for place in self._places[low:high]]
        return np.searchsorted(self.ends, self._order[low:high], "right")

    def _asked(self, row: Sequence[int]) -> tuple[bytes, Callable[[int], bytes]]:
        """(the row as bytes, what stands at a place in as many)."""
        wanted, kept = _ROWS[len(row)].pack(*row), self._row_bytes
        size = len(wanted)
        return wanted, lambda place: kept[4 * place : 4 * place + size].tobytes()


class _Distinct:
    """Hashes without repeats. What is new is sorted into the rest when there is as much of it, so seldom."""

    def __init__(self) -> None:
        self._sorted: Hashes = np.zeros(1, np.uint64)
        self._new: list[Hashes] = []

    def add(self, hashes: Hashes) -> None:
        """Take in more."""
        self._new.append(_distinct(hashes))
        if sum(map(len, self._new)) > len(self._sorted):
            self.sorted()

    def sorted(self) -> Hashes:
        """All of them and 0, in order."""
        self._sorted, self._new = _distinct(np.concatenate((self._sorted, *self._new))), []
        return self._sorted


def _distinct(hashes: Hashes) -> Hashes:
    # numpy's `unique` may count by a hash table of its own, and keeps the interpreter's lock for it.
    ordered = np.sort(hashes)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))]


class _Reading:
    """Words while they come, as hashes; the empty word, whose hash is 0, parts the texts."""

    def __init__(self) -> None:
        self.ends = array("I")
        self._size = 0
        self._chunk = array("q")
        self._chunks: list[Hashes] = []
        self._known = _Distinct()
        self._few = True
        self._seen: set[str] = set()
        self._heads = _Distinct()

    def add(self, spelled: list[str]) -> None:
        """The next text."""
        spelled.append("")
        self._seen.update(spelled)
        self._chunk.extend(map(hash, spelled))
        self._size += len(spelled)
        self.ends.append(self._size)
        if len(self._seen) > _FEW:
            self._few = False
            self._keep_heads()
        if len(self._chunk) >= _CHUNK:
            self.end_chunk()

    def end_chunk(self) -> None:
        """Take in what has come so far."""
        if self._chunk:
            self._chunks.append(np.frombuffer(self._chunk, np.uint64))
            self._known.add(self._chunks[-1])
            self._chunk = array("q")

    def _keep_heads(self) -> None:
        begun = array("q", (hash(word[:size]) for word in self._seen for size in range(len(word) + 1)))
        self._heads.add(np.frombuffer(begun, np.uint64))
        self._seen.clear()

    def words(self) -> tuple[Numbered, Container[str]]:
        """(the words with their numbers, all that they begin with)."""
        every = _Hashed(self._known.sorted())
        if not self._few:
            if self._seen:
                self._keep_heads()
            return every, _Hashed(self._heads.sorted())
        numbers = {word: number for word in self._seen if word and (number := every.get(word)) is not None}
        return numbers, {word[:size] for word in numbers for size in range(1, len(word) + 1)}

    def numbered(self) -> tuple[Places, npt.NDArray[np.int64]]:
        """(the number of the word at each place and `LONGEST` noughts, how often there is each; 0 does not count)."""
        known = self._known.sorted()
        tokens = np.zeros(self._size + LONGEST, np.uint32)
        counts = np.zeros(len(known), np.int64)
        at = 0
        while self._chunks:
            chunk = self._chunks.pop(0)
            numbers = np.searchsorted(known, chunk)
            tokens[at : at + len(chunk)] = numbers
            counts += np.bincount(numbers, minlength=len(counts))
            at += len(chunk)
        counts[0] = 0
        return tokens, counts


def _order(tokens: Places, starts: Places) -> Places:
    """Places in the order of the `LONGEST` words from there on; `starts` are the first of each word's in this order."""
    size, count = len(tokens) - LONGEST, len(starts) - 1
    bits = max(count.bit_length(), 64 // LONGEST)
    order = np.empty(int(starts[-1]), np.uint32)
    first = 1
    while first < count:
        last = int(np.searchsorted(starts, int(starts[first]) + _SLICE, "right")) - 1
        last = min(max(last, first + 1), count)
        places = np.flatnonzero((tokens[:size] >= first) & (tokens[:size] < last))
        order[int(starts[first]) : int(starts[last])] = np.take(places, _by_words(tokens, places, bits))
        first = last
    return order


def _by_words(tokens: Places, places: npt.NDArray[np.intp], bits: int) -> npt.NDArray[np.intp]:
    """How the places are ordered: by as many words as go into 64 bits, and where those are alike by all."""
    first = _key(tokens, places, 0, bits)
    by_first = np.argsort(first)
    ordered = np.take(first, by_first)
    alike = ordered[1:] == ordered[:-1]
    open_ = np.flatnonzero(np.concatenate((alike, [False])) | np.concatenate(([False], alike)))
    rows = np.sort(np.take(by_first, open_))  # of rows that are alike to the end the first place comes first
    keys = [_key(tokens, np.take(places, rows), ahead, bits) for ahead in range(0, LONGEST, 64 // bits)]
    by_first[open_] = np.take(rows, np.lexsort(keys[::-1]))
    return by_first


def _key(tokens: Places, places: npt.NDArray[np.intp], ahead: int, bits: int) -> Hashes:
    """As many words from so many `ahead` on as go into 64 bits."""
    key = np.zeros(len(places), np.uint64)
    for at in range(ahead, min(ahead + 64 // bits, LONGEST)):
        key <<= np.uint64(bits)
        key |= np.take(tokens, places + at)
    return key
