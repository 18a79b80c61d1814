"""A streamed chat completion as the events of one of Anthropic's Messages.

Blocks come one after the other, as Anthropic sends them: text until a call begins, each call until the next begins.
What a stream used may come after its reason to end, so both are told when it is over.

Sources: OpenAI API reference, "The chat completion chunk object"; Anthropic API reference, "Streaming Messages".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from service.api import sse
from service.api.chat_reply_as_message import (
    call_of,
    calls_of,
    encoded,
    ending_of,
    event_error,
    head_of,
    made_id,
    no_object,
    object_of,
    texts_of,
    told_usage,
)
from service.api.reply_texts import index_of, read_document
from service.errors import UpstreamInvalid

_TEXT = -1
"""What is open where no call is: a call is told by its index."""


class MessageEvents:
    """A chat completion's chunks in, Anthropic's events out (`translating.Events`); `stops` are the texts at which the
    model was to stop.
    """

    def __init__(self, stops: Collection[str] = ()) -> None:
        self._parser = sse.Parser()
        self._stops = stops
        self._id = ""
        self._blocks = 0
        self._open: int | None = None
        self._calls: dict[int, tuple[str, str]] = {}  # id and name of the last call of each index
        self._arguments: list[str] = []  # of the open call
        self._refused = False
        self._usage: Any = None
        self._ending: dict[str, Any] | None = None  # the choice that gave its reason
        self._ended = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What these bytes say. Raises UpstreamInvalid."""
        for event in self._parser.feed(chunk):
            yield from self._event(event)

    def finish(self) -> Iterator[bytes]:
        """The end of the bytes. Raises UpstreamInvalid where the reply is not whole."""
        for event in self._parser.finish():
            yield from self._event(event)
        if self._ended:
            return
        if self._ending is None:
            raise UpstreamInvalid("The provider's stream broke off before its end.")
        yield from self._end()  # some servers send no `[DONE]`

    def _event(self, event: sse.Event) -> Iterator[bytes]:
        if event.data is None:
            return
        if self._ended:
            raise UpstreamInvalid("The provider sent more after the end of its stream.")
        if event.data.strip() == "[DONE]":
            yield from self._end()
            return
        document = read_document(event.data.encode())
        if document.get("error") or event.name == "error":
            self._ended = True
            yield sse.render(event_error(document), "error")
            return
        if isinstance(document.get("usage"), dict):
            self._usage = document["usage"]
        choices = document.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise UpstreamInvalid("The provider's reply has choices that are not objects.")
        for position, choice in enumerate(choices):
            if index_of(choice, position) != 0:
                raise UpstreamInvalid("The provider's stream has more than the one choice it was asked for.")
            yield from self._choice(document, choice)

    def _choice(self, document: dict[str, Any], choice: dict[str, Any]) -> Iterator[bytes]:
        if not self._id:
            head = head_of(document)
            self._id = head["id"]
            opening = {**head, "content": [], "stop_reason": None, "stop_sequence": None}
            # What it used is known at its end.
            yield _event("message_start", message={**opening, "usage": {"input_tokens": 0, "output_tokens": 0}})
        delta = choice.get("delta")
        delta = {} if delta is None else delta
        if not isinstance(delta, dict):
            raise UpstreamInvalid("The provider's stream has a delta that is no object.")
        (text, refusal), calls = texts_of(delta), calls_of(delta)
        if self._ending is not None and (text or refusal or calls):
            raise UpstreamInvalid("The provider's stream went on after its reason to end.")
        self._refused = self._refused or bool(refusal)
        for part in filter(None, (text, refusal)):
            yield from self._say(part)
        for position, call in enumerate(calls):
            yield from self._call(call, position)
        if choice.get("finish_reason") and self._ending is None:
            self._ending = choice
            yield from self._close(cut=choice["finish_reason"] == "length")

    def _say(self, text: str) -> Iterator[bytes]:
        if self._open != _TEXT:
            yield from self._begin(_TEXT, {"type": "text", "text": ""})
        yield self._delta({"type": "text_delta", "text": text})

    def _call(self, call: dict[str, Any], position: int) -> Iterator[bytes]:
        """A part of a call. A new id at a known index is a new call: some servers count all of them 0."""
        index, (call_id, name, arguments) = index_of(call, position), call_of(call)
        known = self._calls.get(index)
        if known is None or (call_id and known[0] and call_id != known[0]):
            if not name:
                raise UpstreamInvalid("The provider's stream has a tool call without a name.")
            self._calls[index] = (call_id, name)
            told_id = call_id or made_id(self._id, self._blocks)
            yield from self._begin(index, {"type": "tool_use", "id": told_id, "name": name, "input": {}})
        elif self._open != index or name not in {"", known[1]}:
            raise UpstreamInvalid("The provider's stream went back to a tool call that had ended.")
        if arguments:
            self._arguments.append(arguments)
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _begin(self, what: int, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        yield _event("content_block_start", index=self._blocks, content_block=block)
        self._open = what
        self._blocks += 1

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self, *, cut: bool = False) -> Iterator[bytes]:
        """The end of the open block; of a call that was not `cut`, its arguments must be whole."""
        if self._open is None:
            return
        arguments, self._arguments = "".join(self._arguments), []
        if self._open != _TEXT and not cut and object_of(arguments) is None:
            raise no_object()
        self._open = None
        yield _event("content_block_stop", index=self._blocks - 1)

    def _end(self) -> Iterator[bytes]:
        if not self._id:
            raise UpstreamInvalid("The provider's stream ended before it began.")
        yield from self._close()
        ending = ending_of(self._ending or {}, self._stops, called=bool(self._calls), refused=self._refused)
        yield _event("message_delta", delta=ending, usage=told_usage(self._usage))
        yield _event("message_stop")
        self._ended = True


def _event(kind: str, **members: Any) -> bytes:
    return sse.render(encoded({"type": kind, **members}), kind)
