"""The strings among a tool call's arguments, read while their JSON comes: without its punctuation and members' names.

Whoever carries out the call reads the values; a secret that is cut in two of them stands nowhere in the JSON as such.
"""

from __future__ import annotations

import re

import msgspec

# Outside of a string only these count; inside, its end and its escapes.
_STRUCTURE = re.compile(r'["{}\[\],]')
_STOPS = re.compile(r'["\\]')
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_CODE = re.compile(r"[0-9a-fA-F]{4}")
_MAX_DEPTH = 1_024


class ValuePart(msgspec.Struct, frozen=True):
    """The next part of a value. `edges` are the offsets of its characters in the JSON and, last, that behind them.
    `begins`: it is the value's first part, `ends`: its last.
    """

    text: str
    edges: list[int]
    begins: bool
    ends: bool


class ArgumentValues:
    """Reads one JSON text. What is no JSON is read as far as it looks like it."""

    def __init__(self) -> None:
        self._open: list[str] = []  # of the objects and arrays that are open, `{` or `[`
        self._in_string = self._is_name = self._begun = False
        self._name_next = False
        self._escape = ""
        self._escape_at = 0

    def feed(self, text: str, offset: int) -> list[ValuePart]:
        """The parts of values in `text`, which begins at `offset`."""
        found: list[ValuePart] = []
        at = 0
        while at < len(text):
            if self._in_string:
                at = self._string(text, at, offset, found)
                continue
            mark = _STRUCTURE.search(text, at)
            if mark is None:
                break
            at = mark.end()
            self._structure(mark[0])
        return found

    def _structure(self, mark: str) -> None:
        if mark == '"':
            self._in_string, self._is_name, self._begun = True, self._name_next, False
            self._name_next = False
        elif mark in "{[":
            if len(self._open) < _MAX_DEPTH:
                self._open.append(mark)
            self._name_next = mark == "{"
        elif mark == ",":
            self._name_next = self._open[-1:] == ["{"]
        else:
            del self._open[-1:]
            self._name_next = False

    def _string(self, text: str, at: int, offset: int, found: list[ValuePart]) -> int:
        """Read on in a string; where it or the text ends."""
        chars: list[str] = []
        edges: list[int] = []
        ends = False
        while at < len(text) and not ends:
            if self._escape:
                self._escape += text[at]
                at += 1
                if (char := _meaning(self._escape)) is not None:
                    chars.append(char)
                    edges.append(self._escape_at)
                    self._escape = ""
                continue
            stop = _STOPS.search(text, at)
            end = stop.start() if stop else len(text)
            chars.append(text[at:end])
            edges.extend(range(offset + at, offset + end))
            at = end
            if stop and stop[0] == "\\":
                self._escape, self._escape_at = "\\", offset + at
                at += 1
            elif stop:
                ends = True
        edges.append(self._escape_at if self._escape else offset + at)
        if not self._is_name:
            found.append(ValuePart("".join(chars), edges, not self._begun, ends))
        self._begun = True
        if ends:
            self._in_string = False
            at += 1
        return at


def _meaning(escape: str) -> str | None:
    """The character that an escape stands for; None where it is not whole. One that is none stands for nothing."""
    if len(escape) == 1 or (escape[1] == "u" and len(escape) < 6):
        return None
    if escape[1] == "u":
        code = int(escape[2:], 16) if _CODE.fullmatch(escape, 2) else 0
        return chr(code) if code and not 0xD800 <= code < 0xE000 else " "
    return _SHORT.get(escape[1], escape[1])
