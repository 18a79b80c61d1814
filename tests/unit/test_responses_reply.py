"""Nothing of a secret leaves in any string of a Responses reply, and ordinary streams leave byte for byte in time."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from openai.types.responses import Response
from openai.types.responses.response_stream_event import ResponseStreamEvent

from service.api.responses_reply import ResponsesWire
from service.errors import UpstreamInvalid, WireError
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.interfaces import Piece
from service.release import Release
from service.settings import Leakage
from service.upstream.sandbox_responses import events_of, response_to

MARK = "sk-live-9f8A7b6C5d4E3f2G"
PROTECTED = ProtectedTexts([ProtectedText("key", "secret", "", MARK)])
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def release(action: str = "block", stream: str = "exact", **more: Any) -> Release:
    settings = Leakage(stream=stream, action=action)  # type: ignore[arg-type]
    return Release(ReplyJudge(PROTECTED.for_request("t"), settings, lambda text: "digest"), ResponsesWire(), **more)


async def send(to: Release, pieces: list[Piece]) -> bytes:
    out = b""
    for piece in pieces:
        await to.take(piece)
        out += to.cleared()
    if not to.blocked:
        await to.finish()
        out += to.cleared()
    return out


def written(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %s\ndata: %s\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


def read(*events: dict[str, Any]) -> list[Piece]:
    return ResponsesWire().open_stream().feed(written(*events))


def stream_of(text: str, size: int = 5) -> list[dict[str, Any]]:
    response = response_to({"model": "m", "tools": []}, {"content": text}, USAGE)
    return list(events_of(response, lambda t: [t[at : at + size] for at in range(0, len(t), size)]))


# -- every string of the SDK's types -----------------------------------------------------------------------------------

NOT_TEXT = {
    ("response.image_generation_call.partial_image", "/partial_image_b64"),  # an image in base64
    ("response.audio.delta", "/delta"),  # sound in base64
    ("response.output_item.added", "/item/result"),  # an image in base64
    ("response.output_item.done", "/item/result"),
}


def models(kind: Any) -> Iterator[type[pydantic.BaseModel]]:
    """The models that an annotation names, within unions too."""
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        yield kind
    elif typing.get_origin(kind) in {typing.Annotated, typing.Union}:
        for inner in typing.get_args(kind):
            yield from models(inner)


def samples(kind: Any, depth: int = 0) -> Iterator[tuple[Any, str]]:
    """Values of an annotated type that hold one MARK each, with the JSON pointer of it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        yield MARK, ""
    elif depth > 7:
        return
    elif origin is typing.Literal:
        if isinstance(inner[0], str):
            yield MARK, ""  # a provider may send what the type does not allow
    elif origin is typing.Annotated:
        yield from samples(inner[0], depth)
    elif origin is list:
        yield from (([value], f"/0{place}") for value, place in samples(inner[0], depth + 1))
    elif origin is dict:
        yield from (({"a": value}, f"/a{place}") for value, place in samples(inner[1], depth + 1))
        yield {MARK: 1}, "/(name)"
    elif kind is object:
        yield {"x": [MARK]}, "/x/0"
    elif isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        for name, field in kind.model_fields.items():
            for value, place in samples(field.annotation, depth + 1):
                yield {**fixed(kind), (field.alias or name): value}, f"/{field.alias or name}{place}"
    else:
        for one in inner:
            yield from samples(one, depth)


def fixed(kind: type[pydantic.BaseModel]) -> dict[str, Any]:
    """What says which type it is."""
    return {
        name: typing.get_args(field.annotation)[0]
        for name, field in kind.model_fields.items()
        if name == "type" and typing.get_origin(field.annotation) is typing.Literal
    }


EVENTS = {fixed(model)["type"]: model for model in models(ResponseStreamEvent)}


def seen(pieces: list[Piece]) -> bool:
    return any(MARK in text for piece in pieces for _, text in piece.texts)


def test_the_sdk_has_events_to_look_at() -> None:
    assert {"response.output_text.delta", "response.completed", "error"} <= EVENTS.keys()


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_every_string_of_every_event_that_the_sdk_knows_is_judged(kind: str) -> None:
    missed: set[tuple[str, str]] = set()
    for name, field in EVENTS[kind].model_fields.items():
        # A response object has thousands of places; they are walked once, below.
        if name in {"type", "response"}:
            continue
        for value, place in samples(field.annotation):
            event = {"type": kind, "sequence_number": 0, "output_index": 0, name: value}
            if not seen(read(event)):
                missed.add((kind, f"/{name}{place}"))
    assert missed <= NOT_TEXT


def test_every_string_of_a_response_object_is_judged_in_a_stream_and_whole() -> None:
    missed = set()
    for value, place in samples(Response):
        event = {"type": "response.completed", "sequence_number": 0, "response": value}
        if not seen(read(event)) or not seen([ResponsesWire().read_reply(json.dumps(value).encode())]):
            missed.add(place)
    assert {place for place in missed if not place.endswith("/result")} == set()  # an image in base64


def test_an_image_that_is_no_base64_is_judged() -> None:
    item = {"type": "image_generation_call", "result": f"a key {MARK}"}
    assert seen(read({"type": "response.output_item.done", "output_index": 0, "item": item}))


@pytest.mark.parametrize("kind", ["response.new_thing.delta", "response.new_thing.done", "new_thing"])
def test_the_strings_of_an_event_that_nobody_knows_are_judged(kind: str) -> None:
    assert seen(read({"type": kind, "sequence_number": 0, "words": {"deep": [MARK]}}))


