"""A chat completion's request as a Message, and a Message as a chat completion: all is told, or it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.chat import parse_request
from service.api.chat_reply import ChatWire
from service.api.chat_to_messages import translate
from service.api.messages import parse_request as parse_message
from service.api.messages_to_chat import ChatEvents, completion_of, error_of
from service.errors import MalformedRequest, UpstreamInvalid
from service.interfaces import Usage
from service.settings import Server

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {"in": {}}}}
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Rome"}'}}


FORMAT: dict[str, Any] = {"type": "json_schema", "schema": {"type": "object", "properties": {"city": {}}}}
SCHEMA = "/response_format/json_schema"


def json_schema(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "city", "schema": FORMAT["schema"], **more}}


def told(messages: Any = HELLO, **fields: Any) -> dict[str, Any]:
    """What becomes of a request that the front accepts; it has to be one that Messages accept."""
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    parse_request(body, Server())
    out = translate(body)
    parse_message(out, Server())
    return dict(json.loads(out))


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


# -- requests --------------------------------------------------------------------------------------------------------


def test_a_plain_chat_is_a_message_with_a_bound() -> None:
    assert told() == {
        "model": "m",
        "max_tokens": 4_096,
        "messages": [{"role": "user", "content": [text("hello")]}],
    }


def test_what_one_side_says_in_a_row_is_one_turn_and_system_texts_stand_apart() -> None:
    out = told(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [text("And kind.")]},
            {"role": "user", "content": "one"},
            {"role": "user", "content": [text("two"), text("")]},
            {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "t2"}]},
            {"role": "tool", "tool_call_id": "t1", "content": "sun"},
            {"role": "tool", "tool_call_id": "t2", "content": [text("rain")]},
            {"role": "user", "content": "so?"},
        ],
        tools=TOOLS,
    )
    assert out["system"] == [text("Be brief."), text("And kind.")]
    use = {"type": "tool_use", "name": "weather", "input": {"in": "Rome"}}
    assert out["messages"] == [
        {"role": "user", "content": [text("one"), text("two")]},
        {"role": "assistant", "content": [{**use, "id": "t1"}, {**use, "id": "t2"}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [text("sun")]},
                {"type": "tool_result", "tool_use_id": "t2", "content": [text("rain")]},
                text("so?"),
            ],
        },
    ]
    schema = WEATHER["parameters"]
    assert out["tools"] == [{"name": "weather", "description": "Tells it.", "input_schema": schema}]


@pytest.mark.parametrize(
    ("fields", "out"),
    [
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 7, "max_tokens": None}, {"max_tokens": 7}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"temperature": 1, "top_p": 0.5}, {"temperature": 1, "top_p": 0.5}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"tools": TOOLS, "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        ({"tools": TOOLS, "tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        (
            {"tools": TOOLS, "parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tool_choice": {"type": "tool", "name": "weather"}},
        ),
        ({"n": 1, "presence_penalty": 0.0, "store": False, "logprobs": False, "seed": None}, {}),
        ({"response_format": {"type": "text"}, "service_tier": "auto", "modalities": ["text"]}, {}),
        ({"reasoning_effort": "low"}, {"output_config": {"effort": "low"}}),
        ({"response_format": json_schema()}, {"output_config": {"format": FORMAT}}),
        (
            {"response_format": json_schema(strict=True), "reasoning_effort": "xhigh"},
            {"output_config": {"effort": "xhigh", "format": FORMAT}},
        ),
    ],
)
def test_members_that_have_a_counterpart_are_told_and_those_that_say_nothing_left_out(
    fields: dict[str, Any], out: dict[str, Any]
) -> None:
    wanted = told() | out
    translated = told(**fields)
    translated.pop("tools", None)
    assert translated == wanted


@pytest.mark.parametrize(("strict", "more"), [(True, {"strict": True}), (False, {}), (None, {})])
def test_a_tool_is_as_strict_as_it_was_asked_to_be(strict: bool | None, more: dict[str, bool]) -> None:
    (tool,) = told(tools=[{"type": "function", "function": {**WEATHER, "strict": strict}}])["tools"]
    assert tool == {"name": "weather", "description": "Tells it.", "input_schema": WEATHER["parameters"], **more}


def test_a_turn_as_openai_s_own_sdk_gives_it_back_is_told() -> None:
    said = {"role": "assistant", "content": "Sun.", "refusal": None, "annotations": [], "audio": None}
    assert told([*HELLO, {**said, "function_call": None, "tool_calls": None}, *HELLO])["messages"][1] == {
        "role": "assistant",
        "content": [text("Sun.")],
    }


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("data:image/png;base64,iVBORw0K", {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}),
        ("https://example.com/a.png", {"type": "url", "url": "https://example.com/a.png"}),
    ],
)
def test_images_are_told_by_what_they_hold_or_where_they_lie(image: str, source: dict[str, str]) -> None:
    out = told([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}])
    assert out["messages"][0]["content"] == [{"type": "image", "source": source}]


def user(*parts: Any, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts), **fields}]


def called(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"n": 2}, "/n"),
        ({"seed": 1}, "/seed"),
        ({"temperature": 1.5}, "/temperature"),
        ({"logprobs": True}, "/logprobs"),
        ({"frequency_penalty": 0.5}, "/frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "/response_format"),
        ({"reasoning_effort": "none"}, "/reasoning_effort"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, f"{SCHEMA}/schema"),
        ({"response_format": json_schema(description="a city")}, f"{SCHEMA}/description"),
        ({"messages": [{"role": "assistant", "content": "x", "annotations": [{"a": 1}]}]}, "/messages/0/annotations"),
        ({"made_up": 1}, "/made_up"),
        ({"stream_options": {"x": 1}}, "/stream_options/x"),
        ({"functions": [WEATHER]}, "/functions"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "/tools/0/type"),
        ({"tools": [{"type": "function", "function": {**WEATHER, "strict": "yes"}}]}, "/tools/0/function/strict"),
        ({"tools": [{"type": "function", "function": {**WEATHER, "parameters": "x"}}]}, "/tools/0/function/parameters"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "/tool_choice"),
        ({"messages": [*HELLO, {"role": "system", "content": "late"}]}, "/messages/1/role"),
        ({"messages": [called("{}"), {"role": "function", "name": "f", "content": "x"}]}, "/messages/1/role"),
        ({"messages": user("hi", name="bob")}, "/messages/0/name"),
        ({"messages": user({"type": "text", "text": "a", "cache": 1})}, "/messages/0/content/0/cache"),
        ({"messages": user({"type": "file", "file": {"file_id": "f"}})}, "/messages/0/content/0/type"),
        (
            {"messages": user({"type": "image_url", "image_url": {"url": "http://x/a.png"}})},
            "/messages/0/content/0/image_url/url",
        ),
        (
            {"messages": user({"type": "image_url", "image_url": {"url": "https://x/a", "detail": "low"}})},
            "/messages/0/content/0/image_url/detail",
        ),
        ({"messages": [{"role": "assistant", "content": None, "refusal": "no"}]}, "/messages/0/refusal"),
        ({"messages": [called("{}"), {"role": "tool", "content": "x"}]}, "/messages/1/tool_call_id"),
        (
            {"messages": [called("{")]},
            "/messages/0/tool_calls/0/function/arguments",
        ),
        (
            {"messages": [called('{"a":1,"a":2}')]},
            "/messages/0/tool_calls/0/function/arguments",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_by_its_place(request_: dict[str, Any], pointer: str) -> None:
    body = json.dumps({"model": "m", "messages": HELLO} | request_).encode()
    parse_request(body, Server())
    with pytest.raises(MalformedRequest) as caught:
        translate(body)
    assert caught.value.pointer == pointer


# -- replies ---------------------------------------------------------------------------------------------------------

COUNTS = {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 3}
USED = {
    "prompt_tokens": 14,
    "completion_tokens": 3,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
}


def message(*content: dict[str, Any], reason: str = "end_turn", **more: Any) -> bytes:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude"}
    return json.dumps({**head, "content": content, "stop_reason": reason, "usage": COUNTS, **more}).encode()


USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"in": "Rome"}}


def test_a_message_is_a_completion_with_its_texts_its_calls_and_what_it_used() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    out = completion_of(message(thought, text("Hel"), text("lo"), USE, reason="tool_use"))
    document = json.loads(out)
    assert document["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello",
                "refusal": None,
                "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": '{"in":"Rome"}'}}],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ]
    assert (document["id"], document["model"], document["object"]) == ("msg_1", "claude", "chat.completion")
    assert document["usage"] == USED
    assert ChatWire().read_reply(out).usage == Usage(14, 3, 4)


@pytest.mark.parametrize(
    ("reason", "told_as"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("tool_use", "tool_calls"),
    ],
)
def test_the_reason_to_stop_is_told_in_the_caller_s_words(reason: str, told_as: str) -> None:
    assert json.loads(completion_of(message(text("x"), reason=reason)))["choices"][0]["finish_reason"] == told_as


@pytest.mark.parametrize(
    "body",
    [
        message({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}),
        message({"type": "text", "text": 5}),
        message("text"),  # type: ignore[arg-type]
        b'{"type":"error","error":{"type":"x","message":"y"}}',
        b"[]",
    ],
)
def test_what_a_completion_cannot_hold_is_refused(body: bytes) -> None:
    with pytest.raises(UpstreamInvalid):
        completion_of(body)


def test_an_error_has_the_caller_s_envelope_and_any_other_body_stays_as_it_is() -> None:
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'
    assert json.loads(error_of(body)) == {
        "error": {"message": "busy", "type": "overloaded_error", "param": None, "code": None}
    }
    assert error_of(b"<html>") == b"<html>"


# -- streams ---------------------------------------------------------------------------------------------------------


def sse(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def delta(index: int, kind: str, **members: Any) -> bytes:
    return sse("content_block_delta", index=index, delta={"type": kind, **members})


BEGUN = {"id": "msg_1", "model": "claude", "content": [], "usage": {**COUNTS, "output_tokens": 1}}
START = sse("message_start", message=BEGUN)
TEXT = sse("content_block_start", index=0, content_block=text(""))
END = [
    sse("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 3}),
    sse("message_stop"),
]
EVENTS = [
    START,
    sse("ping"),
    sse("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
    delta(0, "thinking_delta", thinking="a secret thought"),
    delta(0, "signature_delta", signature="abc"),
    sse("content_block_stop", index=0),
    sse("content_block_start", index=1, content_block=text("")),
    delta(1, "text_delta", text="H\u00e4l"),
    delta(1, "text_delta", text="lo \ud83d"),
    sse("content_block_stop", index=1),
    sse("content_block_start", index=2, content_block={**USE, "input": {}}),
    delta(2, "input_json_delta", partial_json=""),
    delta(2, "input_json_delta", partial_json='{"in": "R'),
    delta(2, "input_json_delta", partial_json='ome"}'),
    sse("content_block_stop", index=2),
    sse("content_block_start", index=3, content_block={**USE, "id": "t2", "input": {}}),
    sse("content_block_stop", index=3),
    *END,
]


def run(stream: bytes, size: int, *, tells_usage: bool = True) -> bytes:
    events = ChatEvents(tells_usage=tells_usage)
    out = [part for at in range(0, len(stream), size) for part in events.feed(stream[at : at + size])]
    return b"".join([*out, *events.finish()])


def documents(out: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix(b"data: ") for line in out.split(b"\n") if line]
    assert lines.pop() == b"[DONE]"
    return [json.loads(line) for line in lines]


def test_events_are_told_as_chunks_wherever_the_bytes_are_split() -> None:
    stream = b"".join(EVENTS)
    read = documents(run(stream, len(stream)))
    assert all(documents(run(stream, size)) == read for size in (1, 7, 64))
    deltas = [chunk["choices"][0]["delta"] for chunk in read if chunk["choices"]]
    assert "".join(part.get("content") or "" for part in deltas) == "H\u00e4llo \ud83d"
    calls = [call for part in deltas for call in part.get("tool_calls", ())]
    assert [(call["index"], call.get("id"), call["function"]) for call in calls] == [
        (0, "t1", {"name": "weather", "arguments": ""}),
        (0, None, {"arguments": '{"in": "R'}),
        (0, None, {"arguments": 'ome"}'}),
        (1, "t2", {"name": "weather", "arguments": ""}),
        (1, None, {"arguments": "{}"}),
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in read if chunk["choices"]][-1] == "tool_calls"
    assert read[-1]["usage"] == USED
    assert b"secret thought" not in run(stream, 64)


def test_usage_is_told_only_where_it_is_asked_for() -> None:
    assert b'"usage"' not in run(b"".join(EVENTS), 64, tells_usage=False)


def test_what_comes_out_is_a_stream_that_the_wire_reads_to_its_end() -> None:
    reader = ChatWire().open_stream()
    pieces = [*reader.feed(run(b"".join(EVENTS), 64)), *reader.finish()]
    assert pieces[-1].done
    assert [piece.usage for piece in pieces if piece.usage] == [Usage(14, 3, 4)]
    assert ("choices/0/content", "H\u00e4l") in [text for piece in pieces for text in piece.texts]


@pytest.mark.parametrize(
    "events",
    [
        EVENTS[:-1],
        [START, START],
        [START, delta(0, "text_delta", text="x")],
        [TEXT],
        [START, sse("content_block_start", index=0, content_block={"type": "server_tool_use"})],
        [START, TEXT, delta(0, "input_json_delta", partial_json="x")],
        [START, TEXT, delta(0, "audio_delta", audio="x")],
        [START, TEXT, delta(0, "text_delta", text=5)],
        [START, sse("surprise", text="x")],
        [*EVENTS, sse("ping")],
    ],
)  # fmt: skip
def test_a_stream_that_is_not_whole_or_not_known_is_refused(events: list[bytes]) -> None:
    with pytest.raises(UpstreamInvalid):
        run(b"".join(events), 64)


def test_an_error_within_the_stream_is_its_end() -> None:
    out = run(START + sse("error", error={"type": "overloaded_error", "message": "busy"}), 64)
    assert json.loads(out.split(b"data: ")[-1])["error"]["message"] == "busy"
    assert b"[DONE]" not in out
