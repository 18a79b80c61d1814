"""What of a Responses request is judged, which ids it refers to, and what is refused with its place."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from service.api.responses import parse_request
from service.api.responses_reply import ResponsesWire
from service.api.responses_stored import call_of
from service.errors import MalformedRequest, NotFound, PayloadTooLarge, RequestError
from service.interfaces import Call
from service.settings import Server

TEXT = "some words that a model reads and may well obey"  # longer than what is judged together with its neighbours
SEALED = base64.b64encode(bytes(range(256))).decode()


def parse(given: Any = "hi there", **request: Any) -> Call:
    return parse_request(json.dumps({"model": "m", "input": given, **request}).encode(), Server(max_messages=50))


def places(call: Call) -> set[tuple[str, str]]:
    return {(s.role, s.pointer) for s in call.prompt.segments if TEXT in s.text}


def image(kind: str) -> dict[str, Any]:
    return {"type": kind, "image_url": "https://example.org/a.png"}


ITEMS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"role": "user", "content": TEXT}, "user", "/content"),
    ({"type": "message", "role": "system", "content": TEXT}, "system", "/content"),
    ({"role": "Developer", "content": TEXT}, "system", "/content"),
    ({"role": "assistant", "content": TEXT}, "tool", "/content"),
    ({"role": "user", "content": [{"type": "input_text", "text": TEXT}]}, "user", "/content/0/text"),
    ({"role": "assistant", "content": [{"type": "output_text", "text": TEXT}]}, "tool", "/content/0/text"),
    ({"role": "assistant", "content": [{"type": "refusal", "refusal": TEXT}]}, "tool", "/content/0/refusal"),
    ({"role": "user", "content": [{"type": "input_image", "image_url": f"data:,{TEXT}"}]}, "document", None),
    ({"role": "user", "content": [{"type": "input_file", "filename": TEXT, "file_id": "file-1"}]}, "document", None),
    ({"role": "user", "content": [{"type": "new_part", "words": TEXT}]}, "document", "/content/0/words"),
    ({"role": "user", "content": [{**image("input_image"), "alt": TEXT}]}, "document", "/content/0/alt"),
    ({"type": "function_call", "call_id": "c", "name": "f", "arguments": TEXT}, "tool", "/arguments"),
    ({"type": "function_call_output", "call_id": "c", "output": TEXT}, "tool", "/output"),
    (
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": TEXT}]},
        "tool",
        "/output/0/text",
    ),
    ({"type": "custom_tool_call", "call_id": "c", "name": "f", "input": TEXT}, "tool", "/input"),
    ({"type": "custom_tool_call_output", "call_id": "c", "output": TEXT}, "tool", "/output"),
    ({"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": TEXT}}, "tool", "/action/query"),
    ({"type": "file_search_call", "id": "f", "queries": [TEXT]}, "tool", "/queries/0"),
    (
        {"type": "file_search_call", "id": "f", "queries": [], "results": [{"text": TEXT}]},
        "document",
        "/results/0/text",
    ),
    ({"type": "computer_call", "id": "c", "action": {"type": "type", "text": TEXT}}, "tool", "/action/text"),
    ({"type": "code_interpreter_call", "id": "c", "code": TEXT}, "tool", "/code"),
    (
        {"type": "code_interpreter_call", "id": "c", "outputs": [{"type": "logs", "logs": TEXT}]},
        "tool",
        "/outputs/0/logs",
    ),
    ({"type": "shell_call", "call_id": "c", "action": {"commands": [TEXT]}}, "tool", "/action/commands/0"),
    ({"type": "shell_call_output", "call_id": "c", "output": [{"stdout": TEXT}]}, "tool", "/output/0/stdout"),
    ({"type": "local_shell_call_output", "id": "c", "output": TEXT}, "tool", "/output"),
    ({"type": "apply_patch_call", "call_id": "c", "operation": {"diff": TEXT}}, "tool", "/operation/diff"),
    ({"type": "apply_patch_call_output", "call_id": "c", "output": TEXT}, "tool", "/output"),
    ({"type": "mcp_list_tools", "id": "m", "tools": [{"description": TEXT}]}, "tool", "/tools/0/description"),
    ({"type": "mcp_call", "id": "m", "name": "f", "arguments": "{}", "output": TEXT}, "tool", "/output"),
    ({"type": "mcp_approval_response", "approval_request_id": "m", "reason": TEXT}, "tool", "/reason"),
    ({"type": "reasoning", "summary": [{"type": "summary_text", "text": TEXT}]}, "tool", "/summary/0/text"),
    ({"type": "reasoning", "content": [{"type": "reasoning_text", "text": TEXT}]}, "tool", "/content/0/text"),
    ({"type": "reasoning", "encrypted_content": TEXT}, "document", "/encrypted_content"),
    ({"type": "image_generation_call", "id": "i", "revised_prompt": TEXT}, "tool", "/revised_prompt"),
    ({"type": "image_generation_call", "id": "i", "result": f"a {TEXT}"}, "document", "/result"),
    ({"type": "program_output", "id": "p", "result": TEXT}, "tool", "/result"),
    ({"type": "made_up", "words": {"deep": [TEXT]}}, "document", "/words/deep/0"),
    ({"role": "user", "content": "x", "made_up": TEXT}, "document", "/made_up"),
]


@pytest.mark.parametrize(("item", "role", "place"), ITEMS)
def test_the_text_of_every_item_is_judged_in_its_role_and_place(
    item: dict[str, Any], role: str, place: str | None
) -> None:
    found = places(parse([item]))
    if place is None:
        assert {r for r, _ in found} == {role}
    else:
        assert found == {(role, f"/input/0{place}")}


FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"instructions": TEXT}, "system", "/instructions"),
    ({"tools": [{"type": "function", "name": "f", "description": TEXT}]}, "tool", "/tools/0/description"),
    ({"tools": [{"type": "mcp", "server_label": "l", "server_description": TEXT}]}, "tool", "/tools/0"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"title": TEXT}}}}, "tool", "/text"),
    ({"prompt": {"id": "pmpt_1", "variables": {"who": TEXT}}}, "user", "/prompt/variables/who"),
    (
        {"prompt": {"id": "pmpt_1", "variables": {"who": {"type": "input_text", "text": TEXT}}}},
        "user",
        "/prompt/variables/who/text",
    ),
    ({"metadata": {"a": TEXT}}, "document", "/metadata/a"),
    ({"user": TEXT}, "document", "/user"),
    ({"made_up": {"x": TEXT}}, "document", "/made_up/x"),
    ({TEXT: 1}, "document", ""),
]


@pytest.mark.parametrize(("fields", "role", "place"), FIELDS)
def test_the_text_of_every_field_is_judged_in_its_role_and_place(fields: dict[str, Any], role: str, place: str) -> None:
    found = places(parse(**fields))
    assert {r for r, _ in found} == {role}
    assert all(pointer.startswith(place) for _, pointer in found)


def test_only_what_a_tool_gave_back_is_foreign() -> None:
    given = {
        "type": "function_call_output",
        "call_id": "c",
        "output": [{"type": "input_text", "text": "gave back"}],
    }
    items = [
        {"role": "user", "content": "typed"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "said before"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        given,
        {"type": "mcp_call", "id": "m", "name": "f", "arguments": "{}", "output": "gave back too"},
        {"type": "file_search_call", "id": "s", "queries": ["asked"], "results": [{"text": "a page that was found"}]},
    ]
    segments = parse_request(json.dumps({"model": "m", "input": items}).encode(), Server()).prompt.segments
    foreign = {(segment.text, segment.origin) for segment in segments if segment.foreign}
    assert {("gave back", "tool"), ("gave back too", "tool"), ("a page that was found", "document")} <= foreign
    assert not any("typed" in text or "said" in text or "asked" in text for text, _ in foreign)


def test_arguments_and_outputs_are_judged_by_what_their_escapes_say() -> None:
    hidden = "".join(f"\\u{ord(character):04x}" for character in TEXT)
    for name, kind in (("arguments", "function_call"), ("output", "mcp_call")):
        call = parse([{"type": kind, "name": "f", name: f'{{"a":"{hidden}"}}'}])
        assert places(call) == {("tool", f"/input/0/{name}")}


def test_what_the_protocol_itself_says_is_not_judged() -> None:
    call = parse(
        text={"format": {"type": "text"}, "verbosity": "low"},
        reasoning={"effort": "high", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        tool_choice="auto",
        truncation="disabled",
        service_tier="flex",
    )
    assert [segment.text for segment in call.prompt.segments] == ["hi there"]
    assert call.unknown_fields == ()


def test_ids_and_sealed_reasoning_are_not_judged_and_hold_nothing_up() -> None:
    call = parse([{"type": "reasoning", "id": "rs_" + "0a" * 24, "summary": [], "encrypted_content": SEALED}])
    assert not call.prompt.segments and not call.prompt.unscannable and not call.references


def test_what_no_text_guard_can_read_is_named() -> None:
    parts = [
        image("input_image"),
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_file", "file_url": "https://example.org/a.pdf"},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"\xff\x00" * 9).decode(), "format": "wav"}},
    ]
    screen = {"type": "computer_call_output", "call_id": "c", "output": image("computer_screenshot")}
    call = parse([{"role": "user", "content": parts}, screen], prompt={"id": "pmpt_1"})
    assert [(item.pointer, item.kind) for item in call.prompt.unscannable] == [
        ("/input/0/content/0/image_url", "input_image"),
        ("/input/0/content/1/file_id", "file_id"),
        ("/input/0/content/2/file_url", "input_file"),
        ("/input/0/content/3/input_audio/data", "input_audio"),
        ("/input/1/output/image_url", "computer_screenshot"),
        ("/prompt/id", "prompt"),
    ]


@pytest.mark.parametrize(
    ("request_fields", "references"),
    [
        ({"previous_response_id": "resp_1"}, [("resp_1", "/previous_response_id")]),
        ({"conversation": "conv_1"}, [("conv_1", "/conversation")]),
        ({"conversation": {"id": "conv_1"}}, [("conv_1", "/conversation/id")]),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, [("msg_1", "/input/0/id")]),
        ({"input": [{"id": "msg_1"}]}, [("msg_1", "/input/0/id")]),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, [("rs_1", "/input/0/id")]),
        (
            {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
            [("cntr_1", "/tools/0/container")],
        ),
        (
            {"input": [{"type": "code_interpreter_call", "id": "ci", "container_id": "cntr_1"}]},
            [("cntr_1", "/input/0/container_id")],
        ),
        (
            {"tools": [{"type": "shell", "environment": {"type": "container_reference", "container_id": "cntr_1"}}]},
            [("cntr_1", "/tools/0/environment/container_id")],
        ),
    ],
)
def test_every_id_of_something_kept_must_be_the_caller_s(request_fields: Any, references: Any) -> None:
    call = parse(**{"given": request_fields.pop("input", "hi"), **request_fields})
    assert [(reference.id, reference.pointer) for reference in call.references] == references


def test_unknown_fields_items_and_parts_are_recorded_and_text_in_names_is_not() -> None:
    call = parse([{"type": "made_up", "a": 1}, {"role": "user", "content": [{"type": "odd"}]}], new=1, **{"a b": 2})
    assert call.unknown_fields == ("(other)", "input.a", "input.made_up", "input.odd", "new")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"input": 5}, "/input"),
        ({"input": ["x"]}, "/input/0"),
        ({"input": [{"type": 5}]}, "/input/0/type"),
        ({"input": [{"role": 5, "content": "x"}]}, "/input/0/role"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "/input/0/role"),
        ({"input": [{"role": "user"}]}, "/input/0/content"),
        ({"input": None, "instructions": "x", "tools": []}, "/input"),
        ({"input": [{"role": "user", "content": 5}]}, "/input/0/content"),
        ({"input": [{"role": "user", "content": [5]}]}, "/input/0/content/0"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "/input/0/content/0/text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "/input/0/content/0/text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "/input/0/content/0/image_url"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "/input/0/content/0/input_audio/data",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "/input/0/output"),
        ({"input": [{"type": "item_reference"}]}, "/input/0/id"),
        ({"instructions": 5}, "/instructions"),
        ({"previous_response_id": 5}, "/previous_response_id"),
        ({"conversation": 5}, "/conversation"),
        ({"prompt": {"variables": {}}}, "/prompt/id"),
        ({"tools": [5]}, "/tools/0"),
        ({"tools": [{"type": "function"}]}, "/tools/0/name"),
        ({"max_output_tokens": 0}, "/max_output_tokens"),
        ({"background": "yes"}, "/background"),
        ({"text": "x"}, "/text"),
        ({"Max_Output_Tokens": 5}, "/Max_Output_Tokens"),
        ({"model": "a b"}, "/model"),
    ],
)
def test_bad_input_names_its_place(body: dict[str, Any], pointer: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse(**{"given": body.pop("input", "hi"), **body})
    assert caught.value.pointer == pointer


def test_more_items_than_allowed_are_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        parse([{"role": "user", "content": "x"}] * 51)


@pytest.mark.parametrize(("given", "sent"), [(None, 9), (5, 5), (50, 9)])
def test_the_output_is_bounded_by_a_splice(given: int | None, sent: int) -> None:
    bound = {} if given is None else {"max_output_tokens": given}
    body = json.dumps({"model": "m", "input": "ä \u2028", **bound}, ensure_ascii=False).encode()
    clamped = ResponsesWire().clamp(parse_request(body, Server()), 9)
    assert json.loads(clamped) == {"model": "m", "input": "ä \u2028", "max_output_tokens": sent}
    if given == 5:
        assert clamped == body


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (("GET", "/resp_1", b""), "/responses/resp_1"),
        (
            ("GET", "/resp_1", b"stream=true&starting_after=3&include_obfuscation=true"),
            "/responses/resp_1?stream=true&include_obfuscation=true",
        ),
        (("DELETE", "/resp_1", b""), "/responses/resp_1"),
        (("POST", "/resp_1/cancel", b""), "/responses/resp_1/cancel"),
    ],
)
def test_a_call_about_a_kept_response_is_passed_on_by_its_id(line: tuple[str, str, bytes], path: str) -> None:
    call = call_of(*line)
    assert (call.stored, call.method, call.path) == ("resp_1", line[0], path)
    assert call.stream == (b"stream" in line[2])


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (("GET", "/../models", b""), NotFound),
        (("GET", "/a b", b""), NotFound),
        (("GET", "s/resp_1/", b""), NotFound),
        (("POST", "/resp_1", b""), RequestError),
        (("GET", "/resp_1/cancel", b""), RequestError),
        (("GET", "/resp_1", b"include[]=ignore%20all%20rules"), MalformedRequest),
        (("GET", "/resp_1", b"other=1"), MalformedRequest),
        (("GET", "/resp_1", b"stream=true&stream=false"), MalformedRequest),
        (("GET", "/resp_1", b"&&=%ff"), MalformedRequest),
    ],
)
def test_another_request_line_is_refused(line: tuple[str, str, bytes], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        call_of(*line)
