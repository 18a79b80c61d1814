"""A chat completion's request as one of Anthropic's Messages, for callers who speak the one and providers who speak the
other. It is made of the body that was judged, and of nothing else; what has no counterpart is refused by its pointer.

Sources: OpenAI API reference, "Create chat completion"; Anthropic API reference, "Create a Message".
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from service.api import strict_json
from service.api.texts import Path
from service.api.translating import Telling
from service.errors import RequestError

DEFAULT_MAX_TOKENS = 4_096
"""Where nobody bounds the reply: Messages need a bound."""

# Members that say nothing where they say only this: null says so in all of them.
_IDLE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "store": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
_CHOICES = {"none": "none", "auto": "auto", "required": "any"}
_SAME = ("model", "stream", "temperature", "top_p")
_READ = frozenset(
    {*_SAME, "messages", "max_tokens", "max_completion_tokens", "stop", "stream_options", "tools", "tool_choice"}
    | {"parallel_tool_calls", "reasoning_effort", "response_format", "user"}
)
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
"""Those of both protocols."""
_tell = Telling("The model's provider speaks Messages, which cannot say this.")
_DATA_URL = re.compile(r"data:(image/(?:jpeg|png|gif|webp));base64,(.*)", re.DOTALL)


def translate(body: bytes) -> bytes:
    """The body of a Message.

    `body` is one that `chat.parse_request` has read. Raises MalformedRequest naming what cannot be said in Messages.
    """
    request = strict_json.parse(body)
    for name, value in request.items():
        if name not in _READ and value is not None and value not in _IDLE.get(name, ()):
            raise _tell.untold(name)
    out: dict[str, Any] = {name: request[name] for name in _SAME if request.get(name) is not None}
    if out.get("temperature", 0) > 1:
        raise _tell.untold("temperature")
    bounds = [request[name] for name in ("max_completion_tokens", "max_tokens") if request.get(name) is not None]
    out["max_tokens"] = min(bounds, default=DEFAULT_MAX_TOKENS)
    out.update(_conversation(request["messages"]))
    if request.get("stop") is not None:
        out["stop_sequences"] = _stops(request["stop"])
    if request.get("tools"):
        out["tools"] = [_tool(tool, ("tools", index)) for index, tool in enumerate(request["tools"])]
    choice = _choice(request)
    if choice is not None:
        out["tool_choice"] = choice
    if config := _output_config(request):
        out["output_config"] = config
    if request.get("user") is not None:
        out["metadata"] = {"user_id": request["user"]}
    _tell.only(request.get("stream_options") or {}, {"include_usage", "include_obfuscation"}, ("stream_options",))
    return msgspec.json.encode(out)


def _conversation(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """System texts come first in both; what one side says in a row is one turn, as Messages have it."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        path: Path = ("messages", index)
        role = message["role"]
        if role in {"system", "developer"}:
            _tell.only(message, {"role", "content"}, path)
            if turns:
                raise _tell.untold(*path, "role")
            system += _texts(message.get("content"), (*path, "content"))
            continue
        if role == "user":
            _tell.only(message, {"role", "content"}, path)
            blocks = _parts(message.get("content"), (*path, "content"))
        elif role == "assistant":
            blocks = _said(message, path)
        elif role == "tool":
            _tell.only(message, {"role", "content", "tool_call_id"}, path)
            content = _texts(message.get("content"), (*path, "content"))
            asked = _tell.string(message, "tool_call_id", path)
            blocks = [{"type": "tool_result", "tool_use_id": asked, "content": content}]
        else:
            raise _tell.untold(*path, "role")
        side = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": side, "content": blocks})
    return {"messages": turns, **({"system": system} if system else {})}


