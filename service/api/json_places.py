"""Where the strings of a JSON body stand in it, so that a part of one can be replaced and every other byte stays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from service.api.strict_json import pointer
from service.api.texts import is_plain_key

_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],:]|-?\d[0-9.eE+-]*+', re.DOTALL)
_UNIT = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|[^\\]", re.DOTALL)


class Edit(NamedTuple):
    """What comes in the place of [start, end), and `why`."""

    start: int
    end: int
    new: str
    why: Any = None


class Place(NamedTuple):
    """A string, the name of a member (`is_name`), or a number (`is_number`) at [start, end) of a document, quotes
    included. `pointer` is that of the segment it would be in (`texts.place_of`), `role` that of the nearest pointer at
    or above it that has one; `member` is the name of the member whose value it is, `top` that of the root's.
    """

    start: int
    end: int
    pointer: str
    role: str
    member: str
    top: str
    is_name: bool = False
    is_number: bool = False


class _Box:
    """An object or a list that is open."""

    def __init__(self, is_object: bool, place: str, role: str, member: str, top: str, is_exact: bool) -> None:
        self.is_object = is_object
        self.place = place
        self.role = role
        self.member = member
        self.top = top
        self.is_exact = is_exact
        self.names = is_object
        self.key = ""
        self.index = 0

    def below(self) -> tuple[str, bool]:
        """The pointer of the value that comes next, and whether it is all of its path."""
        step = self.key if self.is_object else self.index
        if not self.is_exact or (isinstance(step, str) and not is_plain_key(step)):
            return self.place, False
        return self.place + pointer(step), True


def places(document: str, roles: Mapping[str, str], role: str = "") -> Iterator[Place]:
    """All of a valid document, in its order; `roles` are by JSON pointer, `role` is the root's."""
    boxes: list[_Box] = []
    for token in _TOKEN.finditer(document):
        text = token.group()
        first = text[0]
        box = boxes[-1] if boxes else None
        if first in "{[":
            if box is None:
                boxes.append(_Box(first == "{", "", roles.get("", role), "", "", True))
            else:
                place, is_exact = box.below()
                member = box.key if box.is_object else box.member
                boxes.append(
                    _Box(first == "{", place, roles.get(place, box.role), member, box.top or box.key, is_exact)
                )
        elif first in "}]":
            boxes.pop()
        elif box is None:
            continue  # a document that is one string or number
        elif first == ",":
            box.index += 1
            box.names = box.is_object
        elif first == ":":
            box.names = False
        else:
            if is_name := box.names and first == '"':
                box.key = decoded(text)
            place, _ = box.below()
            member = "" if is_name else box.key if box.is_object else box.member
            at = token.span()
            yield Place(*at, place, roles.get(place, box.role), member, box.top or box.key, is_name, first != '"')


def decoded(token: str) -> str:
    """What a string token says."""
    text: str = json.loads(token) if "\\" in token else token[1:-1]
    return text


def within(token: str, start: int, edits: Iterable[Edit]) -> list[Edit]:
    """Edits of what a string token says, as edits of the document in which the token begins at `start`."""
    edits = list(edits)
    if not edits:
        return []
    if "\\" not in token:
        at: Mapping[int, int] | range = range(1, len(token))
    else:
        at = dict(enumerate([*(unit.start() for unit in _UNIT.finditer(token, 1, len(token) - 1)), len(token) - 1]))
    return [Edit(start + at[edit.start], start + at[edit.end], json.dumps(edit.new)[1:-1], edit.why) for edit in edits]


def edited(document: str, edits: Iterable[Edit]) -> str:
    """The document with its edits, which do not overlap and come in its order."""
    parts: list[str] = []
    at = 0
    for start, end, new, _ in edits:
        parts += (document[at:start], new)
        at = end
    return "".join((*parts, document[at:]))
