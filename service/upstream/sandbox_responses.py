"""The sandbox's side of the Responses API: shapes of requests, responses and events."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

_MAX_KEPT = 1_000
_ECHOED = (
    *("instructions", "metadata", "tools", "tool_choice", "text", "temperature", "top_p", "max_output_tokens"),
    *("previous_response_id", "parallel_tool_calls", "background", "truncation", "user"),
)


class KeptResponses:
    """The newest responses by their id, with the conversation that each of them ends."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._turns: dict[str, list[dict[str, Any]]] = {}

    def keep(self, request: dict[str, Any], response: dict[str, Any]) -> None:
        """Unless the request says not to."""
        if request.get("store") is False:
            return
        self._turns[response["id"]] = self._turns_of(request)
        self._responses[response["id"]] = response
        while len(self._responses) > _MAX_KEPT:
            self.take(next(iter(self._responses)))

    def find(self, response_id: str) -> dict[str, Any] | None:
        """The response."""
        return self._responses.get(response_id)

    def take(self, response_id: str) -> dict[str, Any] | None:
        """The response, which is kept no longer."""
        self._turns.pop(response_id, None)
        return self._responses.pop(response_id, None)

    def messages_of(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages of a request and of those it goes on from, in the shape of chat completions."""
        instructions = request.get("instructions")
        first = [{"role": "system", "content": instructions}] if isinstance(instructions, str) else []
        return [*first, *self._turns_of(request)]

    def _turns_of(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        given = request.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
        turns = list(self._turns.get(str(request.get("previous_response_id")), ()))
        for item in items:
            kind = item.get("type", "message") if isinstance(item, dict) else ""
            if kind == "message":
                turns.append(item)
            elif kind == "function_call_output":
                turns.append({"role": "tool", "content": item.get("output")})
        return turns


def response_to(request: dict[str, Any], reply: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    """The whole response. `reply` is an assistant's message, `usage` counts, both as chat completions have them."""
    output: list[dict[str, Any]] = [
        {
            "id": f"fc_{secrets.token_hex(12)}",
            "type": "function_call",
            "status": "completed",
            "call_id": call["id"],
            **call["function"],
        }
        for call in reply.get("tool_calls") or ()
    ]
    if reply.get("content") is not None:
        part = {"type": "output_text", "text": reply["content"], "annotations": [], "logprobs": []}
        message = {"type": "message", "status": "completed", "role": "assistant", "content": [part]}
        output.append({"id": f"msg_{secrets.token_hex(12)}", **message})
    echoes = {name: request.get(name) for name in _ECHOED}
    return {
        "id": f"resp_{secrets.token_hex(12)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": request.get("model"),
        **echoes,
        "metadata": {**(request.get("metadata") or {}), "served_by": "sandbox: rules, not a model"},
        "tools": request.get("tools") or [],
        "tool_choice": request.get("tool_choice") or "auto",
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "output": output,
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }


def events_of(response: dict[str, Any], cut: Callable[[str], list[str]]) -> Iterator[dict[str, Any]]:
    """The response as the events of a stream; `cut` makes the pieces that a text comes in."""
    for number, event in enumerate(_events(response, cut)):
        yield {**event, "sequence_number": number}


def _events(response: dict[str, Any], cut: Callable[[str], list[str]]) -> Iterator[dict[str, Any]]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    if response["status"] == "queued":
        yield {"type": "response.queued", "response": {**begun, "status": "queued"}}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(response["output"]):
        empty: dict[str, Any] = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
        added = {**item, "status": "in_progress", **empty}
        yield {"type": "response.output_item.added", "output_index": index, "item": added}
        place = {"item_id": item["id"], "output_index": index}
        if item["type"] == "function_call":
            family = "response.function_call_arguments"
            for piece in cut(item["arguments"]):
                yield {"type": f"{family}.delta", **place, "delta": piece}
            yield {"type": f"{family}.done", **place, "name": item["name"], "arguments": item["arguments"]}
        else:
            yield from _text(item["content"][0], {**place, "content_index": 0}, cut)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": "response.completed", "response": {**response, "status": "completed"}}


def _text(part: dict[str, Any], place: dict[str, Any], cut: Callable[[str], list[str]]) -> Iterator[dict[str, Any]]:
    yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
    for piece in cut(part["text"]):
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": part}
