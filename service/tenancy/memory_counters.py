"""Quotas counted in this process (`counters.Counters`). Not for several threads: it belongs to the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from service.tenancy.counters import (
    DAY_MS,
    LEASE_MS,
    LIMITS,
    MINUTE_MS,
    NEVER,
    STEP_MS,
    Amount,
    Outcome,
    Scope,
    Standing,
)

_SWEEP = 1_024
"""Scopes after which those that nobody has used since yesterday are let go."""


def steady_clock() -> Callable[[], int]:
    """Milliseconds since the epoch that never jump: a corrected wall clock must neither free nor freeze a quota."""
    offset = time.time() - time.monotonic()
    return lambda: int((offset + time.monotonic()) * 1e3)


class _Held(msgspec.Struct, eq=False):
    """What one reservation holds; `lapsed` where its lease has ended, and then it holds nothing."""

    tenant: str
    keys: tuple[str, ...]
    amount: Amount
    at: int
    until: int
    lapsed: bool = False


class MemoryCounters:
    """All tenants' counters. `clock` gives milliseconds since the epoch."""

    def __init__(self, clock: Callable[[], int] | None = None, *, lease_ms: int = LEASE_MS) -> None:
        self._clock = clock or steady_clock()
        self._lease_ms = lease_ms
        self._scopes: dict[tuple[str, str], _Counts] = {}
        self._held: dict[str, dict[str, _Held]] = {}

    async def reserve(self, reservation_id: str, tenant: str, scopes: Sequence[Scope], amount: Amount) -> Outcome:
        """See `counters.Counters`."""
        now = self._clock()
        held = self._held.setdefault(tenant, {})
        self._lapse(held, now)
        if reservation_id in held:
            raise ValueError("a reservation is made once")
        counts = [self._counts(tenant, scope.key_id, now) for scope in scopes]
        for number, (scope, counted) in enumerate(zip(scopes, counts, strict=True)):
            refusal = counted.refusal(scope, amount, now)
            if refusal is not None:
                place, wait_ms = refusal
                return Outcome(now, _standings(counts, now), LIMITS[place], number, wait_ms)
        for counted in counts:
            counted.add(now, amount)
        keys = tuple(scope.key_id for scope in scopes)
        held[reservation_id] = _Held(tenant, keys, amount, now, now + self._lease_ms)
        return Outcome(now, _standings(counts, now))

    async def settle(self, reservation_id: str, tenant: str, used: Amount) -> bool:
        """See `counters.Counters`."""
        held = self._held.get(tenant, {}).pop(reservation_id, None)
        if held is None:
            return False
        self._replace(held, used)
        return True

    async def renew(self, reservations: Sequence[tuple[str, str]]) -> None:
        """See `counters.Counters`."""
        until = self._clock() + self._lease_ms
        for reservation_id, tenant in reservations:
            held = self._held.get(tenant, {}).get(reservation_id)
            if held is not None and not held.lapsed:
                held.until = until

    async def ping(self) -> None:
        """It is always there."""

    async def close(self) -> None:
        """Nothing is open."""

    def _counts(self, tenant: str, key_id: str, now: int) -> _Counts:
        counted = self._scopes.get((tenant, key_id))
        if counted is None:
            if len(self._scopes) % _SWEEP == _SWEEP - 1:
                self._scopes = {name: each for name, each in self._scopes.items() if not each.idle(now)}
            counted = self._scopes[tenant, key_id] = _Counts()
        counted.expire(now)
        return counted

    def _lapse(self, held: dict[str, _Held], now: int) -> None:
        """Give back what dead workers held. A mark stays for a day, so that a late settlement is counted once."""
        for name, each in [(name, each) for name, each in held.items() if each.until <= now]:
            if each.lapsed:
                del held[name]
                continue
            self._replace(each, Amount(0))
            each.amount, each.lapsed, each.until = Amount(0), True, now + DAY_MS

    def _replace(self, held: _Held, used: Amount) -> None:
        for key_id in held.keys:
            counted = self._scopes.get((held.tenant, key_id))
            if counted is not None:
                change = used.tokens - held.amount.tokens, used.nanousd - held.amount.nanousd
                counted.change(held.at, *change, ended=not held.lapsed)


class _Step(msgspec.Struct, eq=False):
    """What was used in one second."""

    requests: int = 0
    tokens: int = 0


class _Counts:
    """Of one scope."""

    def __init__(self) -> None:
        self._steps: dict[int, _Step] = {}  # by second since the epoch, oldest first
        self._requests = self._tokens = 0
        self._day = self._day_tokens = self._day_nanousd = 0
        self._running = 0

    def expire(self, now: int) -> None:
        for step in [step for step in self._steps if _ends(step) <= now]:
            gone = self._steps.pop(step)
            self._requests -= gone.requests
            self._tokens -= gone.tokens
        if now // DAY_MS != self._day:
            self._day, self._day_tokens, self._day_nanousd = now // DAY_MS, 0, 0

    def idle(self, now: int) -> bool:
        self.expire(now)
        return not (self._running or self._steps or self._day_tokens or self._day_nanousd)

    def refusal(self, scope: Scope, amount: Amount, now: int) -> tuple[int, int] | None:
        """The number of the limit that does not hold one more request of this amount, and the milliseconds to wait."""
        to_midnight = DAY_MS - now % DAY_MS
        used = (self._running, self._requests, self._tokens, self._day_tokens, self._day_nanousd)
        asked = (1, 1, amount.tokens, amount.tokens, amount.nanousd)
        for place, bound in enumerate(scope.bounds):
            if bound is None or used[place] + asked[place] <= bound:
                continue
            if asked[place] > bound:
                return place, NEVER
            if place == 0:
                return place, STEP_MS
            if place > 2:
                return place, to_midnight
            return place, self._wait_ms(used[place] + asked[place] - bound, now, tokens=place == 2)
        return None

    def add(self, now: int, amount: Amount) -> None:
        step = self._steps.setdefault(now // STEP_MS, _Step())
        step.requests += 1
        step.tokens += amount.tokens
        self._requests += 1
        self._tokens += amount.tokens
        self._day_tokens += amount.tokens
        self._day_nanousd += amount.nanousd
        self._running += 1

    def change(self, at: int, tokens: int, nanousd: int, *, ended: bool) -> None:
        step = self._steps.get(at // STEP_MS)
        if step is not None:
            step.tokens += tokens
            self._tokens += tokens
        if at // DAY_MS == self._day:
            self._day_tokens += tokens
            self._day_nanousd += nanousd
        self._running -= ended

    def standing(self, now: int) -> Standing:
        reset = max(0, _ends(max(self._steps)) - now) if self._steps else 0
        return Standing(self._requests, self._tokens, reset, self._day_tokens, self._day_nanousd, self._running)

    def _wait_ms(self, excess: int, now: int, *, tokens: bool) -> int:
        for step in sorted(self._steps):
            excess -= self._steps[step].tokens if tokens else self._steps[step].requests
            if excess <= 0:
                return _ends(step) - now
        raise AssertionError("the window holds less than its total")


def _ends(step: int) -> int:
    """When the last request of this second has left the minute."""
    return (step + 1) * STEP_MS + MINUTE_MS


def _standings(counts: Sequence[_Counts], now: int) -> tuple[Standing, ...]:
    return tuple(counted.standing(now) for counted in counts)
