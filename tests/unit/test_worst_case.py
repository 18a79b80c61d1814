"""What is set aside before a call is the most that it can cost, and what is settled is what it did cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from service.errors import ContextLengthExceeded, Forbidden, LimitExceeded
from service.settings import KeyDefaults, Limits, Model, Settings
from service.tenancy.caller import KeyCaller
from service.tenancy.demand import Demand, Fee, Picture
from service.tenancy.memory_counters import MemoryCounters
from service.tenancy.model_table import ModelTable, load_models
from service.tenancy.quota import Quota
from service.tenancy.tenants import Tenants, TokenReservation
from service.tenancy.worst_case import DEFAULT_CONTEXT_TOKENS

WHO = KeyCaller("default")
DAY = Limits(tokens_per_day=1_000_000)
CENT = Limits(budget_usd_per_day=0.0001)  # a hundred tokens at a dollar for a million
PLAIN = Model(name="plain", input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)
DEAR = Model(name="dear", input_usd_per_mtok=5.0, output_usd_per_mtok=10.0)


class LetterCounter:
    async def count(self, model: str, texts: Sequence[str], *, deadline_s: float | None = None) -> int:
        return sum(map(len, texts))


def tenants(limits: Limits, *models: Model, key_limits: Limits | None = None) -> Tenants:
    settings = Settings(limits=limits, models=models, keys=KeyDefaults(limits=key_limits or Limits()))
    return Tenants(settings, LetterCounter(), Quota(MemoryCounters(lambda: 1_700_000_000_000)))  # type: ignore[arg-type]


def left(reservation: TokenReservation) -> int:
    return int(dict(reservation.headers)["x-ratelimit-remaining-tokens"])


async def spent(made: Tenants, model: str = "plain") -> int:
    """How many of CENT's hundred tokens are gone, by what still fits."""
    for tokens in range(101):
        try:
            probe = await made.reserve(WHO, model, [], 100 - tokens)
        except LimitExceeded:
            continue
        await made.settle(probe, 0, 0)
        return tokens
    raise AssertionError("more than there is")


async def test_the_dearest_of_those_who_may_answer_is_reserved_and_the_one_who_did_is_settled() -> None:
    """A route's targets have prices of their own, and any of them may be asked."""
    made = tenants(CENT, PLAIN, DEAR)
    reserved = await made.reserve(WHO, "alias", ["abc"], 5, models=("plain", "dear"))
    assert await spent(made) == 100  # ten at five, five at ten
    await made.settle(reserved, 10, 5, model="plain")
    assert await spent(made) == 15


async def test_a_target_without_a_price_has_that_of_the_name_it_is_asked_by() -> None:
    made = tenants(CENT, PLAIN)
    reserved = await made.reserve(WHO, "plain", ["abc"], 5, models=("my-deployment",))
    assert await spent(made) == 15
    await made.settle(reserved, 10, 1, model="my-deployment")
    assert await spent(made) == 11
    with pytest.raises(Forbidden, match="'alias'"):
        await made.reserve(WHO, "alias", ["abc"], 5, models=("plain", "my-deployment"))


async def test_pictures_and_files_are_set_aside_and_refuse_nothing_by_themselves() -> None:
    made = tenants(DAY, Model(name="gpt-4o", context_tokens=5_000))
    seen = Demand(pictures=(Picture(1024, 1024), Picture()), tokens=100)
    assert (await made.reserve(WHO, "gpt-4o", ["abc"], 0, demand=seen)).prompt_tokens == 10 + 765 + 1_445 + 100
    huge = await made.reserve(WHO, "gpt-4o", ["abc"], 0, demand=Demand(tokens=10**9))
    assert huge.prompt_tokens == 5_000


async def test_what_is_not_known_is_set_aside_as_the_window_where_a_limit_counts_it() -> None:
    """What a provider keeps, finds or fetches can fill all of the window that the reply leaves."""
    window = Model(name="plain", context_tokens=5_000)
    unknown = Demand(unknown=True)
    reserved = await tenants(DAY, window).reserve(WHO, "plain", ["abc"], 300, demand=unknown)
    assert (reserved.prompt_tokens, reserved.output_tokens, left(reserved)) == (4_700, 300, 995_000)
    nameless = await tenants(DAY).reserve(WHO, "m", ["abc"], 300, demand=unknown)
    assert nameless.prompt_tokens + nameless.output_tokens == DEFAULT_CONTEXT_TOKENS
    assert (await tenants(Limits(), window).reserve(WHO, "plain", ["abc"], 300, demand=unknown)).prompt_tokens == 10


