"""How many calls of one kind a busy hour of a caller holds, in three numbers, so that what is unusual is known.

Within a day the usual hour is approached slowly: a copy is not made usual by its own first hour. From the next day on
the busiest hour of the days before counts whole, so that who calls by night in one batch is unusual once at most.
"""

from __future__ import annotations

from typing import Final

_RISE, _FALL = 0.2, 0.01  # of the way to the latest hour: nights do not make a morning unusual, nor does one busy hour
_FADE = 0.9  # by day, what an earlier day's busiest hour is still worth
_UNKNOWN_CALLS: Final = 60.0


class Habit:
    """Calls of a busy hour."""

    def __init__(self) -> None:
        self._usual = 0.0
        self._before = 0.0  # the busiest hour of earlier days
        self._busiest = 0.0  # that of this day

    def close_hour(self, calls: int) -> None:
        """An hour in which the caller called at all ended with so many calls of this kind."""
        self._busiest = max(self._busiest, calls)
        self._usual += (_RISE if calls > self._usual else _FALL) * (calls - self._usual)

    def close_day(self) -> None:
        """The day of the hours that were closed is over."""
        self._before = max(self._busiest, _FADE * self._before)
        self._busiest = 0.0

    def remember(self, calls: float) -> None:
        """So many calls stood in a busy hour of earlier days, which another process saw."""
        self._before = max(self._before, calls)

    @property
    def calls(self) -> float:
        """Of a busy hour before this one; `_UNKNOWN_CALLS` for who is new, or makes fewer."""
        return max(self._usual, self._before, _UNKNOWN_CALLS)
