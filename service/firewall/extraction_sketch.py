"""What is kept of one key or tenant: counts over sliding windows, in the same few kilobytes after any number of calls.

Each window is a ring of panes; a pane that leaves it is subtracted from the window's sums. Beside them stand the
signatures of the last calls, by which near-duplicates are told, and how many calls an hour of this caller usually has.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from service.firewall.extraction_observation import HASHES, Observation
from service.scoring.cells import CELLS

HOUR_S: Final = 3_600.0
DAY_S: Final = 86_400.0
_WINDOWS: Final = ((HOUR_S / 12, 12), (HOUR_S, 24))  # seconds of a pane, panes
_RECENT: Final = 64  # signatures kept
_ALIKE: Final = HASHES // 2  # of the minima: a Jaccard similarity of about one half
_RISE, _FALL = 0.2, 0.01  # of the way to the latest hour: nights do not make a morning unusual, nor does one busy hour
_UNKNOWN_CALLS = 60.0

COUNTERS: Final = ("calls", "fresh", "single", "templated", "logprobs", "biased", "swept", "short", "greedy", "many")
_COLUMN: Final = {name: number for number, name in enumerate(COUNTERS)}
_FIRST_CELL: Final = len(COUNTERS)
_WIDTH: Final = _FIRST_CELL + CELLS


class Counts(msgspec.Struct, frozen=True):
    """What one window holds. `fresh` calls repeat no recent text word for word, `templated` are like one but for a
    slot, `swept` have logit biases that no recent call had. `cells` counts fresh calls by cell, CELLS of them.
    """

    calls: int
    fresh: int
    single: int
    templated: int
    logprobs: int
    biased: int
    swept: int
    short: int
    greedy: int
    many: int
    cells: tuple[int, ...]


class Sketch:
    """One caller's calls, in constant space. Times must not go back; one that does counts as the latest."""

    def __init__(self) -> None:
        self._rings = tuple(np.zeros((panes, _WIDTH), np.uint16) for _, panes in _WINDOWS)
        self._sums = np.zeros((len(_WINDOWS), _WIDTH), np.int64)
        self._panes = [-1] * len(_WINDOWS)
        self._signatures = np.zeros((_RECENT, HASHES + 3), np.uint32)
        self._biases = np.zeros(_RECENT, np.uint32)
        self._kept = self._kept_biases = 0
        self._usual = 0.0

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(ring.nbytes for ring in self._rings) + sum(
            array.nbytes for array in (self._sums, self._signatures, self._biases)
        )

    def add(self, seen: Observation) -> None:
        """Count one call."""
        self.slide(seen.at_s)
        columns = self._columns(seen)
        for number, ring in enumerate(self._rings):
            pane = ring[self._panes[number] % len(ring)]
            if pane[0] < np.iinfo(np.uint16).max:  # a full pane counts no more: shares stay what they are
                pane[columns] += 1
                self._sums[number, columns] += 1

    def slide(self, at_s: float) -> None:
        """Let what is older than each window go."""
        for number, (width_s, panes) in enumerate(_WINDOWS):
            now, last = int(at_s // width_s), self._panes[number]
            if now <= last:
                continue
            ring = self._rings[number]
            if width_s == HOUR_S and last >= 0:
                self._close_hour(int(ring[last % panes, 0]))
            for pane in range(max(last + 1, now - panes + 1), now + 1):
                row = ring[pane % panes]
                self._sums[number] -= row
                row[:] = 0
            self._panes[number] = now

    def windows(self) -> tuple[Counts, ...]:
        """The last hour and the last day, as of the last `add` or `slide`."""
        rows: list[list[int]] = self._sums.tolist()
        return tuple(map(_counts, rows))

    @property
    def usual_calls(self) -> float:
        """Calls of a busy hour of this caller before this one; `_UNKNOWN_CALLS` for one that is new, or makes fewer."""
        return max(self._usual, _UNKNOWN_CALLS)

    def _close_hour(self, calls: int) -> None:
        if calls:
            self._usual += (_RISE if calls > self._usual else _FALL) * (calls - self._usual)

    def _columns(self, seen: Observation) -> list[int]:
        sampling = seen.sampling
        fresh, templated = self._compare(seen)
        swept = self._is_swept(sampling.bias)
        facts = {
            "fresh": fresh,
            "single": seen.single,
            "templated": templated,
            "logprobs": sampling.logprobs,
            "biased": sampling.bias != 0,
            "swept": swept,
            "short": sampling.short,
            "greedy": sampling.greedy,
            "many": sampling.answers > 1,
        }
        columns = [0, *(_COLUMN[name] for name, holds in facts.items() if holds)]
        if fresh and 0 <= seen.cell < CELLS:
            columns.append(_FIRST_CELL + seen.cell)
        return columns

    def _compare(self, seen: Observation) -> tuple[bool, bool]:
        """Whether no recent text was the same, and whether one differed in a part of it only."""
        signature = seen.signature
        same = self._signatures[: min(self._kept, _RECENT)] == signature
        fresh = not bool(same[:, -1].any())
        templated = False
        if fresh and len(same):
            edges = same[:, HASHES] | same[:, HASHES + 1]
            templated = bool((edges | (same[:, :HASHES].sum(axis=1) >= _ALIKE)).any())
        if fresh:
            self._signatures[self._kept % _RECENT] = signature
            self._kept += 1
        return fresh, templated

    def _is_swept(self, bias: int) -> bool:
        if not bias or bool((self._biases[: min(self._kept_biases, _RECENT)] == bias).any()):
            return False
        self._biases[self._kept_biases % _RECENT] = bias
        self._kept_biases += 1
        return True


def _counts(row: list[int]) -> Counts:
    calls, fresh, single, templated, logprobs, biased, swept, short, greedy, many = row[:_FIRST_CELL]
    cells = tuple(row[_FIRST_CELL:])
    return Counts(calls, fresh, single, templated, logprobs, biased, swept, short, greedy, many, cells)
