"""The one JSON reader: accepts only what every reader understands alike.

A lenient reader and the provider's may see different texts in one body (the last of two equal keys, or the first?),
so whatever RFC 8259 leaves open is refused: equal keys in one object at any depth, a byte order mark, lone surrogates,
NUL, numbers that do not fit into 64 bits. What was judged is then what is sent.

`json` with a hook was measured against msgspec's three times faster decoder, which cannot see equal keys: 6 ms for a
1 MB chat, 4 µs for a small one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from service.errors import MalformedRequest, PayloadTooLarge

MAX_DEPTH = 64
MAX_VALUES = 250_000
"""Values in one body: a body of nothing but brackets would hold the interpreter for long in the C parser."""
INLINE_BYTES = 65_536
"""Larger bodies are parsed in a thread."""
_MAX_REPLY_VALUES = 2_000_000  # the log-probabilities of a long reply are numbers by the hundred thousand

_MAX_POINTER = 200
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_FORBIDDEN = re.compile("[\x00\ud800-\udfff]")
_ESCAPED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_INTEGERS = range(-(2**63), 2**64)


class _Twice(dict[str, Any]):
    """An object with a key given more than once; remembers which, until its place is known."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    twice = _Twice(members)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            twice.key = key
            break
        seen.add(key)
    return twice


def _integer(digits: str) -> int:
    # A length above that of any 64-bit number also keeps int() from its quadratic work; the walk names the place.
    return int(digits) if len(digits) <= 20 else 2**64


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)


def parse(body: bytes, *, any_character: bool = False) -> Any:
    """Parse one JSON document.

    `any_character` admits NUL and lone surrogates: for replies, whose author is the provider.

    Raises MalformedRequest, with the JSON pointer where one exists, and PayloadTooLarge over `MAX_VALUES`.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise MalformedRequest("The body starts with a byte order mark; send plain UTF-8.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"The body is not UTF-8 (byte {error.start}).") from None
    _count(body, _MAX_REPLY_VALUES if any_character else MAX_VALUES)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise MalformedRequest(f"The body is not JSON: {error.msg} (character {error.pos}).") from None
    except RecursionError:
        raise MalformedRequest(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from None
    # Raw NUL is refused by the grammar and raw surrogates are not UTF-8, so both can only come from escapes.
    _check(value, characters=not any_character and _ESCAPED.search(body) is not None)
    return value


def pointer(*path: str | int) -> str:
    """The RFC 6901 JSON pointer of a path."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def whole(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD: same length, and every tokenizer can read it."""
    return _SURROGATE.sub("\ufffd", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def splice_member(body: bytes, key: str, value: Any) -> bytes:
    """Set one member of the top-level object of a valid body and leave every other byte as it is."""
    text = body.decode("utf-8")
    encoded = json.dumps(value)
    span = _member(text, key)
    if span is not None:
        return (text[: span[0]] + encoded + text[span[1] :]).encode("utf-8")
    opening = text.index("{") + 1
    comma = "" if text[_skip(text, opening, " \t\n\r")] == "}" else ","
    return (text[:opening] + json.dumps(key) + ":" + encoded + comma + text[opening:]).encode("utf-8")


def splice_value(body: bytes, path: Sequence[str], value: Any) -> bytes:
    """Put a value in the place of one within the objects of a valid body, every other byte as it is."""
    text = body.decode("utf-8")
    start = end = 0
    for key in path:
        span = _member(text, key, start) if text[_skip(text, start, " \t\n\r")] == "{" else None
        if span is None:
            return body
        start, end = span
    return (text[:start] + json.dumps(value) + text[end:]).encode("utf-8")


def splice_out(body: bytes, key: str) -> bytes:
    """Take one member out of the top-level object of a valid body and leave every other byte as it is."""
    text = body.decode("utf-8")
    at = begun = text.index("{") + 1
    while text[at := _skip(text, at, " \t\n\r,")] != "}":
        name, after = _DECODER.raw_decode(text, at)
        _, end = _DECODER.raw_decode(text, _skip(text, after, " \t\n\r:"))
        if name == key:
            behind = _skip(text, end, " \t\n\r")
            # One comma goes with it: that behind, or, of the last member, that before.
            kept = (text[:at], text[behind + 1 :]) if text[behind] == "," else (text[:begun], text[end:])
            return "".join(kept).encode("utf-8")
        at = begun = end
    return body


def splice_first(body: bytes, key: str, value: Any) -> bytes:
    """Put a value before all others in a list that is a member of the top-level object of a valid body.

    Every other byte stays as it is. Raises ValueError where there is no such list.
    """
    text = body.decode("utf-8")
    span = _member(text, key)
    if span is None or text[span[0]] != "[":
        raise ValueError(f"{key} is no list")
    opening = span[0] + 1
    comma = "" if text[_skip(text, opening, " \t\n\r")] == "]" else ","
    return (text[:opening] + json.dumps(value) + comma + text[opening:]).encode("utf-8")


def _member(text: str, key: str, start: int = 0) -> tuple[int, int] | None:
    """Where the value of a member of the object begins and ends that is the first from `start`."""
    at = text.index("{", start) + 1
    while True:
        at = _skip(text, at, " \t\n\r,")
        if text[at] == "}":
            return None
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, at, " \t\n\r:")
        _, at = _DECODER.raw_decode(text, start)
        if name == key:
            return start, at


