"""What is kept of one key or tenant: counts over sliding windows, in the same few kilobytes after any number of calls.

Each window is a ring of panes; a pane that leaves it is subtracted from the window's sums. Beside them stand the
signatures of the last calls, by which near-duplicates are told, and how many calls an hour of this caller usually has.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.extraction_habit import Habit
from service.firewall.extraction_observation import HASHES, Observation
from service.scoring.cells import CELLS

HOUR_S: Final = 3_600.0
DAY_S: Final = 86_400.0
_HOURS: Final = 24
_WINDOWS: Final = ((HOUR_S / 12, 12), (HOUR_S, _HOURS))  # seconds of a pane, panes
_RECENT: Final = 64  # signatures kept
_ALIKE: Final = HASHES // 2  # of the minima: a Jaccard similarity of about one half
_RULES: Final = 4  # a template is what one in so many of the recent texts share: two may open alike by chance

COUNTERS: Final = (
    *("calls", "fresh", "single", "templated", "logprobs", "biased", "swept", "short", "greedy", "many"),
    *("lone", "slotted"),
)
_COLUMN: Final = {name: number for number, name in enumerate(COUNTERS)}
_LONE_CELLS: Final = len(COUNTERS)
_SLOTTED_CELLS: Final = _LONE_CELLS + CELLS
_WIDTH: Final = _SLOTTED_CELLS + CELLS


class Counts(msgspec.Struct, frozen=True):
    """What one window holds. `fresh` calls repeat no recent text word for word, `templated` are like many but for a
    slot, `swept` have logit biases that no recent call had. Of the fresh calls that are no later turn, `slotted` are
    templated and `lone` are not; both are counted by cell as well, CELLS of them.
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
    lone: int
    slotted: int
    lone_cells: tuple[int, ...]
    slotted_cells: tuple[int, ...]


class Sketch:
    """One caller's calls, in constant space. Times must not go back; one that does counts as the latest."""

    def __init__(self) -> None:
        self._rings = tuple(np.zeros((panes, _WIDTH), np.uint16) for _, panes in _WINDOWS)
        self._sums = np.zeros((len(_WINDOWS), _WIDTH), np.int64)
        self._panes = [-1] * len(_WINDOWS)
        self._signatures = np.zeros((_RECENT, HASHES + 3), np.uint32)
        self._biases = np.zeros(_RECENT, np.uint32)
        self._kept = self._kept_biases = 0
        self._lone, self._slotted = Habit(), Habit()

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
                self._close_hour(last, now, ring[last % panes])
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
    def usual_lone(self) -> float:
        """Lone calls of a busy hour of this caller before this one."""
        return self._lone.calls

    @property
    def usual_slotted(self) -> float:
        """The same of slotted calls."""
        return self._slotted.calls

    def remember(self, calls: float) -> None:
        """So many calls, of whatever kind, stood in a busy hour of this caller that another process saw."""
        self._lone.remember(calls)
        self._slotted.remember(calls)

    def _close_hour(self, hour: int, now: int, pane: npt.NDArray[np.uint16]) -> None:
        """Numbers of hours; `now` is the one that has begun."""
        for habit, name in ((self._lone, "lone"), (self._slotted, "slotted")):
            if pane[0]:
                habit.close_hour(int(pane[_COLUMN[name]]))
            if now // _HOURS > hour // _HOURS:
                habit.close_day()

    def _columns(self, seen: Observation) -> list[int]:
        sampling = seen.sampling
        fresh, templated = self._compare(seen)
        swept = self._is_swept(sampling.bias)
        lone, slotted = fresh and seen.single and not templated, templated and seen.single
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
            "lone": lone,
            "slotted": slotted,
        }
        columns = [0, *(_COLUMN[name] for name, holds in facts.items() if holds)]
        if (lone or slotted) and 0 <= seen.cell < CELLS:
            columns.append((_LONE_CELLS if lone else _SLOTTED_CELLS) + seen.cell)
        return columns

    def _compare(self, seen: Observation) -> tuple[bool, bool]:
        """Whether no recent text was the same, and whether many differed in a part of it only."""
        signature = seen.signature
        same = self._signatures[: min(self._kept, _RECENT)] == signature
        fresh = not bool(same[:, -1].any())
        templated = False
        if fresh and len(same):
            alike = same[:, HASHES] | same[:, HASHES + 1] | (same[:, :HASHES].sum(axis=1) >= _ALIKE)
            templated = int(alike.sum()) * _RULES >= len(same)
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
    counted = dict(zip(COUNTERS, row, strict=False))
    lone, slotted = row[_LONE_CELLS:_SLOTTED_CELLS], row[_SLOTTED_CELLS:]
    return Counts(**counted, lone_cells=tuple(lone), slotted_cells=tuple(slotted))
