"""Reserve the worst case before a call, settle what was used after it: over a backend, with leases and a policy.

What a backend cannot be told is kept here and told it later, as long as this process lives; a process that dies leaves
reservations that lapse with their leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

import msgspec
import structlog

from service.errors import ConfigError, CountersFailed, LimitExceeded
from service.settings import Limits, Settings
from service.tenancy import model_table
from service.tenancy.counters import DAY_MS, LEASE_MS, MINUTE_MS, NEVER, Amount, Counters, Outcome, Scope
from service.tenancy.memory_counters import MemoryCounters
from service.tenancy.valkey_counters import ValkeyCounters

LIMIT_NAMES = Limits.__struct_fields__
_MAX_UNTOLD = 100_000
_PER_LEASE = 3
"""Renewals within one lease: two may fail before it lapses."""

Headers = tuple[tuple[str, str], ...]

_log = structlog.get_logger("counters")


def check(settings: Settings) -> None:
    """Refuse limits that cannot be kept. Raises ConfigError naming the key."""
    model_table.check(settings)
    _check_limits(settings)
    if not settings.counters.url.startswith("memory:"):
        name = settings.counters.password_env
        if name and name not in os.environ:
            raise ConfigError(f"counters.password_env: environment variable {name} is not set")
        try:
            if urlsplit(settings.counters.url).password is not None:
                raise ConfigError("counters.url: no password belongs here; name its variable in counters.password_env")
            counters_of(settings)
        except ValueError:
            raise ConfigError("counters.url: not an address such as valkey://host:6379/0") from None


def _check_limits(settings: Settings) -> None:
    """Refuse limits that hold for nobody, and bounds of replies that another limit never lets anybody reach."""
    keys = settings.keys.limits
    if settings.auth.mode == "open" and (given := [name for name in LIMIT_NAMES if getattr(keys, name) is not None]):
        raise ConfigError(f'keys.limits.{given[0]}: open mode has no keys; set auth.mode = "keys", or use [limits]')
    everyone = [("limits", settings.limits, settings.limits), ("keys.limits", keys, keys)]
    tenants = [
        (f"tenants[{index}].limits", tenant.limits, _merged(settings.limits, tenant.limits))
        for index, tenant in enumerate(settings.tenants)
        if tenant.limits is not None
    ]
    for where, own, limits in (*everyone, *tenants):
        for name in ("tokens_per_minute", "tokens_per_day"):
            reply, bound = limits.max_output_tokens, getattr(limits, name)
            if reply is None or bound is None or reply <= bound:
                continue
            key = "max_output_tokens" if own.max_output_tokens is not None else name
            raise ConfigError(f"{where}.{key}: max_output_tokens ({reply}) is above {name} ({bound})")
    for name in LIMIT_NAMES:
        bounds = [getattr(limits, name) for _, _, limits in (everyone[0], *tenants)]
        most = getattr(keys, name)
        if most is not None and all(bound is not None and bound < most for bound in bounds):
            raise ConfigError(f"keys.limits.{name}: {most} is above {max(bounds)}, the most that any tenant here has")


def _merged(defaults: Limits, own: Limits) -> Limits:
    given = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
    return msgspec.structs.replace(defaults, **given)


def counters_of(settings: Settings) -> Counters:
    """The configured backend. Nothing is connected yet."""
    if settings.counters.url.startswith("memory:"):
        return MemoryCounters()
    name = settings.counters.password_env
    return ValkeyCounters(settings.counters.url, password=os.environ.get(name) if name else None)


class Quota:
    """`on_error` says what a request gets while nothing can be counted: `block` a CountersFailed, `allow` its way."""

    def __init__(
        self, counters: Counters, on_error: Literal["block", "allow"] = "block", *, lease_ms: int = LEASE_MS
    ) -> None:
        self._counters = counters
        self._on_error = on_error
        self._lease_ms = lease_ms
        self._held: dict[str, str] = {}
        self._untold: dict[str, tuple[str, Amount]] = {}
        self._behind = False
        self._catching_up = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew leases."""
        self._renewing = asyncio.ensure_future(self._renew_for_ever())

    async def close(self) -> None:
        """Tell what is left to tell, and let go."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        with contextlib.suppress(CountersFailed):
            await self._tell()
        await self._counters.close()

    async def ping(self) -> None:
        """Raises CountersFailed."""
        await self._counters.ping()

    async def reserve(self, reservation_id: str, tenant: str, scopes: Sequence[Scope], amount: Amount) -> Headers:
        """Set one request and its amount aside in every scope, or in none; return the `x-ratelimit-*` headers.

        Raises LimitExceeded naming the limit and whose it is, CountersFailed, and ValueError for an id that is held.
        """
        if not scopes:
            return ()
        try:
            if self._behind:
                await self._catch_up()
            outcome = await self._counters.reserve(reservation_id, tenant, scopes, amount)
        except CountersFailed:
            if self._on_error == "block":
                raise
            return ()
        headers = _headers(scopes, outcome)
        if outcome.limit is not None:
            raise _refusal(tenant, scopes[outcome.refused], outcome, headers)
        self._held[reservation_id] = tenant
        return headers

    async def settle(self, reservation_id: str, used: Amount) -> bool:
        """Replace what was reserved by what was used; False where that was done before, and nothing changes.

        Never fails: what the backend does not take now it is told again until it does.
        """
        tenant = self._held.pop(reservation_id, None)
        if tenant is None:
            return False
        # Here first: whatever happens to this task, the renewing one knows what is still to be told.
        self._untold[reservation_id] = (tenant, used)
        try:
            settled = await self._counters.settle(reservation_id, tenant, used)
        except CountersFailed:
            while len(self._untold) > _MAX_UNTOLD:
                self._untold.pop(next(iter(self._untold)))
            return True
        self._untold.pop(reservation_id, None)
        return settled

    def in_flight(self) -> int:
        """Reservations that are not settled."""
        return len(self._held)

    async def renew(self) -> None:
        """Begin all leases anew, and tell what could not be told. Raises CountersFailed."""
        untold = [(name, tenant) for name, (tenant, _) in self._untold.items()]
        try:
            await self._counters.renew([*self._held.items(), *untold])
            await self._tell()
        except CountersFailed:
            self._behind = True
            raise
        self._behind = False

    async def _catch_up(self) -> None:
        """The backend was away for a while: what still runs here is not to lapse for that."""
        async with self._catching_up:
            if self._behind:
                await self.renew()

    async def _tell(self) -> None:
        for reservation_id, (tenant, used) in list(self._untold.items()):
            await self._counters.settle(reservation_id, tenant, used)
            self._untold.pop(reservation_id, None)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 1e3 / _PER_LEASE)
            try:
                await self.renew()
            except Exception as error:  # whatever it is: the next round must come
                held, untold = len(self._held), len(self._untold)
                _log.warning("leases not renewed", error=type(error).__name__, held=held, untold=untold)


def _refusal(tenant: str, scope: Scope, outcome: Outcome, headers: Headers) -> LimitExceeded:
    told = dict(headers)
    whose = f"key {scope.key_id!r}" if scope.key_id else f"tenant {tenant!r}"
    if outcome.wait_ms == NEVER:
        told |= {"retry-after": str(MINUTE_MS // 1_000), "x-should-retry": "false"}
        message = f"The request alone is over the limit {outcome.limit} of {whose}."
    else:
        told["retry-after"] = str(max(1, math.ceil(outcome.wait_ms / 1e3)))
        message = f"The limit {outcome.limit} of {whose} is reached."
    return LimitExceeded(message, headers=told)


def _headers(scopes: Sequence[Scope], outcome: Outcome) -> Headers:
    """`x-ratelimit-*` for each kind that is limited; of several limits of a kind, for the one with least left."""
    requests: list[tuple[int, int, int]] = []
    tokens: list[tuple[int, int, int]] = []
    to_midnight = DAY_MS - outcome.now_ms % DAY_MS
    for scope, standing in zip(scopes, outcome.standings, strict=True):
        if (bound := scope.requests_per_minute) is not None:
            requests.append((bound - standing.requests, bound, standing.reset_ms))
        if (bound := scope.tokens_per_minute) is not None:
            tokens.append((bound - standing.tokens, bound, standing.reset_ms))
        if (bound := scope.tokens_per_day) is not None:
            tokens.append((bound - standing.day_tokens, bound, to_midnight))
    out: list[tuple[str, str]] = []
    for kind, candidates in (("requests", requests), ("tokens", tokens)):
        if candidates:
            left, bound, reset_ms = min(candidates)
            out += [
                (f"x-ratelimit-limit-{kind}", str(bound)),
                (f"x-ratelimit-remaining-{kind}", str(max(0, left))),
                (f"x-ratelimit-reset-{kind}", f"{math.ceil(reset_ms / 1e3)}s"),
            ]
    return tuple(out)
