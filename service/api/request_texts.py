"""Collects what of a request is judged; each protocol says where its texts are (`chat_prompt`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

from service.api import strict_json
from service.api.asgi import malformed
from service.api.strict_json import pointer
from service.api.texts import Path, is_opaque, place_of, segments_of, text_of_base64, text_of_data_url
from service.errors import PayloadTooLarge
from service.firewall.prompt import Role, Segment, Unscannable

MAX_TEXTS = 32_768
"""Each is judged by itself. More could not be within any deadline, and only to count them takes long."""


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

    def text(self, text: str, path: Path, role: Role, message: int = -1) -> None:
        """Keep one text, unless it is empty."""
        if text:
            self.add((Segment(text, role, place_of(path), message),))

    def member(
        self, name: str, value: Any, path: Path, message: int = -1, role: Role = "document", *, known: bool = False
    ) -> None:
        """A member of any shape. Where the protocol does not know it, its name is the caller's text as well."""
        self.add(segments_of(value, (*path, name), role, message, name="" if known else name))

    def reference(self, value: str, path: Path, kind: str, message: int = -1, *, file: bool = False) -> None:
        """What stands for an image, a sound or a file: text where it is text, else something that none can read.

        `file`: it may be bare base64, whatever it is called.
        """
        text = text_of_data_url(value)
        if text is None and file:
            text = text_of_base64(value)
        if text is None and not is_opaque(value):
            text = value
        if text is None:
            self.unscannable.append(Unscannable(pointer(*path), kind))
        else:
            self.text(text.replace("\x00", ""), path, "document", message)

    def unescaped(self, arguments: str, path: Path, message: int) -> None:
        """Arguments are JSON in a string: their own escapes are judged by what they say."""
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return
        texts = "\n".join(s.text for s in segments_of(value, (), "tool"))
        self.text(strict_json.whole(texts).replace("\x00", ""), path, "tool", message)


def string(value: Any, path: Path) -> str:
    """The value. Raises MalformedRequest where it is no string."""
    if not isinstance(value, str):
        raise malformed(pointer(*path), "a string")
    return value
