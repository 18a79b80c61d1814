"""What a growing text says once single characters of it that are written otherwise are read: escapes, the numbers of a
list.

Every character that is read keeps the place of what it was written with. What may go on past the end of the text waits;
what is read depends on the whole text alone, never on how it was cut.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from copy import copy
from html.entities import html5

import msgspec

Placed = tuple[str, list[int], list[int]]
"""A text, and where that which each of its characters was written with begins and ends."""


class Rule(msgspec.Struct, frozen=True):
    """`sign` finds where something may stand that is written otherwise; `goes_on(text, at)` says whether it may go on
    past the end of the text; `read(text, at)` gives what it says and where it ends, or None.
    """

    sign: re.Pattern[str]
    goes_on: Callable[[str, int], bool]
    read: Callable[[str, int], tuple[str, int] | None]


class Respelled:
    """Reads one growing text by one rule."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._before = ""
        self._text = ""
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def waiting(self) -> tuple[str, int] | None:
        """What waits for its end, and where it begins."""
        return (self._text, self._starts[0]) if self._text else None

    def copy(self) -> Respelled:
        """One that goes on from here by itself."""
        return copy(self)

    def feed(self, placed: Placed, *, last: bool = False) -> Placed:
        """What the next text says, as far as that is known; with `last`, all of it."""
        text, starts, ends = self._text + placed[0], self._starts + placed[1], self._ends + placed[2]
        rule, lead = self._rule, len(self._before)
        text = self._before + text
        said: list[str] = []
        said_starts: list[int] = []
        said_ends: list[int] = []
        at, stop, look = lead, len(text), lead
        while (sign := rule.sign.search(text, look)) is not None:
            place = sign.start()
            if not last and rule.goes_on(text, place):
                stop = place
                break
            read = rule.read(text, place)
            if read is None:
                look = place + 1
                continue
            said.append(text[at:place])
            said_starts += starts[at - lead : place - lead]
            said_ends += ends[at - lead : place - lead]
            chars, at = read
            look = at
            said.append(chars)
            said_starts += [starts[place - lead]] * len(chars)
            said_ends += [ends[at - lead - 1]] * len(chars)
        said.append(text[at:stop])
        said_starts += starts[at - lead : stop - lead]
        said_ends += ends[at - lead : stop - lead]
        self._before = text[stop - 1 : stop]
        self._text, self._starts, self._ends = text[stop:], starts[stop - lead :], ends[stop - lead :]
        return "".join(said), said_starts, said_ends


# ---- escapes: %2d, \x2d, \u002d, \u{2d}, \55, \-, &#45;, &#x2d;, &hyphen;

_HEX = "[0-9a-fA-F]"
_BACK = r"\\{1,8}"  # written in JSON once more, each of them doubles
_PERCENT = "%(?:25){0,8}"
_X = rf"{_BACK}x"


def _utf8(mark: str) -> str:
    """Bytes that are one character; a byte that is none is one of Latin-1."""
    more = f"{mark}[89abAB]{_HEX}"
    wide = f"{mark}[cdCD]{_HEX}{more}|{mark}[eE]{_HEX}(?:{more}){{2}}|{mark}[fF][0-7](?:{more}){{3}}"
    return f"{wide}|{mark}{_HEX}{{2}}"


def _utf8_begun(mark: str, begun: str) -> str:
    more = f"{mark}[89abAB]{_HEX}"
    wide = f"{mark}[cdCD]{_HEX}|{mark}[eE]{_HEX}(?:{more})?|{mark}[fF][0-7](?:{more}){{0,2}}"
    return f"(?:{wide})(?:{begun})?|{begun}"