def _said(message: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    _tell.only(message, {"role", "content", "tool_calls"}, path, idle={"annotations": []})
    blocks = _texts(message["content"], (*path, "content")) if message.get("content") is not None else []
    for index, call in enumerate(message.get("tool_calls") or ()):
        place = (*path, "tool_calls", index)
        _tell.only(call, {"id", "type", "function", "index"}, place)
        function = call.get("function")
        if call.get("type", "function") != "function" or not isinstance(function, dict):
            raise _tell.untold(*place)
        _tell.only(function, {"name", "arguments"}, (*place, "function"))
        given = function.get("arguments") or "{}"
        try:
            arguments = strict_json.parse(given.encode())
        except RequestError:
            arguments = None
        if not isinstance(arguments, dict):
            raise _tell.untold(*place, "function", "arguments")
        name = _tell.string(function, "name", (*place, "function"))
        blocks.append({"type": "tool_use", "id": _tell.string(call, "id", place), "name": name, "input": arguments})
    return blocks


def _texts(content: Any, path: Path) -> list[dict[str, Any]]:
    """Text blocks of a content that can hold nothing else. Empty ones, which Messages refuse, are left out."""
    blocks = _parts(content, path)
    for index, block in enumerate(blocks):
        if block["type"] != "text":
            raise _tell.untold(*path, index)
    return blocks


def _parts(content: Any, path: Path) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise _tell.untold(*path)
    blocks: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        place = (*path, index)
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            blocks += [{"type": "text", "text": part}] if part else []
        elif kind == "text":
            _tell.only(part, {"type", "text"}, place)
            blocks += [{"type": "text", "text": part["text"]}] if part["text"] else []
        elif kind == "image_url":
            _tell.only(part, {"type", "image_url"}, place)
            blocks.append({"type": "image", "source": _image(part["image_url"], (*place, "image_url"))})
        else:
            raise _tell.untold(*place, "type")
    return blocks


def _image(image: Any, path: Path) -> dict[str, Any]:
    if isinstance(image, str):
        image = {"url": image}
    _tell.only(image, {"url", "detail"}, path)
    if image.get("detail") not in (None, "auto"):
        raise _tell.untold(*path, "detail")
    url = image.get("url")
    inline = _DATA_URL.fullmatch(url) if isinstance(url, str) else None
    if inline is not None:
        return {"type": "base64", "media_type": inline[1], "data": inline[2]}
    if not isinstance(url, str) or not url.startswith("https://"):
        raise _tell.untold(*path, "url")
    return {"type": "url", "url": url}


def _tool(tool: dict[str, Any], path: Path) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise _tell.untold(*path, "type")
    _tell.only(tool, {"type", "function"}, path)
    _tell.only(function, {"name", "description", "parameters", "strict"}, (*path, "function"))
    schema, strict = function.get("parameters"), function.get("strict")
    if not isinstance(strict, (bool, type(None))):
        raise _tell.untold(*path, "function", "strict")
    if not isinstance(schema, (dict, type(None))):
        raise _tell.untold(*path, "function", "parameters")
    out = {"name": function["name"], "input_schema": {"type": "object"} if schema is None else schema}
    out |= {"strict": True} if strict else {}
    return out if function.get("description") is None else out | {"description": function["description"]}


def _output_config(request: dict[str, Any]) -> dict[str, Any]:
    """How much effort, and the schema that the reply has to fit."""
    config: dict[str, Any] = {}
    effort, wanted = request.get("reasoning_effort"), request.get("response_format")
    if effort is not None:
        if effort not in _EFFORTS:
            raise _tell.untold("reasoning_effort")
        config["effort"] = effort
    if wanted is not None and wanted != {"type": "text"}:
        if wanted.get("type") != "json_schema":
            raise _tell.untold("response_format")
        _tell.only(wanted, {"type", "json_schema"}, ("response_format",))
        named: Any = wanted.get("json_schema")
        place: Path = ("response_format", "json_schema")
        # Messages have no name for it, and hold to every schema strictly.
        _tell.only(named, {"name", "schema", "strict"}, place)
        if not isinstance(named.get("schema"), dict):
            raise _tell.untold(*place, "schema")
        config["format"] = {"type": "json_schema", "schema": named["schema"]}
    return config


def _choice(request: dict[str, Any]) -> dict[str, Any] | None:
    choice, single = request.get("tool_choice"), request.get("parallel_tool_calls") is False
    if choice is None and not (single and request.get("tools")):
        return None
    if isinstance(choice, dict):
        function = choice.get("function")
        if choice.get("type") != "function" or not isinstance(function, dict):
            raise _tell.untold("tool_choice")
        _tell.only(choice, {"type", "function"}, ("tool_choice",))
        _tell.only(function, {"name"}, ("tool_choice", "function"))
        out = {"type": "tool", "name": _tell.string(function, "name", ("tool_choice", "function"))}
    elif choice is None or (isinstance(choice, str) and choice in _CHOICES):
        out = {"type": _CHOICES[choice or "auto"]}
    else:
        raise _tell.untold("tool_choice")
    return out | {"disable_parallel_tool_use": True} if single and out["type"] != "none" else out


def _stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise _tell.untold("stop")
    return stops
