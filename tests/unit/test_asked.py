"""Which texts of a request may be repeated in its reply because the caller has them."""

from __future__ import annotations

from typing import Any

import pytest

from service.api import chat_prompt, messages_prompt, responses_prompt
from service.firewall.asked import supplied_in

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "what the model wrote"}'}}
CHAT: list[Any] = [
    {"role": "system", "content": "what the operator wrote"},
    {"role": "user", "content": [{"type": "text", "text": "what the user wrote"}, {"type": "leaflet", "leaf": "PAGE"}]},
    {"role": "assistant", "content": "what the model said", "reasoning_details": [{"text": "what it thought"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "notes": "more of what it thought"},
    {"role": "tool", "tool_call_id": "c1", "content": "RESULT\\nof the tool"},
]
MESSAGES: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what the user wrote"},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "PAGE"}},
        ],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "what it thought", "signature": ""},
            {"type": "text", "text": "what the model said", "extra": "more of what it thought"},
            {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "what the model wrote"}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "RESULT of the tool"}]},
]
ITEMS: list[Any] = [
    {"role": "user", "content": [{"type": "input_text", "text": "what the user wrote"}]},
    {"role": "user", "content": [{"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain,PAGE"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "what the model said"}]},
    {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "what it thought"}]},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "what the model wrote"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "RESULT of the tool"},
]


def chat() -> Any:
    reading = chat_prompt.Reading()
    reading.messages(CHAT, 99)
    return reading


def messages() -> Any:
    reading = messages_prompt.Reading()
    reading.messages(MESSAGES, 99)
    return reading


def responses() -> Any:
    reading = responses_prompt.Reading()
    reading.read({"model": "m", "input": ITEMS}, 99)
    return reading


@pytest.mark.parametrize("read", [chat, messages, responses])
def test_results_and_documents_are_supplied_and_what_a_model_wrote_itself_is_not(read: Any) -> None:
    supplied = supplied_in(read().segments)
    assert any("PAGE" in text for text in supplied) and any("RESULT" in text for text in supplied)
    assert not [text for text in supplied if "model" in text or "thought" in text or " wrote" in text]


def test_an_escaped_line_end_does_not_stick_to_the_word_after_it() -> None:
    assert "RESULT of the tool" in supplied_in(chat().segments)