_ESCAPE = re.compile(
    rf"(?P<bytes>{_utf8(_PERCENT)}|{_utf8(_X)})"
    rf"|{_BACK}[ux]\{{(?P<braced>{_HEX}{{1,8}})\}}"
    rf"|(?P<pair>{_BACK}u[dD][89abAB]{_HEX}{{2}}{_BACK}u[dD][c-fC-F]{_HEX}{{2}})"
    rf"|{_BACK}(?:u(?P<four>{_HEX}{{4}})|U(?P<eight>{_HEX}{{8}}))"
    rf"|{_BACK}(?:0(?P<echoed>[01][0-7]{{2}})|(?P<octal>[0-3]?[0-7]{{2}}))"
    rf"|{_BACK}(?P<control>[nrt])"
    # A backslash of the text's own may stand before an escape.
    rf"|{_BACK}(?P<sign>[!-$'-/:-@\[\]^-`{{-~]|&(?![#A-Za-z])|%(?!{_HEX}{{2}}))"
    r"|(?P<slashes>\\\\)"
    rf"|&(?:amp;){{0,4}}#(?:(?P<decimal>[0-9]{{1,15}})|[xX](?P<hex>{_HEX}{{1,15}}));?"
    r"|&(?P<name>[A-Za-z][A-Za-z0-9]{1,31};)"
)
_ESCAPE_BEGUN = re.compile(
    rf"(?:{_utf8_begun(_PERCENT, f'{_PERCENT}{_HEX}?')}"
    rf"|{_utf8_begun(_X, f'{_BACK}(?:x{_HEX}?)?')}"
    rf"|{_BACK}(?:[ux]\{{{_HEX}{{0,8}}|u{_HEX}{{0,3}}|U{_HEX}{{0,7}}|[0-3][0-7]?|[4-7]|0[01][0-7]|&|%{_HEX}?)"
    rf"|{_BACK}u[dD][89abAB]{_HEX}{{2}}(?:{_BACK}(?:u{_HEX}{{0,3}})?)?"
    rf"|&(?:amp;){{0,4}}(?:#(?:[xX]{_HEX}{{0,15}}|[0-9]{{0,15}})|a(?:mp?)?)?"
    r"|&(?P<name>[A-Za-z][A-Za-z0-9]{0,31}))\Z"
)
_BYTE = re.compile(rf"(?:{_PERCENT}|{_X})({_HEX}{{2}})")
_FOUR = re.compile(rf"u({_HEX}{{4}})")
_CONTROL = {"n": "\n", "r": "\r", "t": "\t"}
_NAMES = sorted(name for name in html5 if name.endswith(";"))
_UNKNOWN = "\ufffd"


def _escape_goes_on(text: str, at: int) -> bool:
    begun = _ESCAPE_BEGUN.match(text, at)
    if begun is None:
        return False
    if (name := begun["name"]) is None:
        return True
    known = bisect_left(_NAMES, name)
    return known < len(_NAMES) and _NAMES[known].startswith(name)


def _read_escape(text: str, at: int) -> tuple[str, int] | None:
    match = _ESCAPE.match(text, at)
    if match is None or match.lastgroup is None:
        return None
    kind, written = match.lastgroup, match[match.lastgroup]
    if kind == "bytes":
        said = _from_bytes(bytes.fromhex("".join(_BYTE.findall(written))))
    elif kind == "pair":
        raw = bytes.fromhex("".join(_FOUR.findall(written)))
        said = raw.decode("utf-16-be")
    elif kind == "name":
        if written not in html5:
            return None
        said = html5[written]
    elif kind in ("control", "sign", "slashes"):
        said = _CONTROL.get(written, written[-1])
    else:
        said = _char(int(written, {"octal": 8, "echoed": 8, "decimal": 10}.get(kind, 16)))
    return said, match.end()


def _from_bytes(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _char(code: int) -> str:
    return chr(code) if code < 0xD800 or 0xDFFF < code <= 0x10FFFF else _UNKNOWN


ESCAPES = Rule(re.compile(r"[%&\\]"), _escape_goes_on, _read_escape)
ESCAPE_SIGN = re.compile(rf"%(?:{_HEX}|\Z)|&(?:[#A-Za-z]|\Z)|\\")
"""Where an escape may begin."""

# ---- the numbers and marks of a list

_OPEN = r"[ \t>*_|(\[#]{0,8}"
_BULLET = "[-+*•‣◦·–—]"
_BEHIND = r"[.):\]|=>→–—*_-]{1,4}[ \t]{0,8}"
_MARK = re.compile(rf"\n{_OPEN}(?:[0-9]{{1,4}}(?:[ \t]{{0,4}}{_BEHIND}|[ \t]{{1,8}})|{_BULLET}[ \t]{{1,8}})(?=\S)")
_MARK_BEGUN = re.compile(rf"\n{_OPEN}(?:[0-9]{{1,4}}[ \t]{{0,8}}(?:{_BEHIND})?|{_BULLET}[ \t]{{0,8}})?\Z")


def _mark_goes_on(text: str, at: int) -> bool:
    return _MARK_BEGUN.match(text, at) is not None


def _read_mark(text: str, at: int) -> tuple[str, int] | None:
    match = _MARK.match(text, at)
    return ("\n", match.end()) if match is not None else None


LISTS = Rule(re.compile("\n"), _mark_goes_on, _read_mark)
NUMBER_SIGN = re.compile(rf"(?:\n|\\n){_OPEN}(?:[0-9]|\Z)|\\\Z")
"""Where a line may begin with a number."""
MARK_SIGN = re.compile(rf"(?:\n|\\n){_OPEN}(?:[0-9]|{_BULLET}|\Z)|\\\Z")
"""Where a line may begin with a number or a bullet."""
