"""Finds the strings in JSON values of any shape, so that no field can carry text past the guards."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from service.api.strict_json import pointer
from service.firewall.prompt import Role, Segment

Path = tuple[str | int, ...]

_WORD_CHARACTERS = 40
_TEXT_MEDIA = re.compile(r"text/|[^;,]*(?:json|xml|yaml|javascript|csv|markdown|html)", re.IGNORECASE)


def segments_of(value: Any, path: Path, role: Role, message: int = -1) -> Iterator[Segment]:
    """Every string of a JSON value, keys included.

    Running text makes a segment each. Single words (keys, names, members of an enum) are judged together, in their
    order, as one segment at the value's root: apart they say nothing, and a schema has hundreds.
    """
    words: list[tuple[str, Path]] = []
    for text, place in _strings(value, path):
        if _is_word(text):
            words.append((text, place))
        elif text and not text.isspace():
            yield Segment(text, role, pointer(*place), message)
    if words:
        place = words[0][1] if len(words) == 1 else path
        yield Segment("\n".join(text for text, _ in words), role, pointer(*place), message)


def _is_word(text: str) -> bool:
    return 0 < len(text) <= _WORD_CHARACTERS and text.isascii() and not any(character.isspace() for character in text)


def _strings(value: Any, path: Path) -> Iterator[tuple[str, Path]]:
    # The nesting is bounded by strict_json.
    if isinstance(value, str):
        yield value, path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key, (*path, key)
            yield from _strings(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, index))


def text_of_data_url(url: str) -> str | None:
    """The text within a `data:` URL (RFC 2397) of a textual media type; None for anything else."""
    if url[:5].lower() != "data:":
        return None
    head, comma, payload = url[5:].partition(",")
    if not comma or (head and not head.startswith(";") and not _TEXT_MEDIA.match(head)):
        return None
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(payload).decode("utf-8", "replace")
    try:
        return base64.b64decode(unquote_to_bytes(payload), validate=False).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return None
