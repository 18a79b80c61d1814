"""Which tools a request offers, what in it came from tools and documents, and whom its caller asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from service.api.reply_calls import DEFINED_CALLS
from service.firewall.asked import OfferedTool
from service.firewall.prompt import Segment

_MAX_END_USER = 256
_RESULT_ITEMS = frozenset(
    {"file_search_call", "web_search_call", "mcp_call", "code_interpreter_call", "mcp_list_tools", "program_output"}
)
# With one of these the model may call what the request does not list.
_OPEN_ENDED = ("tool_search", "mcp", "namespace")
_CALLED = ("function", "custom")
_DEFINED = (*DEFINED_CALLS.values(), "computer_use_preview")


def chat_tools(request: dict[str, Any]) -> tuple[OfferedTool, ...] | None:
    """Those of a chat completion; None where a tool of a kind that is not known here may bring others."""
    found: list[OfferedTool] = []
    for tool in request.get("tools") or ():
        kind = tool.get("type")
        inner = tool.get(kind) if kind in _CALLED else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            return None
        found.append(OfferedTool(inner["name"], inner.get("parameters") if kind == "function" else None))
    for function in request.get("functions") or ():
        if not isinstance(function.get("name"), str):
            return None
        found.append(OfferedTool(function["name"], function.get("parameters")))
    return tuple(found)


def message_tools(request: dict[str, Any]) -> tuple[OfferedTool, ...]:
    """Those of a message: its own with their schema, and by their name those that Anthropic defines."""
    return tuple(
        OfferedTool(tool["name"], tool.get("input_schema"))
        for tool in request.get("tools") or ()
        if isinstance(tool.get("name"), str)
    )


def response_tools(request: dict[str, Any]) -> tuple[OfferedTool, ...] | None:
    """Those of a response; None where a template, an item or a tool may bring others."""
    given = request.get("input")
    items = given if isinstance(given, list) else []
    if request.get("prompt") or any(item.get("type") == "additional_tools" for item in items):
        return None
    found: list[OfferedTool] = []
    for tool in request.get("tools") or ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or kind in _OPEN_ENDED:
            return None
        if kind in _CALLED and isinstance(tool.get("name"), str):
            found.append(OfferedTool(tool["name"], tool.get("parameters")))
        elif kind in _DEFINED:
            found.append(OfferedTool("computer" if kind == "computer_use_preview" else kind))
    return tuple(found)


def chat_results(messages: Any, segments: Iterable[Segment]) -> tuple[str, ...]:
    """Texts of messages that tools wrote, and of documents."""
    written = {
        index
        for index, message in enumerate(messages)
        if str(message.get("role")).strip().lower() in {"tool", "function"}
    }
    return _texts(segments, written, ())


def message_results(messages: Any, segments: Iterable[Segment]) -> tuple[str, ...]:
    """Texts within blocks of results, and of documents."""
    places = tuple(
        f"/messages/{index}/content/{position}/"
        for index, message in enumerate(messages)
        if isinstance(message.get("content"), list)
        for position, block in enumerate(message["content"])
        if str(block.get("type")).endswith("tool_result")
    )
    return _texts(segments, (), places)


def response_results(given: Any, segments: Iterable[Segment]) -> tuple[str, ...]:
    """Texts of items that tools wrote, and of documents."""
    items = given if isinstance(given, list) else []
    written = {
        index
        for index, item in enumerate(items)
        if str(item.get("type")).endswith("_output") or item.get("type") in _RESULT_ITEMS
    }
    return _texts(segments, written, ())


def end_user_of(request: dict[str, Any]) -> str:
    """The caller's own name for whom it asks; empty where it gives none."""
    metadata = request.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    names = (request.get("safety_identifier"), request.get("user"), user_id)
    return next((name[:_MAX_END_USER] for name in names if isinstance(name, str) and name), "")


def _texts(segments: Iterable[Segment], messages: Collection[int], places: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        segment.text
        for segment in segments
        if segment.message >= 0
        and (
            segment.message in messages
            or segment.role == "document"
            or (bool(places) and segment.pointer.startswith(places))
        )
    )