async def test_estimates_have_the_models_factor_and_reported_usage_has_not() -> None:
    """A model whose tokens are shorter than those that are counted here has more of them."""
    made = tenants(CENT, Model(name="plain", token_factor=1.5, input_usd_per_mtok=1.0, output_usd_per_mtok=1.0))
    reserved = await made.reserve(WHO, "plain", ["x" * 33], 0)
    assert (reserved.prompt_tokens, await spent(made)) == (60, 60)
    await made.settle(reserved, 40, 0, model="plain")
    assert await spent(made) == 40
    assert (await made.count("plain", ["xxx"]), await made.count("plain", ["xxx"], estimated=True)) == (3, 5)
    narrow = tenants(Limits(), Model(name="plain", token_factor=1.5, context_tokens=59))
    with pytest.raises(ContextLengthExceeded, match="some 60"):
        await narrow.reserve(WHO, "plain", ["x" * 33], 0)


@pytest.mark.parametrize(("caching", "reserved", "kind"), [("short", 63, "written"), ("long", 100, "long_written")])
async def test_cache_writes_have_their_own_price_before_and_after(caching: Any, reserved: int, kind: str) -> None:
    made = tenants(CENT, PLAIN)
    held = await made.reserve(WHO, "plain", ["x" * 43], 0, demand=Demand(caching=caching))
    assert await spent(made) == reserved
    await made.settle(held, 50, 0, **{f"{kind}_tokens": 40}, model="plain")
    assert await spent(made) == 10 + {"short": 50, "long": 80}[caching]


async def test_a_price_of_cache_writes_that_is_given_holds() -> None:
    priced = Model(name="m", input_usd_per_mtok=1.0, output_usd_per_mtok=0, cache_write_usd_per_mtok=3.0)
    facts = ModelTable([priced]).find("m")
    assert facts.cost_nanousd(10, 0, 2, 4, 1) == 2_000 + 3_000 + 12_000 + 4_800
    assert facts.cost_nanousd(10, 0, 0, 50, 50) == 30_000


@pytest.mark.parametrize("whose", ["tenant", "key"])
async def test_where_there_is_a_budget_what_has_no_price_is_refused_by_its_place(whose: str) -> None:
    """A tier or a tool of the provider's costs what the model's tokens do not say."""
    demand = Demand(fees=(Fee("web_search", "/tools/1"), Fee("priority", "/service_tier")))
    budget, none = Limits(budget_usd_per_day=5.0), Limits()
    limits = (budget, none) if whose == "tenant" else (none, budget)
    covering = Model(
        name="covering", input_usd_per_mtok=1.0, output_usd_per_mtok=1.0, covers=("web_search", "priority")
    )
    made = tenants(limits[0], PLAIN, covering, key_limits=limits[1])
    caller = KeyCaller("default", "k")
    with pytest.raises(Forbidden, match=f"The {whose} has .* 'web_search'") as caught:
        await made.reserve(caller, "plain", ["abc"], 5, demand=demand)
    assert caught.value.pointer == "/tools/1"
    await made.reserve(caller, "covering", ["abc"], 5, demand=demand)
    with pytest.raises(Forbidden):
        await made.reserve(caller, "alias", ["abc"], 5, demand=demand, models=("plain", "covering"))
    await tenants(DAY, PLAIN).reserve(WHO, "plain", ["abc"], 5, demand=demand)


async def test_a_bound_over_the_models_longest_reply_is_clamped_without_any_limit() -> None:
    made = tenants(Limits(), Model(name="plain", max_output_tokens=500))
    assert (await made.reserve(WHO, "plain", ["abc"], 5_000)).max_output_tokens == 500
    assert (await made.reserve(WHO, "plain", ["abc"], 1_500, 3)).max_output_tokens is None
    assert (await made.reserve(WHO, "plain", ["abc"], 1_501, 3)).max_output_tokens == 500
    assert (await made.reserve(WHO, "plain", ["abc"], None)).max_output_tokens is None
    assert (await made.reserve(WHO, "other", ["abc"], 5_000)).max_output_tokens is None


@pytest.mark.parametrize(
    "model", ["claude-opus-4-1", "claude-3-haiku-20240307", "claude-of-tomorrow", "anthropic/claude-sonnet-4-5"]
)
def test_every_claude_is_counted_with_a_factor(model: str) -> None:
    assert load_models(Settings()).find(model).token_factor == 1.35
