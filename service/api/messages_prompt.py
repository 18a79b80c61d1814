"""Anthropic's Messages: what of a request is judged. Every string in it that a model can read becomes a segment.

Members and blocks that are not known here are judged as documents and forwarded: a provider may know them.
"""

from __future__ import annotations

import re
from typing import Any

from service.api.asgi import malformed
from service.api.request_fields import Fields
from service.api.request_texts import RequestTexts, is_identifier, message_list, string
from service.api.strict_json import pointer
from service.api.texts import Path, place_of, segments_of, text_of_base64
from service.firewall.prompt import Role, Unscannable

_ROLES: dict[str, Role] = {"user": "user", "assistant": "tool", "system": "system"}
FIELDS = Fields(
    booleans=frozenset({"stream"}),
    integers=frozenset({"max_tokens", "top_k"}),
    numbers=frozenset({"temperature", "top_p"}),
    objects=frozenset({"metadata", "thinking", "tool_choice", "output_config", "output_format", "cache_control"}),
    lists=frozenset({"tools", "stop_sequences", "mcp_servers"}),
    strings=frozenset({"service_tier", "speed", "inference_geo"}),
    others=frozenset({"model", "messages", "system", "container", "context_management", "diagnostics"}),
)
_TOOL_FIELDS = frozenset({"tool_choice", "output_config", "output_format"})
# What a block of a known type must have; these are also all types that are known.
_NEEDED = {
    "text": "text",
    "image": "source",
    "document": "source",
    "search_result": "content",
    "thinking": "thinking",
    "redacted_thinking": "data",
    "tool_use": "input",
    "server_tool_use": "input",
    "mcp_tool_use": "input",
    "tool_result": "tool_use_id",
    "mcp_tool_result": "tool_use_id",
    "web_search_tool_result": "tool_use_id",
    "web_fetch_tool_result": "tool_use_id",
    "code_execution_tool_result": "tool_use_id",
    "bash_code_execution_tool_result": "tool_use_id",
    "text_editor_code_execution_tool_result": "tool_use_id",
    "tool_search_tool_result": "tool_use_id",
    "container_upload": "file_id",
}
_MEMBERS = frozenset(
    {"type", "text", "source", "title", "context", "content", "thinking", "signature", "data", "name", "server_name"}
    | {"input", "id", "tool_use_id", "is_error", "file_id", "citations", "cache_control", "caller"}
)
_SOURCES = frozenset({"base64", "url", "file", "text", "content"})
_MEDIA = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp", "application/pdf", "text/plain"})
# Sealed by the provider, which refuses any that it did not write: they are never read as text.
_SEALED_MEMBERS = frozenset({"signature", "data", "encrypted_content", "encrypted_index", "encrypted_stdout"})
_SEALED = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_QUIET = frozenset(
    {"type", "auto", "any", "none", "tool", "name", "disable_parallel_tool_use", "enabled", "disabled", "adaptive"}
    | {"budget_tokens", "display", "summarized", "omitted", "effort", "low", "medium", "high", "xhigh", "max", "format"}
    | {"ephemeral", "ttl", "5m", "1h", "standard_only", "standard", "fast", "direct"}
)
"""Words of the protocol itself: a member of nothing but these says nothing to judge."""


