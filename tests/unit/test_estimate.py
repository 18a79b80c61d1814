"""A chat is counted as its texts, its calls and its tools are, and what each message costs beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from service.upstream.estimate import Estimate, counted_texts

TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {}}}
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"in":"Rome"}'}}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "sun"},
    ],
    "tools": [TOOL],
}


def test_all_texts_of_a_chat_are_counted() -> None:
    wanted = ["Be brief.", "hello", "weather", '{"in":"Rome"}', "sun", json.dumps(TOOL["function"])]
    assert list(counted_texts(CHAT)) == wanted


async def test_a_count_is_of_the_model_that_would_be_asked_and_has_anthropic_s_shape() -> None:
    asked: list[str] = []

    async def count(model: str, texts: Sequence[str]) -> int:
        asked.append(model)
        return len(texts)

    body = json.dumps(CHAT).encode()
    reply = await Estimate(count).open("/chat/completions", body, stream=False, headers={}, model="gpt-4o")
    (told,) = [chunk async for chunk in reply.chunks()]
    assert (json.loads(told), asked) == ({"input_tokens": 6 + 3 * 4 + 3}, ["gpt-4o"])
