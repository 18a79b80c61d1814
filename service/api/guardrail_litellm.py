"""`POST /beta/litellm_basic_guardrail_api`: a guardrail for LiteLLM's proxy, which asks before and after each call.

Source: LiteLLM documentation, "Generic Guardrail API" (beta). `texts` are all texts of the call; `structured_messages`
hold those of a request once more, with their roles. What comes with them for other purposes (the caller's identity,
headers, parameters of the guardrail) reaches no model and changes nothing here: a request cannot loosen policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from service.answer import block_error
from service.api.asgi import Handler, HttpExchange, endpoint, malformed
from service.api.chat_prompt import Reading
from service.api.chat_reply import ChatWire
from service.api.reply_texts import Slot, Texts, strings
from service.api.request_fields import Fields, is_model_name, read_object, recorded
from service.api.strict_json import pointer
from service.api.texts import segments_of
from service.errors import MalformedRequest, PayloadTooLarge, UpstreamInvalid
from service.firewall.prompt import Prompt
from service.gateway import Gateway
from service.interfaces import Call, Judged, Piece
from service.settings import Server

PATH = "/beta/litellm_basic_guardrail_api"

_LISTS = frozenset({"texts", "images", "tools", "tool_calls", "structured_messages"})
_BESIDE = frozenset(
    {"model", "request_data", "request_headers", "additional_provider_specific_params"}
    | {"litellm_call_id", "litellm_trace_id", "litellm_version"}
)
_FIELDS = Fields(lists=_LISTS, strings=frozenset({"input_type"}), others=_BESIDE)
_TEXT = "texts/"


class LiteLLMWire(ChatWire):
    """Errors are OpenAI's: LiteLLM looks at their status only. A redaction has a place in `texts` and nowhere else."""

    name = "litellm.guardrail"
    path = ""

    def rewrite(self, piece: Piece, texts: Sequence[str]) -> bytes | None:
        """The list of texts as they may be sent; None where anything else would have to be changed."""
        pairs = list(zip(piece.texts, texts, strict=True))
        if any(new != old for (channel, old), new in pairs if not channel.startswith(_TEXT)):
            return None
        return msgspec.json.encode([new for (channel, _), new in pairs if channel.startswith(_TEXT)])


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """The guardrail."""

    async def serve(exchange: HttpExchange) -> None:
        await gateway.scan(exchange, lambda call, judged: write_decision(exchange.request_id, call, judged))

    return endpoint(LiteLLMWire(), parse_request, serve, server, open_mode=open_mode)


def parse_request(body: bytes, server: Server) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = read_object(body)
    _FIELDS.check(request)
    kind = request.get("input_type")
    if kind not in {"request", "response"}:
        raise malformed("/input_type", "request or response")
    for name in ("texts", "images"):
        for index, text in enumerate(request.get(name) or ()):
            if not isinstance(text, str):
                raise malformed(pointer(name, index), "a string")
    for name in _LISTS:
        if len(request.get(name) or ()) > server.max_messages:
            raise PayloadTooLarge(f"More than {server.max_messages} items.", pointer=pointer(name))
    messages = _messages(request.get("structured_messages"), server.max_messages)
    model = request.get("model")
    call = Call(
        model=model if isinstance(model, str) and is_model_name(model) else "",
        stream=False,
        body=body,
        prompt=Prompt("", ()),
        system_texts=tuple(s.text for s in messages.segments if s.role == "system"),
        user_texts=tuple(s.text for s in messages.segments if s.role == "user"),
        unknown_fields=recorded(request.keys() - _FIELDS.known),
    )
    if kind == "response":
        return msgspec.structs.replace(call, reply=_reply(request))
    _rest(request, messages)
    prompt = Prompt("", tuple(messages.segments), tuple(messages.unscannable))
    return msgspec.structs.replace(call, prompt=prompt)


def _messages(given: list[Any] | None, max_messages: int) -> Reading:
    """The conversation with its roles. One of another form is judged all the same, as documents."""
    reading = Reading()
    if not given:
        return reading
    try:
        reading.messages(given, max_messages)
    except MalformedRequest:
        reading = Reading()
        reading.add(segments_of(given, ("structured_messages",), "document"))
        return reading
    reading.segments = [msgspec.structs.replace(s, pointer=_placed(s.pointer)) for s in reading.segments]
    reading.unscannable = [msgspec.structs.replace(u, pointer=_placed(u.pointer)) for u in reading.unscannable]
    return reading


def _placed(place: str) -> str:
    return place.replace("/messages", "/structured_messages", 1)


def _rest(request: dict[str, Any], reading: Reading) -> None:
    """What of a request is not in its messages. Texts that are have the messages' roles; others are the user's."""
    known = {segment.text for segment in reading.segments}
    turn = len(request.get("structured_messages") or ())
    for index, text in enumerate(request.get("texts") or ()):
        if text not in known:
            reading.text(text, ("texts", index), "user", turn + index)
    for index, image in enumerate(request.get("images") or ()):
        reading.attachment(image, ("images", index), "image", -1, base64=True)
    for name in ("tools", "tool_calls"):
        for index, item in enumerate(request.get(name) or ()):
            reading.add(segments_of(item, (name, index), "tool"))
            function = item.get("function") if isinstance(item, dict) else None
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, str):
                reading.unescaped(arguments, (name, index, "function", "arguments"), -1)
    for name, value in request.items():
        if name not in _FIELDS.known:
            reading.member(name, value, ())


def _reply(request: dict[str, Any]) -> Piece:
    """The texts of a reply; tool calls, images and unknown members after them."""
    texts = request.get("texts") or []
    others = [name for name in request if name in {"images", "tools", "tool_calls"} or name not in _FIELDS.known]
    slots = chain.from_iterable(_slots(request, name) for name in others)
    try:
        found = Texts().piece(slots, request, b"").texts
    except UpstreamInvalid:
        # Not a failure of a provider: one that is down may be let pass by the proxy's own settings.
        raise MalformedRequest("The reply's tool calls or images cannot be read in one way only.") from None
    own = tuple((f"{_TEXT}{index}", text) for index, text in enumerate(texts))
    return Piece(raw=msgspec.json.encode(texts), texts=(*own, *found))


def _slots(request: dict[str, Any], name: str) -> chain[Slot]:
    known = name in _FIELDS.known
    key = () if known else (Slot("other/keys=", request, name, "key"),)
    return chain(key, strings(request, name, name if known else "other"))


def write_decision(request_id: str, call: Call, judged: Judged) -> bytes:
    """The answer: let it pass, stop it and say why, or send these texts in the place of those."""
    verdict = judged.verdict
    if verdict.action == "block":
        what = "prompt" if call.reply is None else "reply"
        return msgspec.json.encode(
            {"action": "BLOCKED", "blocked_reason": block_error(verdict, request_id, what).message}
        )
    if call.reply is None or judged.released == call.reply.raw:
        return msgspec.json.encode({"action": "NONE"})
    texts = msgspec.Raw(judged.released)
    return msgspec.json.encode({"action": "GUARDRAIL_INTERVENED", "texts": texts})
