"""What a request costs beside its texts, as each protocol says it."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from service.api import chat, messages, responses
from service.api.request_texts import LEAST_FILE_TOKENS
from service.interfaces import Call
from service.settings import Server
from service.tenancy.demand import Fee, Picture, tool_tokens

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + bytes(9)).decode()
NOISE = bytes(range(256)) * 30
SOUND = base64.b64encode(NOISE).decode()
FILE = base64.b64encode(b"%PDF-1.7\n" + NOISE * 4).decode()
SEALED = base64.b64encode(bytes(range(256))).decode()
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 123456789, "default": True}}}


def of_chat(*parts: Any, **more: Any) -> Call:
    asked = [{"role": "user", "content": [{"type": "text", "text": "look"}, *parts]}]
    return chat.parse_request(json.dumps({"model": "m", "messages": asked, **more}).encode(), Server())


def of_message(*parts: Any, **more: Any) -> Call:
    asked = [{"role": "user", "content": [{"type": "text", "text": "look"}, *parts]}]
    body = {"model": "m", "max_tokens": 9, "messages": asked, **more}
    return messages.parse_request(json.dumps(body).encode(), Server())


def of_response(*items: Any, **more: Any) -> Call:
    asked = [{"role": "user", "content": "look"}, *items]
    return responses.parse_request(json.dumps({"model": "m", "input": asked, **more}).encode(), Server())


def in_message(part: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    ("call", "picture"),
    [
        (of_chat({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}), Picture(640, 480)),
        (
            of_chat({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}}),
            Picture(640, 480, "low"),
        ),
        (of_chat({"type": "image_url", "image_url": "https://example.org/a.png"}), Picture()),
        (of_chat({"type": "image_url", "image_url": {"url": "file-1", "detail": {"low": ["low"]}}}), Picture()),
        (
            of_message(
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            ),
            Picture(640, 480),
        ),
        (of_message({"type": "image", "source": {"type": "file", "file_id": "file_1"}}), Picture()),
        (
            of_response(in_message({"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"})),
            Picture(640, 480),
        ),
        (of_response(in_message({"type": "input_image", "file_id": "file-1", "detail": "low"})), Picture(0, 0, "low")),
        (of_response({"type": "image_generation_call", "id": "ig_1", "result": PNG}), Picture(640, 480)),
        # Said to be text, and read by whoever reads pictures all the same.
        (of_chat({"type": "image_url", "image_url": {"url": f"data:text/plain;base64,{PNG}"}}), Picture(640, 480)),
    ],
)
def test_a_picture_is_counted_by_its_size_or_by_the_worst_case(call: Call, picture: Picture) -> None:
    assert call.demand.pictures == (picture,)
    assert not call.demand.unknown


@pytest.mark.parametrize(
    ("call", "least"),
    [
        (of_chat({"type": "input_audio", "input_audio": {"data": SOUND, "format": "mp3"}}), len(SOUND) // 400),
        (of_response(in_message({"type": "input_audio", "input_audio": {"data": SOUND, "format": "mp3"}})), 25),
        (of_chat({"type": "file", "file": {"file_data": f"data:application/pdf;base64,{FILE}"}}), LEAST_FILE_TOKENS),
        (
            of_message(
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": FILE}}
            ),
            len(FILE) // 4,
        ),
        (of_response(in_message({"type": "input_file", "file_data": FILE})), len(FILE) // 4),
        (of_response({"type": "reasoning", "summary": [], "encrypted_content": SEALED}), len(SEALED) // 4),
        (of_message({"type": "redacted_thinking", "data": SEALED}), len(SEALED) // 4),
        (of_message({"type": "thinking", "thinking": "well", "signature": SEALED}), len(SEALED) // 4),
    ],
)
def test_sound_files_and_what_is_sealed_are_counted_by_their_length(call: Call, least: int) -> None:
    assert call.demand.tokens >= least > 0
    assert call.demand.pictures == () and not call.demand.unknown


@pytest.mark.parametrize(
    "call",
    [
        of_chat({"type": "file", "file": {"file_id": "file-1"}}),
        of_chat(web_search_options={}),
        of_message({"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}),
        of_message(tools=[{"type": "web_fetch_20250910", "name": "web_fetch"}]),
        of_message(mcp_servers=[{"type": "url", "url": "https://example.org", "name": "x"}]),
        of_response(in_message({"type": "input_file", "file_url": "https://example.org/a.pdf"})),
        of_response(tools=[{"type": "file_search", "vector_store_ids": ["vs_1"]}]),
        of_response(prompt={"id": "pmpt_1"}),
    ],
)
def test_what_only_the_provider_can_read_may_fill_the_window(call: Call) -> None:
    assert call.demand.unknown


def test_an_ordinary_call_demands_nothing_beside_its_texts() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    for call in (of_chat(tools=tools, service_tier="auto"), of_message(), of_response()):
        assert (call.demand.tokens, call.demand.pictures, call.demand.fees) == (0, (), ())
        assert (call.demand.unknown, call.demand.caching) == (False, "")


@pytest.mark.parametrize(
    "call",
    [
        of_chat(tools=[{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]),
        of_chat(response_format={"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA}}),
        of_message(tools=[{"name": "f", "input_schema": SCHEMA}]),
        of_message({"type": "tool_use", "id": "t_1", "name": "f", "input": SCHEMA}),
        of_response(tools=[{"type": "function", "name": "f", "parameters": SCHEMA}]),
        of_response(text={"format": {"type": "json_schema", "name": "f", "schema": SCHEMA}}),
        of_response({"type": "odd", "schema": SCHEMA}),
    ],
)
def test_a_schema_is_counted_as_it_is_written_and_once(call: Call) -> None:
    assert call.counted_texts is not None
    written = "\n".join(call.counted_texts)
    assert json.dumps(SCHEMA)[1:-1] in written
    assert written.count("123456789") == 1 and written.count("minimum") == 1
    assert "look" in call.counted_texts
    assert not any("123456789" in segment.text for segment in call.prompt.segments)


@pytest.mark.parametrize(
    ("call", "fee"),
    [
        (of_chat(service_tier="priority"), Fee("priority", "/service_tier")),
        (of_chat(service_tier="what it is"), Fee("service_tier", "/service_tier")),
        (of_chat(web_search_options={}), Fee("web_search", "/web_search_options")),
        (of_message(speed="fast"), Fee("fast", "/speed")),
        (of_message(inference_geo="us"), Fee("us", "/inference_geo")),
        (
            of_message(
                tools=[{"name": "f", "input_schema": {}}, {"type": "web_search_20250305", "name": "web_search"}]
            ),
            Fee("web_search", "/tools/1"),
        ),
        (of_message(tools=[{"type": "code_execution_20250825", "name": "x"}]), Fee("code_execution", "/tools/0")),
        (of_response(service_tier="flex"), Fee("flex", "/service_tier")),
        (of_response(tools=[{"type": "web_search_preview"}]), Fee("web_search", "/tools/0")),
        (of_response(tools=[{"type": "image_generation"}]), Fee("image_generation", "/tools/0")),
        (
            of_response({"type": "additional_tools", "tools": [{"type": "code_interpreter"}]}),
            Fee("code_interpreter", "/input/1/tools/0"),
        ),
        (of_response(prompt={"id": "pmpt_1"}), Fee("prompt", "/prompt")),
    ],
)
def test_what_has_a_price_of_its_own_is_named_with_its_place(call: Call, fee: Fee) -> None:
    assert call.demand.fees == (fee,)


@pytest.mark.parametrize(
    ("mark", "caching"), [({"type": "ephemeral"}, "short"), ({"type": "ephemeral", "ttl": "1h"}, "long")]
)
def test_a_prompt_that_may_be_written_to_the_cache_is_told_from_one_that_is_not(mark: Any, caching: str) -> None:
    assert of_message({"type": "text", "text": "x", "cache_control": mark}).demand.caching == caching
    assert of_message(cache_control=mark).demand.caching == caching
    body = json.dumps(
        {"model": "m", "max_tokens": 1, "cache_control": mark, "messages": [{"role": "user", "content": "x"}]}
    )
    hidden = body.replace("cache_control", "cache\\u005fcontrol").encode()
    assert messages.parse_request(hidden, Server()).demand.caching == caching


def test_a_claude_with_tools_is_told_of_them_by_its_provider_as_well() -> None:
    own, others = {"name": "f", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}
    with_tools = of_message(tools=[own, others]).demand
    assert tool_tokens("claude-sonnet-4-5", with_tools) == 530 + 800
    assert tool_tokens("claude-sonnet-4-5", of_message().demand) == 0
    assert tool_tokens("gpt-4o", with_tools) == 0


def test_ids_of_containers_stand_for_nothing_that_the_model_reads() -> None:
    call = of_response(previous_response_id="resp_1", tools=[{"type": "code_interpreter", "container": "cntr_1"}])
    assert {(reference.id, reference.read) for reference in call.references} == {("resp_1", True), ("cntr_1", False)}
