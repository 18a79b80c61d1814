"""A text that is JSON, such as a tool's arguments, stays JSON when parts of it are taken out.

What must not leave is told in characters: it may begin within an escape, and reach over quotes and commas into the next
string. Here it is widened to whole escapes and kept within strings that are values. What stands in a name, a number or
a word cannot be taken out. Wherever a text is cut into parts, each part leaves the JSON reader as far as the provider's
own would have: so it does not matter whether the parts around it were changed, and what was sent need not be known.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Literal, NamedTuple

from service.firewall.channel import REDACTED

_MAX_DEPTH = 512
_HEX = "[0-9a-fA-F]"
_HIGH, _LOW = rf"\\u[dD][89abAB]{_HEX}{{2}}", rf"\\u[dD][c-fC-F]{_HEX}{{2}}"
_ESCAPE = re.compile(rf"{_HIGH}{_LOW}|\\u{_HEX}{{4}}|\\.", re.DOTALL)
# An escape, or the first of the two that make one character, which goes on behind the end of the text.
_OPEN = re.compile(rf"\\(?:u{_HEX}{{0,3}})?\Z|{_HIGH}(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?\Z")
_PLAIN = re.compile(r'[^"\\]+')
_LITERAL = re.compile(r'[^ \t\r\n{}\[\]:,"]+')
_NUMBER = re.compile(r"-?[0-9][-+.eE0-9]*|-")
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_DIGITS = re.compile(r"(?<=u)[0-9a-fA-F]+")
# As `reply_texts.unescape` reads them.
_READ = re.compile(rf'{_HIGH}{_LOW}|\\u{_HEX}{{4}}|\\["\\/bfnrt]')
_SAYS_NOTHING = " \t\r\n\"'\\,"


class Place(NamedTuple):
    """How far a reader of the JSON is where a part begins. `escape` and `literal` are what has begun of one; `colon`:
    a value is next, not a name. A text that is `broken` is no JSON; one that is `lost` is nested too deep to be
    followed.
    """

    nested: str = ""
    in_string: bool = False
    is_name: bool = False
    colon: bool = False
    escape: str = ""
    literal: str = ""
    broken: bool = False
    lost: bool = False


class Unit(NamedTuple):
    """[start, end) of a part, which is taken out or stays; between units stands what holds the JSON together.

    `escape` is the whole of one, which may begin before the part (`start` < 0) or, where it is `open`, go on behind it.
    `string` numbers the strings of the part; 0 is the one that it begins in.
    """

    kind: Literal["value", "name", "literal", "broken"]
    start: int
    end: int
    string: int
    escape: str = ""
    open: bool = False


class Span(NamedTuple):
    """[start, end) of a part that must not leave. `begins`: it did not begin in the part before, where its mark is."""

    start: int
    end: int
    begins: bool


Taken = Sequence[tuple[int, int]]
NOTHING: Taken = ()


class JsonText:
    """One text of a reply, part by part. Without `grows` each part is JSON by itself."""

    def __init__(self, *, grows: bool) -> None:
        self._grows = grows
        self._place = Place()
        self._sent: list[str] = []
        self._goes_on = -1

    def take(self, text: str) -> JsonPart:
        """The next part, as the provider sent it."""
        part = JsonPart(self, len(self._sent), self._place)
        if text:
            self._sent.append(text)
            if self._grows:
                self._place = read(self._place, text)[1]
        return part

    def repeated(self) -> JsonPart:
        """All parts so far, said once more."""
        return JsonPart(self, len(self._sent), Place())

    def said(self, count: int) -> str:
        """What was sent of the first `count` parts."""
        return "".join(self._sent[:count])

    def redacted(self, part: JsonPart, old: str, new: str) -> tuple[str, Taken] | None:
        """See `JsonPart.redacted`."""
        spans = taken_out(old, new, goes_on=self._goes_on == part.number)
        if spans is None:  # it was changed in another way, by one who knows of JSON
            self._sent[part.number] = new
            return new, NOTHING
        made = redact(part.place, old, spans)
        if made is not None:
            self._sent[part.number] = made[0]
            if spans and spans[-1].end == len(old):
                self._goes_on = part.number + 1
        return made


class JsonPart(NamedTuple):
    """One part of a text. `escape` is what its second reading, with escapes undone, has kept from the part before."""

    text: JsonText
    number: int
    place: Place
    escape: str = ""

    def redacted(self, old: str, new: str) -> tuple[str, Taken] | None:
        """What is sent of it in the place of `new`, and what was taken out of `old`; None where it cannot be."""
        return self.text.redacted(self, old, new)

    def said(self) -> str:
        """What was sent of the parts before it."""
        return self.text.said(self.number)


def read(place: Place, text: str) -> tuple[list[Unit], Place]:
    """The units of the part that begins at `place`, and the place behind it."""
    if not text:
        return [], place
    if place.broken:
        return [Unit("broken", 0, len(text), -1)], place
    if place.lost:
        return [Unit("literal", 0, len(text), -1)], place
    nested, in_string, is_name, colon, escape, literal, *_ = place
    lead, text = len(escape), escape + text
    at, size, string = 0, len(text), 0
    escape = ""
    units: list[Unit] = []
    while at < size:
        char = text[at]
        if in_string:
            if char == '"':
                in_string, at = False, at + 1
                continue
            kind: Literal["value", "name"] = "name" if is_name else "value"
            if char == "\\":
                is_open = _OPEN.match(text, at) is not None
                whole = None if is_open else _ESCAPE.match(text, at)
                end = size if whole is None else whole.end()
                escape = text[at:] if is_open else ""
                unit = Unit(kind, at - lead, end - lead, string, text[at:end], is_open)
            else:
                plain = _PLAIN.match(text, at)
                end = size if plain is None else plain.end()
                unit = Unit(kind, at - lead, end - lead, string)
            at = end
            if unit.end > 0:
                units.append(unit)
            continue
        begun, literal = literal, ""
        if char == '"':
            in_string, is_name, string = True, nested[-1:] == "{" and not colon, string + 1
        elif char in "{[":
            if len(nested) >= _MAX_DEPTH:  # it may be JSON, but nothing can be taken out of it
                units.append(Unit("literal", at, size, -1))
                return units, Place(lost=True)
            nested, colon = nested + char, False
        elif char in "}]":
            if nested[-1:] != ("{" if char == "}" else "["):
                break
            nested, colon = nested[:-1], False
        elif char in ",:":
            if not nested or (char == ":" and nested[-1] != "{"):
                break
            colon = char == ":"
        elif char not in " \t\r\n":
            run = _LITERAL.match(text, at)
            end = size if run is None else run.end()
            literal = begun + text[at:end]
            if _NUMBER.fullmatch(literal) is None and not any(word.startswith(literal) for word in _WORDS):
                break
            units.append(Unit("literal", at, end, -1))
            literal = literal[:32] if end == size else ""
            at = end
            continue
        at += 1
    else:
        return units, Place(nested, in_string, is_name, colon, escape, literal)
    units.append(Unit("broken", at, size, -1))
    return units, Place(broken=True)


def redact(place: Place, text: str, spans: Sequence[Span]) -> tuple[str, Taken] | None:
    """The part without what stands in `spans`, a mark in its place in each string that they touch, and what was taken
    out of it; None where something cannot be.
    """
    out: list[str] = []
    taken: list[tuple[int, int]] = []
    marked: list[int | None] = [None if span.begins else 0 for span in spans]
    at = first = 0
    for unit in read(place, text)[0]:
        start, end = max(unit.start, 0), unit.end
        while first < len(spans) and spans[first].end <= start:
            first += 1
        last = first
        while last < len(spans) and spans[last].start < end:
            last += 1
        if first == last:
            continue
        if unit.kind in ("literal", "name"):
            return None
        marks: list[str] = []
        for number in range(first, last):
            is_marked = marked[number] is not None if unit.kind == "broken" else marked[number] == unit.string
            marks.append("" if is_marked else REDACTED)
            marked[number] = unit.string
        if unit.escape:
            before = _completed(unit.escape[: -unit.start]) if unit.start < 0 else ""
            out += [text[at:start], before, *marks, _stand_in(unit.escape) if unit.open else ""]
            _take(taken, start, end)
            at = end
            continue
        for span, mark in zip(spans[first:last], marks, strict=True):
            begin = max(span.start, start)
            out += [text[at:begin], mark]
            at = min(span.end, end)
            _take(taken, begin, at)
    out.append(text[at:])
    return "".join(out), taken


def _take(taken: list[tuple[int, int]], start: int, end: int) -> None:
    if taken and taken[-1][1] == start:
        taken[-1] = (taken[-1][0], end)
    else:
        taken.append((start, end))


def taken_out(old: str, new: str, *, goes_on: bool) -> list[Span] | None:
    """Where of `old` something was taken out to make `new`: a mark stands for what begins in it; with `goes_on` its
    beginning may be gone without one. None where `new` is made in another way.

    Where there are several answers any will do: in each of them nothing is kept but what stands in `new`.
    """
    kept = new.split(REDACTED)
    spans = _aligned(old, kept, leads=False)
    if spans is None and goes_on:
        spans = _aligned(old, kept, leads=True)
    if spans is None:
        return None
    return [span for span in spans if old[span.start : span.end] != REDACTED]


def _aligned(old: str, kept: Sequence[str], *, leads: bool) -> list[Span] | None:
    spans: list[Span] = []
    at = 0
    for number, part in enumerate(kept):
        is_first = number == 0
        least = at if is_first else at + 1  # no mark stands for nothing
        if number == len(kept) - 1:
            found = len(old) - len(part) if old.endswith(part) else -1
        else:
            found = old.find(part, least)
        if found < least or (is_first and found > 0 and not leads):
            return None
        if found > at:
            spans.append(Span(at, found, begins=not is_first))
        at = found + len(part)
    return spans


def covers(part: JsonPart, raw: str, taken: Taken, old: str, new: str) -> bool:
    """Whether all that must not leave of the part's second reading, `old` with escapes undone, was taken out of `raw`,
    but for white space, quotes and commas.
    """
    spans = taken_out(old, new, goes_on=True)
    if spans is None:
        return False
    written, lead = part.escape + raw, len(part.escape)
    place = shift = 0  # in the reading; of what is written against it
    for escape in [*_READ.finditer(written), None]:
        begin, end = escape.span() if escape is not None else (len(written), len(written))
        behind = begin - shift
        for span in spans[_reaching(spans, place) :]:
            if span.start >= behind:
                break
            start, stop = max(span.start, place), min(span.end, behind)
            for first, last in _left(max(start + shift - lead, 0), max(stop + shift - lead, 0), taken):
                if raw[first:last].strip(_SAYS_NOTHING):
                    return False
        number = _reaching(spans, behind)
        if number < len(spans) and spans[number].start <= behind and old[behind] not in _SAYS_NOTHING:
            found = _reaching(taken, max(begin - lead, 0))
            if found == len(taken) or taken[found][0] >= end - lead:
                return False
        place, shift = behind + 1, end - behind - 1
    return True


def _reaching(spans: Sequence[tuple[int, ...]], at: int) -> int:
    """The first that ends behind `at`."""
    return bisect_right(spans, at, key=itemgetter(1))


def _left(start: int, end: int, taken: Taken) -> Iterator[tuple[int, int]]:
    for number in range(_reaching(taken, start), len(taken)):
        first, last = taken[number]
        if first >= end:
            break
        if first > start:
            yield start, first
        start = max(start, last)
    if start < end:
        yield start, end


def _completed(escape: str) -> str:
    """What ends an escape that has begun and been sent, so that it says nothing."""
    before, u, digits = escape.rpartition("u")
    if escape.endswith("\\"):
        return "/" if len(escape) == 1 else "udc20"
    if "u" in before:
        return "dc20"[len(digits) :]
    rest = "9" if digits == "000" else "0020"[len(digits) :]
    is_high = u == "u" and 0xD800 <= int(digits + rest, 16) < 0xDC00
    return rest + "\\udc20" if is_high else rest


def _stand_in(escape: str) -> str:
    """As much of another escape: what follows is as good JSON behind it, and makes one character or half of one."""
    return _DIGITS.sub(_other, escape)


def _other(match: re.Match[str]) -> str:
    digits = match[0].lower()
    if digits[0] != "d":
        return "2" * len(digits)
    second = "8" if digits[1:2] in "89ab" else "c" if digits[1:2] in "cdef" else "0"
    return ("d" + second + "22")[: len(digits)]
