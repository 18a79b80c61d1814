"""OpenAI embeddings. What is embedded is judged as document text: blocked or flagged, never changed.

Source: OpenAI API reference, "Create embeddings" and "The embedding object".
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

from service.api.asgi import Handler, endpoint
from service.api.caller_names import names_of
from service.api.chat_reply import ChatWire
from service.api.inputs import Decode, Inputs
from service.api.reply_texts import COMPLETE, Slot, Texts, channel_name, read_document, strings, unknown_key
from service.api.request_fields import Fields, model_of, read_object, recorded
from service.api.texts import plain_text
from service.firewall.prompt import Prompt
from service.gateway import Gateway
from service.interfaces import Call, Piece, Usage
from service.settings import Server

_FIELDS = Fields(
    integers=frozenset({"dimensions"}),
    strings=frozenset({"encoding_format", "user"}),
    others=frozenset({"model", "input"}),
    ranges={"dimensions": (1, 2**20)},
)
_FORMATS = frozenset({"float", "base64"})
_COMPLETE = COMPLETE | {"id"}
_MAX_COMPONENT = 10**7  # a larger number has the digits of a text


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/embeddings`."""
    parse = partial(parse_request, decode=gateway.tenancy.decode)
    return endpoint(EmbeddingsWire(), parse, gateway.serve, server, open_mode=open_mode)


def parse_request(body: bytes, server: Server, decode: Decode) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = read_object(body)
    _FIELDS.check(request)
    model = model_of(request)
    reading = Inputs(model, decode, "document")
    reading.read(request.get("input"), "input", server.max_messages)
    texts = tuple(segment.text for segment in reading.segments)
    for name, value in request.items():
        if name not in _FIELDS.known or (name == "encoding_format" and value not in _FORMATS and value is not None):
            reading.member(name, value, (), known=name in _FIELDS.known)
    reading.text(request.get("user") or "", ("user",), "document")
    return Call(
        model=model,
        stream=False,
        body=body,
        prompt=Prompt(model, tuple(reading.segments), tuple(reading.unscannable), apart=True),
        user_texts=texts,
        max_output_tokens=0,
        token_ids=reading.token_ids,
        names=names_of(request),
        unknown_fields=recorded(request.keys() - _FIELDS.known),
    )


class EmbeddingsWire(ChatWire):
    """How embeddings are answered (`interfaces.Wire`). Errors are those of all of OpenAI's routes."""

    name = "openai.embeddings"
    path = "/embeddings"

    def read_reply(self, body: bytes) -> Piece:
        """A whole reply. Raises UpstreamInvalid."""
        document = read_document(body)
        return Texts().piece(
            _slots(document), document, body, usage=_usage(document.get("usage")), failed=bool(document.get("error"))
        )

    def pin(self, call: Call, text: str) -> bytes:
        """Nothing is prompted."""
        return call.body

    def clamp(self, call: Call, max_output_tokens: int) -> bytes:
        """Nothing is generated, so nothing is bounded."""
        return call.body


def _slots(document: dict[str, Any]) -> Iterator[Slot]:
    """Everything in the reply but its vectors: numbers within them say nothing."""
    for key, value in document.items():
        yield from unknown_key(document, key, "reply")
        if key == "data" and isinstance(value, list):
            for position, entry in enumerate(value):
                if isinstance(entry, dict):
                    yield from _entry(entry, position)
                else:
                    yield from strings(value, position, f"data/{position}")
        elif key in _COMPLETE and isinstance(value, str):
            yield Slot(f"reply/{key}=", document, key)
        else:
            yield from strings(document, key, f"reply/{channel_name(key)}")


def _entry(entry: dict[str, Any], position: int) -> Iterator[Slot]:
    for key, value in entry.items():
        if key == "embedding":
            if not _is_vector(value):
                yield from strings(entry, key, f"data/{position}/embedding")
        elif key in _COMPLETE and isinstance(value, str):
            yield Slot(f"data/{key}=", entry, key)  # the same in every entry, and judged once
        else:
            yield from unknown_key(entry, key, "data")
            yield from strings(entry, key, f"data/{position}/{channel_name(key)}")


def _is_vector(value: Any) -> bool:
    """Numbers, lists of them, or little-endian float32 in base64 whose bytes are no text."""
    if isinstance(value, str):
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            return False
        if not raw or len(raw) % 4 or plain_text(raw) is not None:
            return False
        return all(map(math.isfinite, struct.unpack(f"<{len(raw) // 4}f", raw)))
    if not isinstance(value, list):
        return False
    return all(
        (type(item) in {int, float} and abs(item) < _MAX_COMPONENT) or (isinstance(item, list) and _is_vector(item))
        for item in value
    )


def _usage(usage: Any) -> Usage | None:
    prompt = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Usage(prompt, 0) if type(prompt) is int and prompt >= 0 else None
