"""What a reservation costs, and whether any number of callers at once can spend more than there is.

Both in this process and in a real Valkey or Redis on the same machine, through the same `Quota` that the gateway
uses. Costs are of one caller: a reservation over all five limits of a tenant and of a key, and its settlement. For
overspending, callers reserve, hold, settle or are cancelled in the middle; several `Quota`s, as several workers have,
share the server. Beside them a sum is kept that is never more than what is really reserved: it must never pass a
limit, and in the end the counters must hold exactly what was settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import uuid
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.intervals import spread
from benchmarks.results import Options
from benchmarks.servers import counters_server
from service.errors import LimitExceeded
from service.tenancy.counters import EXACT, Amount, Counters, Scope
from service.tenancy.memory_counters import MemoryCounters
from service.tenancy.quota import Quota
from service.tenancy.valkey_counters import ValkeyCounters

MEMORY, VALKEY = "memory", "valkey"
GOALS_MS = {MEMORY: 0.3, VALKEY: 1.0}
CLIENTS = (8, 64, 512)
_WORKERS = 4
_WARM_UP = 100
_TIMEOUT_S = 60.0  # what is measured is counting, not giving up
_CANCELLED = 0.2


class _Count(msgspec.Struct, frozen=True):
    pairs: int
    attempts: int


_FULL, _QUICK = _Count(10_000, 20_000), _Count(300, 2_000)


def measure(options: Options) -> dict[str, Any]:
    """Costs and overspending of each backend. Without a server program only the memory is measured."""
    count = _QUICK if options.quick else _FULL
    with counters_server() as url:
        urls: dict[str, str | None] = {MEMORY: None, VALKEY: url}
        figures: dict[str, Any] = {"backends": {}, "workers": _WORKERS}
        for name, address in urls.items():
            if name == VALKEY and address is None:
                print("  neither valkey-server nor redis-server is installed", file=sys.stderr)
                continue
            cost = asyncio.run(_cost(address, count.pairs))
            runs = [asyncio.run(_overspending(address, clients, count.attempts)) for clients in CLIENTS]
            figures["backends"][name] = {
                "ms": msgspec.structs.asdict(spread(cost)),
                "goal_ms": GOALS_MS[name],
                "met": spread(cost).p50 <= GOALS_MS[name],
                "callers": runs,
            }
    return figures


def _backend(url: str | None, prefix: str) -> Counters:
    return MemoryCounters() if url is None else ValkeyCounters(url, prefix=prefix, timeout_s=_TIMEOUT_S)


async def _cost(url: str | None, pairs: int) -> list[float]:
    """Milliseconds of a reservation with its settlement."""
    quota = Quota(_backend(url, uuid.uuid4().hex))
    scopes = [Scope("", EXACT, EXACT, EXACT, EXACT, EXACT), Scope("key", EXACT, EXACT, EXACT, EXACT, EXACT)]
    times: list[float] = []
    for number in range(pairs + _WARM_UP):
        name = str(number)
        begun = perf_counter()
        await quota.reserve(name, "tenant", scopes, Amount(1_200, 9_000_000))
        await quota.settle(name, Amount(700, 5_000_000))
        times.append((perf_counter() - begun) * 1e3)
    await quota.close()
    return times[_WARM_UP:]


class _Tally:
    """What is reserved and spent for certain: raised after a reservation is granted, lowered before it is settled."""

    def __init__(self, limit: Scope) -> None:
        self._limit = limit
        self.running = self.tokens = self.nanousd = 0
        self.granted = self.refused = self.overspent = 0

    @contextlib.contextmanager
    def granted_one(self, amount: Amount, used: Amount) -> Iterator[None]:
        self.granted += 1
        self.running += 1
        self.tokens += amount.tokens
        self.nanousd += amount.nanousd
        held = (self.running, self.tokens, self.nanousd)
        bounds = (self._limit.concurrency, self._limit.tokens_per_day, self._limit.nanousd_per_day)
        self.overspent += any(bound is not None and value > bound for value, bound in zip(held, bounds, strict=True))
        try:
            yield
        finally:
            self.running -= 1
            self.tokens += used.tokens - amount.tokens
            self.nanousd += used.nanousd - amount.nanousd


async def _overspending(url: str | None, clients: int, attempts: int) -> dict[str, Any]:
    prefix = uuid.uuid4().hex
    backends = [_backend(url, prefix) for _ in range(1 if url is None else _WORKERS)]
    quotas = [Quota(backend) for backend in backends]
    # About half of what they would like to spend.
    limit = Scope("", max(2, clients // 2), None, None, attempts * 12, attempts * 120)
    tally = _Tally(limit)
    chance = random.Random(clients)

    async def attempt(quota: Quota, name: str) -> None:
        amount = Amount(chance.randrange(1, 100), chance.randrange(1, 1_000))
        try:
            await quota.reserve(name, "tenant", [limit], amount)
        except LimitExceeded:
            tally.refused += 1
            return
        used = Amount(chance.randrange(amount.tokens + 1), chance.randrange(amount.nanousd + 1))
        try:
            with tally.granted_one(amount, used):
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
        finally:
            await asyncio.shield(asyncio.ensure_future(quota.settle(name, used)))

    async def client(number: int) -> int:
        cancelled = 0
        for turn in range(attempts // clients):
            work = asyncio.ensure_future(attempt(quotas[number % len(quotas)], f"{number}-{turn}"))
            if chance.random() < _CANCELLED:
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                cancelled += work.cancel()
            await asyncio.wait({work})
            if not work.cancelled():
                work.result()
        return cancelled

    begun = perf_counter()
    cancelled = await asyncio.gather(*map(client, range(clients)))
    seconds = perf_counter() - begun
    await _close(quotas)
    left = await _left(_backend(url, prefix) if url is not None else backends[0], limit)
    return {
        "clients": clients,
        "attempts": tally.granted + tally.refused,
        "granted": tally.granted,
        "refused": tally.refused,
        "cancelled": sum(cancelled),
        "overspent": tally.overspent,
        "unaccounted_tokens": left.tokens - tally.tokens,
        "unaccounted_nanousd": left.nanousd - tally.nanousd,
        "per_second": (tally.granted + tally.refused) / seconds,
    }


async def _close(quotas: Sequence[Quota]) -> None:
    """What cancelled callers had begun is undone by then."""
    for quota in quotas:
        await quota.close()


async def _left(counters: Counters, limit: Scope) -> Amount:
    """What the counters hold in the end."""
    outcome = await counters.reserve("the end", "tenant", [limit], Amount(0))
    await counters.close()
    return Amount(outcome.standings[0].day_tokens, outcome.standings[0].day_nanousd)
