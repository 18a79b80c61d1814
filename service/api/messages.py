"""Anthropic's Messages and the counting of their tokens: the request, its types and its bounds.

Source: Anthropic API reference, "Create a Message" and "Count tokens in a Message".
"""

from __future__ import annotations

from typing import Any

import msgspec

from service.api.asgi import Handler, endpoint, malformed
from service.api.caller_names import MESSAGE_MEMBERS, names_of
from service.api.messages_prompt import FIELDS, Reading
from service.api.messages_reply import CountWire, MessagesWire
from service.api.offered_tools import end_user_of, message_results, message_tools
from service.api.request_fields import model_of, read_object, recorded
from service.api.request_texts import Calls
from service.api.sampling import sampling_of
from service.firewall.prompt import Prompt
from service.gateway import Gateway
from service.interfaces import Call
from service.settings import Server


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/messages`."""
    return endpoint(MessagesWire(), parse_request, gateway.serve, server, open_mode=open_mode)


def count_handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/messages/count_tokens`: judged as the message would be, since the provider reads it all the same."""
    return endpoint(CountWire(), parse_count, gateway.serve, server, open_mode=open_mode)


def parse_request(body: bytes, server: Server) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = read_object(body)
    bound = request.get("max_tokens")
    # 0 only fills the provider's cache.
    if type(bound) is not int or not 0 <= bound <= 2**31:
        raise malformed("/max_tokens", "an integer in range, which Messages need")
    return _call(request, body, server, stream=request.get("stream"), max_output_tokens=bound)


def parse_count(body: bytes, server: Server) -> Call:
    """Read one request to count. Raises as `parse_request` does."""
    call = _call(read_object(body), body, server, stream=False, max_output_tokens=0)
    return msgspec.structs.replace(call, counted_only=True)


def _call(request: dict[str, Any], body: bytes, server: Server, *, stream: Any, max_output_tokens: int) -> Call:
    FIELDS.check(request)
    model = model_of(request)
    reading = Reading()
    count = reading.messages(request.get("messages"), server.max_messages)
    _check(request["messages"])
    reading.system(request.get("system"), count)
    reading.fields(request)
    return Call(
        model=model,
        stream=bool(stream),
        body=body,
        prompt=Prompt(model, tuple(reading.segments), tuple(reading.unscannable)),
        counted_texts=reading.counted_texts(),
        demand=reading.demand(request, body),
        system_texts=reading.texts_of("system"),
        user_texts=reading.texts_of("user"),
        tools=message_tools(request),
        results=message_results(request["messages"], reading.segments),
        end_user=end_user_of(request),
        names=names_of(request, MESSAGE_MEMBERS),
        further_models=tuple(reading.further_models),
        references=tuple(reading.references),
        max_output_tokens=max_output_tokens,
        unknown_fields=recorded(request.keys() - FIELDS.known),
        sampling=sampling_of(request),
    )


def _check(messages: list[dict[str, Any]]) -> None:
    """Raises MalformedRequest for a tool's result that nothing called for."""
    calls = Calls()
    for index, message in enumerate(messages):
        content = message.get("content")
        for position, block in enumerate(content if isinstance(content, list) else ()):
            if block["type"] == "tool_use":
                calls.made(block.get("id"))
            elif block["type"] == "tool_result":
                calls.answered(block["tool_use_id"], ("messages", index, "content", position, "tool_use_id"))
