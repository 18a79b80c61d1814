"""OpenAI chat completions: the request, its types and its bounds.

Source: OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

import re
from typing import Any

from service.api import strict_json
from service.api.asgi import Handler, endpoint, malformed
from service.api.chat_prompt import BOOLEANS, INTEGERS, KNOWN, LISTS, NUMBERS, OBJECTS, STRINGS, Reading
from service.api.chat_reply import ChatWire
from service.api.strict_json import pointer
from service.firewall.prompt import Prompt
from service.gateway import Gateway
from service.interfaces import Call
from service.settings import Server

_MODEL = re.compile(r"[^\s\x00-\x1f\x7f]{1,256}")
"""A model's name has no spaces: it is not judged, and stands in the record."""
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/chat/completions`."""
    return endpoint(ChatWire(), parse_request, gateway.serve, server, open_mode=open_mode)


def parse_request(body: bytes, server: Server) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = strict_json.parse(body)
    if not isinstance(request, dict):
        raise malformed("", "an object")
    _check_types(request)
    model = request.get("model")
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
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
        unknown_fields=tuple(sorted({_recorded(name) for name in request.keys() - KNOWN}))[:16],
    )


def _recorded(name: str) -> str:
    return name if _FIELD_NAME.fullmatch(name) else "(other)"


def _check_types(request: dict[str, Any]) -> None:
    for name, value in request.items():
        if name not in KNOWN and name.casefold() in KNOWN:
            # Some readers ignore case: they would take a second `Max_Tokens` for the one that was clamped.
            raise malformed(pointer(name), f"the field {name.casefold()}")
        if value is None:
            continue
        kind = type(value)
        if name in BOOLEANS and kind is not bool:
            raise malformed(pointer(name), "true or false")
        if name in INTEGERS and kind is not int:
            raise malformed(pointer(name), "an integer")
        if name in NUMBERS and kind not in {int, float}:
            raise malformed(pointer(name), "a number")
        if name in OBJECTS and kind is not dict:
            raise malformed(pointer(name), "an object")
        if name in LISTS and kind is not list:
            raise malformed(pointer(name), "a list")
        if name in STRINGS and kind is not str:
            raise malformed(pointer(name), "a string")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = request.get(name)
        if value is not None and not 1 <= value <= (128 if name == "n" else 2**31):
            raise malformed(pointer(name), "a positive integer in range")