# -- holding back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["exact", "sentence", "buffer"])
async def test_a_secret_split_over_deltas_never_leaves(stream: str) -> None:
    out = await send(to := release(stream=stream), read(*stream_of(f"the key is {MARK} today")))
    assert to.blocked
    assert b"9f8A7" not in out


@pytest.mark.parametrize("late", ["response.output_text.done", "response.content_part.done", "response.completed"])
async def test_a_secret_that_stands_only_where_the_text_is_repeated_never_leaves(late: str) -> None:
    events = [
        json.loads(json.dumps(event).replace("hello", MARK)) if event["type"] == late else event
        for event in stream_of("hello")
    ]
    out = await send(to := release(), read(*events))
    assert to.blocked
    assert MARK.encode() not in out


async def test_a_redacted_text_is_redacted_wherever_it_is_repeated() -> None:
    out = await send(to := release("redact"), read(*stream_of(f"the key is {MARK} today")))
    assert MARK.encode() not in out and to.verdict.action == "redact"
    events = [json.loads(block.partition("data: ")[2]) for block in out.decode().split("\n\n") if block]
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert deltas == "the key is [redacted] today"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == deltas
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


async def test_a_secret_in_escaped_arguments_is_withheld() -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in MARK)
    function = {"name": "f", "arguments": f'{{"a":"{escaped}"}}'}
    reply = {"tool_calls": [{"id": "call_1", "function": function}]}
    response = response_to({"model": "m"}, reply, USAGE)
    events = list(events_of(response, lambda t: [t[at : at + 3] for at in range(0, len(t), 3)]))
    await send(to := release(), read(*events))
    assert to.blocked
    await send(whole := release(), [ResponsesWire().read_reply(json.dumps(response).encode())])
    assert whole.blocked


@pytest.mark.parametrize("stream", ["exact", "sentence"])
async def test_an_ordinary_stream_leaves_byte_for_byte_and_only_its_end_waits(stream: str) -> None:
    events = stream_of("Hello there. This is fine.")
    to, out = release(stream=stream), b""
    for piece in read(*events):
        await to.take(piece)
        out += to.cleared()
    assert out == written(*events[:-1])
    await to.finish()
    assert out + to.cleared() == written(*events)
    assert to.number == len(events) - 1


async def test_a_text_is_counted_once_however_often_it_is_said() -> None:
    await send(to := release(), read(*stream_of("Hello there.")))
    assert {channel: "".join(parts) for channel, parts in to.texts.items()} == {
        "output/0/content/0/text": "Hello there."
    }


async def test_what_the_caller_said_is_no_leak_where_the_response_repeats_it() -> None:
    prompt = "You are Nora, the travel desk of Example Airways, and refunds need approval by the duty manager."
    texts = ProtectedTexts([ProtectedText("desk", "prompt", "", prompt)])
    body = json.dumps({"object": "response", "instructions": prompt, "output": []}).encode()

    def judge(*typed: str) -> ReplyJudge:
        return ReplyJudge(texts.for_request("t", (), typed), Leakage(stream="exact"), lambda text: "digest")

    for echoes, blocked in ((frozenset({prompt}), False), (frozenset(), True)):
        to = Release(judge(), ResponsesWire(), echo_judge=judge(*echoes), echoes=echoes)
        await send(to, [ResponsesWire().read_reply(body)])
        assert to.blocked == blocked


# -- what cannot be read -----------------------------------------------------------------------------------------------


def test_a_text_that_goes_on_after_its_end_is_refused() -> None:
    events = stream_of("hello")
    delta = next(event for event in events if event["type"].endswith(".delta"))
    with pytest.raises(UpstreamInvalid):
        read(*events[:-1], delta)


def test_an_event_of_two_types_is_refused() -> None:
    with pytest.raises(UpstreamInvalid):
        ResponsesWire().open_stream().feed(b'event: a\ndata: {"type":"b"}\n\n')


@pytest.mark.parametrize("index", [True, 1.5, "1", -1, 10**9])
def test_an_index_that_readers_take_differently_is_refused(index: Any) -> None:
    with pytest.raises(UpstreamInvalid):
        read({"type": "response.output_text.delta", "output_index": index, "delta": "x"})


def test_a_stream_that_breaks_off_or_goes_on_after_its_end_is_refused() -> None:
    events = stream_of("hello")
    reader = ResponsesWire().open_stream()
    reader.feed(written(*events[:-1]))
    with pytest.raises(UpstreamInvalid):
        reader.finish()
    with pytest.raises(UpstreamInvalid):
        read(*events, events[0])


def test_usage_ids_and_the_end_are_read_from_the_events() -> None:
    events = stream_of("hello")
    pieces = read(*events)
    assert [piece.final for piece in pieces] == [False] * (len(events) - 1) + [True]
    usage = pieces[-1].usage
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens) == (3, 2)
    issued = {name for piece in pieces for name in piece.issued}
    assert issued == {events[-1]["response"]["id"], events[-1]["response"]["output"][0]["id"]}
    failed = read({"type": "response.failed", "response": {"error": {"code": "x", "message": "y"}}})
    assert failed[0].failed and failed[0].final


def test_an_error_event_has_the_next_number_and_the_envelope_that_sdks_raise_for() -> None:
    error = WireError(400, "invalid_request_error", "content_filter", "blocked")
    head, data = ResponsesWire().error_event(error, 6).decode().strip().split("\n")
    event = json.loads(data.removeprefix("data: "))
    assert head == "event: error"
    assert (event["type"], event["sequence_number"], event["code"]) == ("error", 7, "content_filter")
    assert event["error"]["code"] == "content_filter"
