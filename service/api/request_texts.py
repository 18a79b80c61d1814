"""Collects what of a request is judged; each protocol says where its texts are (`chat_prompt`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import msgspec

from service.api import strict_json
from service.api.asgi import malformed
from service.api.strict_json import pointer
from service.api.texts import Path, is_opaque, place_of, segments_of, text_of_base64, text_of_data_url
from service.errors import PayloadTooLarge
from service.firewall.prompt import FOREIGN, Role, Segment, Unscannable

MAX_TEXTS = 32_768
"""Each is judged by itself. More could not be within any deadline, and only to count them takes long."""

_PDF = "%PDF-"
"""A PDF may be plain ASCII and still write its words in a code of its own."""
_THREE_WORDS = r"[A-Za-z]{2,}[_.:-]+[A-Za-z]{2,}[_.:-]+[A-Za-z]{2}"
_IDENTIFIER = re.compile(rf"(?!.*{_THREE_WORDS})[A-Za-z0-9_.:-]{{1,40}}")


def is_identifier(text: str) -> bool:
    """Ids are not judged, unless they are sentences in disguise."""
    return _IDENTIFIER.fullmatch(text) is not None


class RequestTexts:
    """The segments of one request, and what in it no text guard can read."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.unscannable: list[Unscannable] = []

    def add(self, found: Iterable[Segment]) -> None:
        """Keep segments. Raises PayloadTooLarge over MAX_TEXTS."""
        self.segments += islice(found, MAX_TEXTS - len(self.segments) + 1)
        if len(self.segments) > MAX_TEXTS:
            raise PayloadTooLarge(f"The body holds more than {MAX_TEXTS} texts.")

    @contextmanager
    def foreign(self, applies: bool = True) -> Iterator[None]:
        """What is kept meanwhile is what a tool gave back or a document holds (`Segment.foreign`)."""
        first = len(self.segments)
        yield
        if applies:
            self.segments[first:] = [
                msgspec.structs.replace(segment, foreign=True) if segment.role in FOREIGN else segment
                for segment in self.segments[first:]
            ]

    def text(self, text: str, path: Path, role: Role, message: int = -1) -> None:
        """Keep one text, unless it is empty."""
        if text:
            self.add((Segment(text, role, place_of(path), message),))

    def member(
        self, name: str, value: Any, path: Path, message: int = -1, role: Role = "document", *, known: bool = False
    ) -> None:
        """A member of any shape. Where the protocol does not know it, its name is the caller's text as well."""
        self.add(segments_of(value, (*path, name), role, message, name="" if known else name))

    def texts_of(self, role: Role) -> tuple[str, ...]:
        """The texts of all segments of a role."""
        return tuple(segment.text for segment in self.segments if segment.role == role)

    def role_of(self, message: Any, path: Path, roles: Mapping[str, Role], index: int) -> Role:
        """A message's role. In an odd spelling it is a text as well. Raises MalformedRequest for one that the protocol
        does not know: what a provider would make of it cannot be told.
        """
        if not isinstance(message, dict):
            raise malformed(pointer(*path), "a message object")
        wire_role = message.get("role")
        if not isinstance(wire_role, str):
            raise malformed(pointer(*path, "role"), "a role")
        role = roles.get(wire_role.strip().lower())  # a lenient reader would not mind the case
        if role is None:
            raise malformed(pointer(*path, "role"), "a role that this protocol has")
        if wire_role not in roles:
            self.text(wire_role, (*path, "role"), "document", index)
        return role

    def unescaped(self, arguments: str, path: Path, message: int) -> None:
        """Arguments are JSON in a string: their own escapes are judged by what they say."""
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return
        texts = "\n".join(s.text for s in segments_of(value, (), "tool"))
        self.text(strict_json.whole(texts).replace("\x00", ""), path, "tool", message)

    def attachment(self, value: str, path: Path, kind: str, message: int, *, base64: bool = False) -> None:
        """An address, a `data:` URL or a file's bytes (`base64`: bare): text where it is text, else unscannable."""
        text = text_of_data_url(value)
        if text is None and base64:
            text = text_of_base64(value)
        if text is None and not is_opaque(value):
            text = value
        if text is not None:
            self.text(text.replace("\x00", ""), path, "document", message)
        if text is None or text.lstrip().startswith(_PDF):
            self.unscannable.append(Unscannable(pointer(*path), kind))


class Calls:
    """The tool calls that a conversation has made so far. What a tool gave back must answer one of them."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._nameless = False

    def made(self, call_id: Any) -> None:
        """A call; some servers give them no ids."""
        if isinstance(call_id, str):
            self._ids.add(call_id)
        else:
            self._nameless = True

    def answered(self, call_id: Any, path: Path) -> None:
        """A result, whose id stands at `path`. Raises MalformedRequest where nothing called for it."""
        known = call_id in self._ids if isinstance(call_id, str) else bool(self._ids)
        if not known and not self._nameless:
            raise malformed(pointer(*path), "the id of a call that an earlier message made")


def message_list(messages: Any, max_messages: int) -> list[Any]:
    """A conversation. Raises MalformedRequest where it is none, PayloadTooLarge over `max_messages`."""
    if not isinstance(messages, list) or not messages:
        raise malformed("/messages", "a list of at least one message")
    if len(messages) > max_messages:
        raise PayloadTooLarge(f"More than {max_messages} messages.", pointer="/messages")
    return messages


def string(value: Any, path: Path) -> str:
    """The value. Raises MalformedRequest where it is no string."""
    if not isinstance(value, str):
        raise malformed(pointer(*path), "a string")
    return value
