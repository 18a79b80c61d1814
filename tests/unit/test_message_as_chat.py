"""A Message's request as a chat completion: all is told, or it is refused by its place."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from service.api.chat import parse_request as parse_chat
from service.api.message_request_as_chat import translate
from service.api.messages import parse_count, parse_request
from service.api.messages_as_chat import CountAsChat
from service.api.messages_reply import MessagesWire
from service.errors import MalformedRequest
from service.firewall.prompt import joined_segments
from service.settings import Server

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"in": {}}}
WEATHER = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}
USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"in": "Röme"}}
CALL = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"in":"Röme"}'}}
HINT = {"cache_control": {"type": "ephemeral"}}


def told(messages: Any = HELLO, *, asks_usage: bool = True, **fields: Any) -> dict[str, Any]:
    """What becomes of a request that the front accepts; it has to be one that chats accept."""
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": messages, **fields}).encode()
    parse_request(body, Server())
    out = translate(body, asks_usage=asks_usage)
    parse_chat(out, Server())
    return dict(json.loads(out))


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


def assistant(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": list(blocks)}]


def result(content: Any = "sun", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t1", "content": content, **more}


def answered(given: Any) -> list[dict[str, Any]]:
    return [*assistant(USE), *user(given)]


def test_a_plain_message_is_a_chat_with_its_bound() -> None:
    assert told() == {"model": "m", "max_tokens": 9, "messages": HELLO}


@pytest.mark.parametrize("model", ["o3-mini", "gpt-5"])
def test_models_that_refuse_the_older_bound_get_the_newer_one(model: str) -> None:
    out = told(model=model)
    assert (out["max_completion_tokens"], "max_tokens" in out) == (9, False)


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("Be brief.", "Be brief."),
        ([text("Be brief.", **HINT)], "Be brief."),
        ([text("Be brief."), text(""), text("And kind.", citations=None)], "Be brief.\nAnd kind."),
    ],
)
def test_the_system_text_is_the_first_message(system: Any, content: str) -> None:
    assert told(system=system)["messages"] == [{"role": "system", "content": content}, *HELLO]


@pytest.mark.parametrize("system", [None, "", []])
def test_no_system_text_is_no_message(system: Any) -> None:
    assert told(system=system)["messages"] == HELLO


def test_a_conversation_with_parallel_calls_keeps_its_order() -> None:
    out = told(
        [
            *HELLO,
            *assistant(text("Let me look."), USE, {**USE, "id": "t2", "caller": {"type": "direct"}}),
            *user(result(**HINT), result([text("rain"), text("cold")], tool_use_id="t2"), text("so?", **HINT)),
            {"role": "system", "content": "Answer in French."},
            {"role": "user", "content": "well?"},
        ],
        tools=[WEATHER],
    )
    assert out["messages"] == [
        *HELLO,
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL, {**CALL, "id": "t2"}]},
        {"role": "tool", "tool_call_id": "t1", "content": "sun"},
        {"role": "tool", "tool_call_id": "t2", "content": "rain\ncold"},
        {"role": "user", "content": "so?"},
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "well?"},
    ]


@pytest.mark.parametrize(
    ("given", "content"),
    [
        (result(is_error=True), "Error: sun"),
        (result("", is_error=True), "Error: "),
        (result(is_error=False), "sun"),
        (result(None), ""),
        (result([]), ""),
        (result([{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}]), "a"),
    ],
)
def test_a_result_is_a_message_of_a_tool_and_says_where_it_failed(given: Any, content: str) -> None:
    out = told([*HELLO, *assistant(USE), *user(given)], tools=[WEATHER])
    assert out["messages"][2:] == [{"role": "tool", "tool_call_id": "t1", "content": content}]


def test_thoughts_of_earlier_turns_are_left_out() -> None:
    thoughts = ({"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"})
    out = told([*HELLO, *assistant(*thoughts, text("Yes.")), *HELLO, *assistant(*thoughts), *HELLO])
    assert [message["content"] for message in out["messages"]] == ["hello", "Yes.", "hello", "", "hello"]


def test_a_turn_of_calls_alone_has_no_text() -> None:
    (said,) = told([*HELLO, *assistant(USE), *user(result())], tools=[WEATHER])["messages"][1:2]
    assert said == {"role": "assistant", "content": None, "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ({"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}, "data:image/png;base64,iVBORw0K"),
        ({"type": "url", "url": "https://example.com/a.png"}, "https://example.com/a.png"),
    ],
)
def test_images_are_told_by_what_they_hold_or_where_they_lie(source: dict[str, str], url: str) -> None:
    out = told(user(text("what is it?"), {"type": "image", "source": source, **HINT}))
    shown = {"type": "image_url", "image_url": {"url": url}}
    assert out["messages"] == user(text("what is it?"), shown)


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "The text."}, "A title\nIts context\nThe text.\nSum up."),
        ({"type": "content", "content": "The text."}, "A title\nIts context\nThe text.\nSum up."),
        ({"type": "content", "content": [text("one"), text("two")]}, "A title\nIts context\none\ntwo\nSum up."),
    ],
)
def test_documents_of_text_are_told_with_their_title_and_context(source: Any, content: str) -> None:
    given = {"type": "document", "title": "A title", "context": "Its context", "citations": {"enabled": False}}
    assert told(user({**given, "source": source}, text("Sum up.")))["messages"] == [
        {"role": "user", "content": content}
    ]


@pytest.mark.parametrize(
    ("fields", "out"),
    [
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"stop_sequences": ["END", "x"]}, {"stop": ["END", "x"]}),
        ({"stop_sequences": []}, {}),
        ({"metadata": {"user_id": "u1"}}, {"user": "u1"}),
        ({"metadata": {"user_id": "u" * 65}}, {"user": hashlib.sha256(b"u" * 65).hexdigest()}),
        ({"metadata": {"user_id": None}}, {}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream": False}, {"stream": False}),
        ({"thinking": {"type": "disabled"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}}, {}),
        ({"thinking": {"type": "adaptive"}, "mcp_servers": [], "top_k": None, "tools": []}, {}),
        ({"tool_choice": {"type": "auto"}}, {}),
    ],
)
def test_members_that_have_a_counterpart_are_told_and_those_that_say_nothing_left_out(
    fields: dict[str, Any], out: dict[str, Any]
) -> None:
    assert told(**fields) == told() | out


def test_a_provider_that_refuses_the_option_is_not_asked_for_its_usage() -> None:
    assert "stream_options" not in told(stream=True, asks_usage=False)


def test_tools_are_functions() -> None:
    bare = {"name": "f", "input_schema": {"type": "object"}, "strict": True, "type": "custom", **HINT}
    function = {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}
    assert told(tools=[WEATHER, bare])["tools"] == [
        {"type": "function", "function": function},
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}},
    ]


@pytest.mark.parametrize(
    ("choice", "out"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "weather"},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        ({"type": "any", "disable_parallel_tool_use": False}, {"tool_choice": "required"}),
    ],
)
def test_the_choice_among_tools_is_told_in_the_provider_s_words(choice: dict[str, Any], out: dict[str, Any]) -> None:
    assert told(tools=[WEATHER], tool_choice=choice) == told(tools=[WEATHER]) | out


DOCUMENT: dict[str, Any] = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
NESTED = {"type": "content", "content": [DOCUMENT]}
FIRST = "/messages/0/content/0"


def image(**source: Any) -> dict[str, Any]:
    return {"messages": user({"type": "image", "source": source})}


def document(**more: Any) -> dict[str, Any]:
    return {"messages": user({**DOCUMENT, **more})}


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"top_k": 5}, "/top_k"),
        ({"max_tokens": 0}, "/max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "/thinking"),
        ({"output_config": {"effort": "high"}}, "/output_config"),
        ({"service_tier": "standard_only"}, "/service_tier"),
        ({"container": "c"}, "/container"),
        ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "/mcp_servers"),
        ({"made_up": 1}, "/made_up"),
        ({"metadata": {"other": "x"}}, "/metadata/other"),
        ({"metadata": {"user_id": 5}}, "/metadata/user_id"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "/tools/0/type"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "/tools/0/defer_loading"),
        ({"tools": [{"name": "f"}]}, "/tools/0/input_schema"),
        ({"tools": [{"input_schema": {}}]}, "/tools/0/name"),
        ({"tool_choice": {"type": "any"}}, "/tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "/tool_choice/type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "/tool_choice/name"),
        ({"system": [text("x"), {"type": "image", "source": PNG}]}, "/system/1"),
        ({"messages": [*HELLO, *assistant(text("{"))]}, "/messages/1/role"),
        ({"messages": [{"role": "User", "content": "x"}]}, "/messages/0/role"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "/messages/0/name"),
        ({"messages": user(text("x", odd=1))}, f"{FIRST}/odd"),
        ({"messages": user({"type": "container_upload", "file_id": "f"})}, f"{FIRST}/type"),
        (image(type="file", file_id="f"), f"{FIRST}/source/type"),
        (image(type="url", url="http://x"), f"{FIRST}/source/url"),
        (image(**PNG | {"media_type": "image/tiff"}), f"{FIRST}/source/media_type"),
        (document(citations={"enabled": True}), f"{FIRST}/citations"),
        (document(source=PDF), f"{FIRST}/source/type"),
        (document(source=NESTED), f"{FIRST}/source/content/0/type"),
        ({"messages": answered(result([{"type": "image", "source": PNG}]))}, "/messages/1/content/0/content/0"),
        ({"messages": answered(result(is_error="yes"))}, "/messages/1/content/0/is_error"),
        ({"messages": user({**USE})}, f"{FIRST}/type"),
        ({"messages": [*HELLO, *assistant({**USE, "id": None}), *user(result())]}, "/messages/1/content/0/id"),
        ({"messages": [*HELLO, *assistant({**USE, "type": "server_tool_use"}), *HELLO]}, "/messages/1/content/0/type"),
    ],
)
def test_what_cannot_be_told_is_refused_by_its_place(request_: dict[str, Any], pointer: str) -> None:
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": HELLO} | request_).encode()
    parse_request(body, Server())
    with pytest.raises(MalformedRequest) as caught:
        translate(body, asks_usage=True)
    assert caught.value.pointer == pointer


def test_every_text_that_is_sent_was_judged_alone_or_joined() -> None:
    request = {
        "model": "m",
        "max_tokens": 9,
        "system": [text("one"), text("two")],
        "messages": [
            *user(text("three"), text("four")),
            *assistant(text("five"), text("six"), USE),
            *user(result([text("seven"), text("eight")])),
        ],
        "tools": [WEATHER],
    }
    body = json.dumps(request).encode()
    prompt = parse_request(body, Server()).prompt
    judged = {segment.text for segment in (*prompt.segments, *joined_segments(prompt))}
    sent = [message["content"] for message in json.loads(translate(body, asks_usage=True))["messages"]]
    assert {"one\ntwo", "three\nfour", "seven\neight"} <= judged
    assert sent == ["one\ntwo", "three\nfour", "five\nsix", "seven\neight"]


def test_a_pinned_text_and_a_clamp_are_told_as_well() -> None:
    body = json.dumps({"model": "m", "max_tokens": 900, "messages": HELLO, "system": "Be brief."}).encode()
    wire, call = MessagesWire(), parse_request(body, Server())
    pinned = wire.pin(call, "Be kind.")
    clamped = wire.clamp(parse_request(pinned, Server()), 50)
    out = json.loads(translate(clamped, asks_usage=True))
    assert (out["messages"][0]["content"], out["max_tokens"]) == ("Be kind.\nBe brief.", 50)


def test_what_is_counted_needs_no_bound_and_is_refused_where_the_message_would_be() -> None:
    body = json.dumps({"model": "m", "messages": HELLO}).encode()
    parse_count(body, Server())
    assert json.loads(CountAsChat().request(body, asks_usage=True)) == {"model": "m", "messages": HELLO}
    with pytest.raises(MalformedRequest):
        CountAsChat().request(json.dumps({"model": "m", "messages": HELLO, "odd": 1}).encode(), asks_usage=True)
