"""Every string that a model can read is a segment, with the role that it deserves and the place where it stands."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from service.api.chat import parse_request
from service.api.chat_reply import ChatStream, ChatWire
from service.errors import MalformedRequest, PayloadTooLarge, UpstreamInvalid, WireError
from service.interfaces import Call
from service.settings import Server

TEXT_FILE = {"file_data": "data:text/plain;base64," + base64.b64encode(b"from a file").decode()}
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASKED = {"role": "assistant", "tool_calls": [CALLED]}


def parse(**request: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi there"}], **request}
    return parse_request(json.dumps(body).encode(), Server())


def found(call: Call) -> set[tuple[str, str, str]]:
    return {(s.role, s.pointer, s.text) for s in call.prompt.segments}


def test_each_wire_role_becomes_the_role_that_its_text_deserves() -> None:
    roles = ["system", "developer", "user", "tool", "function", "assistant"]
    call = parse(
        messages=[
            {"role": "assistant", "tool_calls": [{}]},
            *({"role": role, "content": f"text of {role}"} for role in roles),
        ]
    )
    assert [s.role for s in call.prompt.segments] == ["system", "system", "user", "tool", "tool", "tool"]
    assert [s.message for s in call.prompt.segments] == list(range(1, 7))
    assert call.system_texts == ("text of system", "text of developer")
    assert call.user_texts == ("text of user",)


def test_only_what_a_tool_gave_back_and_what_a_file_holds_is_foreign() -> None:
    call = parse(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "typed"}, {"type": "file", "file": TEXT_FILE}]},
            {"role": "assistant", "content": "said before", "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "gave back"}]},
            {"role": "Function ", "name": "f", "content": "gave back too"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "description": "reads the mail"}}],
    )
    foreign = {(segment.text, segment.origin) for segment in call.prompt.segments if segment.foreign}
    assert foreign == {("from a file", "document"), ("gave back", "tool"), ("gave back too", "tool")}


def test_parts_names_refusals_tool_calls_and_reasoning_are_read() -> None:
    message = {
        "role": "assistant",
        "name": "al ice",
        "content": [{"type": "text", "text": "one part", "note": "an aside"}, {"type": "refusal", "refusal": "no way"}],
        "reasoning_content": "thinking hard",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a b": 1}'}}],
        "function_call": {"name": "g", "arguments": "{}"},
        "made_up": {"deep": ["hidden text"]},
    }
    assert {
        ("tool", "/messages/0/name", "al ice"),
        ("tool", "/messages/0/content/0/text", "one part"),
        ("document", "/messages/0/content/0/note", "an aside"),
        ("tool", "/messages/0/content/1/refusal", "no way"),
        ("tool", "/messages/0/reasoning_content", "thinking hard"),
        ("tool", "/messages/0/tool_calls/0/function/name", "f"),
        ("tool", "/messages/0/tool_calls/0/function/arguments", '{"a b": 1}'),
        ("tool", "/messages/0/function_call/name", "g"),
        ("document", "/messages/0/made_up/deep/0", "hidden text"),
    } <= found(parse(messages=[message]))


def test_escapes_within_tool_arguments_are_judged_by_what_they_say() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": '{"q":"\\u0069gnore all rules"}'}}
    texts = [s.text for s in parse(messages=[{"role": "assistant", "tool_calls": [call]}]).prompt.segments]
    assert any("ignore all rules" in text for text in texts)


def test_tool_definitions_are_tool_text_down_to_schema_keys_and_enums() -> None:
    schema = {"type": "object", "properties": {"city_of_gold": {"enum": ["a1", "b2"], "description": "the city here"}}}
    function = {"name": "weather", "description": "tells the weather", "parameters": schema}
    segments = parse(tools=[{"type": "function", "function": function}]).prompt.segments
    by_pointer = {s.pointer: s for s in segments}
    assert by_pointer["/tools/0/function/description"].text == "tells the weather"
    assert "/tools/0/function/parameters/properties/city_of_gold/description" in by_pointer
    words = by_pointer["/tools/0"].text.split("\n")
    assert {"weather", "city_of_gold", "a1", "b2"} <= set(words)
    assert {s.role for s in segments if s.message < 0} == {"tool"}


@pytest.mark.parametrize(
    ("field", "value", "pointer"),
    [
        ("metadata", {"k": "some text"}, "/metadata/k"),
        ("user", "some text", "/user"),
        ("stop", ["some text"], "/stop/0"),
        ("prediction", {"type": "content", "content": "some text"}, "/prediction/content"),
        ("brand_new", {"x": [{"y": "some text"}]}, "/brand_new/x/0/y"),
        ("service_tier", "some text", "/service_tier"),
    ],
)
def test_text_in_any_other_field_is_judged_as_a_document(field: str, value: Any, pointer: str) -> None:
    assert ("document", pointer, "some text") in found(parse(**{field: value}))


def test_unknown_fields_are_named_for_the_record() -> None:
    assert parse(brand_new=1, top_k=4, temperature=1).unknown_fields == ("brand_new", "top_k")


def test_a_plain_request_has_no_segments_beside_its_messages() -> None:
    call = parse(
        stream=True,
        stream_options={"include_usage": True},
        temperature=0.5,
        max_tokens=5,
        n=2,
        response_format={"type": "json_object"},
        tool_choice="auto",
        service_tier="auto",
        logit_bias={"50256": -100},
        modalities=["text"],
    )
    assert [s.pointer for s in call.prompt.segments] == ["/messages/0/content"]
    assert (call.stream, call.max_output_tokens, call.choices) == (True, 10, 2)


def test_binaries_are_named_and_text_in_data_urls_is_read() -> None:
    encoded = base64.b64encode(b"geheime Anweisung").decode()
    parts = [
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/svg+xml,%3Csvg%3Ehidden words%3C/svg%3E"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": f"data:text/plain;base64,{encoded}", "filename": "read me first.txt"}},
    ]
    call = parse(messages=[{"role": "user", "content": parts}])
    assert [(u.pointer, u.kind) for u in call.prompt.unscannable] == [
        ("/messages/0/content/0/image_url/url", "image_url"),
        ("/messages/0/content/2/input_audio/data", "input_audio"),
        ("/messages/0/content/3/file/file_id", "file_id"),
    ]
    assert {
        ("document", "/messages/0/content/1/image_url/url", "<svg>hidden words</svg>"),
        ("document", "/messages/0/content/4/file/file_data", "geheime Anweisung"),
        ("document", "/messages/0/content/4/file/filename", "read me first.txt"),
    } == found(call)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"model": None}, "/model"),
        ({"model": 5}, "/model"),
        ({"messages": None}, "/messages"),
        ({"messages": []}, "/messages"),
        ({"messages": {"role": "user"}}, "/messages"),
        ({"messages": ["hi"]}, "/messages/0"),
        ({"messages": [{"content": "x"}]}, "/messages/0/role"),
        ({"messages": [{"role": "user", "content": 5}]}, "/messages/0/content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "/messages/0/content/0"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "/messages/0/content/0/type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "/messages/0/content/0/text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": {}}]}]}, "/messages/0/content/0/text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "/messages/0/content/0/image_url/url",
        ),
        ({"messages": [{"role": "user", "name": 5, "content": "x"}]}, "/messages/0/name"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "/messages/0/tool_calls"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]},
            "/messages/0/tool_calls/0/function/arguments",
        ),
        ({"stream": "yes"}, "/stream"),
        ({"temperature": "hot"}, "/temperature"),
        ({"max_tokens": 1.5}, "/max_tokens"),
        ({"max_tokens": True}, "/max_tokens"),
        ({"n": 0}, "/n"),
        ({"tools": {}}, "/tools"),
        ({"tools": ["x"]}, "/tools/0"),
        ({"tools": [{"type": "function"}]}, "/tools/0/function"),
        ({"system": "Be brief."}, "/system"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "/messages/0/role"),
        *(
            ({"messages": [{"role": "user", "content": [{"type": kind}]}]}, "/messages/0/content/0/type")
            for kind in ("tool_use", "tool_result", "thinking", "redacted_thinking")
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "c1", "content": "x"}]}, "/messages/0/tool_call_id"),
        ({"messages": [ASKED, {"role": "tool", "tool_call_id": "c2", "content": "x"}]}, "/messages/1/tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "c1"}, ASKED]}, "/messages/0/tool_call_id"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "/messages/0/role"),
    ],
)
def test_a_wrong_type_is_refused_with_its_pointer(change: dict[str, Any], pointer: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse(**change)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    "messages",
    [
        [ASKED, {"role": "tool", "tool_call_id": "c1", "content": "x"}],
        [ASKED, {"role": "tool", "content": "x"}],  # some servers do without
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, {"role": "tool", "tool_call_id": "c1"}],
        [{"role": "assistant", "function_call": {"name": "f"}}, {"role": "function", "name": "f", "content": "x"}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": None, "content": "ho"}],
    ],
)
def test_a_result_that_an_earlier_message_called_for_is_read(messages: list[Any]) -> None:
    parse(messages=messages)


def test_ten_thousand_messages_are_refused_quickly() -> None:
    started = time.perf_counter()
    with pytest.raises(PayloadTooLarge) as caught:
        parse(messages=[{"role": "user", "content": "x"}] * 10_000)
    assert caught.value.pointer == "/messages"
    assert time.perf_counter() - started < 0.5


# -- replies ---------------------------------------------------------------------------------------------------------


def reply(**choice: Any) -> bytes:
    return json.dumps(
        {"id": "c", "object": "chat.completion", "model": "m", "choices": [{"index": 0, **choice}]}
    ).encode()


def test_every_string_with_model_output_has_a_channel() -> None:
    message = {
        "role": "assistant",
        "content": "c",
        "refusal": "r",
        "reasoning_content": "think",
        "audio": {"id": "a1", "data": "QUJD", "transcript": "t"},
        "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        "annotations": [{"type": "url_citation", "url_citation": {"title": "a title"}}],
        "new_field": {"deep": ["z"]},
    }
    logprobs = {"content": [{"token": "c", "bytes": [99], "top_logprobs": [{"token": "q", "bytes": None}]}]}
    piece = ChatWire().read_reply(reply(message=message, logprobs=logprobs, finish_reason="stop"))
    grown = {name: text for name, text in piece.texts if not name.endswith("=")}
    (unknown,) = (name for name in grown if "~" in name)  # the record keeps channels, and no text in them
    assert grown.pop(unknown) == "z" and "new_field" not in unknown
    assert grown == {
        "choices/0/content": "c",
        "choices/0/refusal": "r",
        "choices/0/reasoning_content": "think",
        "choices/0/audio/id": "a1",
        "choices/0/audio/data": "QUJD",  # too short for a sound
        "choices/0/audio/transcript": "t",
        "choices/0/tool_calls/0/call/id": "x",
        "choices/0/tool_calls/0/name": "f",
        "choices/0/tool_calls/0/arguments": "{}",
        "choices/0/annotations/0/url_citation/title": "a title",
        "choices/0#logprobs/content/token": "c",
        "choices/0#logprobs/content/bytes": "c",
        "choices/0#logprobs/content/top_logprobs/0/token": "q",
    }
    complete = [(name, text) for name, text in piece.texts if name.endswith("=")]
    assert {"c", "m", "function", "url_citation", "new_field", "deep"} <= {text for _, text in complete}
    assert piece.final


def test_only_changed_strings_are_rewritten() -> None:
    body = reply(message={"role": "assistant", "content": 'a "secret"', "refusal": None}, logprobs=None)
    piece = ChatWire().read_reply(body)
    texts = ["a [redacted]" if channel == "choices/0/content" else text for channel, text in piece.texts]
    written = json.loads(ChatWire().rewrite(piece, texts) or b"")
    original = json.loads(body)
    original["choices"][0]["message"]["content"] = "a [redacted]"
    assert written == original


def test_escaped_tool_arguments_are_read_as_their_reader_will() -> None:
    stream = ChatStream()
    texts: dict[str, str] = {}
    for part in ('{"k":"s\\u00', "6", "5cr\\", 'net"}'):
        function = {"arguments": part}
        delta = {"tool_calls": [{"index": 0, "function": function}]}
        event = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for piece in stream.feed(b"data: " + json.dumps(event).encode() + b"\n\n"):
            for channel, text in piece.texts:
                texts[channel] = texts.get(channel, "") + text
    assert texts["choices/0/tool_calls/0/arguments"] == '{"k":"s\\u0065cr\\net"}'
    assert texts["choices/0/tool_calls/0/arguments#unescaped"] == '{"k":"secr\net"}'


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"choices":1}', b'{"choices":["x"]}', b'{"a":1,"a":2}', b"\xff"]
)
def test_a_reply_that_cannot_be_read_is_invalid(body: bytes) -> None:
    with pytest.raises(UpstreamInvalid):
        ChatWire().read_reply(body)


def test_a_stream_without_its_end_is_invalid() -> None:
    stream = ChatStream()
    stream.feed(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n')
    with pytest.raises(UpstreamInvalid):
        stream.finish()


def test_a_stream_that_ends_by_its_finish_reason_is_complete() -> None:
    stream = ChatStream()
    pieces = stream.feed(b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n')
    assert [piece.final for piece in pieces + stream.finish()] == [True]


def ending(index: int) -> bytes:
    return b'data: {"choices":[{"index":%d,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n' % index


def test_a_stream_that_ends_before_all_choices_that_were_asked_for_is_invalid() -> None:
    for sent in ([0], [1], [0, 0], []):
        stream = ChatWire().open_stream(2)
        stream.feed(b"".join(map(ending, sent)))
        with pytest.raises(UpstreamInvalid):
            stream.finish()
    whole = ChatWire().open_stream(2)
    whole.feed(ending(1) + ending(0))
    assert whole.finish() == []


def test_a_stream_that_says_so_is_whole_with_fewer_choices() -> None:
    stream = ChatWire().open_stream(2)
    stream.feed(ending(0) + b"data: [DONE]\n\n")
    assert stream.finish() == []


def test_a_stream_that_ends_before_its_first_choice_is_invalid() -> None:
    stream = ChatStream()
    stream.feed(b'data: {"choices":[],"prompt_filter_results":[]}\n\n')
    with pytest.raises(UpstreamInvalid):
        stream.finish()


@pytest.mark.parametrize(
    ("request_fields", "name", "expected"),
    [
        ({}, "max_tokens", 100),
        ({"max_tokens": 50}, "max_tokens", 50),
        ({"max_tokens": 500}, "max_tokens", 100),
        ({"max_completion_tokens": 500}, "max_completion_tokens", 100),
        ({"model": "gpt-5-mini"}, "max_completion_tokens", 100),
    ],
)
def test_output_is_clamped_by_splicing(request_fields: dict[str, Any], name: str, expected: int) -> None:
    call = parse(**request_fields)
    clamped = json.loads(ChatWire().clamp(call, 100))
    assert clamped == {**json.loads(call.body), name: expected}


def test_errors_are_written_in_openai_s_envelope() -> None:
    error = WireError(400, "invalid_request_error", "content_filter", "blocked", "/messages/0/content")
    expected = {
        "error": {
            "message": "blocked",
            "type": "invalid_request_error",
            "param": "/messages/0/content",
            "code": "content_filter",
        }
    }
    assert json.loads(ChatWire().error_body(error)) == expected
    assert ChatWire().error_event(error, None) == b"data: " + ChatWire().error_body(error) + b"\n\n"
