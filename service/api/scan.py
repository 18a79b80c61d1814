"""`POST /v1/scan`: judge texts without calling a model. The answer holds actions and categories, never a score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from service.api import strict_json
from service.api.asgi import Handler, HttpExchange, endpoint, malformed
from service.api.chat_prompt import Reading
from service.api.chat_reply import ChatWire
from service.api.strict_json import pointer
from service.errors import PayloadTooLarge
from service.firewall.prompt import FOREIGN, ROLES, Prompt, Segment
from service.firewall.verdict import Finding, decide, told
from service.gateway import Gateway
from service.interfaces import Call, Judged
from service.settings import Server

_MEMBERS = frozenset({"messages", "texts", "role", "tools"})


class ScanWire(ChatWire):
    """Its errors are those of all of OpenAI's routes."""

    name = "scan"
    path = ""


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/scan` `{"messages": […]}` or `{"texts": […], "role"}`."""

    async def serve(exchange: HttpExchange) -> None:
        await gateway.scan(exchange, lambda call, judged: write_verdicts(exchange.request_id, call, judged))

    return endpoint(ScanWire(), parse_scan, serve, server, open_mode=open_mode)


def parse_scan(body: bytes, server: Server) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = strict_json.parse(body)
    if not isinstance(request, dict):
        raise malformed("", "an object")
    for name in request.keys() - _MEMBERS:
        raise malformed(pointer(name), "only messages, tools, texts and role")
    if ("messages" in request) == ("texts" in request):
        raise malformed("", "either messages or texts")
    reading = Reading()
    if "messages" in request:
        reading.messages(request["messages"], server.max_messages)
        tools = request.get("tools")
        if tools is not None and not isinstance(tools, list):
            raise malformed("/tools", "a list")
        reading.fields({"tools": tools})
    else:
        reading.segments += _texts(request, server.max_messages)
    prompt = Prompt("", tuple(reading.segments), tuple(reading.unscannable))
    return Call(model="", stream=False, body=body, prompt=prompt)


def _texts(request: dict[str, Any], max_texts: int) -> list[Segment]:
    texts, role = request["texts"], request.get("role", "user")
    if role not in ROLES:
        raise malformed("/role", "user, tool, document or system")
    if not isinstance(texts, list) or not texts:
        raise malformed("/texts", "a list of at least one text")
    if len(texts) > max_texts:
        raise PayloadTooLarge(f"More than {max_texts} texts.", pointer="/texts")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise malformed(pointer("texts", index), "a string")
    return [Segment(text, role, pointer("texts", index), foreign=role in FOREIGN) for index, text in enumerate(texts)]


def write_verdicts(request_id: str, call: Call, judged: Judged) -> bytes:
    """The answer: the action over all, and one result for each message or text, in their order."""
    verdict = judged.verdict
    findings = verdict.findings
    places = _places(call)
    by_place: dict[str, list[Finding]] = {place: [] for place in places}
    for finding in findings:
        place = "/".join(finding.pointer.split("/")[:3])
        by_place.setdefault(place, []).append(finding)
    results = [{"pointer": place, **_outcome(found)} for place, found in by_place.items()]
    return msgspec.json.encode(
        {
            "request_id": request_id,
            **_outcome(findings),
            "unjudged": verdict.unjudged,
            "results": [{"index": index, **result} for index, result in enumerate(results)],
        }
    )


def _places(call: Call) -> list[str]:
    """The messages or texts that were sent, also those without anything to judge."""
    request = msgspec.json.decode(call.body)
    name = "messages" if "messages" in request else "texts"
    return [pointer(name, index) for index in range(len(request[name]))]


def _outcome(findings: Iterable[Finding]) -> dict[str, str | None]:
    verdict = decide(findings)
    decisive = verdict.decisive
    category = told(decisive.category) if decisive and verdict.action != "allow" else None
    return {"action": verdict.action, "category": category}
