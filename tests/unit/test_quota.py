import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ConfigError, Forbidden, LimitExceeded
from service.settings import Counters, Limits, Settings, Tenant
from service.tenancy.quota import Quota, check
from service.tenancy.tenants import DEFAULT_OUTPUT_TOKENS, KeyCaller, Tenants

NOON = 1_700_000_000 // 86_400 * 86_400 + 43_200.0


class Clock:
    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def quota(clock):
    return Quota(clock)


def refusal(quota, limits, tokens=1, name="x"):
    with pytest.raises(LimitExceeded) as caught:
        quota.reserve(name, "t", limits, tokens)
    return caught.value


def test_requests_over_the_minutes_limit_are_refused_with_the_wait(quota, clock):
    limits = Limits(requests_per_minute=2)
    quota.reserve("a", "t", limits, 1)
    clock.now += 30
    quota.reserve("b", "t", limits, 1)
    error = refusal(quota, limits)
    assert "requests_per_minute" in str(error)
    assert error.headers["retry-after"] == "31"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 31
    quota.reserve("c", "t", limits, 1)
    refusal(quota, limits)


def test_no_minute_ever_holds_more_than_its_limit(quota, clock):
    limits = Limits(requests_per_minute=10)
    accepted = []
    for step in range(2_000):
        clock.now = NOON + step * 0.37
        try:
            quota.reserve(str(step), "t", limits, 0)
        except LimitExceeded:
            continue
        accepted.append(clock.now)
    for moment in accepted:
        assert sum(moment <= other < moment + 60 for other in accepted) <= 10


def test_a_refused_request_sets_nothing_aside(quota):
    limits = Limits(requests_per_minute=5, tokens_per_minute=100, tokens_per_day=1_000, concurrency=5)
    quota.reserve("a", "t", limits, 90)
    for name in "bcdefgh":
        refusal(quota, limits, 50, name)
    headers = dict(quota.reserve("i", "t", limits, 10))
    assert headers["x-ratelimit-remaining-requests"] == "3"
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert quota.in_flight() == 2


def test_settling_gives_back_what_was_not_used(quota):
    limits = Limits(tokens_per_minute=100)
    quota.reserve("a", "t", limits, 100)
    refusal(quota, limits, 1)
    assert quota.settle("a", 40)
    assert dict(quota.reserve("b", "t", limits, 60))["x-ratelimit-remaining-tokens"] == "0"


def test_settling_twice_changes_nothing(quota):
    limits = Limits(tokens_per_minute=100, concurrency=2)
    quota.reserve("a", "t", limits, 50)
    quota.reserve("b", "t", limits, 50)
    assert quota.settle("a", 50)
    assert not quota.settle("a", 0)
    assert not quota.settle("never made", 0)
    refusal(quota, Limits(tokens_per_minute=100), 1)
    quota.reserve("c", "t", Limits(concurrency=2), 0)
    refusal(quota, Limits(concurrency=2), 0)


def test_more_used_than_reserved_is_counted_in_full(quota):
    limits = Limits(tokens_per_minute=100)
    quota.reserve("a", "t", limits, 10)
    quota.settle("a", 100)
    refusal(quota, limits, 1)


def test_a_settlement_after_its_minute_touches_no_other_minute(quota, clock):
    limits = Limits(tokens_per_minute=100, tokens_per_day=1_000)
    quota.reserve("a", "t", limits, 100)
    clock.now += 120
    quota.reserve("b", "t", limits, 100)
    quota.settle("a", 0)
    refusal(quota, limits, 1)


def test_the_days_tokens_come_back_at_midnight_utc(quota, clock):
    limits = Limits(tokens_per_day=100)
    quota.reserve("a", "t", limits, 100)
    assert refusal(quota, limits, 1).headers["retry-after"] == "43200"
    clock.now += 43_200
    quota.reserve("b", "t", limits, 100)
    quota.settle("a", 0)  # of yesterday: gives nothing back to today
    refusal(quota, limits, 1)


def test_concurrency_counts_what_is_not_settled(quota):
    limits = Limits(concurrency=1)
    quota.reserve("a", "t", limits, 1)
    assert "concurrency" in str(refusal(quota, limits))
    quota.settle("a", 1)
    quota.reserve("b", "t", limits, 1)


def test_a_request_that_can_never_fit_says_not_to_retry(quota):
    error = refusal(quota, Limits(tokens_per_minute=100), 101)
    assert error.headers["x-should-retry"] == "false"
    assert "alone" in str(error)


def test_tenants_do_not_spend_each_others_limits(quota):
    limits = Limits(requests_per_minute=1)
    quota.reserve("a", "t", limits, 1)
    quota.reserve("b", "other", limits, 1)
    refusal(quota, limits)


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 60), st.integers(0, 80), st.booleans()), max_size=60))
def test_reserved_and_settled_tokens_never_pass_the_limit_and_always_come_back(steps):
    clock = Clock()
    quota = Quota(clock)
    limits = Limits(tokens_per_minute=100)
    spent, waiting = [], []
    for number, (pause, tokens, used, settle) in enumerate(steps):
        clock.now += pause
        try:
            quota.reserve(str(number), "t", limits, tokens)
        except LimitExceeded:
            assert sum(t for at, t in spent if at > clock.now - 62) + tokens > 100
            continue
        spent.append((clock.now, tokens))
        waiting.append((str(number), len(spent) - 1, min(used, tokens)))
        if settle:
            name, place, actual = waiting.pop(0)
            quota.settle(name, actual)
            spent[place] = (spent[place][0], actual)
        assert sum(t for at, t in spent if at > clock.now - 60) <= 100
    for name, _, actual in waiting:
        quota.settle(name, actual)
    assert quota.in_flight() == 0
    clock.now += 62
    quota.reserve("last", "t", limits, 100)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (Settings(limits=Limits(budget_usd_per_day=1.0)), "limits.budget_usd_per_day"),
        (Settings(tenants=(Tenant(name="a", limits=Limits(budget_usd_per_day=1.0)),)), "tenants[0].limits.budget_usd"),
        (Settings(counters=Counters(url="valkey://localhost")), "counters.url"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_by_their_key(settings, key):
    with pytest.raises(ConfigError) as caught:
        check(settings)
    assert key in str(caught.value)


class LetterCounter:
    async def count(self, model, texts):
        return sum(map(len, texts))


def tenants(limits, clock):
    return Tenants(Settings(limits=limits), LetterCounter(), Quota(clock))


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
    made = Tenants(settings, LetterCounter(), Quota())
    assert made.limits("acme") == Limits(requests_per_minute=9, concurrency=7)
    assert made.limits("default") == settings.limits


def test_a_key_that_may_not_send_system_text_is_refused_at_the_pointer():
    caller = KeyCaller("t", "k", ("user",))
    caller.authorise([("user", "/messages/1")])
    with pytest.raises(Forbidden) as caught:
        caller.authorise([("user", "/messages/1"), ("system", "/messages/0/content")])
    assert caught.value.pointer == "/messages/0/content"
