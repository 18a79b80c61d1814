import uuid

import pytest

from service.errors import ConfigError, ContextLengthExceeded, Forbidden, LimitExceeded
from service.settings import (
    Auth,
    Counters,
    KeyDefaults,
    Limits,
    Model,
    Provider,
    Route,
    RouteTarget,
    Settings,
    Tenant,
)
from service.tenancy.counters import Amount, scope_of
from service.tenancy.memory_counters import MemoryCounters
from service.tenancy.quota import Quota, check
from service.tenancy.tenants import KeyCaller, Tenants
from service.tenancy.valkey_counters import ValkeyCounters
from service.tenancy.worst_case import DEFAULT_OUTPUT_TOKENS

NOON = (1_700_000_000 // 86_400 * 86_400 + 43_200) * 1_000
LEASE_MS = 30_000


class Clock:
    """Milliseconds; `pass_s` moves it on."""

    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now

    def pass_s(self, seconds):
        self.now += int(seconds * 1_000)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "valkey"])
async def quota(request, clock):
    if request.param == "memory":
        counters = MemoryCounters(clock, lease_ms=LEASE_MS)
    else:
        url = request.getfixturevalue("valkey_url")
        # Generous: these tests are about counting, and the machine may be busy.
        counters = ValkeyCounters(url, prefix=uuid.uuid4().hex, clock=clock, lease_ms=LEASE_MS, timeout_s=30)
    made = Quota(counters)
    yield made
    await made.close()


async def take(quota, name, limits, tokens=1, nanousd=0, tenant="t", key_id=""):
    scope = scope_of(key_id, limits)
    return await quota.reserve(name, tenant, [scope] if scope else [], Amount(tokens, nanousd))


async def refusal(quota, limits, tokens=1, nanousd=0, name="x", **who):
    with pytest.raises(LimitExceeded) as caught:
        await take(quota, name, limits, tokens, nanousd, **who)
    return caught.value


async def test_requests_over_the_minutes_limit_are_refused_with_the_wait(quota, clock):
    limits = Limits(requests_per_minute=2)
    await take(quota, "a", limits)
    clock.pass_s(30)
    await take(quota, "b", limits)
    error = await refusal(quota, limits)
    assert "requests_per_minute of tenant 't'" in str(error)
    assert error.headers["retry-after"] == "31"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    clock.pass_s(31)
    await take(quota, "c", limits)
    await refusal(quota, limits)


async def test_no_minute_ever_holds_more_than_its_limit(quota, clock):
    limits = Limits(requests_per_minute=10)
    accepted = []
    for step in range(500):
        clock.now = NOON + step * 1_370
        try:
            await take(quota, str(step), limits, 0)
        except LimitExceeded:
            continue
        accepted.append(clock.now)
    assert len(accepted) > 50
    for moment in accepted:
        assert sum(moment <= other < moment + 60_000 for other in accepted) <= 10


async def test_a_refused_request_sets_nothing_aside(quota):
    limits = Limits(
        requests_per_minute=5, tokens_per_minute=100, tokens_per_day=1_000, concurrency=5, budget_usd_per_day=1.0
    )
    await take(quota, "a", limits, 90)
    for name in "bcdefgh":
        await refusal(quota, limits, 50, name=name)
        await refusal(quota, limits, 5, 10**9 + 1, name=name)
    headers = dict(await take(quota, "i", limits, 10, 10**9))
    assert headers["x-ratelimit-remaining-requests"] == "3"
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert quota.in_flight() == 2


async def test_settling_gives_back_what_was_not_used(quota):
    limits = Limits(tokens_per_minute=100)
    await take(quota, "a", limits, 100)
    await refusal(quota, limits, 1)
    assert await quota.settle("a", Amount(40))
    assert dict(await take(quota, "b", limits, 60))["x-ratelimit-remaining-tokens"] == "0"


async def test_settling_twice_changes_nothing(quota):
    limits = Limits(tokens_per_minute=100, concurrency=2)
    await take(quota, "a", limits, 50)
    await take(quota, "b", limits, 50)
    assert await quota.settle("a", Amount(50))
    assert not await quota.settle("a", Amount(0))
    assert not await quota.settle("never made", Amount(0))
    await refusal(quota, Limits(tokens_per_minute=100), 1)
    await take(quota, "c", Limits(concurrency=2), 0)
    await refusal(quota, Limits(concurrency=2), 0)


