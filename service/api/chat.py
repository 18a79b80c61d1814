"""OpenAI chat completions: the request, its types and its bounds.

Source: OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

from typing import Any

from service.api import asgi
from service.api.asgi import Handler, endpoint
from service.api.caller_names import names_of
from service.api.chat_prompt import FIELDS, Reading
from service.api.chat_reply import ChatWire
from service.api.offered_tools import chat_results, chat_tools, end_user_of
from service.api.request_fields import model_of, read_object, recorded
from service.api.request_texts import Calls
from service.api.sampling import sampling_of
from service.api.strict_json import pointer
from service.firewall.prompt import Prompt
from service.gateway import Gateway
from service.interfaces import Call
from service.settings import Server

_OF_MESSAGES = frozenset({"tool_use", "tool_result", "thinking", "redacted_thinking"})
"""Blocks of Anthropic's Messages: a chat's provider overlooks them, or reads them in a way of its own."""


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/chat/completions`."""
    return endpoint(ChatWire(), parse_request, gateway.serve, server, open_mode=open_mode)


def parse_request(body: bytes, server: Server) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = read_object(body)
    FIELDS.check(request)
    if request.get("system") is not None:
        raise asgi.malformed("/system", "a message with the role system in its place")
    model = model_of(request)
    reading = Reading()
    reading.messages(request.get("messages"), server.max_messages)
    _check(request["messages"])
    reading.fields(request)
    choices = request.get("n") or 1
    bounds = [request[name] for name in ("max_tokens", "max_completion_tokens") if request.get(name) is not None]
    return Call(
        model=model,
        stream=bool(request.get("stream")),
        body=body,
        prompt=Prompt(model, tuple(reading.segments), tuple(reading.unscannable)),
        counted_texts=reading.counted_texts(),
        demand=reading.demand(request, body),
        system_texts=reading.texts_of("system"),
        user_texts=reading.texts_of("user"),
        tools=chat_tools(request),
        results=chat_results(request["messages"], reading.segments),
        end_user=end_user_of(request),
        names=names_of(request),
        further_models=tuple(reading.further_models),
        references=tuple(reading.references),
        max_output_tokens=max(bounds) * choices if bounds else None,
        choices=choices,
        reports_usage=not request.get("stream") or (request.get("stream_options") or {}).get("include_usage") is True,
        unknown_fields=recorded(request.keys() - FIELDS.known),
        sampling=sampling_of(request),
    )


def _check(messages: list[dict[str, Any]]) -> None:
    """Raises MalformedRequest for parts that are no chat's, and for a tool's result that nothing called for."""
    calls = Calls()
    for index, message in enumerate(messages):
        content = message.get("content")
        for position, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") in _OF_MESSAGES:
                place = pointer("messages", index, "content", position, "type")
                raise asgi.malformed(place, "a part of a chat's message")
        role = message["role"].strip().lower()
        if role == "tool":
            calls.answered(message.get("tool_call_id"), ("messages", index, "tool_call_id"))
        elif role == "function":
            calls.answered(None, ("messages", index, "role"))
        for call in message.get("tool_calls") or ():
            calls.made(call.get("id"))
        if message.get("function_call") is not None:
            calls.made(None)
