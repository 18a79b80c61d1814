"""Where in a reply tool calls stand, in the neutral form (`firewall.asked.CallPart`), whole or piece by piece.

Only calls that the caller is to carry out: what a provider's own tools do is done before anybody could stop it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from service.api.reply_texts import Slot, index_of
from service.firewall.asked import CallPart

DEFINED_CALLS = {
    "local_shell_call": "local_shell",
    "shell_call": "shell",
    "apply_patch_call": "apply_patch",
    "computer_call": "computer",
}
"""Items of a response that ask the caller for what a tool of OpenAI's own does, and the names they go by here."""
_ASKED = ("action", "actions", "operation")


def chat_calls(document: dict[str, Any]) -> Iterator[CallPart]:
    """Of a chat completion or of one chunk of it."""
    for position, choice in enumerate(document.get("choices") or ()):
        place = f"choices/{index_of(choice, position)}"
        streamed = isinstance(choice.get("delta"), dict)
        box = choice["delta"] if streamed else choice.get("message")
        if not isinstance(box, dict):
            continue
        calls = box.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                yield from _chat_call(call, f"{place}/tool_calls/{index_of(call, number)}", whole=not streamed)
        if isinstance(function := box.get("function_call"), dict):
            yield _function(function, f"{place}/function_call", "arguments", whole=not streamed)


def _chat_call(call: dict[str, Any], place: str, *, whole: bool) -> Iterator[CallPart]:
    if isinstance(function := call.get("function"), dict):
        yield _function(function, place, "arguments", whole=whole)
    if isinstance(custom := call.get("custom"), dict):
        yield _function(custom, place, "call/custom/input", whole=whole)


def _function(function: dict[str, Any], place: str, where: str, *, whole: bool) -> CallPart:
    is_text = where.endswith("input")
    arguments = function.get("input" if is_text else "arguments") or ""
    return CallPart(
        place=place,
        name=_string(function.get("name")),
        arguments=_written(arguments),
        channel=f"{place}/{where}" if isinstance(arguments, str) else "",
        whole=whole,
        text=is_text,
    )


def message_calls(content: Any, slots: Sequence[Slot]) -> Iterator[CallPart]:
    """Of a whole message; `slots` are all its texts."""
    for index, block in enumerate(content if isinstance(content, list) else ()):
        if isinstance(block, dict) and block.get("type") == "tool_use":
            yield _tool_use(block, index, slots)


def message_event_calls(document: dict[str, Any], kind: str, tools: set[int], slots: Sequence[Slot]) -> list[CallPart]:
    """Of one event of a message's stream; `tools` are the blocks that are calls, and grows by those that begin."""
    index = document.get("index")
    if kind == "message_start" and isinstance(message := document.get("message"), dict):
        return list(message_calls(message.get("content"), slots))
    if type(index) is not int:
        return []
    if kind == "content_block_start" and isinstance(block := document.get("content_block"), dict):
        if block.get("type") != "tool_use":
            return []
        tools.add(index)
        if block.get("input"):
            return [_tool_use(block, index, slots)]
        return [CallPart(place=f"content/{index}", name=_string(block.get("name")), channel=_partial(index))]
    delta = document.get("delta")
    if kind == "content_block_delta" and index in tools and isinstance(delta, dict):
        part = _string(delta.get("partial_json"))
        return [CallPart(place=f"content/{index}", arguments=part, channel=_partial(index))]
    return []


def _partial(index: int) -> str:
    return f"content/{index}/partial_json"


def _tool_use(block: dict[str, Any], index: int, slots: Sequence[Slot]) -> CallPart:
    place = f"content/{index}/input/"
    leaves = [(s.channel, s.box[s.key]) for s in slots if s.channel.startswith(place) and s.kind == "text"]
    leaves = [(channel, text) for channel, text in leaves if not channel.endswith("=")]
    return CallPart(
        place=f"content/{index}",
        name=_string(block.get("name")),
        arguments=json.dumps(block.get("input"), ensure_ascii=False),
        leaves=tuple(leaves),
        whole=True,
    )


def response_calls(response: Any) -> Iterator[CallPart]:
    """Of a whole response."""
    output = response.get("output") if isinstance(response, dict) else None
    for position, item in enumerate(output if isinstance(output, list) else ()):
        yield from _item(item, f"output/{position}", whole=True)


def response_event_calls(event: dict[str, Any], place: str, step: str) -> Iterator[CallPart]:
    """Of one event of a response's stream; `place` and `step` are those of `responses_texts.place_of`."""
    kind = event.get("type")
    yield from response_calls(event.get("response"))
    if kind in {"response.output_item.added", "response.output_item.done"}:
        yield from _item(event.get("item"), place, whole=step == "done")
    elif kind in {"response.function_call_arguments.delta", "response.custom_tool_call_input.delta"}:
        yield _streamed(place, _string(event.get("delta")), whole=False)
    elif kind == "response.function_call_arguments.done":
        yield _streamed(place, _string(event.get("arguments")), whole=True)
    elif kind == "response.custom_tool_call_input.done":
        yield _streamed(place, _string(event.get("input")), whole=True)


def _streamed(channel: str, arguments: str, *, whole: bool) -> CallPart:
    place, _, member = channel.rpartition("/")
    return CallPart(place=place, arguments=arguments, channel=channel, whole=whole, text=member == "input")


def _item(item: Any, place: str, *, whole: bool) -> Iterator[CallPart]:
    kinds = {"function_call": "arguments", "custom_tool_call": "input"}
    kind = _string(item.get("type")) if isinstance(item, dict) else ""
    if (name := DEFINED_CALLS.get(kind)) and not _is_hosted(item):
        asked = {member: item[member] for member in _ASKED if item.get(member)} if whole else None
        yield CallPart(place=place, name=name, arguments=_written(asked or ""), whole=whole)
    elif member := kinds.get(kind):
        yield CallPart(
            place=place,
            name=_string(item.get("name")),
            arguments=_written(item.get(member) or ""),
            channel=f"{place}/{member}" if isinstance(item.get(member), str) else "",
            whole=whole,
            text=member == "input",
        )


def _is_hosted(item: dict[str, Any]) -> bool:
    """Whether a shell is one of the provider's own."""
    environment = item.get("environment")
    return isinstance(environment, dict) and environment.get("type") == "container_reference"


def _written(arguments: Any) -> str:
    """Some servers send arguments as an object, whatever the reference says."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
