"""OpenAI chat completions: the request. Every string in it that a model can read becomes a segment.

Source: OpenAI API reference, "Create chat completion". Fields and parts that are not known here are judged as documents
and forwarded: a provider may know them.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from service.api import strict_json
from service.api.asgi import Handler, HttpExchange, malformed
from service.api.chat_reply import ChatWire
from service.api.strict_json import pointer
from service.api.texts import Path, segments_of, text_of_data_url
from service.errors import PayloadTooLarge
from service.firewall.prompt import Prompt, Role, Segment, Unscannable
from service.gateway import Gateway
from service.interfaces import Call, CallerLeft
from service.settings import Server

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "tool",
    "function": "tool",
    "assistant": "tool",
}
_NUMBERS = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"})
_INTEGERS = frozenset({"n", "max_tokens", "max_completion_tokens", "seed", "top_logprobs"})
_BOOLEANS = frozenset({"stream", "logprobs", "parallel_tool_calls", "store"})
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
_KNOWN = _NUMBERS | _INTEGERS | _BOOLEANS | _TOOL_FIELDS | _DOCUMENT_FIELDS | set(_ENUMS) | {"model", "messages"}
_OBJECTS = frozenset({"audio", "logit_bias", "metadata", "prediction", "response_format", "stream_options"})
_LISTS = frozenset({"tools", "functions", "modalities"})
_STRINGS = frozenset({"prompt_cache_key", "safety_identifier", "user"})
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
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:-]{1,40}")
_PARTS = {"text": "text", "refusal": "refusal", "image_url": "image_url", "input_audio": "input_audio", "file": "file"}


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/chat/completions`."""
    wire = ChatWire()

    async def read(body: bytes) -> Call:
        if len(body) <= strict_json.INLINE_BYTES:
            return parse_request(body, server)
        return await asyncio.to_thread(parse_request, body, server)

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        exchange = HttpExchange(
            scope, receive, send, wire=wire, read=read, max_body_bytes=server.max_body_bytes, open_mode=open_mode
        )
        try:
            await gateway.serve(exchange)
        except CallerLeft:
            return

    return handle


def parse_request(body: bytes, server: Server) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = strict_json.parse(body)
    if not isinstance(request, dict):
        raise malformed("", "an object")
    _check_types(request)
    model = request.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 256:
        raise malformed("/model", "a model name")
    reading = Reading()
    reading.messages(request.get("messages"), server.max_messages)
    reading.fields(request)
    choices = request.get("n") or 1
    bounds = [request[name] for name in ("max_tokens", "max_completion_tokens") if request.get(name) is not None]
    return Call(
        model=model,
        stream=bool(request.get("stream")),
        body=body,
        prompt=Prompt(model, tuple(reading.segments), tuple(reading.unscannable)),
        system_texts=tuple(s.text for s in reading.segments if s.role == "system"),
        user_texts=tuple(s.text for s in reading.segments if s.role == "user"),
        max_output_tokens=max(bounds) * choices if bounds else None,
        choices=choices,
        unknown_fields=tuple(sorted(name[:64] for name in request.keys() - _KNOWN))[:16],
    )


def _check_types(request: dict[str, Any]) -> None:
    for name, value in request.items():
        if value is None:
            continue
        kind = type(value)
        if name in _BOOLEANS and kind is not bool:
            raise malformed(pointer(name), "true or false")
        if name in _INTEGERS and kind is not int:
            raise malformed(pointer(name), "an integer")
        if name in _NUMBERS and kind not in {int, float}:
            raise malformed(pointer(name), "a number")
        if name in _OBJECTS and kind is not dict:
            raise malformed(pointer(name), "an object")
        if name in _LISTS and kind is not list:
            raise malformed(pointer(name), "a list")
        if name in _STRINGS and kind is not str:
            raise malformed(pointer(name), "a string")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = request.get(name)
        if value is not None and not 1 <= value <= (128 if name == "n" else 2**31):
            raise malformed(pointer(name), "a positive integer in range")


