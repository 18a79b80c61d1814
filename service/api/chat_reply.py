"""OpenAI chat completions: the reply, whole or streamed. Every string in it that carries model output has a channel.

Source: OpenAI API reference, "The chat completion object" and "The chat completion chunk object". All strings are model
output unless they are known not to be: a provider may add fields, and a guard must not overlook one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from service.api import sse, strict_json
from service.errors import MalformedRequest, PayloadTooLarge, UpstreamInvalid, WireError
from service.interfaces import Call, Piece, Usage

_META = frozenset({"id", "object", "model", "system_fingerprint", "service_tier", "provider", "obfuscation"})
_META_CHARACTERS = 128
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]*")
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_OPEN_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)$")
_SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Slot(NamedTuple):
    """One string in a document: `box[key]` holds it.

    `kind` tells strings (`text`) from lists of UTF-8 bytes (`bytes`), from object keys (`key`) and from a second
    reading of a string that was `old` when it was read (`unescaped`).
    """

    channel: str
    box: Any
    key: Any
    kind: str = "text"
    old: str = ""


class ChatWire:
    """How chat completions write replies and errors (`interfaces.Wire`)."""

    name = "openai.chat"
    path = "/chat/completions"

    def read_reply(self, body: bytes) -> Piece:
        """A whole reply. Raises UpstreamInvalid."""
        document = _document(body)
        return _Texts().piece(document, body)

    def read_error(self, body: bytes) -> Piece:
        """The body of a provider's own error: JSON, or any text."""
        try:
            return _Texts().piece(_document(body), body)
        except UpstreamInvalid:
            text = body.decode("utf-8", "replace").replace("\x00", "")
            return Piece(raw=text.encode(), texts=(("error", text),))

    def open_stream(self) -> ChatStream:
        """A reader for one streamed reply."""
        return ChatStream()

    def rewrite(self, piece: Piece, texts: Sequence[str]) -> bytes | None:
        """The piece with these texts; None where one cannot be changed in its place."""
        if piece.document is None:
            return "".join(texts).encode()
        event, document, slots = piece.document
        for slot, new, (_, old) in zip(slots, texts, piece.texts, strict=True):
            if new == old:
                continue
            if slot.kind == "text":
                slot.box[slot.key] = new
            elif slot.kind == "bytes":
                slot.box[slot.key] = None
            elif slot.kind == "key" or slot.box[slot.key] == slot.old:
                return None
        written = json.dumps(document)
        return written.encode() if event is None else sse.render(written, event)

    def clamp(self, call: Call, max_output_tokens: int) -> bytes:
        """The call's body with its output bounded, every other byte as it is."""
        request = json.loads(call.body)
        body = call.body
        given = [name for name in ("max_tokens", "max_completion_tokens") if request.get(name) is not None]
        for name in given:
            if request[name] > max_output_tokens:
                body = strict_json.splice_member(body, name, max_output_tokens)
        if not given:
            modern = call.model.startswith(("o1", "o3", "o4", "gpt-5"))  # these refuse the older name
            body = strict_json.splice_member(
                body, "max_completion_tokens" if modern else "max_tokens", max_output_tokens
            )
        return body

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

    def error_event(self, error: WireError) -> bytes:
        """The envelope as an event; no `[DONE]` follows."""
        return b"data: " + self.error_body(error) + b"\n\n"


class ChatStream:
    """Reads one streamed reply (`interfaces.StreamReader`)."""

    def __init__(self) -> None:
        self._parser = sse.Parser()
        self._texts = _Texts(streamed=True)
        self._open_choices: set[Any] = set()
        self._seen = False
        self._ended = False

    def feed(self, chunk: bytes) -> list[Piece]:
        """The events that these bytes complete. Raises UpstreamInvalid."""
        return [self._piece(event) for event in self._parser.feed(chunk)]

    def finish(self) -> list[Piece]:
        """The end of the bytes. Raises UpstreamInvalid where the reply is not complete."""
        pieces = [self._piece(event) for event in self._parser.finish()]
        if not self._ended and (not self._seen or self._open_choices):
            raise UpstreamInvalid("The provider's stream broke off before its end.")
        return pieces

    def _piece(self, event: sse.Event) -> Piece:
        if event.data is None:
            return Piece(raw=event.raw)
        if self._ended:
            raise UpstreamInvalid("The provider sent more after the end of its stream.")
        if event.data.strip() == "[DONE]":
            self._ended = True
            return Piece(raw=sse.render("[DONE]"), done=True)
        document = _document(event.data.encode())
        piece = self._texts.piece(document, event.raw, event.name)
        self._seen = True
        for choice in document.get("choices") or ():
            index = choice.get("index", 0)
            if choice.get("finish_reason") is None:
                self._open_choices.add(index)
            else:
                self._open_choices.discard(index)
        if piece.failed or event.name == "error":
            self._ended = True
            return msgspec.structs.replace(piece, failed=True)
        return piece


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = strict_json.parse(body, any_character=True)
    except (MalformedRequest, PayloadTooLarge):
        raise UpstreamInvalid("The provider's reply is not JSON that every reader understands alike.") from None
    if not isinstance(document, dict):
        raise UpstreamInvalid("The provider's reply is not an object.")
    choices = document.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamInvalid("The provider's reply has choices that are not objects.")
    return document


