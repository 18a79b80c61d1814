"""Quotas kept in this process: the worst case is reserved before the call, what was used is settled after it.

A reservation is all or nothing over every limit of its tenant. Minutes slide, in steps of a second; days are days in
UTC, as providers bill them. What is settled replaces what was reserved at the time of the reservation.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import msgspec

from service.errors import ConfigError, LimitExceeded
from service.settings import Limits, Settings

MINUTE_S = 60.0
DAY_S = 86_400.0
STEP_S = 1.0


def check(settings: Settings) -> None:
    """Refuse limits that this version cannot keep. Raises ConfigError naming the key."""
    if not settings.counters.url.startswith("memory:"):
        scheme = settings.counters.url.partition(":")[0]
        raise ConfigError(f'counters.url: {scheme}:// is not built yet; this version counts in "memory://"')
    named = [("limits", settings.limits)]
    named += [(f"tenants[{i}].limits", t.limits) for i, t in enumerate(settings.tenants) if t.limits is not None]
    for where, limits in named:
        if limits.budget_usd_per_day is not None:
            raise ConfigError(f"{where}.budget_usd_per_day: no prices of models are known yet; limit tokens_per_day")


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch that never jump: a corrected wall clock must neither free nor freeze a quota."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


class Held(msgspec.Struct, eq=False):
    """What one reservation holds: `tokens` at the time `at`."""

    tenant: str
    tokens: int
    at: float


class Quota:
    """All tenants' counters. Not for several threads: it belongs to the event loop, where nothing here waits."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or steady_clock()
        self._tenants: dict[str, _Counters] = {}
        self._open: dict[str, Held] = {}

    def reserve(self, reservation_id: str, tenant: str, limits: Limits, tokens: int) -> tuple[tuple[str, str], ...]:
        """Set one request and `tokens` aside; return the `x-ratelimit-*` headers.

        Raises LimitExceeded, and then nothing is set aside, naming the limit and whose it is.
        """
        if reservation_id in self._open:
            raise ValueError("a reservation is made once")
        now = self._clock()
        counters = self._tenants.setdefault(tenant, _Counters())
        counters.expire(now)
        refusal = counters.refusal(limits, tokens, now)
        if refusal is not None:
            name, wait_s = refusal
            headers = dict(counters.headers(limits, now))
            if math.isinf(wait_s):
                headers |= {"retry-after": str(int(MINUTE_S)), "x-should-retry": "false"}
                message = f"The request alone is over tenant {tenant!r}'s limit {name} of {getattr(limits, name)}."
            else:
                headers["retry-after"] = str(max(1, math.ceil(wait_s)))
                message = f"Tenant {tenant!r} has reached its limit {name} of {getattr(limits, name)}."
            raise LimitExceeded(message, headers=headers)
        counters.add(now, tokens)
        self._open[reservation_id] = Held(tenant, tokens, now)
        return counters.headers(limits, now)

    def settle(self, reservation_id: str, tokens: int) -> bool:
        """Replace what was reserved by what was used; False where that was done before, and nothing changes."""
        held = self._open.pop(reservation_id, None)
        if held is None:
            return False
        counters = self._tenants[held.tenant]
        counters.expire(self._clock())
        counters.settle(held.at, tokens - held.tokens)
        return True

    def in_flight(self) -> int:
        """Reservations that are not settled."""
        return len(self._open)


class _Window:
    """Amounts of the last minute by second, newest last."""

    def __init__(self) -> None:
        self._steps: deque[list[float]] = deque()
        self.total = 0

    def expire(self, now: float) -> None:
        while self._steps and self._steps[0][0] + STEP_S + MINUTE_S <= now:
            self.total -= int(self._steps.popleft()[1])

    def add(self, now: float, amount: int) -> None:
        step = now // STEP_S * STEP_S
        if not self._steps or self._steps[-1][0] != step:
            self._steps.append([step, 0])
        self._steps[-1][1] += amount
        self.total += amount

    def adjust(self, at: float, delta: int) -> None:
        step = at // STEP_S * STEP_S
        for held in reversed(self._steps):
            if held[0] == step:
                held[1] += delta
                self.total += delta
                return

    def wait_s(self, excess: int, now: float) -> float:
        """Seconds until `excess` of the total has left the window; infinite where it is not in it."""
        for step, amount in self._steps:
            excess -= int(amount)
            if excess <= 0:
                return step + STEP_S + MINUTE_S - now
        return math.inf

    def reset_s(self, now: float) -> float:
        return max(0.0, self._steps[-1][0] + STEP_S + MINUTE_S - now) if self._steps else 0.0


class _Counters:
    """Of one tenant."""

    def __init__(self) -> None:
        self._requests = _Window()
        self._tokens = _Window()
        self._day = 0
        self._day_tokens = 0
        self._running = 0

    def expire(self, now: float) -> None:
        self._requests.expire(now)
        self._tokens.expire(now)
        if now // DAY_S != self._day:
            self._day, self._day_tokens = int(now // DAY_S), 0

    def refusal(self, limits: Limits, tokens: int, now: float) -> tuple[str, float] | None:
        """The limit that does not hold one more request of so many tokens, and the seconds to wait for it."""
        if limits.concurrency is not None and self._running >= limits.concurrency:
            return "concurrency", 1.0
        if limits.requests_per_minute is not None:
            excess = self._requests.total + 1 - limits.requests_per_minute
            if excess > 0:
                return "requests_per_minute", self._requests.wait_s(excess, now)
        if limits.tokens_per_minute is not None:
            excess = self._tokens.total + tokens - limits.tokens_per_minute
            if excess > 0:
                return "tokens_per_minute", self._tokens.wait_s(excess, now)
        if limits.tokens_per_day is not None and self._day_tokens + tokens > limits.tokens_per_day:
            fits = tokens <= limits.tokens_per_day
            return "tokens_per_day", DAY_S - now % DAY_S if fits else math.inf
        return None

    def add(self, now: float, tokens: int) -> None:
        self._requests.add(now, 1)
        self._tokens.add(now, tokens)
        self._day_tokens += tokens
        self._running += 1

    def settle(self, at: float, delta: int) -> None:
        self._tokens.adjust(at, delta)
        if at // DAY_S == self._day:
            self._day_tokens += delta
        self._running -= 1

    def headers(self, limits: Limits, now: float) -> tuple[tuple[str, str], ...]:
        """`x-ratelimit-*` for each kind that is limited; of two limits on tokens, for the one with less left."""
        out: list[tuple[str, str]] = []
        if limits.requests_per_minute is not None:
            left = limits.requests_per_minute - self._requests.total
            out += _headers("requests", limits.requests_per_minute, left, self._requests.reset_s(now))
        candidates = []
        if limits.tokens_per_minute is not None:
            left = limits.tokens_per_minute - self._tokens.total
            candidates.append((left, limits.tokens_per_minute, self._tokens.reset_s(now)))
        if limits.tokens_per_day is not None:
            left = limits.tokens_per_day - self._day_tokens
            candidates.append((left, limits.tokens_per_day, DAY_S - now % DAY_S))
        if candidates:
            left, limit, reset_s = min(candidates)
            out += _headers("tokens", limit, left, reset_s)
        return tuple(out)


def _headers(kind: str, limit: int, left: int, reset_s: float) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{kind}", str(limit)),
        (f"x-ratelimit-remaining-{kind}", str(max(0, left))),
        (f"x-ratelimit-reset-{kind}", f"{math.ceil(reset_s)}s"),
    ]