class Reading:
    """Collects the segments of one request."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.unscannable: list[Unscannable] = []

    def messages(self, messages: Any, max_messages: int) -> None:
        """The conversation. Raises PayloadTooLarge over `max_messages`, MalformedRequest for wrong types."""
        if not isinstance(messages, list) or not messages:
            raise malformed("/messages", "a list of at least one message")
        if len(messages) > max_messages:
            raise PayloadTooLarge(f"More than {max_messages} messages.", pointer="/messages")
        for index, message in enumerate(messages):
            self._message(message, index)

    def _message(self, message: Any, index: int) -> None:
        path: Path = ("messages", index)
        if not isinstance(message, dict):
            raise malformed(pointer(*path), "a message object")
        wire_role = message.get("role")
        if not isinstance(wire_role, str):
            raise malformed(pointer(*path, "role"), "a role")
        role = _ROLES.get(wire_role, "document")
        if wire_role not in _ROLES:
            self._text(wire_role, (*path, "role"), "document", index)
        for name, value in message.items():
            place = (*path, name)
            if name == "role" or value is None:
                continue
            if name == "content":
                self._content(value, place, role, index)
            elif name == "tool_calls":
                self._tool_calls(value, place, index)
            elif name == "function_call":
                self._function(value, place, index)
            elif name == "name":
                self._text(_string(value, place), place, "tool", index)
            elif name in {"refusal", "reasoning", "reasoning_content"} and isinstance(value, str):
                self._text(value, place, "tool", index)
            elif name != "tool_call_id" or not _IDENTIFIER.fullmatch(_string(value, place)):
                self.segments += segments_of(value, place, "document", index)

    def _content(self, content: Any, path: Path, role: Role, message: int) -> None:
        if isinstance(content, str):
            self._text(content, path, role, message)
            return
        if not isinstance(content, list):
            raise malformed(pointer(*path), "a string or a list of content parts")
        for index, part in enumerate(content):
            place = (*path, index)
            if isinstance(part, str):
                self._text(part, place, role, message)
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
            self._text(kind, (*path, "type"), "document", message)
        elif field not in part:
            raise malformed(pointer(*path, field), f"the field of a part of type {kind}")
        for name, value in part.items():
            place = (*path, name)
            if name == "type":
                continue
            if name == field and kind in {"text", "refusal"}:
                self._text(_string(value, place), place, role, message)
            elif name == field:
                self._attachment(value, kind, place, message)
            else:
                self.segments += segments_of(value, place, "document", message)

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
                if name not in {"detail", "format"} or not isinstance(item, str) or not _IDENTIFIER.fullmatch(item):
                    self.segments += segments_of(item, place, "document", message)
                continue
            if item is None:
                continue
            text = text_of_data_url(_string(item, place))
            if text is None:
                self.unscannable.append(Unscannable(pointer(*place), "file_id" if name == "file_id" else kind))
            else:
                self._text(text.replace("\x00", ""), place, "document", message)

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
                elif not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
                    self.segments += segments_of(value, place, "document", message)

    def _function(self, function: Any, path: Path, message: int) -> None:
        if not isinstance(function, dict):
            raise malformed(pointer(*path), "an object")
        for name, value in function.items():
            place = (*path, name)
            if name in {"name", "arguments", "input"} and isinstance(value, str):
                self._text(value, place, "tool", message)
                if name == "arguments" and "\\" in value:
                    self._unescaped(value, place, message)
            elif name in {"name", "arguments"}:
                raise malformed(pointer(*place), "a string")
            else:
                self.segments += segments_of(value, place, "tool", message)

    def _unescaped(self, arguments: str, path: Path, message: int) -> None:
        """Arguments are JSON in a string: their own escapes are judged by what they say."""
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return
        texts = "\n".join(s.text for s in segments_of(value, (), "tool"))
        self._text(strict_json.whole(texts).replace("\x00", ""), path, "tool", message)

    def fields(self, request: dict[str, Any]) -> None:
        """Everything beside the messages."""
        for name, value in request.items():
            if name == "messages" or value is None or isinstance(value, (bool, int, float)):
                continue
            if name == "model" or (isinstance(value, str) and value in _ENUMS.get(name, ())):
                continue
            if name == "logit_bias" and all(key.isdecimal() for key in value):
                continue  # token ids
            if name in {"tools", "functions"}:
                self._tools(value, name)
                continue
            role: Role = "tool" if name in _TOOL_FIELDS else "document"
            found = list(segments_of(value, (name,), role))
            if name in _KNOWN and all(word in _QUIET for s in found for word in s.text.split("\n")):
                continue
            if name not in _KNOWN:
                self._text(name, (name,), "document", -1)
            self.segments += found

    def _tools(self, tools: list[Any], field: str) -> None:
        for index, tool in enumerate(tools):
            if not isinstance(tool, dict):
                raise malformed(pointer(field, index), "a tool definition")
            if field == "tools" and tool.get("type") == "function":
                function = tool.get("function")
                if not isinstance(function, dict):
                    raise malformed(pointer(field, index, "function"), "a function definition")
                _string(function.get("name"), (field, index, "function", "name"))
            self.segments += segments_of(tool, (field, index), "tool")

    def _text(self, text: str, path: Path, role: Role, message: int) -> None:
        if text:
            self.segments.append(Segment(text, role, pointer(*path), message))


def _string(value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise malformed(pointer(*path), "a string")
    return value
