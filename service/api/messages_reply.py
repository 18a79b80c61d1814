"""Anthropic's Messages: the reply, whole or streamed, and the errors. Every string of model output has a channel.

Source: Anthropic API reference, "Messages", "Streaming Messages" and "Errors".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from service.api import reply_texts, sse, strict_json
from service.api.messages_texts import EVENTS, block_index, event_slots, issued_in, message_slots, usage_of
from service.api.reply_calls import message_calls, message_event_calls
from service.api.reply_stream import EventReader
from service.api.reply_texts import Texts, read_document
from service.errors import Overloaded, UpstreamInvalid, WireError
from service.interfaces import Call, Piece, Usage

OVERLOADED = 529
"""Anthropic's own status for what others call 503 with a full queue."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def error_type(status: int) -> str:
    """What Anthropic calls an error of this status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


class MessagesWire:
    """How Messages write replies and errors (`interfaces.Wire`)."""

    name = "anthropic.messages"
    path = "/v1/messages"

    def read_reply(self, body: bytes) -> Piece:
        """A whole reply. Raises UpstreamInvalid."""
        document = read_document(body)
        usage = document.get("usage")
        slots = list(message_slots(document, streamed=False))
        return Texts().piece(
            slots,
            document,
            body,
            usage=usage_of(usage) if isinstance(usage, dict) else None,
            final=True,
            failed=_is_error(document),
            issued=issued_in(document),
            calls=message_calls(document.get("content"), slots),
        )

    def read_error(self, body: bytes) -> Piece:
        """The body of a provider's own error: JSON, or any text."""
        try:
            return self.read_reply(body)
        except UpstreamInvalid:
            return reply_texts.read_as_text(body)

    def open_stream(self, choices: int = 1) -> MessagesStream:
        """A reader for one streamed reply."""
        return MessagesStream()

    def rewrite(self, piece: Piece, texts: Sequence[str]) -> bytes | None:
        """The piece with these texts; None where one cannot be changed in its place."""
        return reply_texts.rewrite(piece, texts)

    def clamp(self, call: Call, max_output_tokens: int) -> bytes:
        """The call's body with its output bounded, every other byte as it is."""
        return strict_json.splice_member(call.body, "max_tokens", max_output_tokens)

    def pin(self, call: Call, text: str) -> bytes:
        """With a block before what `system` has already."""
        block = {"type": "text", "text": text}
        given = json.loads(call.body).get("system")
        if isinstance(given, list):
            return strict_json.splice_first(call.body, "system", block)
        blocks = [block, {"type": "text", "text": given}] if given else [block]
        return strict_json.splice_member(call.body, "system", blocks)

    def ask_usage(self, body: bytes) -> bytes:
        """As it is: every stream says what it used."""
        return body

    def phrase(self, error: WireError) -> WireError:
        """With a type that Anthropic's SDKs know, and their status for a queue that is full."""
        status = OVERLOADED if error.code == Overloaded.code else error.status
        return replace(error, status=status, type=error_type(status))

    def error_body(self, error: WireError) -> bytes:
        """Anthropic's error envelope. It has no member for a place, so the message begins with the JSON pointer."""
        error = self.phrase(error)
        message = f"{error.pointer}: {error.message}" if error.pointer else error.message
        return msgspec.json.encode({"type": "error", "error": {"type": error.type, "message": message}})

    def error_event(self, error: WireError, after: int | None) -> bytes:
        """The envelope as an event; no `message_stop` follows."""
        del after  # these events have no numbers
        return b"event: error\ndata: " + self.error_body(error) + b"\n\n"


class CountWire(MessagesWire):
    """How the counting of a prompt's tokens is answered. It generates nothing, and costs nothing at the provider."""

    name = "anthropic.count_tokens"
    path = "/v1/messages/count_tokens"

    def read_reply(self, body: bytes) -> Piece:
        """The count. Raises UpstreamInvalid."""
        return replace(super().read_reply(body), usage=Usage(0, 0))


