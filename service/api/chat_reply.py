"""OpenAI chat completions: the reply, whole or streamed. Every string in it that carries model output has a channel.

Source: OpenAI API reference, "The chat completion object" and "The chat completion chunk object". All strings are model
output unless they are known not to be: a provider may add fields, and a guard must not overlook one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from service.api import reply_texts, sse, strict_json
from service.api.chat_texts import piece_of
from service.api.reply_stream import EventReader
from service.api.reply_texts import Texts, index_of
from service.errors import UpstreamInvalid, WireError
from service.interfaces import Call, Piece


def bound_of(model: str) -> str:
    """The member that bounds this model's output: newer ones refuse the older name."""
    return "max_completion_tokens" if model.startswith(("o1", "o3", "o4", "gpt-5")) else "max_tokens"


class ChatWire:
    """How chat completions write replies and errors (`interfaces.Wire`)."""

    name = "openai.chat"
    path = "/chat/completions"

    def read_reply(self, body: bytes) -> Piece:
        """A whole reply. Raises UpstreamInvalid."""
        return piece_of(Texts(), _document(body), body)

    def read_error(self, body: bytes) -> Piece:
        """The body of a provider's own error: JSON, or any text."""
        try:
            return piece_of(Texts(), _document(body), body)
        except UpstreamInvalid:
            return reply_texts.read_as_text(body)

    def open_stream(self, choices: int = 1) -> EventReader:
        """A reader for one streamed reply, of which so many choices were asked for."""
        return ChatStream(choices)

    def rewrite(self, piece: Piece, texts: Sequence[str]) -> bytes | None:
        """The piece with these texts; None where one cannot be changed in its place."""
        return reply_texts.rewrite(piece, texts)

    def clamp(self, call: Call, max_output_tokens: int) -> bytes:
        """The call's body with its output bounded, every other byte as it is."""
        request = json.loads(call.body)
        body = call.body
        given = [name for name in ("max_tokens", "max_completion_tokens") if request.get(name) is not None]
        for name in given:
            if request[name] > max_output_tokens:
                body = strict_json.splice_member(body, name, max_output_tokens)
        if not given:
            body = strict_json.splice_member(body, bound_of(call.model), max_output_tokens)
        return body

    def pin(self, call: Call, text: str) -> bytes:
        """With a system message before all others."""
        return strict_json.splice_first(call.body, "messages", {"role": "system", "content": text})

    def ask_usage(self, body: bytes) -> bytes:
        """With `stream_options.include_usage`, its other options as they are."""
        options = json.loads(body).get("stream_options") or {}
        return strict_json.splice_member(body, "stream_options", options | {"include_usage": True})

    def phrase(self, error: WireError) -> WireError:
        """As it is: the neutral form's types are OpenAI's."""
        return error

    def error_body(self, error: WireError) -> bytes:
        """OpenAI's error envelope."""
        return msgspec.json.encode(
            {
                "error": {
                    "message": error.message,
                    "type": error.type,
                    "param": error.pointer,
                    "code": error.code,
                }
            }
        )

    def error_event(self, error: WireError, after: int | None) -> bytes:
        """The envelope as an event; no `[DONE]` follows."""
        del after  # these events have no numbers
        return b"data: " + self.error_body(error) + b"\n\n"


class ChatStream(EventReader):
    """Reads one streamed reply (`interfaces.StreamReader`). Where nothing says that it ends, all `choices` have to."""

    def __init__(self, choices: int = 1) -> None:
        super().__init__(Texts(streamed=True))
        self._choices = choices
        self._open_choices: set[int] = set()
        self._ended_choices: set[int] = set()

    def _is_whole(self) -> bool:
        return self._ended or (len(self._ended_choices) >= self._choices and not self._open_choices)

    def _piece(self, event: sse.Event, data: str) -> Piece:
        if self._ended:
            raise UpstreamInvalid("The provider sent more after the end of its stream.")
        if data.strip() == "[DONE]":
            self._ended = True
            return Piece(raw=sse.render("[DONE]"), done=True)
        document = _document(data.encode())
        piece = piece_of(self._texts, document, event.raw, event.name)
        for position, choice in enumerate(document.get("choices") or ()):
            index = index_of(choice, position)
            if choice.get("finish_reason") is None:
                self._open_choices.add(index)
            else:
                self._open_choices.discard(index)
                self._ended_choices.add(index)
        if isinstance(document.get("usage"), dict) and not (document.get("choices") or document.get("error")):
            piece = msgspec.structs.replace(piece, usage_only=True)
        if piece.failed or event.name == "error":
            self._ended = True
            return msgspec.structs.replace(piece, failed=True)
        return piece


def _document(body: bytes) -> dict[str, Any]:
    document = reply_texts.read_document(body)
    choices = document.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamInvalid("The provider's reply has choices that are not objects.")
    return document
