"""The request of one of Anthropic's Messages as a chat completion's, for callers who speak the one and providers who
speak the other. It is made of the body that was judged, and of nothing else; what has no counterpart is refused by its
pointer.

Three things are left out. `cache_control` is about prices and says nothing to a model. Thoughts of earlier turns are
sealed for the provider that wrote them; no other may read or check them. Who asks, where the name is longer than chats
allow, is told by its SHA-256.

Sources: Anthropic API reference, "Create a Message"; OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import msgspec

from service.api import strict_json
from service.api.chat_reply import bound_of
from service.api.texts import Path
from service.api.translating import Telling

MAX_USER_CHARS = 64
"""Of a chat's `user`."""

# Members that say nothing where they say only this: null says so in all of them.
_IDLE: dict[str, tuple[Any, ...]] = {
    "service_tier": ("auto",),
    "speed": ("standard",),
    "output_config": ({},),
    "context_management": ({},),
    "mcp_servers": ([],),
}
_NO_THOUGHTS = ("disabled", "adaptive")  # not asked for, or left to the model
_CHOICES = {"none": "none", "auto": "auto", "any": "required"}
_SAME = ("model", "stream", "temperature", "top_p")
_READ = frozenset(
    {*_SAME, "messages", "system", "max_tokens", "stop_sequences", "tools", "tool_choice", "metadata", "thinking"}
    | {"cache_control"}
)
_THOUGHTS = frozenset({"thinking", "redacted_thinking"})
_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_tell = Telling("The model's provider speaks chat completions, which cannot say this.", frozenset({"cache_control"}))