def _skip(text: str, at: int, characters: str) -> int:
    while text[at] in characters:
        at += 1
    return at


def _count(body: bytes, max_values: int) -> None:
    """Refuse a body with more values than any chat has, before the parser builds them."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") <= max_values:
        return
    bare = _STRING.sub(b"", body)
    if bare.count(b",") + bare.count(b"[") + bare.count(b"{") > max_values:
        raise PayloadTooLarge(f"The body holds more than {max_values} values.")


def _check(root: Any, *, characters: bool) -> None:
    """Walk all values once without keeping their places; only an offence is worth finding its pointer."""
    level = [root]
    for depth in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if depth == MAX_DEPTH and isinstance(value, (list, dict)):
                message = f"The body is nested deeper than {MAX_DEPTH} levels."
                raise MalformedRequest(message, pointer=_deep_pointer(root))
            if kind is str:
                if characters and _FORBIDDEN.search(value):
                    _refuse(root, value)
            elif kind is list:
                below += value
            elif kind is dict:
                below += value.values()
                if characters and any(_FORBIDDEN.search(key) for key in value):
                    _refuse(root, value)
            elif kind is _Twice or (kind is int and value not in _INTEGERS) or (kind is float and math.isinf(value)):
                _refuse(root, value)
        if not below:
            return
        level = below


def _refuse(root: Any, offence: Any) -> NoReturn:
    place = _find(root, offence)
    if isinstance(offence, _Twice):
        place += pointer(offence.key)
        message = "A key is given twice in one object."
    elif isinstance(offence, (int, float)):
        message = "A number does not fit into 64 bits."
    elif isinstance(offence, dict):
        message = "A key holds NUL or a lone surrogate."
    else:
        message = "A string holds NUL or a lone surrogate."
    raise MalformedRequest(message, pointer=_FORBIDDEN.sub("\ufffd", place)[:_MAX_POINTER])


def _find(root: Any, wanted: Any) -> str:
    stack: list[tuple[Any, tuple[str | int, ...]]] = [(root, ())]
    while stack:
        value, path = stack.pop()
        if value is wanted:
            return pointer(*path)
        if isinstance(value, dict):
            stack.extend((item, (*path, key)) for key, item in value.items())
        elif isinstance(value, list):
            stack.extend((item, (*path, index)) for index, item in enumerate(value))
    return ""


def _deep_pointer(root: Any) -> str:
    """The top-level member below which the nesting runs too deep."""
    members = root.items() if isinstance(root, dict) else enumerate(root)
    for key, value in members:
        level = [value]
        for _ in range(MAX_DEPTH - 1):
            level = [
                item
                for inner in level
                if isinstance(inner, (list, dict))
                for item in (inner.values() if isinstance(inner, dict) else inner)
            ]
        if any(isinstance(inner, (list, dict)) for inner in level):
            return pointer(key)
    return ""