async def test_a_reservation_is_made_once(quota):
    await take(quota, "a", Limits(concurrency=5))
    with pytest.raises(ValueError, match="once"):
        await take(quota, "a", Limits(concurrency=5))


async def test_more_used_than_reserved_is_counted_in_full(quota):
    limits = Limits(tokens_per_minute=100)
    await take(quota, "a", limits, 10)
    await quota.settle("a", Amount(100))
    await refusal(quota, limits, 1)


async def test_a_settlement_after_its_minute_touches_no_other_minute(quota, clock):
    limits = Limits(tokens_per_minute=100, tokens_per_day=1_000)
    await take(quota, "a", limits, 100)
    clock.pass_s(20)
    await quota.renew()
    clock.pass_s(20)
    await quota.renew()
    clock.pass_s(25)
    await take(quota, "b", limits, 100)
    await quota.settle("a", Amount(0))
    await refusal(quota, limits, 1)


async def test_the_days_tokens_and_money_come_back_at_midnight_utc(quota, clock):
    limits = Limits(tokens_per_day=100)
    money = Limits(budget_usd_per_day=0.5)
    await take(quota, "a", limits, 100)
    await take(quota, "m", money, 1, 500_000_000, tenant="rich")
    assert (await refusal(quota, limits, 1)).headers["retry-after"] == "43200"
    error = await refusal(quota, money, 1, 1, tenant="rich")
    assert error.headers["retry-after"] == "43200"
    assert "budget_usd_per_day of tenant 'rich'" in str(error)
    clock.pass_s(43_200)
    await take(quota, "b", limits, 100)
    await take(quota, "n", money, 1, 500_000_000, tenant="rich")
    await quota.settle("a", Amount(0))  # of yesterday: gives nothing back to today
    await refusal(quota, limits, 1)


async def test_concurrency_counts_what_is_not_settled(quota):
    limits = Limits(concurrency=1)
    await take(quota, "a", limits)
    assert "concurrency" in str(await refusal(quota, limits))
    await quota.settle("a", Amount(1))
    await take(quota, "b", limits)


async def test_a_request_that_can_never_fit_says_not_to_retry(quota):
    error = await refusal(quota, Limits(tokens_per_minute=100), 101)
    assert error.headers["x-should-retry"] == "false"
    assert "alone" in str(error)


async def test_tenants_do_not_spend_each_others_limits(quota):
    limits = Limits(requests_per_minute=1)
    await take(quota, "a", limits)
    await take(quota, "b", limits, tenant="other")
    await refusal(quota, limits)


async def test_a_keys_limit_refuses_without_spending_its_tenants(quota):
    tenant, key = scope_of("", Limits(requests_per_minute=3)), scope_of("k1", Limits(requests_per_minute=1))
    await quota.reserve("a", "t", [tenant, key], Amount(1))
    with pytest.raises(LimitExceeded, match="requests_per_minute of key 'k1'"):
        await quota.reserve("b", "t", [tenant, key], Amount(1))
    other = scope_of("k2", Limits(requests_per_minute=1))
    headers = await quota.reserve("c", "t", [tenant, other], Amount(1))
    assert dict(headers)["x-ratelimit-remaining-requests"] == "0"
    await quota.reserve("d", "t", [tenant], Amount(1))
    with pytest.raises(LimitExceeded, match="of tenant 't'"):
        await quota.reserve("e", "t", [tenant, scope_of("k3", Limits(requests_per_minute=1))], Amount(1))


async def test_a_reservation_that_is_not_renewed_gives_back_what_it_held(quota, clock):
    limits = Limits(concurrency=1, tokens_per_minute=100, tokens_per_day=100, budget_usd_per_day=1.0)
    await take(quota, "a", limits, 100, 10**9)
    clock.pass_s(29)
    await refusal(quota, limits, 1)
    clock.pass_s(2)
    await take(quota, "b", limits, 100, 10**9)


async def test_a_renewed_reservation_stays_however_long_it_takes(quota, clock):
    limits = Limits(concurrency=1, tokens_per_day=100)
    await take(quota, "a", limits, 100)
    for _ in range(10):
        clock.pass_s(20)
        await quota.renew()
    await refusal(quota, limits, 0)


