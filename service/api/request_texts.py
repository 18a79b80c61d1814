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
from service.api.picture_size import size_of
from service.api.priced_apart import caching_of, fees_of, reads_more, tools_of
from service.api.strict_json import pointer
from service.api.texts import Path, is_opaque, place_of, segments_of, text_of_base64, text_of_data_url
from service.errors import PayloadTooLarge
from service.firewall.prompt import FOREIGN, Role, Segment, Unscannable
from service.interfaces import Reference
from service.tenancy.demand import Demand, Detail, Picture

MAX_TEXTS = 32_768
"""Each is judged by itself. More could not be within any deadline, and only to count them takes long."""
MAX_REFERENCES = 2_048
"""Each is looked up in the database."""

CHARS_PER_SOUND_TOKEN = 100
"""Of base64. Ten tokens a second, and no codec makes less than a kilobyte of that: others make ten times as much."""
CHARS_PER_FILE_TOKEN = 4
LEAST_FILE_TOKENS = 3_000
"""Of one page, which is read as text and as a picture; compressed text has some four letters of base64 to a token."""
CHARS_PER_SEALED_TOKEN = 4
_PICTURES = frozenset({"image_url", "image", "input_image", "computer_screenshot"})
_SOUND = "input_audio"
_DETAILS: dict[str, Detail] = {"low": "low", "original": "original"}

_PDF = "%PDF-"
"""A PDF may be plain ASCII and still write its words in a code of its own."""
_THREE_WORDS = r"[A-Za-z]{2,}[_.:-]+[A-Za-z]{2,}[_.:-]+[A-Za-z]{2}"
_KEPT = frozenset({"file_id", "file_ids", "vector_store_id", "vector_store_ids", "container_id"})
"""Members that hold ids of what a provider keeps, wherever they stand."""
_SCHEMAS = frozenset({"parameters", "input_schema", "output_schema", "input_examples"})
"""Members of a function that say what it may be called with: names in them are the application's own."""
_IDENTIFIER = re.compile(rf"(?!.*{_THREE_WORDS})[A-Za-z0-9_.:-]{{1,40}}")


def is_identifier(text: str) -> bool:
    """Ids are not judged, unless they are sentences in disguise."""
    return _IDENTIFIER.fullmatch(text) is not None


class RequestTexts:
    """The segments of one request, what in it no text guard can read, the ids that it refers to, and the models that it
    names beside the one that it asks for, each with its pointer.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.unscannable: list[Unscannable] = []
        self.references: list[Reference] = []
        self.further_models: list[tuple[str, str]] = []
        self._written: list[tuple[int, int, str]] = []
        self._pictures: list[Picture] = []
        self._tokens = 0
        self._unknown = False

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
        if not known:
            self.named({name: value}, path, tool=not path)
        first = len(self.segments)
        self.add(segments_of(value, (*path, name), role, message, name="" if known else name))
        if value is not None and not isinstance(value, str):
            self.count_as_written(first, {name: value})

    def shaped(self, value: Any, path: Path, role: Role, message: int = -1) -> None:
        """A value of any shape, as a tool's schema or arguments."""
        first = len(self.segments)
        self.add(segments_of(value, path, role, message))
        self.count_as_written(first, value)

    def count_as_written(self, first: int, value: Any) -> None:
        """The segments from number `first` on hold the strings of this value. A model reads it as it is written, with
        its numbers and all its marks: so are its tokens counted.
        """
        if not isinstance(value, str):
            self._written.append((first, len(self.segments), json.dumps(value, ensure_ascii=False)))

    def counted_texts(self) -> tuple[str, ...]:
        """What the tokens of the texts are counted by."""
        counted: list[str] = []
        done = 0
        for first, end, written in self._written:
            counted += [segment.text for segment in self.segments[done:first]]
            counted.append(written)
            done = end
        return (*counted, *(segment.text for segment in self.segments[done:]))

    def demand(self, request: Mapping[str, Any], body: bytes) -> Demand:
        """What the request costs beside its texts, after all of it has been read."""
        tools, defined_tools = tools_of(request)
        return Demand(
            pictures=tuple(self._pictures),
            tokens=self._tokens,
            unknown=self._unknown or reads_more(request),
            fees=fees_of(request),
            caching=caching_of(request, body),
            tools=tools,
            defined_tools=defined_tools,
        )

    def sealed(self, text: str) -> None:
        """What only the provider can open. What it holds is read by the model, and billed."""
        self._tokens += -(len(text) // -CHARS_PER_SEALED_TOKEN)

    def reads_what_is_kept(self) -> None:
        """The provider puts something in the place of a name or an address; nobody here knows how much."""
        self._unknown = True

    def refer(self, value: Any, path: Path, *, outside: bool = True, read: bool = False) -> None:
        """Keep an id, or a list of them, of what a provider keeps (`Reference`). Raises PayloadTooLarge."""
        if isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, str):
                    self.refer(item, (*path, index), outside=outside, read=read)
        elif isinstance(value, str) and value:
            if len(self.references) == MAX_REFERENCES:
                raise PayloadTooLarge(f"The body refers to more than {MAX_REFERENCES} files and other kept things.")
            self.references.append(Reference(value, place_of(path), outside, read))

    def named(self, value: Any, path: Path, *, tool: bool = True) -> None:
        """What a definition of any shape names of what is not in the request: ids of files and stores and, where it is
        a `tool`, containers and models that work for it.
        """
        if isinstance(value, list):
            for index, item in enumerate(value):
                self.named(item, (*path, index), tool=tool)
        if not isinstance(value, dict):
            return
        is_function = isinstance(value.get("name"), str) and value.get("type") in (None, "function", "custom")
        for name, item in value.items():
            place = (*path, name)
            if is_function and name in _SCHEMAS:
                continue
            if name in _KEPT or (tool and name == "container"):
                self.refer(item, place, outside=name not in {"container", "container_id"})
            elif tool and name == "model" and isinstance(item, str):
                self.further_models.append((item, place_of(place)))
            self.named(item, place, tool=tool)

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

    def attachment(
        self,
        value: str,
        path: Path,
        kind: str,
        message: int,
        *,
        base64: bool = False,
        part: str = "",
        detail: Any = None,
    ) -> None:
        """An address, a `data:` URL or a file's bytes (`base64`: bare): text where it is text, else unscannable.

        `part` is the type of the part that it belongs to, where `kind` does not say it; `detail` a picture's.
        """
        text = text_of_data_url(value)
        if text is None and base64:
            text = text_of_base64(value)
        if text is None and not is_opaque(value):
            text = value
        if text is not None:
            self.text(text.replace("\x00", ""), path, "document", message)
        unread = text is None or text.lstrip().startswith(_PDF)
        if unread:
            self.unscannable.append(Unscannable(pointer(*path), kind))
        if (part or kind) in _PICTURES:
            asked = _DETAILS.get(detail, "high") if isinstance(detail, str) else "high"
            self._pictures.append(Picture(*(size_of(value) or (0, 0)), asked))
        elif unread:
            self._file(value, part or kind, held=base64 or kind == _SOUND or value[:5].lower() == "data:")

    def _file(self, value: str, part: str, *, held: bool) -> None:
        """Sound or a document, of which only the length is known, where its bytes are `held` here at all."""
        if not held:
            self.reads_what_is_kept()
        elif part == _SOUND:
            self._tokens += -(len(value) // -CHARS_PER_SOUND_TOKEN)
        else:
            self._tokens += max(LEAST_FILE_TOKENS, -(len(value) // -CHARS_PER_FILE_TOKEN))


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
