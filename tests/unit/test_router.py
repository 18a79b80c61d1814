"""A model's provider is the first one whose glob matches and that speaks what the caller speaks."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from service.errors import MalformedRequest, NotFound
from service.settings import Provider, Route, RouteTarget
from service.upstream.breaker import Breaker
from service.upstream.line import Line
from service.upstream.router import Router


class Nobody:
    asks_usage = True

    async def open(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nobody is to be asked here")


PROVIDERS = (
    Provider(name="claude", kind="anthropic", models=("claude-*", "both-*"), base_url="http://a"),
    Provider(name="gpt", kind="openai", models=("gpt-*", "both-*"), base_url="http://b/v1"),
    Provider(name="sandbox", kind="sandbox", models=("sandbox-*",)),
)
LINES = {provider.name: Line(provider.name, Nobody(), Breaker(0, 1.0)) for provider in PROVIDERS}
ROUTER = Router(PROVIDERS, LINES)


@pytest.mark.parametrize(
    ("model", "protocol", "name"),
    [
        ("claude-1", "anthropic.messages", "claude"),
        ("claude-1", "anthropic.count_tokens", "claude"),
        ("gpt-1", "openai.chat", "gpt"),
        ("both-1", "openai.chat", "gpt"),
        ("both-1", "anthropic.messages", "claude"),
        ("sandbox-echo", "openai.chat", "sandbox"),
        ("sandbox-echo", "anthropic.messages", "sandbox"),
        ("claude-1", None, "claude"),
        ("both-1", None, "claude"),
    ],
)
def test_the_first_that_matches_and_speaks_the_protocol_is_chosen(model: str, protocol: str | None, name: str) -> None:
    assert ROUTER.choose(model, protocol).name == name


@pytest.mark.parametrize(("model", "protocol"), [("claude-1", "openai.chat"), ("gpt-1", "anthropic.messages")])
def test_a_protocol_that_the_model_s_provider_does_not_speak_is_named(model: str, protocol: str) -> None:
    with pytest.raises(MalformedRequest, match=protocol.partition(".")[0]) as caught:
        ROUTER.choose(model, protocol)
    assert caught.value.pointer == "/model"


def test_a_model_that_nobody_has_is_not_found() -> None:
    with pytest.raises(NotFound):
        ROUTER.choose("who", "openai.chat")


def routed(*routes: Route) -> Router:
    return Router(PROVIDERS, LINES, routes, random.Random(7))


def to(*targets: RouteTarget | str, **fields: Any) -> Route:
    made = tuple(RouteTarget(provider=t) if isinstance(t, str) else t for t in targets)
    return Route(model="fast", targets=made, **fields)


def asked(route: Any) -> list[tuple[str, str]]:
    return [(target.name, target.model) for target in route.targets]


def test_a_route_comes_before_the_providers_own_globs_and_keeps_its_order() -> None:
    route = Route(model="gpt-*", targets=(RouteTarget(provider="sandbox"), RouteTarget(provider="gpt")))
    assert asked(routed(route).choose("gpt-1", "openai.chat")) == [("sandbox", "gpt-1"), ("gpt", "gpt-1")]
    assert asked(routed(route).choose("claude-1", None)) == [("claude", "claude-1")]


def test_a_target_names_the_model_by_the_provider_s_own_name() -> None:
    router = routed(to(RouteTarget(provider="gpt", model="gpt-4o-mini"), "sandbox"))
    assert asked(router.choose("fast", "openai.chat")) == [("gpt", "gpt-4o-mini"), ("sandbox", "fast")]


def test_targets_that_do_not_speak_the_caller_s_protocol_are_left_out() -> None:
    router = routed(to("gpt", "claude"))
    assert asked(router.choose("fast", "anthropic.messages")) == [("claude", "fast")]
    assert asked(router.choose("fast", "openai.chat")) == [("gpt", "fast")]
    with pytest.raises(MalformedRequest):
        routed(to("claude")).choose("fast", "openai.chat")


def test_weights_say_how_often_each_is_asked_first_and_all_of_them_stay_in_the_list() -> None:
    router = routed(to(RouteTarget(provider="gpt", weight=3), RouteTarget(provider="sandbox", weight=1), pick="weight"))
    drawn = [asked(router.choose("fast", "openai.chat")) for _ in range(2_000)]
    first = Counter(targets[0][0] for targets in drawn)
    assert 1_400 < first["gpt"] < 1_600
    assert all(len(targets) == 2 for targets in drawn)


def test_what_one_provider_keeps_is_asked_of_no_other() -> None:
    route = routed(to("gpt", "sandbox")).choose("fast", "openai.responses")
    narrowed = route.only("sandbox")
    assert narrowed is not None
    assert asked(narrowed) == [("sandbox", "fast")]
    assert route.only("claude") is None


TRANSLATING = (
    msgspec.structs.replace(PROVIDERS[0], translate_chat=True),
    msgspec.structs.replace(PROVIDERS[1], translate_messages=True),
    PROVIDERS[2],
)
ESTIMATE = Line("estimate", Nobody(), Breaker(0, 1.0))


@pytest.mark.parametrize(
    ("model", "protocol", "asked"),
    [
        ("claude-1", "openai.chat", [("claude", True)]),
        ("claude-1", "anthropic.messages", [("claude", False)]),
        ("gpt-1", "anthropic.messages", [("gpt", True)]),
        ("gpt-1", "openai.chat", [("gpt", False)]),
        ("both-1", "openai.chat", [("gpt", False)]),
        ("both-1", "anthropic.messages", [("claude", False)]),
        ("fast", "openai.chat", [("claude", True), ("gpt", False)]),
        ("fast", "anthropic.messages", [("claude", False), ("gpt", True)]),
        ("fast", "openai.responses", [("gpt", False)]),
        ("gpt-1", "anthropic.count_tokens", [("estimate", True)]),
        ("claude-1", "anthropic.count_tokens", [("claude", False)]),
        ("fast", "anthropic.count_tokens", [("claude", False), ("estimate", True)]),
    ],
)
def test_a_translation_reaches_a_provider_where_nobody_speaks_the_protocol_or_a_route_says_so(
    model: str, protocol: str, asked: list[tuple[str, bool]]
) -> None:
    route = Router(TRANSLATING, LINES, [to("claude", "gpt")], estimate=ESTIMATE).choose(model, protocol)
    assert [(target.name, target.translated) for target in route.targets] == asked


@pytest.mark.parametrize(("model", "protocol"), [("claude-1", "openai.responses"), ("gpt-1", "anthropic.count_tokens")])
def test_only_chats_and_messages_are_translated_and_counts_only_where_somebody_estimates_them(
    model: str, protocol: str
) -> None:
    with pytest.raises(MalformedRequest):
        Router(TRANSLATING, LINES).choose(model, protocol)
