"""Anthropic's Messages over real HTTP: what reaches the provider, and what of a call that goes wrong the caller."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import SECRET, World

MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": None}


def body(model: str, text: str = "hello", **fields: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "max_tokens": 50, "messages": messages, **fields}).encode()


def post(client: aiohttp.ClientSession, data: bytes, path: str = "/v1/messages", **headers: str) -> Any:
    return client.post(path, data=data, headers={"content-type": "application/json", **headers})


def event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def stream_of(*texts: str) -> list[bytes]:
    head = event("message_start", message=MESSAGE)
    block = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    deltas = [event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in texts]
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 3, "output_tokens": 4})
    return [head + block, *deltas, event("content_block_stop", index=0), end, event("message_stop")]


async def test_a_call_reaches_the_provider_byte_for_byte_with_the_provider_s_key_only(
    world: World, client: aiohttp.ClientSession
) -> None:
    reply = b'{ "type":"message", "content":[{"type":"text","text":"caf\\u00e9"}],"stop_reason":"end_turn"}'
    world.upstream.pieces = [reply]
    data = body("claude-message")
    sent = {"x-api-key": "the-caller-s", "anthropic-version": "2023-06-01", "anthropic-beta": "b-2025-01-01"}
    async with post(client, data, **sent) as answer:
        assert (answer.status, await answer.read()) == (200, reply)
    headers, arrived = world.upstream.requests[0]
    assert (world.upstream.paths, arrived) == (["/v1/messages"], data)
    assert (headers["x-api-key"], headers["anthropic-beta"]) == ("provider-key", "b-2025-01-01")
    assert headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in headers and "the-caller-s" not in str(headers)
    assert world.row().protocol == "anthropic.messages"


async def test_a_provider_is_told_a_version_where_the_caller_gives_none(
    world: World, client: aiohttp.ClientSession
) -> None:
    world.upstream.pieces = [b'{"type":"message","content":[]}']
    async with post(client, body("claude-message")) as answer:
        assert answer.status == 200
    assert world.upstream.requests[0][0]["anthropic-version"] == "2023-06-01"


async def test_a_stream_arrives_byte_for_byte_and_its_usage_is_settled(
    world: World, client: aiohttp.ClientSession
) -> None:
    world.upstream.pieces = stream_of("hello ", "there")
    async with post(client, body("claude-pieces", stream=True)) as answer:
        assert await answer.read() == b"".join(world.upstream.pieces)
    row = world.row()
    assert (row.prompt_tokens, row.completion_tokens) == (3, 4)
    assert world.tenancy.settled == [(3, 4)]


async def test_a_stream_that_breaks_off_is_settled_to_the_prompt_that_its_beginning_reports(
    world: World, client: aiohttp.ClientSession
) -> None:
    """Whoever leaves early has had the whole prompt read, as the provider counts it."""
    usage = {"input_tokens": 30, "output_tokens": 1}
    begun = event("message_start", message={**MESSAGE, "usage": usage})
    rest = stream_of("hello ", "there")[:-2]
    world.upstream.pieces = [begun + rest[0][rest[0].index(b"event: content_block_start") :], *rest[1:]]
    async with post(client, body("claude-pieces", stream=True)) as answer:
        assert b"message_stop" not in await answer.read()
    world.row()
    ((prompt, completion),) = world.tenancy.settled
    assert (prompt, completion >= 2) == (30, True)


async def test_a_secret_after_the_first_byte_ends_the_stream_with_an_error_event(
    world: World, client: aiohttp.ClientSession
) -> None:
    async with post(client, body("sandbox-echo", f"it is {SECRET}", stream=True)) as answer:
        received = (await answer.read()).decode()
    last = received.strip().split("\n\n")[-1].split("\n")
    assert answer.status == 200 and last[0] == "event: error"
    assert json.loads(last[1].removeprefix("data: "))["error"]["type"] == "invalid_request_error"
    assert "message_stop" not in received and SECRET[:5] not in received
    assert world.row().action == "block"


@pytest.mark.parametrize(
    ("text", "status", "kind"),
    [("an ATTACK", 400, "invalid_request_error"), ("it will BREAK", 503, "api_error")],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_blocks_and_failures_come_in_anthropic_s_envelope(
    world: World, client: aiohttp.ClientSession, path: str, text: str, status: int, kind: str
) -> None:
    async with post(client, body("claude-message", text), path) as answer:
        told = await answer.json()
    assert (answer.status, told["type"], told["error"]["type"]) == (status, "error", kind)
    assert not world.upstream.requests
    assert world.row().status == status


async def test_a_wrong_key_is_an_authentication_error(world: World, client: aiohttp.ClientSession) -> None:
    world.tenancy.key = "right"
    world.upstream.pieces = [b'{"type":"message","content":[]}']
    async with post(client, body("claude-message"), **{"x-api-key": "wrong"}) as answer:
        assert (answer.status, (await answer.json())["error"]["type"]) == (401, "authentication_error")
    async with post(client, body("claude-message"), **{"x-api-key": "right"}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(("path", "model"), [("/v1/messages", "up-whole"), ("/v1/chat/completions", "claude-message")])
async def test_a_provider_that_speaks_another_protocol_is_not_called(
    world: World, client: aiohttp.ClientSession, path: str, model: str
) -> None:
    async with post(client, body(model), path) as answer:
        told = await answer.json()
    assert answer.status == 400 and "speaks the protocols of" in told["error"]["message"]
    assert not world.upstream.requests


async def test_a_count_is_forwarded_and_settles_to_nothing(world: World, client: aiohttp.ClientSession) -> None:
    world.upstream.pieces = [b'{"input_tokens": 2095}']
    async with post(client, body("claude-message"), "/v1/messages/count_tokens") as answer:
        assert await answer.json() == {"input_tokens": 2095}
    assert world.upstream.paths == ["/v1/messages/count_tokens"]
    assert world.row().protocol == "anthropic.count_tokens"
    assert world.tenancy.settled == [(0, 0)]


async def test_an_error_of_the_provider_passes_through_with_its_status(
    world: World, client: aiohttp.ClientSession
) -> None:
    async with post(client, body("claude-429")) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (429, "3")
        assert (await answer.json())["error"]["message"] == "slow down"
    assert world.row().error == "upstream_error"
