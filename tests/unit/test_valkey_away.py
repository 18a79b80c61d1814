"""A Valkey that is gone, frozen or back again."""

import asyncio
import signal
import uuid

import pytest

from service.errors import CountersFailed, LimitExceeded
from service.settings import Counters, Settings
from service.tenancy.counters import Amount, Scope
from service.tenancy.quota import Quota
from service.tenancy.quota import counters_of as counters_from
from service.tenancy.valkey_counters import ValkeyCounters
from tests.valkey_server import valkey_server

LIMIT = [Scope("", concurrency=5, tokens_per_day=100)]
TOO_LONG_S = 60  # what a hang would be; nothing here waits for it


@pytest.fixture
def server(tmp_path):
    with valkey_server(tmp_path) as running:
        yield running


def counters_of(server, **options):
    return ValkeyCounters(server.url, prefix=uuid.uuid4().hex, **options)


async def test_without_a_server_requests_are_refused_until_it_is_back(server):
    quota = Quota(counters_of(server, pause_s=0.0))
    server.stop()
    async with asyncio.timeout(TOO_LONG_S):
        with pytest.raises(CountersFailed) as caught:
            await quota.reserve("a", "t", LIMIT, Amount(1))
        with pytest.raises(CountersFailed):
            await quota.ping()
    assert (caught.value.status, caught.value.code) == (503, "counters_failed")
    server.start()
    await quota.ping()
    await quota.reserve("b", "t", LIMIT, Amount(1))
    await quota.close()


async def test_a_server_that_does_not_answer_is_given_up_on(server):
    quota = Quota(counters_of(server, timeout_s=0.2, pause_s=0.0))
    await quota.ping()
    server.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(TOO_LONG_S):
            with pytest.raises(CountersFailed):
                await quota.reserve("a", "t", LIMIT, Amount(1))
    finally:
        server.process.send_signal(signal.SIGCONT)
    await quota.close()


async def test_of_many_at_once_nobody_is_left_waiting(server):
    quota = Quota(counters_of(server, timeout_s=0.2, pause_s=0.0))
    server.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(TOO_LONG_S):
            asked = (quota.reserve(str(number), "t", LIMIT, Amount(1)) for number in range(500))
            answers = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert all(isinstance(answer, CountersFailed) for answer in answers)
    await quota.ping()
    await quota.close()


async def test_many_at_once_are_each_answered_with_their_own(server):
    quota = Quota(counters_of(server, timeout_s=TOO_LONG_S))
    limits = [[Scope("", tokens_per_day=number)] for number in range(1, 501)]
    asked = (quota.reserve(f"r{n}", f"t{n}", limit, Amount(1)) for n, limit in enumerate(limits))
    answers = [dict(headers) for headers in await asyncio.gather(*asked)]
    assert [int(each["x-ratelimit-remaining-tokens"]) for each in answers] == list(range(500))
    await quota.close()


async def test_after_a_failure_nobody_asks_for_a_while(server):
    counters = counters_of(server, pause_s=1e9)
    server.stop()
    with pytest.raises(CountersFailed):
        await counters.reserve("a", "t", LIMIT, Amount(1))
    server.start()
    with pytest.raises(CountersFailed):
        await counters.reserve("b", "t", LIMIT, Amount(1))
    await counters.close()


async def test_the_policy_may_let_requests_pass_uncounted(server):
    quota = Quota(counters_of(server, pause_s=0.0), "allow")
    server.stop()
    assert await quota.reserve("a", "t", LIMIT, Amount(1_000)) == ()
    assert not await quota.settle("a", Amount(1))
    await quota.close()


async def test_a_settlement_that_was_not_taken_is_told_again(server):
    # A pause that is over before the server is back, so that the next one asks at once.
    counters = counters_of(server, pause_s=0.0, timeout_s=0.2)
    quota = Quota(counters)
    await quota.reserve("a", "t", LIMIT, Amount(100))
    server.process.send_signal(signal.SIGSTOP)
    assert await quota.settle("a", Amount(30))
    server.process.send_signal(signal.SIGCONT)
    await quota.renew()
    headers = await quota.reserve("b", "t", LIMIT, Amount(70))
    assert dict(headers)["x-ratelimit-remaining-tokens"] == "0"
    await quota.close()


async def test_what_still_runs_does_not_lapse_because_its_counters_were_away(server):
    clock = [1_700_000_000_000]
    quota = Quota(counters_of(server, pause_s=0.0, timeout_s=0.2, clock=lambda: clock[0]))
    await quota.reserve("a", "t", LIMIT, Amount(100))
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(CountersFailed):
        await quota.renew()
    server.process.send_signal(signal.SIGCONT)
    clock[0] += 600_000
    with pytest.raises(LimitExceeded):
        await quota.reserve("b", "t", LIMIT, Amount(1))
    await quota.settle("a", Amount(0))
    await quota.close()


async def test_what_was_reserved_while_nobody_waited_any_more_is_given_back(server):
    """A caller who is refused because the server was slow holds no place after it."""
    counters = counters_of(server, pause_s=0.0, timeout_s=0.5)
    alone = [Scope("", concurrency=1, tokens_per_day=100)]
    await counters.ping()
    assert (await counters.reserve("before", "t", alone, Amount(1))).limit is None
    assert await counters.settle("before", "t", Amount(0))
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(CountersFailed):
        await counters.reserve("slow", "t", alone, Amount(100))
    server.process.send_signal(signal.SIGCONT)
    await counters.ping()
    while counters._tasks:
        await asyncio.wait(set(counters._tasks))
    outcome = await counters.reserve("next", "t", alone, Amount(100))
    assert (outcome.limit, outcome.standings[0].running) == (None, 1)
    await counters.close()


async def test_a_password_is_used(server, monkeypatch):
    client = ValkeyCounters(server.url, prefix="x")
    await client._client.config_set("requirepass", "a-word")
    await client.close()
    monkeypatch.setenv("COUNTERS_PASSWORD", "a-word")
    right = Settings(counters=Counters(url=server.url, password_env="COUNTERS_PASSWORD"))
    await counters_from(right).ping()
    with pytest.raises(CountersFailed):
        await counters_from(Settings(counters=Counters(url=server.url))).ping()


async def test_a_server_that_forgot_its_scripts_is_told_them_again(server):
    counters = counters_of(server)
    assert (await counters.reserve("a", "t", LIMIT, Amount(1))).limit is None
    await counters._client.script_flush()
    assert await counters.settle("a", "t", Amount(1))
    await counters.close()
