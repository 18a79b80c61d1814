"""Leaves a provider that keeps failing alone for a while, then asks it once before it is trusted again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Of one provider. After `failures` in a row (0: never) nothing passes for `open_s`, then one call alone does:
    where it succeeds all pass again, where it fails nothing does for as long again.

    Whoever `enter`s says afterwards how it went, with what `enter` gave. What was begun before the breaker last moved
    changes nothing any more: it tells of another time.
    """

    def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures = failures
        self._open_s = open_s
        self._clock = clock
        self._in_a_row = 0
        self._opened: float | None = None
        self._probing = False
        self._move = 0

    @property
    def state(self) -> State:
        """`half-open` from the end of the pause until the one call has been answered."""
        if self._opened is None:
            return "closed"
        return "open" if self._clock() < self._opened + self._open_s else "half-open"

    @property
    def passes(self) -> bool:
        """Whether a call could enter now."""
        return self.state == "closed" or (self.state == "half-open" and not self._probing)

    @property
    def pause_s(self) -> float:
        """How long nothing passes from now on; 0.0 where that is not known or something may."""
        return 0.0 if self._opened is None else max(0.0, self._opened + self._open_s - self._clock())

    def enter(self) -> int | None:
        """Begin a call; None where it may not pass."""
        if not self.passes:
            return None
        self._probing = self._opened is not None
        return self._move

    def succeeded(self, entry: int) -> None:
        """The provider answered."""
        if entry != self._move:
            return
        self._in_a_row = 0
        if self._opened is not None:
            self._opened, self._probing = None, False
            self._move += 1

    def failed(self, entry: int) -> None:
        """The provider could not be reached, was silent, or is out of service by its own words."""
        if entry != self._move:
            return
        self._in_a_row += 1
        if self._opened is not None or (self._failures and self._in_a_row >= self._failures):
            self._opened, self._probing, self._in_a_row = self._clock(), False, 0
            self._move += 1

    def left(self, entry: int) -> None:
        """Nobody waited for how it would go: the next call finds out."""
        if entry == self._move:
            self._probing = False
