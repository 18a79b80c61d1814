"""The smaller routes over real HTTP: each asks for a key, checks the Host, spends limits, and leaves one row."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

SECRET = "hunter2-correct-horse"
LITELLM = "/beta/litellm_basic_guardrail_api"

# route, protocol in the record, a request whose text is TEXT, where a block stands (in the answer, or as an error)
PROMPTS: list[tuple[str, str, dict[str, Any], str]] = [
    ("/v1/embeddings", "openai.embeddings", {"model": "sandbox-embedding", "input": "TEXT"}, "error"),
    ("/v1/completions", "openai.completions", {"model": "sandbox-echo", "prompt": "TEXT"}, "error"),
    ("/v1/moderations", "openai.moderations", {"input": "TEXT"}, '"flagged":true'),
    (LITELLM, "litellm.guardrail", {"input_type": "request", "texts": ["TEXT"]}, '"action":"BLOCKED"'),
    ("/analyze/prompt", "llm_guard", {"prompt": "TEXT"}, '"is_valid":false'),
    ("/scan/prompt", "llm_guard", {"prompt": "TEXT"}, '"is_valid":false'),
]
REPLIES: list[tuple[str, str, dict[str, Any], str]] = [
    (LITELLM, "litellm.guardrail", {"input_type": "response", "texts": ["hello", "TEXT"]}, '"action":"BLOCKED"'),
    ("/analyze/output", "llm_guard", {"prompt": "hi", "output": "TEXT"}, '"is_valid":false'),
    ("/scan/output", "llm_guard", {"prompt": "hi", "output": "TEXT"}, '"is_valid":false'),
]
EVERY = pytest.mark.parametrize(("path", "protocol", "body", "blocked"), PROMPTS + REPLIES)


def holding(body: dict[str, Any], text: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(body).replace("TEXT", text))
    return made


@EVERY
async def test_a_benign_text_passes_and_leaves_one_row(
    world: Any, client: aiohttp.ClientSession, path: str, protocol: str, body: dict[str, Any], blocked: str
) -> None:
    async with client.post(path, json=holding(body, "hello")) as answer:
        assert answer.status == 200
        assert blocked not in await answer.text()
        assert answer.headers["x-firewall-action"] == "allow"
        assert answer.headers["x-ratelimit-limit-requests"] == "9"
    row = world.row()
    assert (row.protocol, row.action, row.status) == (protocol, "allow", 200)
    assert row.request_id == answer.headers["x-firewall-request-id"]
    assert len(world.tenancy.settled) == 1


@pytest.mark.parametrize(("path", "protocol", "body", "blocked"), PROMPTS)
async def test_an_attack_is_blocked_in_the_route_s_own_words(
    world: Any, client: aiohttp.ClientSession, path: str, protocol: str, body: dict[str, Any], blocked: str
) -> None:
    async with client.post(path, json=holding(body, "an ATTACK")) as answer:
        assert answer.status == (400 if blocked == "error" else 200)
        text = await answer.text()
        assert answer.headers["x-firewall-action"] == "block"
    assert blocked in text
    assert "0.9" not in text
    row = world.row()
    assert (row.protocol, row.action, row.category) == (protocol, "block", "injection")


@pytest.mark.parametrize(("path", "protocol", "body", "blocked"), REPLIES)
async def test_a_secret_in_a_reply_is_blocked_and_not_repeated(
    world: Any, client: aiohttp.ClientSession, path: str, protocol: str, body: dict[str, Any], blocked: str
) -> None:
    async with client.post(path, json=holding(body, f"it is {SECRET}")) as answer:
        assert answer.status == 200
        text = await answer.text()
        assert answer.headers["x-firewall-action"] == "block"
    assert blocked in text
    assert SECRET not in text
    row = world.row()
    assert (row.protocol, row.action, row.category) == (protocol, "block", "leak.secret")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (
            LITELLM,
            {"input_type": "response", "texts": ["hello", f"it is {SECRET}."]},
            {"action": "GUARDRAIL_INTERVENED", "texts": ["hello", "it is #."]},
        ),
        (
            "/analyze/output",
            {"prompt": "hi", "output": f"it is {SECRET}."},
            {"is_valid": True, "scanners": {"Sensitive": 1.0}, "sanitized_output": "it is #."},
        ),
        (
            "/scan/output",
            {"prompt": "hi", "output": f"it is {SECRET}."},
            {"is_valid": False, "scanners": {"Sensitive": 1.0}},
        ),
    ],
)
async def test_a_redacted_reply_is_told_where_it_can_be(
    world: Any, client: aiohttp.ClientSession, path: str, body: dict[str, Any], said: dict[str, Any]
) -> None:
    world.replies.action = "redact"
    async with client.post(path, json=body) as answer:
        assert await answer.json() == said
    assert world.row().action == "redact"


async def test_a_redaction_without_a_place_is_a_block(world: Any, client: aiohttp.ClientSession) -> None:
    world.replies.action = "redact"
    call = {"function": {"name": "f", "arguments": json.dumps({"code": SECRET})}}
    body = {"input_type": "response", "texts": ["hello"], "tool_calls": [call]}
    async with client.post(LITELLM, json=body) as answer:
        assert (await answer.json())["action"] == "BLOCKED"
    assert world.row().action == "block"


@EVERY
async def test_nobody_is_served_without_a_key(
    world: Any, client: aiohttp.ClientSession, path: str, protocol: str, body: dict[str, Any], blocked: str
) -> None:
    world.tenancy.key = "sf-real"
    async with client.post(path, json=holding(body, "hello"), headers={"x-api-key": "sf-other"}) as answer:
        assert answer.status == 401
    assert world.row().error == "invalid_api_key"


@EVERY
async def test_no_web_page_is_served(
    world: Any, client: aiohttp.ClientSession, path: str, protocol: str, body: dict[str, Any], blocked: str
) -> None:
    async with client.post(path, json=holding(body, "hello"), headers={"host": "rebound.example"}) as answer:
        assert answer.status == 403
    assert world.row().error == "permission_denied"


@EVERY
async def test_no_verdict_is_told_without_its_row(
    world: Any, client: aiohttp.ClientSession, path: str, protocol: str, body: dict[str, Any], blocked: str
) -> None:
    world.audit.broken = True
    async with client.post(path, json=holding(body, "hello")) as answer:
        assert answer.status == 503


@pytest.mark.parametrize(("path", "protocol", "body", "blocked"), PROMPTS)
async def test_a_guard_that_breaks_is_no_verdict(
    world: Any, client: aiohttp.ClientSession, path: str, protocol: str, body: dict[str, Any], blocked: str
) -> None:
    async with client.post(path, json=holding(body, "BREAK")) as answer:
        assert answer.status == 503
        assert "quotes the prompt" not in await answer.text()
    assert world.row().error == "guard_failed"


@EVERY
async def test_a_body_that_is_no_object_is_refused(
    world: Any, client: aiohttp.ClientSession, path: str, protocol: str, body: dict[str, Any], blocked: str
) -> None:
    async with client.post(path, json=["TEXT"]) as answer:
        assert answer.status == 400
        assert "Expected an object" in await answer.text()
    assert world.row().error == "invalid_request"


async def test_a_reply_is_judged_where_prompts_are_not(world: Any, client: aiohttp.ClientSession) -> None:
    world.gateway.prompts = None
    async with client.post("/scan/output", json={"prompt": "hi", "output": SECRET}) as answer:
        assert (await answer.json())["is_valid"] is False
    async with client.post("/scan/prompt", json={"prompt": "hi"}) as answer:
        assert answer.status == 503


async def test_a_reply_that_the_caller_has_is_watched_as_a_providers_is(
    world: Any, client: aiohttp.ClientSession
) -> None:
    opened: list[Any] = []
    replies = world.gateway.replies

    class Watching:
        async def open(self, tenant: str, system: Any, user: Any, asked: Any = None) -> Any:
            opened.append(asked)
            return await replies.open(tenant, system, user, asked)

    world.gateway.replies = Watching()
    async with client.post("/scan/output", json={"prompt": "hi", "output": "hello"}) as answer:
        assert answer.status == 200
    (asked,) = opened
    assert asked.tools is None and asked.caller.startswith(world.row().tenant + "\0")


async def test_a_scan_of_nothing_but_an_image_is_judged(world: Any, client: aiohttp.ClientSession) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    asked: list[Any] = []

    class Watching:
        async def judge(self, prompt: Any, **more: Any) -> Any:
            asked.append(prompt.unscannable)
            return await world.prompts.judge(prompt, **more)

    world.gateway.prompts = Watching()
    async with client.post("/v1/scan", json={"messages": [{"role": "user", "content": [image]}]}) as answer:
        assert answer.status == 200
    assert [[item.kind for item in found] for found in asked] == [["image_url"]]


async def test_an_embedding_s_vectors_pass_byte_for_byte_and_its_usage_is_settled(
    world: Any, client: aiohttp.ClientSession
) -> None:
    body = {"model": "sandbox-embedding", "input": ["one two", "three"], "encoding_format": "float"}
    async with client.post("/v1/embeddings", json=body) as answer:
        vectors = [item["embedding"] for item in (await answer.json())["data"]]
    assert [len(vector) for vector in vectors] == [256, 256]
    assert world.tenancy.settled == [(3, 0)]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/sandbox-echo"])
async def test_models_are_told_to_holders_of_a_key_alone(world: Any, client: aiohttp.ClientSession, path: str) -> None:
    world.tenancy.key = "sf-real"
    async with client.get(path) as answer:
        assert answer.status == 401
    async with client.get(path, headers={"authorization": "Bearer sf-real"}) as answer:
        assert answer.status == 200
    async with client.get(path, headers={"host": "rebound.example"}) as answer:
        assert answer.status == 403
    async with client.post(path) as answer:
        assert answer.status == 405