async def test_a_settlement_after_the_lease_has_ended_is_counted_once(quota, clock):
    limits = Limits(tokens_per_day=100, concurrency=2)
    await take(quota, "a", limits, 60)
    clock.pass_s(31)
    await take(quota, "b", limits, 100)  # "a" has lapsed
    await quota.settle("b", Amount(0))
    assert await quota.settle("a", Amount(50))
    assert not await quota.settle("a", Amount(50))
    assert dict(await take(quota, "c", limits, 50))["x-ratelimit-remaining-tokens"] == "0"
    await take(quota, "d", limits, 0)
    await refusal(quota, limits, 0)  # and of the two places each was taken once


async def test_money_is_counted_exactly_far_beyond_what_a_float_of_dollars_could(quota):
    limits = Limits(budget_usd_per_day=1_000_000.0)
    await take(quota, "a", limits, 1, 10**15 - 1)
    await take(quota, "b", limits, 1, 1)
    await refusal(quota, limits, 1, 1)


async def test_without_limits_nothing_is_counted(quota):
    assert await take(quota, "a", Limits(max_output_tokens=5), 10**12) == ()
    assert quota.in_flight() == 0


PRICED = Model(name="up-*", input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)
UNPRICED = Provider(name="own", kind="openai", models=("llama-*",), base_url="http://127.0.0.1:1/v1")
SANDBOX = Provider(name="sandbox", kind="sandbox", models=("sandbox-*",))
BUDGET = Limits(budget_usd_per_day=1.0)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (Settings(limits=BUDGET, providers=(SANDBOX, UNPRICED)), "limits.budget_usd_per_day"),
        (Settings(keys=KeyDefaults(limits=BUDGET), providers=(UNPRICED,)), "keys.limits.budget_usd_per_day"),
        (Settings(tenants=(Tenant(name="a", limits=BUDGET),), providers=(UNPRICED,)), "tenants[0].limits.budget_usd"),
        (Settings(counters=Counters(url="valkey://host:not-a-port")), "counters.url"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_by_their_key(settings, key):
    with pytest.raises(ConfigError) as caught:
        check(settings)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(limits=BUDGET),
        Settings(
            limits=BUDGET,
            providers=(SANDBOX, UNPRICED),
            models=(Model(name="llama-3", **{"input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1}),),
        ),
        Settings(tenants=(Tenant(name="a", limits=BUDGET),), providers=(SANDBOX, UNPRICED)),
        Settings(
            limits=BUDGET,
            providers=(SANDBOX,),
            routes=(Route(model="fast", targets=(RouteTarget(provider="sandbox", model="sandbox-echo"),)),),
        ),
        Settings(counters=Counters(url="rediss://user@host:6380/2")),
    ],
)
def test_a_budget_is_accepted_where_a_price_may_be_found(settings):
    check(settings)


class LetterCounter:
    async def count(self, model, texts, *, deadline_s=None):
        return sum(map(len, texts))


def tenants(limits, clock, *models, key_limits=None):
    settings = Settings(limits=limits, models=models, keys=KeyDefaults(limits=key_limits or Limits()))
    return Tenants(settings, LetterCounter(), Quota(MemoryCounters(clock)))


async def test_without_limits_nothing_is_clamped_and_no_headers_are_sent(clock):
    reservation = await tenants(Limits(), clock).reserve(KeyCaller("default"), "m", ["abc"], None)
    assert (reservation.prompt_tokens, reservation.max_output_tokens, reservation.headers) == (3 + 4 + 3, None, ())


async def test_a_callers_own_bound_within_the_limit_needs_no_clamp_but_is_reserved(clock):
    made = tenants(Limits(max_output_tokens=50, tokens_per_minute=1_000), clock)
    reservation = await made.reserve(KeyCaller("default"), "m", [], 40)
    assert reservation.max_output_tokens is None
    assert dict(reservation.headers)["x-ratelimit-remaining-tokens"] == "960"


async def test_over_the_limit_every_choice_is_clamped_and_all_choices_are_reserved(clock):
    made = tenants(Limits(max_output_tokens=50, tokens_per_minute=1_000), clock)
    reservation = await made.reserve(KeyCaller("default"), "m", [], None, choices=3)
    assert reservation.max_output_tokens == 50
    assert dict(reservation.headers)["x-ratelimit-remaining-tokens"] == "850"


async def test_tokens_sent_as_ids_are_reserved_even_where_their_text_is_not_known(clock):
    made = tenants(Limits(tokens_per_minute=1_000), clock)
    reservation = await made.reserve(KeyCaller("default"), "m", [], 0, 1, 300)
    assert reservation.prompt_tokens == 300
    assert dict(reservation.headers)["x-ratelimit-remaining-tokens"] == "700"


async def test_where_tokens_are_limited_a_reply_without_a_bound_gets_one(clock):
    made = tenants(Limits(tokens_per_day=1_000_000), clock)
    assert (await made.reserve(KeyCaller("default"), "m", [], None)).max_output_tokens == DEFAULT_OUTPUT_TOKENS


async def test_the_guess_for_an_unbounded_reply_leaves_room_for_other_requests(clock):
    small = tenants(Limits(tokens_per_minute=100), clock)
    assert (await small.reserve(KeyCaller("default"), "m", ["abc"], None)).max_output_tokens == 25
    assert (await small.reserve(KeyCaller("default"), "m", ["abc"], None)).max_output_tokens == 25
    full = tenants(Limits(tokens_per_minute=100), clock)
    assert (await full.reserve(KeyCaller("default"), "m", ["x" * 83], None)).max_output_tokens == 10


async def test_a_tenants_own_limits_stand_over_the_defaults_one_by_one():
    settings = Settings(
        limits=Limits(requests_per_minute=5, concurrency=7),
        tenants=(Tenant(name="acme", limits=Limits(requests_per_minute=9)),),
    )
    made = Tenants(settings, LetterCounter(), Quota(MemoryCounters()))
    assert made.limits("acme") == Limits(requests_per_minute=9, concurrency=7)
    assert made.limits("default") == settings.limits


def test_a_key_that_may_not_send_system_text_is_refused_at_the_pointer():
    caller = KeyCaller("t", "k", ("user",))
    caller.authorise([("user", "/messages/1")])
    with pytest.raises(Forbidden) as caught:
        caller.authorise([("user", "/messages/1"), ("system", "/messages/0/content")])
    assert caught.value.pointer == "/messages/0/content"


async def test_a_prompt_over_the_models_window_is_refused_and_one_within_it_is_not(clock):
    made = tenants(Limits(), clock, Model(name="up-*", context_tokens=20))
    with pytest.raises(ContextLengthExceeded, match="20 tokens") as caught:
        await made.reserve(KeyCaller("default"), "up-x", ["x" * 14], None)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    await made.reserve(KeyCaller("default"), "up-x", ["x" * 13], None)
    await made.reserve(KeyCaller("default"), "up-x", ["x" * 14], 0, billed=False)
    await made.reserve(KeyCaller("default"), "other", ["x" * 14], None)


async def test_a_budget_refuses_a_model_without_a_price_by_its_name(clock):
    made = tenants(Limits(budget_usd_per_day=5.0), clock, PRICED)
    with pytest.raises(Forbidden, match="'nobody-knows'") as caught:
        await made.reserve(KeyCaller("default"), "nobody-knows", ["abc"], 5)
    assert caught.value.pointer == "/model"
    await made.reserve(KeyCaller("default"), "nobody-knows", ["abc"], 0, billed=False)
    keyed = tenants(Limits(), clock, key_limits=Limits(budget_usd_per_day=5.0))
    with pytest.raises(Forbidden, match="The key has"):
        await keyed.reserve(KeyCaller("default", "k"), "nobody-knows", ["abc"], 5)


async def test_the_worst_case_in_money_is_reserved_and_what_was_used_is_settled(clock):
    # 10 tokens of prompt for 10 millionths, replies of 45 for 90: exactly 100 of a budget of 100.
    made = tenants(Limits(budget_usd_per_day=0.0001), clock, PRICED)
    first = await made.reserve(KeyCaller("default"), "up-x", ["abc"], 45)
    with pytest.raises(LimitExceeded, match="budget_usd_per_day"):
        await made.reserve(KeyCaller("default"), "up-x", [], 1)
    await made.settle(first, 10, 15)
    with pytest.raises(LimitExceeded):
        await made.reserve(KeyCaller("default"), "up-x", [], 31)
    await made.reserve(KeyCaller("default"), "up-x", [], 30)


async def test_cached_tokens_of_the_prompt_cost_their_own_price(clock):
    cheap = Model(name="up-*", input_usd_per_mtok=1.0, output_usd_per_mtok=0.0, cached_input_usd_per_mtok=0.1)
    made = tenants(Limits(budget_usd_per_day=0.0001), clock, cheap)
    await made.settle(await made.reserve(KeyCaller("default"), "up-x", ["x" * 93], 0), 100, 0, 100)
    await made.reserve(KeyCaller("default"), "up-x", ["x" * 83], 0)
    with pytest.raises(LimitExceeded):
        await made.reserve(KeyCaller("default"), "up-x", ["x"], 0)


async def test_a_budget_bounds_a_reply_that_nobody_bounds(clock):
    made = tenants(Limits(budget_usd_per_day=0.0001), clock, PRICED)
    assert (await made.reserve(KeyCaller("default"), "up-x", [], None)).max_output_tokens == 12


async def test_no_more_is_reserved_than_the_model_can_write_in_its_window(clock):
    made = tenants(Limits(tokens_per_day=10_000), clock, Model(name="up-*", context_tokens=110, max_output_tokens=500))
    reservation = await made.reserve(KeyCaller("default"), "up-x", ["abc"], 5_000)
    assert (reservation.output_tokens, reservation.max_output_tokens) == (100, 500)


async def test_a_key_is_held_to_its_own_limits_within_its_tenants(clock):
    made = tenants(Limits(requests_per_minute=5), clock, key_limits=Limits(requests_per_minute=1, max_output_tokens=9))
    assert (await made.reserve(KeyCaller("default", "k1"), "m", [], None)).max_output_tokens == 9
    with pytest.raises(LimitExceeded, match="key 'k1'"):
        await made.reserve(KeyCaller("default", "k1"), "m", [], None)
    await made.reserve(KeyCaller("default", "k2"), "m", [], None)


KEYED = Auth(mode="keys")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (Settings(models=(PRICED, Model(name="m", input_usd_per_mtok=1.0))), "models[1].output_usd_per_mtok: "),
        (Settings(models=(Model(name="m", output_usd_per_mtok=1.0),)), "models[0].input_usd_per_mtok: "),
        (Settings(models=(Model(name="m", cached_input_usd_per_mtok=1.0),)), "models[0].input_usd_per_mtok: "),
        (Settings(keys=KeyDefaults(limits=Limits(concurrency=1))), "keys.limits.concurrency: "),
        (
            Settings(
                auth=KEYED,
                limits=Limits(requests_per_minute=10),
                tenants=(Tenant(name="a", limits=Limits(requests_per_minute=20)),),
                keys=KeyDefaults(limits=Limits(requests_per_minute=21)),
            ),
            "keys.limits.requests_per_minute: ",
        ),
        (Settings(limits=Limits(tokens_per_minute=9, max_output_tokens=10)), "limits.max_output_tokens: "),
        (
            Settings(auth=KEYED, keys=KeyDefaults(limits=Limits(tokens_per_day=9, max_output_tokens=10))),
            "keys.limits.max_output_tokens: ",
        ),
        (
            Settings(limits=Limits(max_output_tokens=10), tenants=(Tenant(name="a", limits=Limits(tokens_per_day=9)),)),
            "tenants[0].limits.tokens_per_day: ",
        ),
        (
            Settings(limits=Limits(tokens_per_day=9), tenants=(Tenant(name="a", limits=Limits(max_output_tokens=10)),)),
            "tenants[0].limits.max_output_tokens: ",
        ),
    ],
)
def test_limits_and_prices_that_cannot_hold_together_are_refused_by_their_key(settings, key):
    """Half a price, keys' limits that no key can reach or that open mode has no keys for, a reply over its quota."""
    with pytest.raises(ConfigError) as caught:
        check(settings)
    assert str(caught.value).startswith(key)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(models=(Model(name="m", context_tokens=10), PRICED)),
        Settings(limits=Limits(tokens_per_minute=10, tokens_per_day=10, max_output_tokens=10)),
        Settings(auth=KEYED, keys=KeyDefaults(limits=Limits(concurrency=9))),
        Settings(
            auth=KEYED,
            limits=Limits(concurrency=5),
            tenants=(Tenant(name="a", limits=Limits(concurrency=9)), Tenant(name="b")),
            keys=KeyDefaults(limits=Limits(concurrency=9)),
        ),
        Settings(
            auth=KEYED,
            tenants=(Tenant(name="a", limits=Limits(concurrency=5)),),
            keys=KeyDefaults(limits=Limits(concurrency=9)),
        ),
    ],
)
def test_limits_that_some_key_or_reply_can_reach_are_accepted(settings):
    """A limit of keys is for the tenant that has the most, and a tenant without one has no end."""
    check(settings)
