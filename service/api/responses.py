"""OpenAI Responses: the request, its types and its bounds.

Source: OpenAI API reference, "Create a model response".
"""

from __future__ import annotations

from service.api.asgi import Handler, endpoint
from service.api.caller_names import names_of
from service.api.offered_tools import end_user_of, response_results, response_tools
from service.api.request_fields import model_of, read_object, recorded
from service.api.responses_prompt import FIELDS, Reading, echoes_of
from service.api.responses_reply import ResponsesWire
from service.api.sampling import sampling_of
from service.firewall.prompt import Prompt
from service.gateway import Gateway
from service.interfaces import Call
from service.settings import Server


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/responses`."""
    return endpoint(ResponsesWire(), parse_request, gateway.serve, server, open_mode=open_mode)


def parse_request(body: bytes, server: Server) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = read_object(body)
    FIELDS.check(request)
    model = model_of(request)
    reading = Reading()
    reading.read(request, server.max_messages)
    return Call(
        model=model,
        stream=bool(request.get("stream")),
        body=body,
        prompt=Prompt(model, tuple(reading.segments), tuple(reading.unscannable)),
        counted_texts=reading.counted_texts(),
        demand=reading.demand(request, body),
        system_texts=reading.texts_of("system"),
        user_texts=reading.texts_of("user"),
        tools=response_tools(request),
        results=response_results(request.get("input"), reading.segments),
        end_user=end_user_of(request),
        max_output_tokens=request.get("max_output_tokens"),
        unknown_fields=recorded(reading.unknown),
        references=tuple(reading.references),
        names=names_of(request),
        further_models=tuple(reading.further_models),
        echoes=echoes_of(request),
        deferred=bool(request.get("background")),
        sampling=sampling_of(request),
    )
