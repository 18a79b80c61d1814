"""OpenAI Responses: the reply and its errors, whole and streamed. Every string in it has a channel.

Source: OpenAI API reference, "The response object" and "Streaming events".
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from service.api import reply_texts, sse, strict_json
from service.api.chat_reply import ChatWire
from service.api.reply_calls import response_calls, response_event_calls
from service.api.reply_stream import EventReader
from service.api.reply_texts import Texts
from service.api.responses_texts import ends_of, event_slots, issued_in, place_of, response_slots, usage_of
from service.errors import UpstreamInvalid, WireError
from service.interfaces import Call, Piece

_FINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled", "error"})
_FAILED = frozenset({"response.failed", "error"})


class ResponsesWire(ChatWire):
    """How the Responses API writes replies and errors (`interfaces.Wire`), in the envelope of all OpenAI routes."""

    name = "openai.responses"
    path = "/responses"

    def read_reply(self, body: bytes) -> Piece:
        """A whole reply. Raises UpstreamInvalid."""
        return _whole(body)

    def read_error(self, body: bytes) -> Piece:
        """The body of a provider's own error: JSON, or any text."""
        try:
            return _whole(body)
        except UpstreamInvalid:
            return reply_texts.read_as_text(body)

    def open_stream(self, choices: int = 1) -> ResponsesStream:
        """A reader for one streamed reply."""
        return ResponsesStream()

    def clamp(self, call: Call, max_output_tokens: int) -> bytes:
        """The call's body with its output bounded, every other byte as it is."""
        given = json.loads(call.body).get("max_output_tokens")
        if given is not None and given <= max_output_tokens:
            return call.body
        return strict_json.splice_member(call.body, "max_output_tokens", max_output_tokens)

    def pin(self, call: Call, text: str) -> bytes:
        """With a message before what `input` has already; `instructions` would be repeated in the reply."""
        pinned = {"type": "message", "role": "system", "content": text}
        given = json.loads(call.body).get("input")
        if isinstance(given, list):
            return strict_json.splice_first(call.body, "input", pinned)
        items = [pinned, {"type": "message", "role": "user", "content": given}] if given else [pinned]
        return strict_json.splice_member(call.body, "input", items)

    def error_event(self, error: WireError, after: int | None) -> bytes:
        """An `error` event with the next number. Its members are those that the reference lists; the envelope beside
        them is what the SDKs raise for: without it they would take the end of the stream for the end of the reply.
        """
        event = {
            "type": "error",
            "sequence_number": 0 if after is None else after + 1,
            "code": error.code,
            "message": error.message,
            "param": error.pointer,
            **json.loads(self.error_body(error)),
        }
        return sse.render(msgspec.json.encode(event).decode(), "error")


class ResponsesStream(EventReader):
    """Reads one streamed reply (`interfaces.StreamReader`)."""

    def __init__(self) -> None:
        # The last event repeats the whole reply.
        super().__init__(Texts(streamed=True, repeats=True), sse.MAX_EVENT_BYTES * 16)
        self._done = False

    def _piece(self, event: sse.Event, data: str) -> Piece:
        if data.strip() == "[DONE]" and self._ended and not self._done:  # some servers end so
            self._done = True
            return Piece(raw=sse.render("[DONE]"), done=True)
        if self._ended:
            raise UpstreamInvalid("The provider sent more after the end of its stream.")
        document = reply_texts.read_document(data.encode())
        kind = document.get("type")
        if (event.name and event.name != kind) or not isinstance(kind, str | None):
            raise UpstreamInvalid("The provider sent an event whose type is not clear.")
        number = document.get("sequence_number")
        failed = kind in _FAILED or bool(document.get("error"))
        self._ended = failed or kind in _FINAL
        return self._texts.piece(
            event_slots(document),
            document,
            event.raw,
            event.name,
            usage=usage_of(document.get("response")),
            final=self._ended,
            failed=failed,
            ends=ends_of(document),
            number=number if type(number) is int else None,
            issued=issued_in(document),
            calls=response_event_calls(document, *place_of(document)),
        )


def _whole(body: bytes) -> Piece:
    document: dict[str, Any] = reply_texts.read_document(body)
    return Texts().piece(
        response_slots(document),
        document,
        body,
        usage=usage_of(document),
        final=True,
        failed=bool(document.get("error")),
        issued=issued_in(document),
        calls=response_calls(document),
    )
