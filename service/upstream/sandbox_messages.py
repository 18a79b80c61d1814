"""The sandbox's Anthropic shape: requests read as chats, replies written as messages, whole or in events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

PATHS = ("/v1/messages", "/v1/messages/count_tokens")


def as_chat(request: dict[str, Any]) -> dict[str, Any]:
    """The request in the shape of a chat: texts only. A tool's result is what the user's turn says."""
    system = _text(request.get("system"))
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in request.get("messages") or ():
        if isinstance(message, dict):
            messages.append({"role": message.get("role"), "content": _text(message.get("content"))})
    return {"messages": messages, "tools": request.get("tools")}


def counted_texts(request: dict[str, Any]) -> list[str]:
    """What of a request costs tokens: its texts, and the tools as they are written."""
    texts = [message["content"] for message in as_chat(request)["messages"]]
    return texts + [json.dumps(tool, ensure_ascii=False) for tool in request.get("tools") or ()]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict):
            text = block.get("text")
            texts.append(text if isinstance(text, str) else _text(block.get("content")))
    return "\n".join(text for text in texts if text)


def message(model: str, reply: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    """A whole message that says what the chat-shaped reply says."""
    content: list[dict[str, Any]] = []
    for block, text in _blocks(reply):
        if block["type"] == "text":
            content.append({**block, "text": text})
        else:
            content.append({**block, "input": json.loads(text)})
    return {**_opening(model, usage), "content": content, "stop_reason": _reason(reply)}


def events(
    model: str, reply: dict[str, Any], usage: dict[str, int], split: Callable[[str], list[str]]
) -> Iterator[bytes]:
    """The same as events; `split` cuts a text into what one event carries."""
    opening = {**_opening(model, {**usage, "output_tokens": 0}), "content": [], "stop_reason": None}
    yield _event("message_start", message=opening)
    for index, (block, text) in enumerate(_blocks(reply)):
        yield _event("content_block_start", index=index, content_block=block)
        kind, member = ("text_delta", "text") if block["type"] == "text" else ("input_json_delta", "partial_json")
        for part in split(text):
            yield _event("content_block_delta", index=index, delta={"type": kind, member: part})
        yield _event("content_block_stop", index=index)
    delta = {"stop_reason": _reason(reply), "stop_sequence": None}
    yield _event("message_delta", delta=delta, usage={"output_tokens": usage["output_tokens"]})
    yield _event("message_stop")


def failure(text: str) -> dict[str, Any]:
    """The error for what the sandbox does not have."""
    return {"type": "error", "error": {"type": "not_found_error", "message": text}}


def _opening(model: str, usage: dict[str, int]) -> dict[str, Any]:
    return {
        "id": "msg_sandbox",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_sequence": None,
        "usage": usage,
    }


def _blocks(reply: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each block as it begins, and its text or its input's JSON."""
    if reply.get("content"):
        yield {"type": "text", "text": ""}, reply["content"]
    for call in reply.get("tool_calls") or ():
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        yield {"type": "tool_use", "id": "toolu_sandbox", "name": name, "input": {}}, _json(arguments)


def _json(arguments: str) -> str:
    """The arguments as they are, escapes and all, unless they are no JSON: an input is always an object."""
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return json.dumps({"text": arguments})
    return arguments


def _reason(reply: dict[str, Any]) -> str:
    return "tool_use" if reply.get("tool_calls") else "end_turn"


def _event(kind: str, **members: Any) -> bytes:
    data = json.dumps({"type": kind, **members}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")