class MessagesStream(EventReader):
    """Reads one streamed reply (`interfaces.StreamReader`).

    Blocks begin in their order and get text only while they are open: readers that keep to the order and readers that
    go by the index would else see different texts.
    """

    def __init__(self) -> None:
        super().__init__(Texts(streamed=True))
        self._open: set[int] = set()  # the blocks that have not stopped
        self._tools: set[int] = set()  # the blocks that are calls
        self._blocks = 0
        self._usage: dict[str, Any] = {}
        self._begun = False

    def _piece(self, event: sse.Event, data: str) -> Piece:
        if self._ended:
            if data.strip() == "[DONE]":  # some servers speak both protocols at once
                return Piece(raw=sse.render("[DONE]"), done=True)
            raise UpstreamInvalid("The provider sent more after the end of its stream.")
        document = read_document(data.encode())
        kind = _kind(document, event.name)
        stopped = self._follow(document, kind)
        failed = kind == "error" or _is_error(document)
        self._ended = failed or kind == "message_stop"
        slots = list(event_slots(document, kind, event.name))
        return self._texts.piece(
            slots,
            document,
            event.raw,
            event.name,
            usage=self._usage_of(document, kind),
            final=kind == "message_stop" or _gives_reason(document),
            failed=failed,
            ends="" if stopped is None else f"content/{stopped}",
            issued=issued_in(document),
            calls=message_event_calls(document, kind, self._tools, slots),
        )

    def _follow(self, document: dict[str, Any], kind: str) -> int | None:
        """Keep which blocks are open; the one that stops with this event. Raises UpstreamInvalid."""
        if kind == "message_start":
            if self._begun:
                raise UpstreamInvalid("The provider's stream began twice.")
            self._begun = True
            message = document.get("message")
            content = message.get("content") if isinstance(message, dict) else None
            self._blocks = len(content) if isinstance(content, list) else 0
            return None
        if kind not in {"content_block_start", "content_block_delta", "content_block_stop"}:
            return None
        index = block_index(document)
        if kind == "content_block_start":
            if not self._begun or index != self._blocks:
                raise UpstreamInvalid("The provider's stream began a block out of its order.")
            self._blocks += 1
            self._open.add(index)
        elif index not in self._open:
            raise UpstreamInvalid("The provider's stream went on with a block that is not open.")
        if kind != "content_block_stop":
            return None
        self._open.remove(index)
        return index

    def _usage_of(self, document: dict[str, Any], kind: str) -> Usage | None:
        """What is read is said when the message begins, and what is written when it ends: those counts overwrite the
        first. A caller who leaves in between has had the prompt read.
        """
        source = document.get("message") if kind == "message_start" else document
        usage = source.get("usage") if isinstance(source, dict) else None
        if kind not in {"message_start", "message_delta"} or not isinstance(usage, dict):
            return None
        self._usage |= {name: count for name, count in usage.items() if count is not None}
        if kind == "message_delta":
            return usage_of(self._usage) if usage.get("output_tokens") is not None else None
        # The output that a message begins with is none of what it will have said.
        begun = usage_of(self._usage | {"output_tokens": 0})
        return replace(begun, partial=True) if begun is not None and begun.prompt_tokens else None


def _kind(document: dict[str, Any], name: str) -> str:
    """The event's type. Raises UpstreamInvalid where its name says another: readers go by the one or by the other."""
    kind = document.get("type", name or ("error" if document.get("error") else ""))
    if not isinstance(kind, str) or not kind or (name and name != kind and (name in EVENTS or kind in EVENTS)):
        raise UpstreamInvalid("The provider's stream has an event whose type is not clear.")
    return kind


def _gives_reason(document: dict[str, Any]) -> bool:
    inner = (document.get("delta"), document.get("message"))
    return any(isinstance(box, dict) and box.get("stop_reason") is not None for box in inner)


def _is_error(document: dict[str, Any]) -> bool:
    return document.get("type") == "error" or bool(document.get("error"))
