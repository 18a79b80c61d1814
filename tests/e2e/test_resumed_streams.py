"""A kept response is streamed again from where its caller lost it: the rest of what was judged as a whole."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from service.api.responses_stored import ResumedWire
from service.errors import WireError
from tests.e2e.conftest import SECRET, World

EVENTS = 9


def stream() -> list[bytes]:
    """A response that says the secret in pieces of two characters behind one harmless one."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    said = f"It is {SECRET}."
    cuts = ["It is ", SECRET[:2], SECRET[2:9], SECRET[9:], "."]
    item = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said}]}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_1", "object": "response", "output": []}},
        *({"type": "response.output_text.delta", **place, "delta": cut} for cut in cuts),
        {"type": "response.output_text.done", **place, "text": said},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {"id": "resp_1", "object": "response", "output": [item]}},
    ]
    numbered = ({**event, "sequence_number": number} for number, event in enumerate(events))
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in numbered]


def numbers(events: list[bytes]) -> list[int]:
    return [json.loads(event.partition(b"data: ")[2])["sequence_number"] for event in events]


async def asked(client: aiohttp.ClientSession) -> list[bytes]:
    """The stream as it was judged when it was made."""
    body = {"model": "up-pieces", "input": "hello", "stream": True}
    async with client.post("/v1/responses", json=body) as answer:
        return split(await answer.read())


def split(body: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in body.split(b"\n\n") if event]


async def test_a_resumed_stream_is_the_rest_of_the_stream_that_was_judged(
    world: World, client: aiohttp.ClientSession
) -> None:
    world.upstream.pieces, world.replies.action = stream(), "redact"
    whole = await asked(client)
    assert numbers(whole) == list(range(EVENTS)) and SECRET.encode() not in b"".join(whole)
    for after in (0, 1, 2, 3, 4, EVENTS - 2, EVENTS - 1):
        async with client.get(f"/v1/responses/resp_1?stream=true&starting_after={after}") as answer:
            assert answer.status == 200
            assert split(await answer.read()) == whole[after + 1 :]
        assert world.upstream.paths[-1] == "/v1/responses/resp_1?stream=true"


@pytest.mark.parametrize("after", [1, 2, 3, 4, EVENTS])
async def test_a_secret_that_began_before_the_resumed_part_is_not_sent(
    world: World, client: aiohttp.ClientSession, after: int
) -> None:
    world.upstream.pieces = stream()
    await asked(client)
    async with client.get(f"/v1/responses/resp_1?stream=true&starting_after={after}") as answer:
        text = await answer.text()
        assert answer.status == 400 and answer.headers["x-firewall-action"] == "block"
    assert json.loads(text)["error"]["code"] == "content_filter"
    assert SECRET[2:9] not in text and SECRET[9:] not in text


@pytest.mark.parametrize(("sent", "number"), [(None, 4), (1, 4), (7, 8)])
def test_an_error_in_a_resumed_stream_is_numbered_behind_what_its_caller_has(sent: int | None, number: int) -> None:
    error = WireError(502, "server_error", "upstream_invalid", "It broke off.")
    assert numbers([ResumedWire(3).error_event(error, sent)]) == [number]
