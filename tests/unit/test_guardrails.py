"""The guardrail routes: recorded requests of LiteLLM and LLM Guard, and what a verdict becomes in their words."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from service.api import guardrail_litellm, guardrail_llm_guard, moderations
from service.api.guardrail_litellm import LiteLLMWire
from service.api.guardrail_llm_guard import LLMGuardWire
from service.errors import MalformedRequest, PayloadTooLarge, WireError
from service.firewall.verdict import Finding, Verdict, decide
from service.interfaces import Call, Judged
from service.settings import Server

SERVER = Server(max_messages=8)
# As LiteLLM 1.108 sends them: absent lists are null, the caller's identity and headers come along.
FRAME: dict[str, Any] = {
    "input_type": "request",
    "litellm_call_id": "0c5f2c55-8f0e-4a0e-9d1c-0d8a3f1f6f0a",
    "litellm_trace_id": "8f0e0c5f-4a0e-9d1c-0d8a-3f1f6f0a2c55",
    "structured_messages": None,
    "images": None,
    "tools": None,
    "texts": [],
    "request_data": {"user_api_key_hash": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b"},
    "request_headers": {"host": "localhost:4000", "authorization": "[present]"},
    "litellm_version": "1.108.7",
    "additional_provider_specific_params": {"threshold": 1.0},
    "tool_calls": None,
    "model": "gpt-4",
}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"q":"h\\u0069dden"}'}}


def litellm(**fields: Any) -> Call:
    return guardrail_litellm.parse_request(json.dumps(FRAME | fields).encode(), SERVER)


def judged(call: Call) -> dict[str, str]:
    return {segment.text: segment.role for segment in call.prompt.segments}


def verdict(action: str, category: str = "injection") -> Verdict:
    return decide([Finding("g", category, 0.7, action)])  # type: ignore[arg-type]


# -- LiteLLM ---------------------------------------------------------------------------------------------------------


def test_texts_take_the_roles_of_the_messages_that_hold_them() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a result"},
    ]
    call = litellm(structured_messages=messages, texts=["be brief", "hello", "a result", "only here"])
    assert judged(call) == {"be brief": "system", "hello": "user", "a result": "tool", "only here": "user"}
    assert call.prompt.segments[0].pointer == "/structured_messages/0/content"
    assert call.prompt.segments[-1].pointer == "/texts/3"


def test_messages_that_cannot_be_read_as_such_are_judged_as_documents() -> None:
    assert "some hidden words" in judged(litellm(structured_messages=[{"parts": ["some hidden words"]}]))


@pytest.mark.parametrize(
    "fields",
    [
        {"texts": ["a hidden thing"]},
        {"tools": [{"type": "function", "name": "f", "description": "a hidden thing"}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"q":"a h\\u0069dden thing"}'}}]},
        {"images": ["data:text/plain;base64," + base64.b64encode(b"a hidden thing").decode()]},
        {"images": ["a hidden thing"]},
        {"something_new": {"deep": ["a hidden thing"]}},
    ],
)
def test_every_text_of_a_request_is_judged(fields: dict[str, Any]) -> None:
    assert "a hidden thing" in "\n".join(judged(litellm(**fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"texts": ["a hidden thing"]},
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"q":"a h\\u0069dden thing"}'}}]},
        {"images": ["a hidden thing"]},
        {"something_new": {"deep": ["a hidden thing"]}},
        {"a hidden thing": 1},
    ],
)
def test_every_text_of_a_response_is_judged_as_a_reply(fields: dict[str, Any]) -> None:
    call = litellm(input_type="response", **fields)
    assert call.reply is not None
    assert "a hidden thing" in "\n".join(text for _, text in call.reply.texts)
    assert not call.prompt.segments


def test_an_image_is_unscannable() -> None:
    call = litellm(images=["https://example.org/a.png", "data:image/png;base64,iVBORw0KGgo="])
    assert [u.pointer for u in call.prompt.unscannable] == ["/images/0", "/images/1"]


def test_messages_beside_a_response_say_what_its_prompt_was() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    call = litellm(input_type="response", structured_messages=messages, texts=["hi"])
    assert (call.system_texts, call.user_texts) == (("be brief",), ("hello",))


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"input_type": "both"}, "/input_type"),
        ({"input_type": None}, "/input_type"),
        ({"texts": "one"}, "/texts"),
        ({"texts": ["one", 2]}, "/texts/1"),
        ({"images": [{}]}, "/images/0"),
        ({"tools": {}}, "/tools"),
        ({"Texts": ["one"]}, "/Texts"),
    ],
)
def test_a_wrong_request_of_litellm_is_refused_by_its_place(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        litellm(**fields)
    assert caught.value.pointer == place


def test_more_texts_than_are_allowed_are_too_large() -> None:
    with pytest.raises(PayloadTooLarge):
        litellm(texts=["a"] * 9)


def test_a_reply_with_bytes_that_are_none_is_the_request_s_fault() -> None:
    with pytest.raises(MalformedRequest):
        litellm(input_type="response", tool_calls=[{"bytes": [1, "x"]}])


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("allow", {"action": "NONE"}),
        ("flag", {"action": "NONE"}),
        (
            "block",
            {"action": "BLOCKED", "blocked_reason": "The prompt was blocked by the firewall: injection (request r)."},
        ),
    ],
)
def test_a_request_is_let_pass_or_blocked_with_its_reason(action: str, answer: dict[str, Any]) -> None:
    written = guardrail_litellm.write_decision("r", litellm(texts=["x"]), Judged(prompts=(verdict(action),)))
    assert json.loads(written) == answer


def test_a_redacted_response_is_sent_back_with_its_other_texts() -> None:
    call = litellm(input_type="response", texts=["the code is 1", "hello"], tool_calls=[TOOL_CALL])
    assert call.reply is not None
    texts = ["the code is #", *(text for _, text in call.reply.texts[1:])]
    released = LiteLLMWire().rewrite(call.reply, texts)
    assert released is not None
    answer = guardrail_litellm.write_decision("r", call, Judged(reply=verdict("redact"), released=released))
    assert json.loads(answer) == {"action": "GUARDRAIL_INTERVENED", "texts": ["the code is #", "hello"]}


def test_a_redaction_in_a_tool_call_has_no_place() -> None:
    call = litellm(input_type="response", texts=["hello"], tool_calls=[TOOL_CALL])
    assert call.reply is not None
    assert LiteLLMWire().rewrite(call.reply, ["hello", *("#" for _ in call.reply.texts[1:])]) is None


# -- LLM Guard -------------------------------------------------------------------------------------------------------


def prompt(**fields: Any) -> Call:
    return guardrail_llm_guard.parse_prompt(json.dumps(fields).encode(), SERVER)


def output(**fields: Any) -> Call:
    return guardrail_llm_guard.parse_output(json.dumps(fields).encode(), SERVER)


@pytest.mark.parametrize(("action", "valid", "risk"), [("allow", True, 0), ("flag", True, 0.5), ("block", False, 1)])
def test_a_prompt_is_valid_unless_it_is_blocked(action: str, valid: bool, risk: float) -> None:
    call = prompt(prompt="hello", scanners_suppress=["PromptInjection"])
    assert judged(call) == {"hello": "user"}
    found = Judged(prompts=(verdict(action),))
    scanned = {"is_valid": valid, "scanners": {"PromptInjection": risk}}
    assert json.loads(guardrail_llm_guard.write_scanned(call, found)) == scanned
    analysed = json.loads(guardrail_llm_guard.write_analysed_prompt(call, found))
    assert analysed == {**scanned, "sanitized_prompt": "hello"}


@pytest.mark.parametrize(
    ("action", "released", "scanned", "analysed", "text"),
    [
        ("allow", "a code", True, True, "a code"),
        ("redact", "a #", False, True, "a #"),
        ("block", None, False, False, ""),
    ],
)
def test_an_output_is_valid_as_it_is_or_with_its_redactions(
    action: str, released: str | None, scanned: bool, analysed: bool, text: str
) -> None:
    call = output(prompt="hello", output="a code")
    assert call.user_texts == ("hello",)
    found = Judged(reply=verdict(action), released=msgspec.json.encode(released) if released else b"")
    assert json.loads(guardrail_llm_guard.write_scanned(call, found))["is_valid"] is scanned
    answer = json.loads(guardrail_llm_guard.write_analysed_output(call, found))
    assert (answer["is_valid"], answer["sanitized_output"]) == (analysed, text)
    assert set(answer["scanners"]) == {"Sensitive"}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, "/prompt"),
        ({"prompt": None}, "/prompt"),
        ({"prompt": 1}, "/prompt"),
        ({"prompt": "a", "output": "b", "scanners_suppress": [1]}, "/scanners_suppress/0"),
        ({"prompt": "a"}, "/output"),
        ({"prompt": "a", "output": []}, "/output"),
    ],
)
def test_a_wrong_request_of_llm_guard_is_refused_by_its_place(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        output(**fields)
    assert caught.value.pointer == place


def test_errors_come_in_llm_guard_s_envelope() -> None:
    body = LLMGuardWire().error_body(WireError(400, "t", "invalid_request", "Expected a string.", "/prompt"))
    details = {"pointer": "/prompt", "code": "invalid_request"}
    assert json.loads(body) == {"message": "Expected a string.", "details": details}


# -- moderations -----------------------------------------------------------------------------------------------------


def moderation(given: Any, **more: Any) -> Call:
    return moderations.parse_request(json.dumps({"input": given, **more}).encode(), SERVER)


@pytest.mark.parametrize(
    ("given", "texts"),
    [("a", ["a"]), ("", [""]), (["a", "", "b"], ["a", "", "b"]), ([{"type": "text", "text": "a"}] * 2, ["a", "a"])],
)
def test_every_form_of_a_moderation_s_input_is_judged(given: Any, texts: list[str]) -> None:
    assert [s.text for s in moderation(given).prompt.segments] == texts


def test_parts_of_one_message_are_one_text_and_its_images_are_unscannable() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    call = moderation([{"type": "text", "text": "a"}, image])
    assert {s.message for s in call.prompt.segments} == {0}
    assert [u.pointer for u in call.prompt.unscannable] == ["/input/1/image_url/url"]


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (None, "/input"),
        ([], "/input"),
        (3, "/input"),
        (["a", 3], "/input/1"),
        ([{"type": "text"}], "/input/0/text"),
        (["a", {"type": "text", "text": "b"}], "/input/1"),
        ([{"type": "text", "text": "b"}, "a"], "/input/1"),
    ],
)
def test_a_wrong_moderation_is_refused_by_its_place(given: Any, place: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        moderation(given)
    assert caught.value.pointer == place


def test_a_result_says_what_policy_said_and_no_score() -> None:
    found = Judged(prompts=(verdict("block"), verdict("flag", "unscannable"), Verdict()))
    results = json.loads(moderations.write_results("r", found))["results"]
    assert [result["flagged"] for result in results] == [True, True, False]
    hits = [[name for name, hit in result["categories"].items() if hit] for result in results]
    assert hits == [["injection"], ["unscannable"], []]
    assert results[0]["category_scores"]["injection"] == 1.0
    assert results[1]["category_applied_input_types"]["unscannable"] == ["image"]
    assert set(moderations.STANDARD) < set(results[0]["categories"])
