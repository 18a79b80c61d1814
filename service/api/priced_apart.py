"""What in a request has a price of its own, and what makes the model read more than the request says.

Sources: OpenAI and Anthropic, their public pages of prices: tiers, tools that they run themselves, cache writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.api.strict_json import pointer
from service.api.texts import Path, is_plain_key
from service.tenancy.demand import Caching, Fee

# Values that cost what the list says, by the member that says how a call is served.
_ORDINARY: dict[str, frozenset[str]] = {
    "service_tier": frozenset({"auto", "default", "standard_only", "standard"}),
    "speed": frozenset({"standard"}),
    "inference_geo": frozenset({"global", "not_available"}),
}
_PAID_TOOLS = ("web_search", "file_search", "code_interpreter", "code_execution", "image_generation")
_READING_TOOLS = ("web_search", "web_fetch", "file_search", "code_interpreter", "code_execution", "mcp")
_CALLERS_OWN = ("custom", "function")
_CONTAINERS = ("container_auto", "container_reference")
_CACHE = "cache_control"


def fees_of(request: Mapping[str, Any]) -> tuple[Fee, ...]:
    """In a request of any protocol, in its order of places."""
    found: list[Fee] = []
    for name, ordinary in _ORDINARY.items():
        value = request.get(name)
        if value is not None and not (isinstance(value, str) and value in ordinary):
            found.append(Fee(value if isinstance(value, str) and is_plain_key(value) else name, pointer(name)))
    if request.get("web_search_options") is not None:
        found.append(Fee("web_search", "/web_search_options"))
    if request.get("prompt") is not None and "messages" not in request and isinstance(request["prompt"], dict):
        # What the provider keeps under its id may bring tools of any kind.
        found.append(Fee("prompt", "/prompt"))
    for kind, tool, path in _tools(request):
        paid = next((name for name in _PAID_TOOLS if kind.startswith(name)), "")
        environment = tool.get("environment")
        if isinstance(environment, dict) and environment.get("type") in _CONTAINERS:
            paid = paid or "container"
        if paid:
            found.append(Fee(paid, pointer(*path)))
    return tuple(found)


def reads_more(request: Mapping[str, Any]) -> bool:
    """Whether the provider puts before the model what only it knows: found on the web, in files, at other servers."""
    if request.get("web_search_options") is not None or request.get("mcp_servers"):
        return True
    return any(kind.startswith(_READING_TOOLS) for kind, _, _ in _tools(request))


def tools_of(request: Mapping[str, Any]) -> tuple[int, int]:
    """How many tools there are, and how many of them the provider defines."""
    tools = request.get("tools")
    given = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return len(given), sum(tool.get("type") not in (None, *_CALLERS_OWN) for tool in given)


def caching_of(request: Mapping[str, Any], body: bytes) -> Caching:
    """Whether some member asks for the prompt to be written to the provider's cache."""
    if _CACHE.encode() not in body and b"\\u" not in body:  # whoever escapes a letter is read in full
        return ""
    found: Caching = ""
    waiting: list[Any] = [request]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            asked = value.get(_CACHE)
            if isinstance(asked, dict):
                if asked.get("ttl") not in (None, "5m"):
                    return "long"
                found = "short"
            waiting += value.values()
    return found


def _tools(request: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """Kind, definition and place of each tool, those that stand among a response's items with them."""
    lists: list[tuple[Any, Path]] = [(request.get("tools"), ("tools",))]
    items = request.get("input")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and "tools" in item:
            lists.append((item["tools"], ("input", index, "tools")))
    for tools, path in lists:
        for index, tool in enumerate(tools if isinstance(tools, list) else ()):
            if isinstance(tool, dict) and isinstance(tool.get("type"), str):
                yield tool["type"], tool, (*path, index)
