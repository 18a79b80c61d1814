"""Limits as a caller meets them: through the whole service, in the envelope of its protocol."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import service.app
from service import settings as config
from service.records.place import database_place
from service.records.store import Store
from service.tenancy.keys import Keys, load_root
from tests.servers import running

BASE = """
[detection]
enabled = false
[leakage]
stream = "exact"
[storage]
url = "sqlite:///a.db"
[[models]]
name = "sandbox-echo"
context_tokens = 60
input_usd_per_mtok = 10
output_usd_per_mtok = 10
[[models]]
name = "sandbox-leaky"
"""

Serve = Callable[[str], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(more: str) -> str:
            (tmp_path / "firewall.toml").write_text(BASE + more)
            settings = config.load(tmp_path / "firewall.toml")
            return stack.enter_context(running(service.app.create_app(settings)))

        yield start


def ask(
    url: str, model: str = "sandbox-echo", text: str = "hello", path: str = "chat/completions", key: str = ""
) -> tuple[int, Any, Any]:
    """Status, body, headers."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20}
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{url}/v1/{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


def test_a_prompt_over_the_window_is_told_so_in_its_protocols_envelope(serve: Serve) -> None:
    url = serve("")
    status, body, _ = ask(url, text="word " * 80)
    assert (status, body["error"]["code"], body["error"]["type"]) == (
        400,
        "context_length_exceeded",
        "invalid_request_error",
    )
    status, body, _ = ask(url, text="word " * 80, path="messages")
    assert (status, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert "60 tokens" in body["error"]["message"]
    assert ask(url, text="word " * 30)[0] == 200


def test_a_model_without_a_price_is_refused_by_name_where_there_is_a_budget(serve: Serve) -> None:
    url = serve("[limits]\nbudget_usd_per_day = 1.0\n")
    status, body, _ = ask(url, "sandbox-leaky")
    assert (status, body["error"]["code"], body["error"]["param"]) == (403, "permission_denied", "/model")
    assert "sandbox-leaky" in body["error"]["message"]
    assert ask(url)[0] == 200


def test_a_spent_budget_says_which_limit_of_whom_and_for_how_long(serve: Serve) -> None:
    # Each call reserves some 28 tokens at ten millionths, and settles a few.
    url = serve("[limits]\nbudget_usd_per_day = 0.0004\nrequests_per_minute = 100\n")
    for _ in range(50):
        status, body, headers = ask(url)
        if status != 200:
            break
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert body["error"]["message"] == "The limit budget_usd_per_day of tenant 'default' is reached."
    assert 0 < int(headers["retry-after"]) <= 86_400
    assert headers["x-ratelimit-limit-requests"] == "100"


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, Any, Any]:
    """Status, body, headers."""
    request = urllib.request.Request(
        f"{url}/v1/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


def test_a_tier_and_a_tool_without_a_price_are_refused_by_their_place_where_there_is_a_budget(serve: Serve) -> None:
    url = serve("[limits]\nbudget_usd_per_day = 1.0\n")
    chat = {"model": "sandbox-echo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    status, body, _ = post(url, "chat/completions", {**chat, "service_tier": "priority"})
    assert (status, body["error"]["code"], body["error"]["param"]) == (403, "permission_denied", "/service_tier")
    response = {"model": "sandbox-echo", "input": "hello", "max_output_tokens": 5}
    status, body, _ = post(url, "responses", {**response, "tools": [{"type": "web_search"}]})
    assert (status, body["error"]["param"]) == (403, "/tools/0")
    assert post(url, "chat/completions", {**chat, "service_tier": "default"})[0] == 200


def test_an_alias_has_the_prices_of_those_whom_its_route_asks(serve: Serve) -> None:
    """Its own name has none: what a target costs is set aside, and refused where that is not known either."""
    route = '[[routes]]\nmodel = "{}"\ntargets = [{{ provider = "sandbox", model = "{}" }}]\n'
    routes = route.format("known", "sandbox-echo") + route.format("unknown", "sandbox-leaky")
    url = serve(f'{routes}[[tenants]]\nname = "default"\n[tenants.limits]\nbudget_usd_per_day = 0.0004\n')
    statuses = [ask(url, "known")[0] for _ in range(50)]
    assert statuses[0] == 200 and statuses[-1] == 429
    status, body, _ = ask(url, "unknown")
    assert (status, body["error"]["param"]) == (403, "/model")


def test_the_turns_that_a_response_goes_on_from_are_set_aside_again(serve: Serve) -> None:
    """What the provider keeps is read, and billed, with every turn, and the caller does not send it."""
    url = serve("[limits]\ntokens_per_minute = 2000\n")
    asked = {"model": "sandbox-words-3", "input": "word " * 100, "max_output_tokens": 10}
    _, first, headers = post(url, "responses", asked)
    usage = first["usage"]["input_tokens"] + first["usage"]["output_tokens"]
    alone = 2_000 - int(headers["x-ratelimit-remaining-tokens"])
    status, body, headers = post(url, "responses", {**asked, "previous_response_id": first["id"]})
    assert status == 200, body
    assert 2_000 - int(headers["x-ratelimit-remaining-tokens"]) == usage + alone + usage


def test_keys_have_limits_of_their_own(serve: Serve, tmp_path: Path) -> None:
    url = serve('[auth]\nmode = "keys"\n[keys.limits]\nrequests_per_minute = 2\n')

    async def make() -> list[Any]:
        store = Store(database_place(config.load(tmp_path / "firewall.toml")))
        await store.open()
        made = [await Keys(store, load_root(tmp_path)).create("default") for _ in range(2)]
        await store.close()
        return made

    first, second = asyncio.run(make())
    statuses = [ask(url, key=first.key)[0] for _ in range(2)]
    status, body, headers = ask(url, key=first.key)
    assert [*statuses, status] == [200, 200, 429]
    assert body["error"]["message"] == f"The limit requests_per_minute of key {first.id!r} is reached."
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert ask(url, key=second.key)[0] == 200


def test_without_its_counters_the_service_refuses_what_a_limit_holds_for_and_is_not_ready(serve: Serve) -> None:
    url = serve('[limits]\nconcurrency = 5\n[counters]\nurl = "valkey://127.0.0.1:1/0"\n')
    status, body, _ = ask(url)
    assert (status, body["error"]["code"]) == (503, "counters_failed")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url + "/health/ready", timeout=60)
    assert json.load(caught.value)["failed"] == ["counters"]


def test_the_policy_may_let_everything_pass_while_there_are_no_counters(serve: Serve) -> None:
    url = serve('[limits]\nconcurrency = 5\n[counters]\nurl = "valkey://127.0.0.1:1/0"\non_error = "allow"\n')
    assert ask(url)[0] == 200