class Reading(RequestTexts):
    """Collects the segments of one request."""

    def system(self, system: Any, message: int) -> None:
        """The system text; its blocks are judged joined, as `message`."""
        if system is not None:
            self._content(system, ("system",), "system", message)

    def messages(self, messages: Any, max_messages: int) -> int:
        """The conversation; how many messages. Raises PayloadTooLarge over `max_messages`, MalformedRequest for wrong
        types.
        """
        for index, message in enumerate(message_list(messages, max_messages)):
            self._message(message, index)
        return len(messages)

    def _message(self, message: Any, index: int) -> None:
        path: Path = ("messages", index)
        role = self.role_of(message, path, _ROLES, index)
        # A system message may only set how much effort the turn is worth.
        if "content" not in message and not (role == "system" and isinstance(message.get("output_config"), dict)):
            raise malformed(pointer(*path, "content"), "a string or a list of content blocks")
        for name, value in message.items():
            if name == "content":
                self._content(value, (*path, name), role, index)
            elif name != "role":
                self.member(name, value, path, index)

    def _content(self, content: Any, path: Path, role: Role, message: int) -> None:
        if isinstance(content, str):
            self.text(content, path, role, message)
            return
        if not isinstance(content, list):
            raise malformed(pointer(*path), "a string or a list of content blocks")
        for index, block in enumerate(content):
            if not isinstance(block, dict):
                raise malformed(pointer(*path, index), "a content block")
            self._block(block, (*path, index), role, message)

    def _block(self, block: dict[str, Any], path: Path, role: Role, message: int) -> None:
        kind = block.get("type")
        if not isinstance(kind, str):
            raise malformed(pointer(*path, "type"), "the type of a content block")
        needed = _NEEDED.get(kind)
        if needed is None:
            self.text(kind, (*path, "type"), "document", message)
        elif block.get(needed) is None:
            raise malformed(pointer(*path, needed), f"the member of a block of type {kind}")
        for name, value in block.items():
            if name == "type" or (name in _MEMBERS and value is None):
                continue
            if needed is None or not self._known_member(kind, name, value, path, role, message):
                self._other(name, value, path, message)

    def _known_member(self, kind: str, name: str, value: Any, path: Path, role: Role, message: int) -> bool:
        """Read a member of a block of a known type; False for one that such blocks do not have."""
        place = (*path, name)
        match kind, name:
            case "text", "text":
                self.text(string(value, place), place, role, message)
            case "thinking", "thinking":
                self.text(string(value, place), place, "tool", message)
            case ("thinking", "signature") | ("redacted_thinking", "data"):
                if _is_sealed(string(value, place)):
                    self.sealed(value)
                else:
                    self.text(value, place, "document", message)
            case (("image" | "document"), "source"):
                with self.foreign():
                    self._source(value, kind, place, message)
            case (("document" | "search_result"), ("title" | "context" | "source")):
                self.text(string(value, place), place, "document", message)
            case "search_result", "content":
                with self.foreign():
                    self._content(value, place, "document", message)
            case (("tool_use" | "server_tool_use" | "mcp_tool_use"), ("name" | "server_name")):
                self.text(string(value, place), place, "tool", message)
            case (("tool_use" | "server_tool_use" | "mcp_tool_use"), "input"):
                if not isinstance(value, dict):
                    raise malformed(pointer(*place), "an object")
                self.shaped(value, place, "tool", message)
            case (("tool_result" | "mcp_tool_result"), "content"):
                with self.foreign():
                    self._content(value, place, "tool", message)
            case _, "content" if kind.endswith("_tool_result"):
                with self.foreign():
                    self.shaped(self._readable(value, place), place, "tool", message)
            case "container_upload", "file_id":
                self.refer(string(value, place), place)
                self.attachment(value, place, "file_id", message)
            case _, ("id" | "tool_use_id"):
                if not is_identifier(string(value, place)):
                    self.text(value, place, "document", message)
            case _:
                return False
        return True

    def _source(self, source: Any, kind: str, path: Path, message: int) -> None:
        """An image or a document: text where it is text, else something that no text guard can read."""
        if not isinstance(source, dict):
            raise malformed(pointer(*path), "an object")
        form = source.get("type")
        if not isinstance(form, str):
            raise malformed(pointer(*path, "type"), "the type of a source")
        for name, value in source.items():
            place = (*path, name)
            if name == "type":
                if form not in _SOURCES:
                    self.text(form, place, "document", message)
            elif name == "content":
                self._content(value, place, "document", message)
            elif name == "data" and form == "text":
                self.text(string(value, place), place, "document", message)
            elif name in {"data", "url", "file_id"}:
                what = "file_id" if name == "file_id" else kind
                if name == "file_id":
                    self.refer(value, place)
                self.attachment(string(value, place), place, what, message, base64=name == "data", part=kind)
            elif name != "media_type" or not isinstance(value, str) or value not in _MEDIA:
                self._other(name, value, path, message)

    def fields(self, request: dict[str, Any]) -> None:
        """Everything beside the system text and the messages."""
        for name, value in request.items():
            if name not in FIELDS.known:
                self._other(name, value, (), -1)
            elif name in {"messages", "system", "model"} or value is None:
                continue
            elif name == "tools":
                for index, tool in enumerate(value):
                    if not isinstance(tool, dict):
                        raise malformed(pointer(name, index), "a tool definition")
                    if tool.get("name") is not None:
                        string(tool["name"], (name, index, "name"))
                    self.named(tool, (name, index))
                    self.shaped(tool, (name, index), "tool")
            elif name == "mcp_servers":
                self._servers(value)
            elif name == "stop_sequences":
                for index, text in enumerate(value):
                    string(text, (name, index))
                self.shaped(value, (name,), "document")
            else:
                if name == "container":  # by its id, alone or beside what is loaded into it
                    path: Path = (name, "id") if isinstance(value, dict) else (name,)
                    self.refer(value.get("id") if isinstance(value, dict) else value, path)
                self._unless_quiet(value, (name,), "tool" if name in _TOOL_FIELDS else "document")

    def _servers(self, servers: list[Any]) -> None:
        """Other people's servers: what they tell the model is fetched by the provider and never seen here."""
        for index, server in enumerate(servers):
            place: Path = ("mcp_servers", index)
            if not isinstance(server, dict):
                raise malformed(pointer(*place), "an object")
            self.shaped(server, place, "tool")
            self.unscannable.append(Unscannable(pointer(*place), "mcp_server"))

    def _unless_quiet(self, value: Any, path: Path, role: Role, message: int = -1) -> None:
        found = list(segments_of(value, path, role, message))
        if not all(word in _QUIET for segment in found for word in segment.text.split("\n")):
            first = len(self.segments)
            self.add(found)
            self.count_as_written(first, value)

    def _other(self, name: str, value: Any, path: Path, message: int) -> None:
        """A member of any shape; its name is text as well, unless the protocol has it."""
        if name in _MEMBERS:
            place = (*path, name)
            self._unless_quiet(self._readable(value, place), place, "document", message)
        else:
            self.member(name, value, path, message)

    def _readable(self, value: Any, path: Path) -> Any:
        """The value without what only the provider can open, and without binaries, which are noted."""
        if isinstance(value, list):
            return [self._readable(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        read: dict[str, Any] = {}
        for name, item in value.items():
            if name in _SEALED_MEMBERS and isinstance(item, str) and _is_sealed(item):
                read[name] = None
                self.sealed(item)
                if name == "data":
                    self.unscannable.append(Unscannable(place_of((*path, name)), "data"))
            else:
                read[name] = self._readable(item, (*path, name))
        return read


def _is_sealed(text: str) -> bool:
    return _SEALED.fullmatch(text) is not None and text_of_base64(text) is None
