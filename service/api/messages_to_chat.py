"""A Message of Anthropic's as a chat completion, whole or streamed.

What comes out here is read and judged like any provider's chat completion, and only that leaves: what a Message holds
and a chat completion does not (thoughts, signatures) is dropped unread.

Sources: Anthropic API reference, "Messages" and "Streaming Messages"; OpenAI API reference, "The chat completion
object".
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from service.api import chat_to_messages, sse
from service.api.messages_texts import usage_of
from service.api.reply_texts import read_document
from service.api.translating import TranslatedReply
from service.errors import UpstreamInvalid
from service.interfaces import Reply

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_DROPPED = frozenset({"thinking", "redacted_thinking"})
_DROPPED_DELTAS = frozenset({"thinking_delta", "signature_delta", "citations_delta"})


class ChatAsMessages:
    """For callers of chat completions whose provider speaks Messages (`interfaces.Translation`)."""

    path = "/v1/messages"

    def request(self, body: bytes, *, asks_usage: bool) -> bytes:
        """What the provider is sent. Raises MalformedRequest naming what cannot be said in Messages."""
        del asks_usage  # every stream of Messages says what it used
        return chat_to_messages.translate(body)

    def reply(self, reply: Reply, asked: bytes, *, tells_usage: bool) -> Reply:
        """What is judged, and sent to the caller; whether its stream ends with what it used."""
        del asked
        events = ChatEvents(tells_usage=tells_usage)
        return TranslatedReply(reply, events=events, whole=completion_of, failed=error_of)


def completion_of(body: bytes) -> bytes:
    """A whole Message. Raises UpstreamInvalid."""
    message = read_document(body)
    if message.get("type") == "error" or not isinstance(message.get("content"), list):
        raise UpstreamInvalid("The provider's reply is no Message.")
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message["content"]:
        kind = _kind(block)
        if kind == "text":
            texts.append(_string(block, "text"))
        elif kind == "tool_use":
            function = {"name": _string(block, "name"), "arguments": _json(block.get("input"))}
            calls.append({"id": _string(block, "id"), "type": "function", "function": function})
        elif kind not in _DROPPED:
            raise _unknown()
    said: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    if calls:
        said["tool_calls"] = calls
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": _reason(message.get("stop_reason"))}
    out = {**_head(message, "chat.completion"), "choices": [choice]}
    usage = _usage(message.get("usage"))
    return _encoded(out if usage is None else out | {"usage": usage}).encode()


def error_of(body: bytes) -> bytes:
    """A provider's error in the caller's envelope; as it is where it is none of Anthropic's."""
    try:
        document = read_document(body)
    except UpstreamInvalid:
        return body
    return _encoded(_error(document)).encode() if isinstance(document.get("error"), dict) else body


