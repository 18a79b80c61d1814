"""What a stream used is known and settled, whether or not the caller asked; one that runs away is cut."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":2,"total_tokens":42}}\n\n'


def event(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def sent(world: Any) -> dict[str, Any]:
    return json.loads(world.upstream.requests[0][1])


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        ({"stream_options": {"include_obfuscation": False}}, {"include_obfuscation": False, "include_usage": True}),
    ],
)
async def test_usage_that_nobody_asked_for_is_asked_for_settled_and_not_shown(
    world: Any, ask: Any, given: Any, asked: Any
) -> None:
    world.upstream.pieces = [event("one", "stop"), USAGE, DONE]
    async with ask("up-pieces", stream=True, **given) as answer:
        assert await answer.read() == event("one", "stop") + DONE
    assert sent(world)["stream_options"] == asked
    world.row()
    assert world.tenancy.settled == [(40, 2)]


async def test_usage_that_the_caller_asked_for_is_shown_and_its_body_stays_as_it_was(world: Any, ask: Any) -> None:
    world.upstream.pieces = [event("one", "stop"), USAGE, DONE]
    async with ask("up-pieces", stream=True, stream_options={"include_usage": True}) as answer:
        assert await answer.read() == b"".join(world.upstream.pieces)
    assert sent(world)["stream_options"] == {"include_usage": True}


async def test_a_whole_reply_is_not_asked_for_what_it_always_says(world: Any, ask: Any) -> None:
    async with ask("up-whole") as answer:
        await answer.read()
    assert "stream_options" not in sent(world)


async def test_a_provider_that_refuses_the_option_is_not_asked(world: Any, ask: Any) -> None:
    world.gateway.providers.named("up").targets[0].line.provider.asks_usage = False
    world.upstream.pieces = [event("one", "stop"), DONE]
    async with ask("up-pieces", stream=True) as answer:
        await answer.read()
    assert "stream_options" not in sent(world)


async def test_text_beside_a_usage_is_shown_all_the_same(world: Any, ask: Any) -> None:
    last = json.loads(event("two", "stop")[6:]) | {"usage": {"prompt_tokens": 40, "completion_tokens": 2}}
    world.upstream.pieces = [event("one"), b"data: " + json.dumps(last).encode() + b"\n\n", DONE]
    async with ask("up-pieces", stream=True) as answer:
        assert b"two" in await answer.read()
    world.row()
    assert world.tenancy.settled == [(40, 2)]


async def test_a_stream_past_its_bound_is_cut_its_provider_cancelled_and_what_came_settled(
    world: Any, ask: Any
) -> None:
    world.tenancy.held.output_tokens = 10
    async with ask("up-endless", stream=True) as answer:
        out = await answer.text()
    last = [line for line in out.split("\n") if line.startswith("data: ")][-1]
    assert json.loads(last[6:])["error"]["code"] == "runaway_reply"
    assert "[DONE]" not in out
    assert world.upstream.closed.wait(5)
    row = world.row()
    assert (row.error, row.status) == ("runaway_reply", 200)
    # A quarter and 64 above the bound, the first, which is not counted, and the one that was too many.
    assert world.tenancy.settled == [(7, 10 + 2 + 64 + 1 + 1)]


async def test_a_reply_within_its_bound_is_not_cut(world: Any, ask: Any) -> None:
    world.tenancy.held.output_tokens = 300
    world.upstream.pieces = [*(event(f"word{n} ") for n in range(300)), event("", "stop"), DONE]
    async with ask("up-pieces", stream=True) as answer:
        assert b"[DONE]" in await answer.read()


async def test_a_reply_that_only_repeats_itself_is_cut_without_any_bound(world: Any, ask: Any) -> None:
    world.upstream.pieces = [event("and so on, "), *(event("over and over, " * 20) for _ in range(100)), DONE]
    async with ask("up-pieces", stream=True) as answer:
        assert b"runaway_reply" in await answer.read()
    assert world.row().error == "runaway_reply"
    ((prompt, completion),) = world.tenancy.settled
    assert prompt == 7
    assert 3_000 < completion < 5_000


async def test_where_output_is_hidden_and_nothing_reported_the_reservation_is_settled(world: Any, ask: Any) -> None:
    world.tenancy.held.output_tokens, world.tenancy.held.hidden_output = 500, True
    world.upstream.pieces = [event("one", "stop"), DONE]
    async with ask("up-pieces", stream=True) as answer:
        await answer.read()
    world.row()
    assert world.tenancy.settled == [(7, 500)]


async def test_a_caller_who_leaves_pays_the_prompt_and_what_was_delivered(world: Any, ask: Any) -> None:
    world.tenancy.held.output_tokens = 50_000
    async with ask("up-endless", stream=True) as answer:
        async for _ in answer.content.iter_any():
            answer.close()
            break
    assert await asyncio.to_thread(world.upstream.closed.wait, 5)
    assert world.row().error == "client_disconnected"
    ((prompt, completion),) = world.tenancy.settled
    assert prompt == 7
    assert 1 <= completion < 50_000
