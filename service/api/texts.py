"""Finds the strings in JSON values of any shape, so that no field can carry text past the guards."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from itertools import chain, takewhile
from typing import Any
from urllib.parse import unquote_to_bytes

from service.api.strict_json import pointer
from service.firewall.prompt import Role, Segment

Path = tuple[str | int, ...]

_WORD_CHARACTERS = 40
_MIN_BINARY_CHARS = 128
_TEXT_MEDIA = re.compile(r"text/|[^;,]*(?:json|xml|yaml|javascript|csv|markdown|html)", re.IGNORECASE)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$.:-]{1,64}")
_OPAQUE = re.compile(r"(?:[!-~]{60,}\r?\n)*+[!-~]*\s*")
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_UTF_16_OR_32 = re.compile(r";\s*charset=\"?(utf-?(?:16|32)(?:[lb]e)?)\"?\s*(?:;|$)", re.IGNORECASE)


def segments_of(value: Any, path: Path, role: Role, message: int = -1, *, name: str = "") -> Iterator[Segment]:
    """Every string of a JSON value, keys included, and its own `name` where that is the caller's text as well.

    Running text makes a segment each. Single words (keys, names, members of an enum) are judged together, in their
    order, as one segment at the value's root: apart they say nothing, and a schema has hundreds. A short phrase or a
    word of another script is judged both ways: a sentence may be cut into phrases, and some scripts have no spaces.
    """
    words: list[tuple[str, Path]] = []
    for text, place in chain(((name, path),), _strings(value, path)):
        if not text or text.isspace():
            continue
        if len(text) <= _WORD_CHARACTERS:
            words.append((text, place))
        if len(text) > _WORD_CHARACTERS or not _is_word(text):
            yield Segment(text, role, place_of(place), message)
    if len(words) > 1 or (words and _is_word(words[0][0])):
        place = words[0][1] if len(words) == 1 else path
        yield Segment("\n".join(text for text, _ in words), role, place_of(place), message)


def place_of(path: Path) -> str:
    """The JSON pointer of a path, up to its first key that is itself text: pointers are kept in the record, which holds
    none, and thousands of strings below a key of a megabyte must not carry it each.
    """
    return pointer(*takewhile(lambda step: isinstance(step, int) or is_plain_key(step), path))


def is_plain_key(step: str) -> bool:
    """Whether a member's name may stand in a pointer."""
    return _PLAIN_KEY.fullmatch(step) is not None


def _is_word(text: str) -> bool:
    return text.isascii() and not any(character.isspace() for character in text)


def is_opaque(text: str) -> bool:
    """Whether a string may be an address or base64, which no text guard can read: there are no spaces in those."""
    return _OPAQUE.fullmatch(text) is not None


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
    """The text within a `data:` URL (RFC 2397) of a textual media type, or whose bytes are text whatever it is called.

    None for anything else.
    """
    if url[:5].lower() != "data:":
        return None
    head, comma, payload = url[5:].partition(",")
    if not comma:
        return None
    raw = unquote_to_bytes(payload)
    if head.lower().rstrip().endswith(";base64"):
        raw = _base64(raw)
    if charset := _UTF_16_OR_32.search(head):
        return raw.decode(charset.group(1), "replace")
    if not head or head.startswith(";") or _TEXT_MEDIA.match(head):
        return raw.decode("utf-8", "replace")
    return plain_text(raw)


def plain_text(raw: bytes) -> str | None:
    """Bytes as UTF-8 text, None where they are not that: a reader goes by what it finds, not by the media type."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if _NOT_TEXT.search(text) else text


def is_binary(value: Any) -> bool:
    """Whether a string is a sound or an image in base64, which no text guard can read: strict, of some length, and of
    bytes that are no text. A word is none, however well its letters would decode.
    """
    if not isinstance(value, str) or len(value) < _MIN_BINARY_CHARS:
        return False
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False
    return plain_text(raw) is None


def text_of_base64(data: str) -> str | None:
    """The text in bare base64; None where it is not base64 or its bytes are no text."""
    raw = data.encode("utf-8", "replace")
    return plain_text(_base64(raw)) if data and not raw.translate(None, _BASE64_ALPHABET) else None


_BASE64_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_= \t\r\n"


def _base64(data: bytes) -> bytes:
    """Decode as the most lenient reader does: either alphabet, padding missing or in the middle, noise between."""
    decoded = b""
    for part in re.split(b"=+", data.translate(bytes.maketrans(b"-_", b"+/"))):
        letters = re.sub(rb"[^A-Za-z0-9+/]", b"", part)
        letters = letters[: len(letters) - (len(letters) % 4 == 1)]
        decoded += base64.b64decode(letters + b"=" * (-len(letters) % 4))
    return decoded