class ChatEvents:
    """Anthropic's events in, a chat completion's out."""

    def __init__(self, *, tells_usage: bool) -> None:
        self._parser = sse.Parser()
        self._tells_usage = tells_usage
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._open: dict[Any, str] = {}
        self._calls: dict[Any, int] = {}
        self._silent: set[Any] = set()  # tool calls of which no argument has come
        self._ended = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What these bytes say. Raises UpstreamInvalid."""
        for event in self._parser.feed(chunk):
            yield from self._event(event)

    def finish(self) -> Iterator[bytes]:
        """The end of the bytes. Raises UpstreamInvalid where the Message is not whole."""
        for event in self._parser.finish():
            yield from self._event(event)
        if not self._ended:
            raise UpstreamInvalid("The provider's stream broke off before its end.")

    def _event(self, event: sse.Event) -> Iterator[bytes]:
        if event.data is None or (self._ended and event.data.strip() == "[DONE]"):
            return
        if self._ended:
            raise UpstreamInvalid("The provider sent more after the end of its stream.")
        document = read_document(event.data.encode())
        kind = document.get("type")
        if kind == "error" or document.get("error"):
            self._ended = True
            yield sse.render(_encoded(_error(document)))
        elif kind == "message_start":
            message = document.get("message")
            if self._head or not isinstance(message, dict) or message.get("content"):
                raise UpstreamInvalid("The provider's stream began twice, or with what belongs in its events.")
            self._head = _head(message, "chat.completion.chunk")
            self._count(message.get("usage"))
            yield self._chunk({"role": "assistant", "content": "", "refusal": None})
        elif kind == "ping":
            return
        elif not self._head:
            raise UpstreamInvalid("The provider's stream did not begin with a Message.")
        elif kind == "message_delta":
            self._count(document.get("usage"))
            delta = document.get("delta")
            if isinstance(delta, dict) and delta.get("stop_reason") is not None:
                yield self._chunk({}, _reason(delta["stop_reason"]))
        elif kind == "message_stop":
            self._ended = True
            usage = _usage(self._usage)
            if self._tells_usage and usage is not None:
                yield sse.render(_encoded({**self._head, "choices": [], "usage": usage}))
            yield sse.render("[DONE]")
        else:
            yield from self._block(kind, document)

    def _block(self, kind: Any, document: dict[str, Any]) -> Iterator[bytes]:
        index = document.get("index")
        if type(index) is not int:
            raise UpstreamInvalid("The provider's stream has an event of a block without its index.")
        if kind == "content_block_start" and index not in self._open:
            yield from self._begin(index, document.get("content_block"))
        elif kind == "content_block_delta" and index in self._open:
            yield from self._grow(index, document.get("delta"))
        elif kind == "content_block_stop" and index in self._open:
            if index in self._silent:
                yield self._arguments(index, "{}")
            del self._open[index]
        else:
            raise UpstreamInvalid("The provider's stream has events out of their order.")

    def _begin(self, index: int, block: Any) -> Iterator[bytes]:
        kind = _kind(block)
        if kind not in {"text", "tool_use", *_DROPPED}:
            raise _unknown()
        self._open[index] = kind
        if kind == "text" and block.get("text"):
            yield self._chunk({"content": _string(block, "text")})
        elif kind == "tool_use":
            self._calls[index] = len(self._calls)
            self._silent.add(index)
            function = {"name": _string(block, "name"), "arguments": ""}
            call = {"index": self._calls[index], "id": _string(block, "id"), "type": "function", "function": function}
            yield self._chunk({"tool_calls": [call]})
            if block.get("input"):
                yield self._arguments(index, _json(block["input"]))

    def _grow(self, index: int, delta: Any) -> Iterator[bytes]:
        kind = _kind(delta)
        if kind == "text_delta" and self._open[index] == "text":
            yield self._chunk({"content": _string(delta, "text")})
        elif kind == "input_json_delta" and self._open[index] == "tool_use":
            text = _string(delta, "partial_json")
            if text:
                yield self._arguments(index, text)
        elif kind not in _DROPPED_DELTAS:
            raise _unknown()

    def _arguments(self, index: int, text: str) -> bytes:
        self._silent.discard(index)
        return self._chunk({"tool_calls": [{"index": self._calls[index], "function": {"arguments": text}}]})

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return sse.render(_encoded({**self._head, "choices": [choice]}))

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._usage |= {name: count for name, count in usage.items() if count is not None}


def _kind(box: Any) -> str:
    kind = box.get("type") if isinstance(box, dict) else None
    return kind if isinstance(kind, str) else ""


def _head(message: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": _string(message, "id"),
        "object": kind,
        "created": int(time.time()),
        "model": _string(message, "model"),
    }


def _reason(reason: Any) -> str:
    return _REASONS.get(reason, "stop") if isinstance(reason, str) else "stop"


def _usage(usage: Any) -> dict[str, Any] | None:
    counted = usage_of(usage) if isinstance(usage, dict) else None
    if counted is None:
        return None
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
    }


def _error(document: dict[str, Any]) -> dict[str, Any]:
    error = document.get("error")
    told = error if isinstance(error, dict) else {}
    return {"error": {"message": told.get("message"), "type": told.get("type"), "param": None, "code": None}}


def _string(box: dict[str, Any], name: str) -> str:
    value = box.get(name)
    if not isinstance(value, str):
        raise UpstreamInvalid(f"The provider's reply has no {name} where there must be one.")
    return value


def _json(value: Any) -> str:
    return _encoded({} if value is None else value)


def _encoded(value: Any) -> str:
    # With escapes: a provider may say a lone surrogate, which has no UTF-8.
    return json.dumps(value, separators=(",", ":"))


def _unknown() -> UpstreamInvalid:
    return UpstreamInvalid("The provider's reply holds what no chat completion can.")
