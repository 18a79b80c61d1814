"""OpenAI's moderations, answered by the firewall itself: does a text attack the application that reads it?

The standard categories stand in every answer and are false: what they speak of is not judged here. The firewall's own
stand beside them. `flagged` is what policy says of the text: flagged or blocked. Category scores are 0 or 1: a finer
one would help whoever searches for a text that passes.

Source: OpenAI API reference, "Create moderation" and "The moderation object".
"""

from __future__ import annotations

from typing import Any

import msgspec

from service.api.asgi import Handler, HttpExchange, endpoint, malformed
from service.api.chat_prompt import Reading
from service.api.chat_reply import ChatWire
from service.api.request_fields import Fields, model_of, read_object, recorded
from service.api.strict_json import pointer
from service.errors import PayloadTooLarge
from service.firewall.prompt import Prompt, Segment
from service.firewall.verdict import Verdict
from service.gateway import Gateway
from service.interfaces import Call, Judged
from service.settings import Server

MODEL = "semantic-firewall"
STANDARD = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)
OWN = ("injection", "jailbreak", "extraction", "unscannable", "oversize")

_FIELDS = Fields(strings=frozenset({"model"}), others=frozenset({"input"}))


class ModerationsWire(ChatWire):
    """Its errors are those of all of OpenAI's routes."""

    name = "openai.moderations"
    path = ""


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/moderations`."""

    async def serve(exchange: HttpExchange) -> None:
        await gateway.scan(exchange, lambda call, judged: write_results(exchange.request_id, judged))

    return endpoint(ModerationsWire(), parse_request, serve, server, open_mode=open_mode)


def parse_request(body: bytes, server: Server) -> Call:
    """Read one request: a string and each of several has a result of its own, parts of one message have one together.

    Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong.
    """
    request = read_object(body)
    _FIELDS.check(request)
    model = model_of(request) if request.get("model") is not None else MODEL
    reading = Reading()
    given = request.get("input")
    if isinstance(given, str):
        reading.segments.append(Segment(given, "user", "/input"))
    elif not isinstance(given, list) or not given:
        raise malformed("/input", "a string, or a list of strings or of content parts, not empty")
    elif len(given) > server.max_messages:
        raise PayloadTooLarge(f"More than {server.max_messages} texts.", pointer="/input")
    elif isinstance(given[0], dict):
        _same(given, dict, "a content part")
        reading.content(given, ("input",), "user", 0)
    else:
        _same(given, str, "a string")
        reading.segments += [Segment(text, "user", pointer("input", index)) for index, text in enumerate(given)]
    if not reading.segments and not reading.unscannable:
        reading.segments.append(Segment("", "user", "/input"))  # parts without any text still have a result
    return Call(
        model=model,
        stream=False,
        body=body,
        prompt=Prompt(model, tuple(reading.segments), tuple(reading.unscannable)),
        unknown_fields=recorded(request.keys() - _FIELDS.known),
    )


def _same(items: list[Any], kind: type, wanted: str) -> None:
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            raise malformed(pointer("input", index), wanted)


def write_results(request_id: str, judged: Judged) -> bytes:
    """The answer: one result for each verdict."""
    results = [_result(verdict) for verdict in judged.prompts]
    return msgspec.json.encode({"id": f"modr-{request_id}", "model": MODEL, "results": results})


def _result(verdict: Verdict) -> dict[str, Any]:
    found = {finding.category for finding in verdict.findings if finding.action != "allow"}
    categories = {name: name in found for name in (*STANDARD, *OWN)}
    return {
        "flagged": verdict.action != "allow",
        "categories": categories,
        "category_scores": {name: float(hit) for name, hit in categories.items()},
        "category_applied_input_types": {
            name: [] if not hit else ["image"] if name == "unscannable" else ["text"]
            for name, hit in categories.items()
        },
        "unjudged": list(verdict.unjudged),
    }
