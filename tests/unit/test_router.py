"""A model's provider is the first one whose glob matches and that speaks what the caller speaks."""

from __future__ import annotations

import pytest

from service.errors import MalformedRequest, NotFound
from service.settings import Provider
from service.upstream.router import GlobRouter

PROVIDERS = (
    Provider(name="claude", kind="anthropic", models=("claude-*", "both-*"), base_url="http://a"),
    Provider(name="gpt", kind="openai", models=("gpt-*", "both-*"), base_url="http://b/v1"),
    Provider(name="sandbox", kind="sandbox", models=("sandbox-*",)),
)
ROUTER = GlobRouter(PROVIDERS, {provider.name: provider.name for provider in PROVIDERS})


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
    assert ROUTER.choose(model, protocol) == name


@pytest.mark.parametrize(("model", "protocol"), [("claude-1", "openai.chat"), ("gpt-1", "anthropic.messages")])
def test_a_protocol_that_the_model_s_provider_does_not_speak_is_named(model: str, protocol: str) -> None:
    with pytest.raises(MalformedRequest, match=protocol.partition(".")[0]) as caught:
        ROUTER.choose(model, protocol)
    assert caught.value.pointer == "/model"


def test_a_model_that_nobody_has_is_not_found() -> None:
    with pytest.raises(NotFound):
        ROUTER.choose("who", "openai.chat")
