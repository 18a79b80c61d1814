"""Whatever is reserved, settled, cancelled or forgotten, in whatever order: nothing is overspent, lost or invented."""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import LimitExceeded
from service.tenancy.counters import Amount, Counters, Scope
from service.tenancy.memory_counters import MemoryCounters
from service.tenancy.quota import Quota
from service.tenancy.valkey_counters import ValkeyCounters

NOON_MS = (1_700_000_000 // 86_400 * 86_400 + 43_200) * 1_000
LEASE_MS = 30_000
TENANT = Scope("", 4, 9, 300, 900, 500)
KEYS = (Scope("k1", requests_per_minute=5, tokens_per_minute=200), Scope("k2", concurrency=2, nanousd_per_day=300))


class Clock:
    def __init__(self) -> None:
        self.now = NOON_MS

    def __call__(self) -> int:
        return self.now


Make = Callable[[Clock], Counters]


@pytest.fixture(params=["memory", "valkey"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "memory":
        return lambda clock: MemoryCounters(clock, lease_ms=LEASE_MS)
    url = request.getfixturevalue("valkey_url")
    return lambda clock: ValkeyCounters(url, prefix=uuid.uuid4().hex, clock=clock, lease_ms=LEASE_MS, timeout_s=60)


class Entry:
    """One reservation as a bookkeeper would write it down."""

    def __init__(self, at: int, amount: Amount, scopes: tuple[Scope, ...]) -> None:
        self.at, self.amount, self.scopes = at, amount, scopes
        self.until = at + LEASE_MS
        self.state = "open"  # then settled, or lapsed and perhaps settled after that


class Books:
    """The rules once more, by adding everything up from the start each time."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def lapse(self, now: int) -> None:
        for entry in self.entries.values():
            if entry.state == "open" and entry.until <= now:
                entry.state, entry.amount = "lapsed", Amount(0)

    def used(self, scope: Scope, now: int) -> tuple[int, ...]:
        mine = [e for e in self.entries.values() if any(s.key_id == scope.key_id for s in e.scopes)]
        minute = [e for e in mine if (e.at // 1_000 + 61) * 1_000 > now]
        day = [e for e in mine if e.at // 86_400_000 == now // 86_400_000]
        running = sum(e.state == "open" for e in mine)
        tokens = sum(e.amount.tokens for e in minute)
        return running, len(minute), tokens, sum(e.amount.tokens for e in day), sum(e.amount.nanousd for e in day)

    def fits(self, scopes: tuple[Scope, ...], amount: Amount, now: int) -> bool:
        asked = (1, 1, amount.tokens, amount.tokens, amount.nanousd)
        return all(
            bound is None or used + more <= bound
            for scope in scopes
            for bound, used, more in zip(scope.bounds, self.used(scope, now), asked, strict=True)
        )


STEP = st.tuples(
    st.sampled_from(["reserve", "reserve", "reserve", "settle", "settle", "renew"]),
    st.sampled_from([0, 1, 999, 1_000, 7_300, 29_999, 30_000, 61_000, 20_000_000]),
    st.integers(0, 160),
    st.integers(0, 200),
    st.sampled_from([(TENANT,), (TENANT, KEYS[0]), (TENANT, KEYS[1])]),
    st.integers(0, 1_000),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(STEP, max_size=40))
def test_every_backend_counts_as_a_bookkeeper_would(make: Make, steps: list[Any]) -> None:
    async def follow() -> None:
        clock = Clock()
        counters, books = make(clock), Books()
        for number, (kind, pause_ms, tokens, nanousd, scopes, pick) in enumerate(steps):
            clock.now += pause_ms
            names = list(books.entries)
            if kind == "reserve":
                books.lapse(clock.now)
                amount = Amount(tokens, nanousd)
                expected = books.fits(scopes, amount, clock.now)
                outcome = await counters.reserve(str(number), "t", scopes, amount)
                assert (outcome.limit is None) == expected
                if expected:
                    books.entries[str(number)] = Entry(clock.now, amount, scopes)
                for scope, standing in zip(scopes, outcome.standings, strict=True):
                    told = (standing.running, standing.requests, standing.tokens)
                    assert (*told, standing.day_tokens, standing.day_nanousd) == books.used(scope, clock.now)
            elif names:
                name = names[pick % len(names)]
                entry = books.entries[name]
                if kind == "renew":
                    await counters.renew([(name, "t"), ("nobody", "t")])
                    if entry.state == "open":
                        entry.until = clock.now + LEASE_MS
                else:
                    # A mark of what has lapsed is kept for a day.
                    forgotten = entry.state == "lapsed" and clock.now - entry.until > 80_000_000
                    if forgotten:
                        continue
                    settled = await counters.settle(name, "t", Amount(tokens, nanousd))
                    assert settled == (entry.state in {"open", "lapsed"})
                    if settled:
                        entry.state, entry.amount = "settled", Amount(tokens, nanousd)
        await counters.close()

    asyncio.run(follow())


LIMIT = Scope("", concurrency=8, tokens_per_day=5_000, nanousd_per_day=40_000)


@pytest.mark.parametrize("seed", range(5))
async def test_callers_at_once_who_settle_leave_or_die_never_overspend_and_nothing_is_lost(
    make: Make, seed: int
) -> None:
    clock, chance = Clock(), random.Random(seed)
    counters = make(clock)
    quota = Quota(counters)
    spent = {"tokens": 0, "nanousd": 0}
    running = most = refused = 0

    async def call(name: str, dies: bool) -> None:
        nonlocal running, most, refused
        tokens, nanousd = chance.randrange(1, 120), chance.randrange(1, 900)
        try:
            await quota.reserve(name, "t", [LIMIT], Amount(tokens, nanousd))
        except LimitExceeded:
            refused += 1
            return
        running += 1
        most = max(most, running)
        used = Amount(0)
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            used = Amount(chance.randrange(tokens + 1), chance.randrange(nanousd + 1))
        finally:
            running -= 1
            if not dies:
                spent["tokens"] += used.tokens
                spent["nanousd"] += used.nanousd
                settled = [quota.settle(name, used) for _ in range(2)]
                await asyncio.shield(asyncio.gather(*settled))

    tasks = [asyncio.ensure_future(call(f"{seed}-{n}", chance.random() < 0.05)) for n in range(300)]
    for task in tasks:
        if chance.random() < 0.3:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert refused
    assert most <= 8
    # Whoever died has let go after the lease, and then exactly what was not spent is there.
    await settle_down(counters)
    clock.now += LEASE_MS
    left = Amount(5_000 - spent["tokens"], 40_000 - spent["nanousd"])
    outcome = await counters.reserve("all that is left", "t", [LIMIT], left)
    assert outcome.limit is None
    (standing,) = outcome.standings
    assert (standing.running, standing.day_tokens, standing.day_nanousd) == (1, 5_000, 40_000)
    await counters.close()


async def settle_down(counters: Counters) -> None:
    """Until what cancelled callers had begun is undone."""
    while tasks := getattr(counters, "_tasks", None):
        await asyncio.wait(set(tasks))


_WORKER = """
import asyncio, sys
from service.tenancy.counters import Amount, Scope
from service.tenancy.valkey_counters import ValkeyCounters

async def main():
    counters = ValkeyCounters(sys.argv[1], prefix=sys.argv[2], timeout_s=60)
    for number in range(5):
        outcome = await counters.reserve(str(number), "t", [Scope("", concurrency=5, tokens_per_day=500)], Amount(100))
        assert outcome.limit is None
    print(outcome.now_ms, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def server_counters(valkey_url: str) -> AsyncIterator[tuple[str, str, Clock, ValkeyCounters]]:
    clock, prefix = Clock(), uuid.uuid4().hex
    counters = ValkeyCounters(valkey_url, prefix=prefix, clock=clock, timeout_s=60)
    yield valkey_url, prefix, clock, counters
    await counters.close()


async def test_what_a_killed_worker_held_comes_back_when_its_leases_end(server_counters: Any) -> None:
    url, prefix, clock, counters = server_counters
    limit = Scope("", concurrency=5, tokens_per_day=500)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WORKER, url, prefix, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert worker.stdout is not None
        clock.now = int(await worker.stdout.readline())
    finally:
        worker.kill()
        await worker.wait()
    outcome = await counters.reserve("before", "t", [limit], Amount(1))
    assert outcome.limit == "concurrency"
    clock.now += 31_000
    outcome = await counters.reserve("after", "t", [limit], Amount(500))
    assert outcome.limit is None
    assert outcome.standings[0].running == 1