def translate(body: bytes, *, asks_usage: bool) -> bytes:
    """The body of a chat completion, of which a stream is asked for its usage where the provider may be asked.

    `body` is one that `messages.parse_request` or `parse_count` has read. Raises MalformedRequest naming what a chat
    cannot say.
    """
    request = strict_json.parse(body)
    for name, value in request.items():
        if name not in _READ and value is not None and value not in _IDLE.get(name, ()):
            raise _tell.untold(name)
    thinking = request.get("thinking")
    if thinking is not None and thinking.get("type") not in _NO_THOUGHTS:
        raise _tell.untold("thinking")
    out: dict[str, Any] = {name: request[name] for name in _SAME if request.get(name) is not None}
    bound = request.get("max_tokens")
    if bound == 0:  # only fills a cache
        raise _tell.untold("max_tokens")
    if bound is not None:
        out[bound_of(request["model"])] = bound
    out["messages"] = [*_system(request.get("system")), *_conversation(request["messages"])]
    if request.get("stop_sequences"):
        out["stop"] = request["stop_sequences"]
    if request.get("tools"):
        out["tools"] = [_tool(tool, ("tools", index)) for index, tool in enumerate(request["tools"])]
    out |= _choice(request.get("tool_choice"), has_tools="tools" in out) | _asker(request.get("metadata"))
    if request.get("stream") and asks_usage:
        out["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(out)


def _system(system: Any) -> list[dict[str, Any]]:
    content = "" if system is None else _text(system, ("system",))
    return [{"role": "system", "content": content}] if content else []


def _conversation(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    role = None
    for index, message in enumerate(messages):
        path: Path = ("messages", index)
        _tell.only(message, {"role", "content"}, path)
        role, content, place = message["role"], message.get("content"), (*path, "content")
        if role == "user":
            yield from _asked(content, place)
        elif role == "assistant":
            yield _said(content, place)
        elif role == "system":
            yield {"role": role, "content": _text(content, place)}
        else:
            raise _tell.untold(*path, "role")
    if role == "assistant":
        # A Message goes on from it, a chat answers it.
        raise _tell.untold("messages", len(messages) - 1, "role")


def _asked(content: Any, path: Path) -> Iterator[dict[str, Any]]:
    """A user's turn: results are messages of their own, what stands around them stays in its order."""
    parts: list[dict[str, Any]] = []
    said = False
    for index, block in enumerate(content if isinstance(content, list) else ()):
        if block["type"] != "tool_result":
            parts += _parts(block, (*path, index))
            continue
        if parts:
            yield {"role": "user", "content": _content(parts)}
        yield _result(block, (*path, index))
        parts, said = [], True
    if isinstance(content, str):
        yield {"role": "user", "content": content}
    elif parts or not said:
        yield {"role": "user", "content": _content(parts)}


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Texts as the judge has joined them, since not every server takes them in parts; with images as parts."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _text(content: Any, path: Path) -> str:
    """Of a content that can hold nothing else. Raises MalformedRequest."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, block in enumerate(content or ()):
        for part in _parts(block, (*path, index)):
            if part["type"] != "text":
                raise _tell.untold(*path, index)
            texts.append(part["text"])
    return "\n".join(texts)


def _parts(block: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """A block that is text, an image or a document of such; empty texts are left out."""
    kind = block["type"]
    if kind == "text":
        _tell.only(block, {"type", "text"}, path, idle={"citations": []})
        texts = [block["text"]]
    elif kind == "image":
        _tell.only(block, {"type", "source"}, path)
        return [{"type": "image_url", "image_url": {"url": _image(block["source"], (*path, "source"))}}]
    elif kind == "document":
        return _document(block, path)
    else:
        raise _tell.untold(*path, "type")
    return [{"type": "text", "text": text} for text in texts if text]


def _document(block: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Its title, its context and its text, in this order."""
    _tell.only(block, {"type", "source", "title", "context"}, path, idle={"citations": {"enabled": False}})
    source, place = block["source"], (*path, "source")
    texts = [text for text in (block.get("title"), block.get("context")) if text]
    parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
    if source["type"] == "text":
        _tell.only(source, {"type", "media_type", "data"}, place)
        return [*parts, {"type": "text", "text": _tell.string(source, "data", place)}]
    if source["type"] != "content":
        raise _tell.untold(*place, "type")
    _tell.only(source, {"type", "content"}, place)
    content = source.get("content")
    if isinstance(content, str):
        return [*parts, {"type": "text", "text": content}]
    for index, inner in enumerate(content or ()):
        if inner["type"] not in {"text", "image"}:
            raise _tell.untold(*place, "content", index, "type")
        parts += _parts(inner, (*place, "content", index))
    return parts


def _image(source: dict[str, Any], path: Path) -> str:
    if source["type"] == "base64":
        _tell.only(source, {"type", "media_type", "data"}, path)
        kind, data = _tell.string(source, "media_type", path), _tell.string(source, "data", path)
        if kind not in _IMAGES:
            raise _tell.untold(*path, "media_type")
        return f"data:{kind};base64,{data}"
    if source["type"] != "url":
        raise _tell.untold(*path, "type")
    _tell.only(source, {"type", "url"}, path)
    url = _tell.string(source, "url", path)
    if not url.startswith("https://"):
        raise _tell.untold(*path, "url")
    return url


def _result(block: dict[str, Any], path: Path) -> dict[str, Any]:
    """A tool's result. Chats have no member that says it failed, so a word does."""
    _tell.only(block, {"type", "tool_use_id", "content", "is_error"}, path)
    failed = block.get("is_error")
    if failed not in (None, False, True):
        raise _tell.untold(*path, "is_error")
    text = _text(block.get("content"), (*path, "content"))
    asked = _tell.string(block, "tool_use_id", path)
    return {"role": "tool", "tool_call_id": asked, "content": f"Error: {text}" if failed else text}


def _said(content: Any, path: Path) -> dict[str, Any]:
    """An assistant's turn: its texts, then its calls."""
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(content):
        place = (*path, index)
        if block["type"] == "tool_use":
            _tell.only(block, {"type", "id", "name", "input"}, place, idle={"caller": {"type": "direct"}})
            arguments = json.dumps(block["input"], ensure_ascii=False, separators=(",", ":"))
            function = {"name": _tell.string(block, "name", place), "arguments": arguments}
            calls.append({"id": _tell.string(block, "id", place), "type": "function", "function": function})
        elif block["type"] == "text":
            texts += [part["text"] for part in _parts(block, place)]
        elif block["type"] not in _THOUGHTS:
            raise _tell.untold(*place, "type")
    text = "\n".join(texts)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    return message | ({"tool_calls": calls} if calls else {})


def _tool(tool: dict[str, Any], path: Path) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise _tell.untold(*path, "type")
    # How its input streams says nothing to the model.
    names = {"type", "name", "description", "input_schema", "strict", "eager_input_streaming"}
    idle = {"defer_loading": False, "input_examples": [], "allowed_callers": ["direct"]}
    _tell.only(tool, names, path, idle=idle)
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise _tell.untold(*path, "input_schema")
    function: dict[str, Any] = {"name": _tell.string(tool, "name", path), "parameters": schema}
    if tool.get("description") is not None:
        function["description"] = _tell.string(tool, "description", path)
    if tool.get("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def _choice(choice: dict[str, Any] | None, *, has_tools: bool) -> dict[str, Any]:
    if choice is None:
        return {}
    place: Path = ("tool_choice",)
    kind = choice.get("type")
    if kind == "tool":
        _tell.only(choice, {"type", "name", "disable_parallel_tool_use"}, place)
        wanted: Any = {"type": "function", "function": {"name": _tell.string(choice, "name", place)}}
    elif isinstance(kind, str) and kind in _CHOICES:
        _tell.only(choice, {"type", "disable_parallel_tool_use"}, place)
        wanted = _CHOICES[kind]
    else:
        raise _tell.untold(*place, "type")
    if not has_tools:  # a chat without tools takes no choice among them
        if kind in {"tool", "any"}:
            raise _tell.untold(*place)
        return {}
    single = choice.get("disable_parallel_tool_use") is True and kind != "none"
    return {"tool_choice": wanted} | ({"parallel_tool_calls": False} if single else {})


def _asker(metadata: dict[str, Any] | None) -> dict[str, Any]:
    _tell.only(metadata or {}, {"user_id"}, ("metadata",))
    user = (metadata or {}).get("user_id")
    if user is None:
        return {}
    user = _tell.string({"user_id": user}, "user_id", ("metadata",))
    return {"user": user if len(user) <= MAX_USER_CHARS else hashlib.sha256(user.encode()).hexdigest()}
