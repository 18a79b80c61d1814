"""Where quotas are counted: what a backend is asked, and what it answers.

A reservation is all or nothing over every limit of every scope: a tenant's, and a key's within it. Minutes slide, in
steps of a second; days are days in UTC, as providers bill them. What is settled replaces what was reserved, at the time
of the reservation, and exactly once. A reservation has a lease: where its worker dies it lapses, and gives back what it
held; a settlement that comes later all the same is still counted. Times are whole milliseconds since the epoch, money
whole billionths of a dollar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from service.settings import Limits
from service.tenancy.model_table import budget_nanousd

MINUTE_MS = 60_000
DAY_MS = 86_400_000
STEP_MS = 1_000
LEASE_MS = 30_000
"""A reservation whose worker has been silent for so long lapses."""

EXACT = 2**53 - 1
"""The largest number that all backends count exactly (Lua's numbers are floats of 53 bits)."""

LimitName = Literal["concurrency", "requests_per_minute", "tokens_per_minute", "tokens_per_day", "budget_usd_per_day"]
LIMITS: tuple[LimitName, ...] = (
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_day",
    "budget_usd_per_day",
)
"""In the order in which they are checked."""

NEVER = -1
"""As `Outcome.wait_ms`: the request alone is over the limit."""


class Scope(msgspec.Struct, frozen=True):
    """What counts by itself: a tenant's key, or with an empty `key_id` the tenant as a whole. None is unlimited."""

    key_id: str
    concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    nanousd_per_day: int | None = None

    @property
    def bounds(self) -> tuple[int | None, ...]:
        """In the order of `LIMITS`."""
        requests, minute, day = self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day
        return self.concurrency, requests, minute, day, self.nanousd_per_day


def scope_of(key_id: str, limits: Limits) -> Scope | None:
    """The countable limits; None where there are none."""
    named = {name: getattr(limits, name) for name in LIMITS[:-1]} | {"nanousd_per_day": budget_nanousd(limits)}
    given = {name: min(value, EXACT) for name, value in named.items() if value is not None}
    return Scope(key_id, **given) if given else None


class Amount(msgspec.Struct, frozen=True):
    """What a request uses at most, or has used. More than can be counted exactly is the most that can be."""

    tokens: int
    nanousd: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.tokens <= EXACT and 0 <= self.nanousd <= EXACT):
            msgspec.structs.force_setattr(self, "tokens", min(max(self.tokens, 0), EXACT))
            msgspec.structs.force_setattr(self, "nanousd", min(max(self.nanousd, 0), EXACT))


class Standing(msgspec.Struct, frozen=True):
    """What a scope has used, this reservation included; when the last of it leaves the minute (milliseconds)."""

    requests: int
    tokens: int
    reset_ms: int
    day_tokens: int
    day_nanousd: int
    running: int


class Outcome(msgspec.Struct, frozen=True):
    """`standings` are in the order of the scopes. Where nothing was set aside, `limit` names what was in the way, in
    scope number `refused`, and `wait_ms` how long it will be (`NEVER`).
    """

    now_ms: int
    standings: tuple[Standing, ...]
    limit: LimitName | None = None
    refused: int = 0
    wait_ms: int = 0


class Counters(Protocol):
    """One backend. All methods raise CountersFailed where it does not answer in time, and never wait for long."""

    async def reserve(self, reservation_id: str, tenant: str, scopes: Sequence[Scope], amount: Amount) -> Outcome:
        """Set a request and its amount aside in all scopes, or in none. Raises ValueError for an id that is held.

        A caller that is cancelled in here holds nothing.
        """

    async def settle(self, reservation_id: str, tenant: str, used: Amount) -> bool:
        """Replace what was reserved; False where that was done before, or there was nothing, and nothing changes."""

    async def renew(self, reservations: Sequence[tuple[str, str]]) -> None:
        """Begin the leases of these (id, tenant) anew."""

    async def ping(self) -> None:
        """Whether it answers."""

    async def close(self) -> None:
        """Let go of its connections."""
