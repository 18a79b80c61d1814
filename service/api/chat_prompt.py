"""OpenAI chat completions: what of a request is judged. Every string in it that a model can read becomes a segment.

Fields and parts that are not known here are judged as documents and forwarded: a provider may know them.
"""

from __future__ import annotations

from typing import Any

from service.api.asgi import malformed
from service.api.request_fields import Fields
from service.api.request_texts import RequestTexts, is_identifier, message_list, string
from service.api.strict_json import pointer
from service.api.texts import Path, segments_of
from service.firewall.prompt import Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "tool",
    "function": "tool",
    "assistant": "tool",
}
_ENUMS: dict[str, frozenset[str]] = {
    "service_tier": frozenset({"auto", "default", "flex", "priority", "scale"}),
    "reasoning_effort": frozenset({"none", "minimal", "low", "medium", "high", "xhigh"}),
    "verbosity": frozenset({"low", "medium", "high"}),
    "prompt_cache_retention": frozenset({"in-memory", "in_memory", "24h"}),
    "tool_choice": frozenset({"none", "auto", "required"}),
    "function_call": frozenset({"none", "auto"}),
}
_TOOL_FIELDS = frozenset({"tools", "functions", "tool_choice", "function_call", "response_format"})
_DOCUMENT_FIELDS = frozenset(
    {"audio", "logit_bias", "metadata", "modalities", "moderation", "prediction", "prompt_cache_key"}
    | {"safety_identifier", "stop", "stream_options", "user", "web_search_options"}
)
FIELDS = Fields(
    numbers=frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"}),
    integers=frozenset({"n", "max_tokens", "max_completion_tokens", "seed", "top_logprobs"}),
    booleans=frozenset({"stream", "logprobs", "parallel_tool_calls", "store"}),
    objects=frozenset({"audio", "logit_bias", "metadata", "prediction", "response_format", "stream_options"}),
    lists=frozenset({"tools", "functions", "modalities"}),
    strings=frozenset({"prompt_cache_key", "safety_identifier", "user"}),
    others=_TOOL_FIELDS | _DOCUMENT_FIELDS | set(_ENUMS) | {"model", "messages"},
    ranges={"max_tokens": (1, 2**31), "max_completion_tokens": (1, 2**31), "n": (1, 128)},
)
_MESSAGE_FIELDS = frozenset(
    {"audio", "content", "function_call", "name", "reasoning", "reasoning_content", "refusal", "tool_calls"}
    | {"annotations", "tool_call_id"}
)
_QUIET = frozenset(
    {
        "text",
        "audio",
        "json_object",
        "json_schema",
        "function",
        "content",
        "include_usage",
        "include_obfuscation",
        "type",
    }
)
"""Words of the protocol itself: a field of nothing but these says nothing to judge."""
_PARTS = {"text": "text", "refusal": "refusal", "image_url": "image_url", "input_audio": "input_audio", "file": "file"}


