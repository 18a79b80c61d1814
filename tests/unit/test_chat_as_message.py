"""A chat completion's reply as a Message, whole and streamed: all is told, or it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.chat_reply_as_message import error_of, message_of
from service.api.chat_stream_as_message import MessageEvents
from service.api.messages_reply import MessagesWire
from service.errors import UpstreamInvalid
from service.interfaces import Usage

USED = {
    "prompt_tokens": 14,
    "completion_tokens": 3,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
}
COUNTS = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 4,
    "output_tokens": 3,
}
HEAD = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt"}


def call(name: str = "weather", arguments: Any = '{"in": "Rome"}', call_id: Any = "c1", **more: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def completion(
    content: Any = None, *calls: Any, reason: str = "stop", choice: Any = None, said: Any = None, **more: Any
) -> bytes:
    message = {"role": "assistant", "content": content, **(said or {})} | ({"tool_calls": calls} if calls else {})
    first = {"index": 0, "message": message, "finish_reason": reason, **(choice or {})}
    return json.dumps({**HEAD, "choices": [first], "usage": USED, **more}).encode()


def told(*args: Any, stops: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return dict(json.loads(message_of(completion(*args, **more), stops)))


def use(call_id: str = "c1", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": given or {"in": "Rome"}}


# -- whole -----------------------------------------------------------------------------------------------------------


def test_a_completion_is_a_message_with_its_text_its_calls_and_what_it_used() -> None:
    out = told("Hello", call(), call(call_id="c2"), reason="tool_calls", said={"reasoning_content": "a secret thought"})
    assert out == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "gpt",
        "content": [{"type": "text", "text": "Hello"}, use(), use("c2")],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": COUNTS,
    }


def test_what_comes_out_is_read_and_settled_like_any_message() -> None:
    piece = MessagesWire().read_reply(message_of(completion("Hello", call())))
    assert piece.usage == Usage(14, 3, 4)
    assert ("content/text", "Hello") in piece.texts
    assert [part.name for part in piece.calls] == ["weather"]


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": 1}])
def test_where_nobody_counted_the_numbers_are_null_and_nothing_is_settled_by_them(usage: Any) -> None:
    out = message_of(completion("Hello", usage=usage))
    assert json.loads(out)["usage"] == {"input_tokens": None, "output_tokens": None}
    assert MessagesWire().read_reply(out).usage is None


@pytest.mark.parametrize(
    ("given", "reason", "sequence"),
    [
        ({"reason": "stop"}, "end_turn", None),
        ({"reason": "length"}, "max_tokens", None),
        ({"reason": "content_filter"}, "refusal", None),
        ({"reason": "something new"}, "end_turn", None),
        ({"reason": "stop", "said": {"refusal": "I will not."}}, "refusal", None),
        ({"reason": "stop", "choice": {"stop_reason": "END"}, "stops": ("END",)}, "stop_sequence", "END"),
        ({"reason": "stop", "choice": {"matched_stop": "END"}, "stops": ("END",)}, "stop_sequence", "END"),
        ({"reason": "stop", "choice": {"stop_reason": "eos"}, "stops": ("END",)}, "end_turn", None),
        ({"reason": "stop", "choice": {"stop_reason": 128009}}, "end_turn", None),
        ({"reason": "tool_calls"}, "end_turn", None),
    ],
)
def test_the_reason_to_stop_is_told_in_the_caller_s_words(given: Any, reason: str, sequence: str | None) -> None:
    out = told("x", **given)
    assert (out["stop_reason"], out["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize("reason", ["stop", "tool_calls"])
def test_a_reply_that_calls_ended_to_call(reason: str) -> None:
    assert told(None, call(), reason=reason)["stop_reason"] == "tool_use"


def test_a_refusal_is_text() -> None:
    assert told(None, said={"refusal": "I will not."})["content"] == [{"type": "text", "text": "I will not."}]


def test_text_in_parts_is_one_text_without_the_thoughts() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert told(parts)["content"] == [{"type": "text", "text": "Hello"}]


@pytest.mark.parametrize(("arguments", "given"), [("", {}), (None, {}), ({"in": "Rome"}, {"in": "Rome"})])
def test_arguments_that_are_left_out_or_no_string_are_an_object(arguments: Any, given: dict[str, str]) -> None:
    (block,) = told(None, call(arguments=arguments))["content"]
    assert block["input"] == given


def test_a_call_without_an_id_gets_one_that_no_other_has() -> None:
    ids = [block["id"] for block in told(None, call(call_id=None), call(call_id=""))["content"]]
    again = [block["id"] for block in told(None, call(call_id=""), id="chatcmpl-2")["content"]]
    assert len({*ids, *again}) == 3


def test_a_call_that_the_bound_cut_off_is_left_out() -> None:
    out = told("Hello", call(arguments='{"in": "Ro'), reason="length")
    assert (out["content"], out["stop_reason"]) == ([{"type": "text", "text": "Hello"}], "max_tokens")


@pytest.mark.parametrize(
    "body",
    [
        completion(None, call(arguments="Rome")),
        completion(None, call(arguments='{"in": 1, "in": 2}')),
        completion(None, call(arguments="[]")),
        completion(None, {"id": "c", "type": "custom", "custom": {"name": "x", "input": "y"}}),
        completion(None, "call"),
        completion(None, said={"audio": {"data": "x"}}),
        completion(None, said={"function_call": {"name": "f", "arguments": "{}"}}),
        completion([{"type": "image_url"}]),
        completion(5),
        completion("x", choices=[]),
        completion("x", choices=[{}, {}]),
        completion("x", error={"message": "no"}),
        b"[]",
    ],
)
def test_what_a_message_cannot_hold_is_refused(body: bytes) -> None:
    with pytest.raises(UpstreamInvalid):
        message_of(body)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (429, {"error": {"message": "slow down", "type": "tokens", "code": "x"}}, "rate_limit_error", "slow down"),
        (401, {"error": {"message": "who?"}}, "authentication_error", "who?"),
        (400, {"object": "error", "message": "too long", "code": 400}, "invalid_request_error", "too long"),
        (404, {"error": "no such model"}, "not_found_error", "no such model"),
        (500, {"detail": "broken"}, "api_error", "broken"),
    ],
)
def test_an_error_has_the_caller_s_envelope_and_the_type_of_its_status(
    status: int, body: Any, kind: str, words: str
) -> None:
    out = error_of(json.dumps(body).encode(), status)
    assert json.loads(out) == {"type": "error", "error": {"type": kind, "message": words}}


@pytest.mark.parametrize("body", [b"<html>", b'{"odd": 1}'])
def test_an_error_that_says_nothing_stays_as_it_is(body: bytes) -> None:
    assert error_of(body, 500) == body


# -- streams ---------------------------------------------------------------------------------------------------------


def chunk(delta: Any = None, reason: str | None = None, *, index: int = 0, choice: Any = None, **more: Any) -> bytes:
    first = {"index": index, "delta": delta or {}, "finish_reason": reason, **(choice or {})}
    return b"data: " + json.dumps({**HEAD, "choices": [first], **more}).encode() + b"\n\n"


def part(arguments: str = "", index: int = 0, **more: Any) -> bytes:
    """A chunk with a part of a call; its head where it has an id."""
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return chunk({"tool_calls": [{"index": index, "function": function, **more}]})


def begun(call_id: str, index: int = 0, arguments: str = "", name: str = "weather") -> bytes:
    return part(arguments, index, id=call_id, type="function", name=name)


DONE = b"data: [DONE]\n\n"
USAGE = b"data: " + json.dumps({**HEAD, "choices": [], "usage": USED}).encode() + b"\n\n"
START = chunk({"role": "assistant", "content": ""})
CHUNKS = [
    b": a comment\n\n",
    b"data: " + json.dumps({**HEAD, "choices": [], "prompt_filter_results": []}).encode() + b"\n\n",
    START,
    chunk({"reasoning_content": "a secret thought"}),
    chunk({"content": "H\u00e4l"}),
    chunk({"content": "lo \ud83d"}),
    begun("c1", 0),
    part('{"in": "R', 0),
    part('ome"}', 0),
    begun("c2", 1),
    part("", 1),
    begun("c3", 2, '{"in": "Oslo"}'),
    chunk({}, "tool_calls"),
    USAGE,
    DONE,
]


def run(stream: bytes, size: int = 64, stops: tuple[str, ...] = ()) -> bytes:
    events = MessageEvents(stops)
    out = [piece for at in range(0, len(stream), size) for piece in events.feed(stream[at : at + size])]
    return b"".join([*out, *events.finish()])


def documents(out: bytes) -> list[dict[str, Any]]:
    events = [event.split(b"\ndata: ") for event in out.split(b"\n\n") if event]
    read = [json.loads(data) for _, data in events]
    assert [f"event: {document['type']}".encode() for document in read] == [name for name, _ in events]
    return read


def summary(out: bytes) -> list[str]:
    return [f"{d['type'].removeprefix('content_block_')} {d.get('index', '')}".strip() for d in documents(out)]


def test_chunks_are_told_as_blocks_one_after_the_other() -> None:
    read = documents(run(b"".join(CHUNKS)))
    assert summary(run(b"".join(CHUNKS))) == [
        "message_start",
        *("start 0", "delta 0", "delta 0", "stop 0"),
        *("start 1", "delta 1", "delta 1", "stop 1"),
        *("start 2", "stop 2"),
        *("start 3", "delta 3", "stop 3"),
        *("message_delta", "message_stop"),
    ]
    assert read[0]["message"] == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "gpt",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    assert [d["content_block"] for d in read if d["type"] == "content_block_start"] == [
        {"type": "text", "text": ""},
        *({"type": "tool_use", "id": call_id, "name": "weather", "input": {}} for call_id in ("c1", "c2", "c3")),
    ]
    assert [d["delta"] for d in read if d["type"] == "content_block_delta"] == [
        {"type": "text_delta", "text": "H\u00e4l"},
        {"type": "text_delta", "text": "lo \ud83d"},
        {"type": "input_json_delta", "partial_json": '{"in": "R'},
        {"type": "input_json_delta", "partial_json": 'ome"}'},
        {"type": "input_json_delta", "partial_json": '{"in": "Oslo"}'},
    ]
    assert read[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert read[-2]["usage"] == COUNTS
    assert b"secret thought" not in run(b"".join(CHUNKS))


def test_what_comes_out_is_a_stream_that_the_wire_reads_to_its_end() -> None:
    reader = MessagesWire().open_stream()
    pieces = [*reader.feed(run(b"".join(CHUNKS))), *reader.finish()]
    assert [piece.usage for piece in pieces if piece.usage] == [Usage(14, 3, 4)]
    assert [piece.final for piece in pieces][-2:] == [True, True]
    assert ("content/text", "H\u00e4l") in [found for piece in pieces for found in piece.texts]
    assert [part.name for piece in pieces for part in piece.calls if part.name] == ["weather"] * 3


def test_where_nobody_counted_nothing_is_settled_by_the_stream() -> None:
    out = run(START + chunk({"content": "x"}, "stop") + DONE)
    assert documents(out)[-2]["usage"] == {"input_tokens": None, "output_tokens": None}
    reader = MessagesWire().open_stream()
    assert [piece.usage for piece in [*reader.feed(out), *reader.finish()] if piece.usage] == []


@pytest.mark.parametrize(
    ("events", "kinds"),
    [
        # Text after a call; a stream without its `[DONE]`; usage beside the text; a repeated reason.
        ([begun("c", 0, "{}"), chunk({"content": "x"}), chunk({}, "stop"), DONE], ["tool_use", "text"]),
        ([chunk({"content": "x"}, "stop", usage=USED)], ["text"]),
        ([chunk({"content": "x"}, "stop"), chunk({}, "stop"), DONE], ["text"]),
        # All calls are 0, or have no index at all; the head is said again; no reason is given.
        ([begun("c", 0, "{}"), begun("d", 0, "{}"), chunk({}, "stop"), DONE], ["tool_use", "tool_use"]),
        ([chunk({"tool_calls": [call(), call(call_id="d")]}, "stop"), DONE], ["tool_use", "tool_use"]),
        ([begun("c", 0, '{"a"'), begun("c", 0, ":1}"), chunk({}, "stop"), DONE], ["tool_use"]),
        ([chunk({"content": "x"}), DONE], ["text"]),
        ([chunk({"refusal": "no"}, "stop"), DONE], ["text"]),
        ([chunk({}, "stop"), DONE], []),
    ],
)
def test_dialects_of_the_stream_are_told(events: list[bytes], kinds: list[str]) -> None:
    read = documents(run(b"".join(events)))
    assert [d["content_block"]["type"] for d in read if d["type"] == "content_block_start"] == kinds
    wanted = "tool_use" if "tool_use" in kinds else "refusal" if b"refusal" in events[0] else "end_turn"
    assert read[-2]["delta"]["stop_reason"] == wanted
    reader = MessagesWire().open_stream()
    reader.feed(run(b"".join(events)))
    reader.finish()


def test_a_call_that_the_bound_cut_off_stays_cut_and_says_so() -> None:
    read = documents(run(begun("c", 0, '{"in": "Ro') + chunk({}, "length") + DONE))
    assert read[-2]["delta"]["stop_reason"] == "max_tokens"
    assert read[2]["delta"]["partial_json"] == '{"in": "Ro'


def test_a_stop_sequence_is_told_where_the_server_says_it() -> None:
    out = run(chunk({"content": "x"}, "stop", choice={"stop_reason": "END"}) + DONE, stops=("END",))
    assert documents(out)[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


@pytest.mark.parametrize(
    "events",
    [
        [START, chunk({"content": "x"})],
        [DONE],
        [],
        [START, chunk({}, "stop"), DONE, START],
        [START, chunk({}, "stop"), chunk({"content": "x"})],
        [START, chunk({"content": "x"}, index=1)],
        [part("{}")],
        [begun("c", 0, "{}"), begun("d", 1, "{}"), part("1", 0)],
        [begun("c", 0, "Rome"), chunk({}, "tool_calls"), DONE],
        [begun("c", 0, '{"in'), begun("d", 1, "{}")],
        [chunk({"audio": {"data": "x"}})],
        [chunk({"content": 5})],
        [chunk({"tool_calls": {}})],
        [b'data: {"choices": [5]}\n\n'],
        [b"data: text\n\n"],
    ],
)
def test_a_stream_that_is_not_whole_or_not_known_is_refused(events: list[bytes]) -> None:
    with pytest.raises(UpstreamInvalid):
        run(b"".join(events))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "busy", "type": "overloaded_error"}, "overloaded_error"),
        ({"message": "busy", "type": "server_error", "code": None}, "api_error"),
        ({"message": "busy", "type": "BadRequestError", "code": 400}, "invalid_request_error"),
        ("busy", "api_error"),
    ],
)
def test_an_error_within_the_stream_is_its_end(error: Any, kind: str) -> None:
    out = run(START + b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    assert documents(out)[-1] == {"type": "error", "error": {"type": kind, "message": "busy"}}