class _Texts:
    """Finds the texts in a reply's documents, and keeps what text is still half in one event and half in the next."""

    def __init__(self, *, streamed: bool = False) -> None:
        self._streamed = streamed
        self._unescaping: dict[str, str] = {}
        self._decoding: dict[str, codecs.IncrementalDecoder] = {}

    def piece(self, document: dict[str, Any], raw: bytes, event: str = "") -> Piece:
        """One reply or event with its texts."""
        texts: list[tuple[str, str]] = []
        slots: list[Slot] = []
        for slot in _slots(document):
            text = self._text(slot)
            texts.append((slot.channel, text))
            slots.append(slot)
            if slot.channel.endswith("/arguments") and (self._streamed or "\\" in text):
                # A tool's arguments are JSON in a string. Whoever reads them undoes its escapes, so that is judged too.
                channel = slot.channel + "#unescaped"
                texts.append((channel, self._unescape(channel, text)))
                slots.append(Slot(channel, slot.box, slot.key, "unescaped", slot.box[slot.key]))
        choices = document.get("choices") or ()
        return Piece(
            raw=raw,
            texts=tuple(texts),
            document=(event if self._streamed else None, document, slots),
            usage=_usage(document.get("usage")),
            final=any(choice.get("finish_reason") is not None for choice in choices),
            failed=bool(document.get("error")),
        )

    def _text(self, slot: Slot) -> str:
        if slot.kind == "key":
            return strict_json.whole(slot.key)
        value = slot.box[slot.key]
        if slot.kind != "bytes":
            return strict_json.whole(value)
        decoder = self._decoding.setdefault(slot.channel, codecs.getincrementaldecoder("utf-8")("replace"))
        return decoder.decode(bytes(value))

    def _unescape(self, channel: str, text: str) -> str:
        text = self._unescaping.pop(channel, "") + text
        if self._streamed and (half := _OPEN_ESCAPE.search(text)):
            self._unescaping[channel] = half.group(1)
            text = text[: half.start(1)]
        return strict_json.whole(_ESCAPE.sub(_meaning, text))


def _meaning(match: re.Match[str]) -> str:
    code, short = match.groups()
    return chr(int(code, 16)) if code else _SHORT[short]


def _slots(document: dict[str, Any]) -> Iterator[Slot]:
    for key, value in document.items():
        if key == "choices" and isinstance(value, list):
            for position, choice in enumerate(value):
                yield from _choice(choice, f"choices/{choice.get('index', position)}")
        elif key not in _META or not isinstance(value, str) or len(value) > _META_CHARACTERS:
            yield from _any(document, key, key)


def _choice(choice: dict[str, Any], channel: str) -> Iterator[Slot]:
    for key, value in choice.items():
        if key in {"delta", "message"} and isinstance(value, dict):
            for name in value:
                yield from _message(value, name, channel)
        elif key == "logprobs" and isinstance(value, dict):
            for name, tokens in value.items():
                if isinstance(tokens, list):  # tokens in a row are one text
                    for position in range(len(tokens)):
                        yield from _any(tokens, position, f"{channel}#logprobs/{name}")
                else:
                    yield from _any(value, name, f"{channel}#logprobs/{name}")
        elif key not in {"finish_reason", "native_finish_reason"} or not _is_identifier(value):
            yield from _any(choice, key, f"{channel}/{key}")


def _message(message: dict[str, Any], name: str, channel: str) -> Iterator[Slot]:
    value = message[name]
    if name == "tool_calls" and isinstance(value, list):
        for position, call in enumerate(value):
            if not isinstance(call, dict):
                yield from _any(value, position, f"{channel}/tool_calls/{position}")
                continue
            place = f"{channel}/tool_calls/{call.get('index', position)}"
            for key, item in call.items():
                if key in {"function", "custom"} and isinstance(item, dict):
                    for part in item:
                        yield from _any(item, part, f"{place}/{part}")
                elif key not in {"id", "type"} or not _is_identifier(item):
                    yield from _any(call, key, f"{place}/{key}")
    elif name == "audio" and isinstance(value, dict):
        for key, item in value.items():
            is_sound = key == "data" and isinstance(item, str) and _BASE64.fullmatch(item)
            if not is_sound and (key != "id" or not _is_identifier(item)):
                yield from _any(value, key, f"{channel}/audio/{key}")
    elif name != "role" or not _is_identifier(value):
        yield from _any(message, name, f"{channel}/{name}")


def _any(box: Any, key: Any, channel: str) -> Iterator[Slot]:
    """All strings of a value of any shape; short plain keys are the protocol's, others may be the model's."""
    value = box[key]
    if isinstance(value, str):
        if key != "type" or not _is_identifier(value):
            yield Slot(channel, box, key)
    elif isinstance(value, dict):
        for name in value:
            if not _is_identifier(name):
                yield Slot(f"{channel}/keys", value, name, "key")
            yield from _any(value, name, f"{channel}/{name}")
    elif isinstance(value, list):
        if key == "bytes" and value and all(type(item) is int and 0 <= item < 256 for item in value):
            yield Slot(channel, box, key, "bytes")
        else:
            for position in range(len(value)):
                yield from _any(value, position, f"{channel}/{position}")


def _is_identifier(value: Any) -> bool:
    return value is None or (isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None)


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return None
    return Usage(prompt, completion)