class Reading(RequestTexts):
    """Collects the segments of one request."""

    def messages(self, messages: Any, max_messages: int) -> None:
        """The conversation. Raises PayloadTooLarge over `max_messages`, MalformedRequest for wrong types."""
        for index, message in enumerate(message_list(messages, max_messages)):
            self._message(message, index)

    def _message(self, message: Any, index: int) -> None:
        path: Path = ("messages", index)
        role = self.role_of(message, path, _ROLES, index)
        for name, value in message.items():
            place: Path = (*path, name)
            if name == "role" or (name in _MESSAGE_FIELDS and value is None):
                continue
            if name == "content":
                with self.foreign(message["role"].strip().lower() in {"tool", "function"}):
                    self.content(value, place, role, index)
            elif name == "tool_calls":
                self._tool_calls(value, place, index)
            elif name == "function_call":
                self._function(value, place, index)
            elif name == "name":
                self.text(string(value, place), place, "tool", index)
            elif name in {"refusal", "reasoning", "reasoning_content"} and isinstance(value, str):
                self.text(value, place, "tool", index)
            elif name != "tool_call_id":
                if name == "audio" and isinstance(value, dict):  # what the model said before, by its id
                    self.refer(value.get("id"), (*place, "id"))
                self._other(name, value, path, index)
            elif not is_identifier(string(value, place)):
                self.text(value, place, "document", index)

    def content(self, content: Any, path: Path, role: Role, message: int) -> None:
        """A message's content: a string or a list of parts. Raises MalformedRequest."""
        if isinstance(content, str):
            self.text(content, path, role, message)
            return
        if not isinstance(content, list):
            raise malformed(pointer(*path), "a string or a list of content parts")
        for index, part in enumerate(content):
            place = (*path, index)
            if isinstance(part, str):
                self.text(part, place, role, message)
            elif isinstance(part, dict):
                self._part(part, place, role, message)
            else:
                raise malformed(pointer(*place), "a content part")

    def _part(self, part: dict[str, Any], path: Path, role: Role, message: int) -> None:
        kind = part.get("type")
        if not isinstance(kind, str):
            raise malformed(pointer(*path, "type"), "the type of a content part")
        field = _PARTS.get(kind)
        if field is None:
            self.text(kind, (*path, "type"), "document", message)
        elif field not in part:
            raise malformed(pointer(*path, field), f"the field of a part of type {kind}")
        for name, value in part.items():
            place = (*path, name)
            if name == "type":
                continue
            if name == field and kind in {"text", "refusal"}:
                self.text(string(value, place), place, role, message)
            elif name == field:
                with self.foreign():
                    self._attachment(value, kind, place, message)
            else:
                self._other(name, value, path, message)

    def _attachment(self, value: Any, kind: str, path: Path, message: int) -> None:
        """An image, a sound or a file: text where it is text, else something that no text guard can read."""
        if isinstance(value, str) and kind == "image_url":
            value = {"url": value}  # a form that some servers accept
        if not isinstance(value, dict):
            raise malformed(pointer(*path), "an object")
        wanted = {"image_url": ("url",), "input_audio": ("data",), "file": ("file_data", "file_id")}[kind]
        if not any(name in value for name in wanted):
            raise malformed(pointer(*path, wanted[0]), "a string")
        for name, item in value.items():
            place = (*path, name)
            if name not in wanted:
                if name not in {"detail", "filename", "format"}:
                    self._other(name, item, path, message)
                elif name == "filename" or not isinstance(item, str) or not is_identifier(item):
                    self.add(segments_of(item, place, "document", message))
                continue
            if item is None:
                continue
            what = "file_id" if name == "file_id" else kind
            if name == "file_id":
                self.refer(item, place)
            self.attachment(
                string(item, place),
                place,
                what,
                message,
                base64=name == "file_data",
                part=kind,
                detail=value.get("detail"),
            )

    def _tool_calls(self, calls: Any, path: Path, message: int) -> None:
        if not isinstance(calls, list):
            raise malformed(pointer(*path), "a list of tool calls")
        for index, call in enumerate(calls):
            if not isinstance(call, dict):
                raise malformed(pointer(*path, index), "a tool call")
            for name, value in call.items():
                place = (*path, index, name)
                if name in {"function", "custom"}:
                    self._function(value, place, message)
                elif name not in {"id", "type", "index"}:
                    self._other(name, value, (*path, index), message)
                elif isinstance(value, str) and not is_identifier(value):
                    self.text(value, place, "document", message)
                elif isinstance(value, (dict, list)):
                    self.shaped(value, place, "document", message)

    def _function(self, function: Any, path: Path, message: int) -> None:
        if not isinstance(function, dict):
            raise malformed(pointer(*path), "an object")
        for name, value in function.items():
            place = (*path, name)
            if name in {"name", "arguments", "input"} and isinstance(value, str):
                self.text(value, place, "tool", message)
                if name == "arguments" and "\\" in value:
                    self.unescaped(value, place, message)
            elif name in {"name", "arguments"}:
                raise malformed(pointer(*place), "a string")
            else:
                self._other(name, value, path, message, "tool")

    def fields(self, request: dict[str, Any]) -> None:
        """Everything beside the messages."""
        for name, value in request.items():
            if name not in FIELDS.known:
                self._other(name, value, (), -1)
                continue
            if name in {"messages", "model"} or value is None or isinstance(value, (bool, int, float)):
                continue
            if isinstance(value, str) and value in _ENUMS.get(name, ()):
                continue
            if name == "logit_bias" and all(k.isdecimal() and type(v) in {int, float} for k, v in value.items()):
                continue  # token ids
            if name in {"tools", "functions"}:
                self._tools(value, name)
                continue
            role: Role = "tool" if name in _TOOL_FIELDS else "document"
            found = list(segments_of(value, (name,), role))
            if not all(word in _QUIET for s in found for word in s.text.split("\n")):
                first = len(self.segments)
                self.add(found)
                self.count_as_written(first, value)

    def _tools(self, tools: list[Any], field: str) -> None:
        for index, tool in enumerate(tools):
            if not isinstance(tool, dict):
                raise malformed(pointer(field, index), "a tool definition")
            if field == "tools" and tool.get("type") == "function":
                function = tool.get("function")
                if not isinstance(function, dict):
                    raise malformed(pointer(field, index, "function"), "a function definition")
                string(function.get("name"), (field, index, "function", "name"))
            self.named(tool, (field, index))
            self.shaped(tool, (field, index), "tool")

    def _other(self, name: str, value: Any, path: Path, message: int, role: Role = "document") -> None:
        """A member that is not known here: its name is text as well, whatever it holds."""
        self.member(name, value, path, message, role, known=name in _MESSAGE_FIELDS)
