"""Patterns in a growing text as it stands and as it reads: with its escapes undone, without the numbers of its lists,
with letters for the words that spell them.

A reading goes its own way only from where it may differ on. It begins with all that the plain text has left standing,
and ends where nothing tells the two apart any more: text without escapes, lists or such words is looked through once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import msgspec
from ahocorasick_rs import AhoCorasick

from service.firewall.owners import Owners
from service.firewall.pattern_index import IndexTracker, PatternIndex
from service.firewall.patterns import LETTERS, VISIBLE, PatternSet, PatternTracker, Projector, project
from service.firewall.respelled import (
    ESCAPE_SIGN,
    ESCAPES,
    LETTER_WORDS,
    LETTERS_BEGUN,
    LISTS,
    MARK_SIGN,
    NUMBER_SIGN,
    WORDS,
    Placed,
    Respelled,
    Rule,
)

Sighting = tuple[Owners, str, int, int]
"""Whose text stands there, how it is written where the pattern does not say that, its start and its end."""
Trackers = list[tuple[Projector, list[PatternTracker | IndexTracker]]]


class _Reading(msgspec.Struct, frozen=True):
    """`how` is told of what is found in it. What waits for its end by the rule of the number `waits` may begin a match
    that nothing else holds.
    """

    how: str
    rules: tuple[Rule, ...]
    waits: int | None


_ESCAPED = _Reading("escaped", (ESCAPES,), 0)
_LISTED = _Reading("in a list", (ESCAPES, LISTS), None)
_SPELLED = _Reading("spelled out", (ESCAPES, LISTS, WORDS), 2)
_READINGS = (_ESCAPED, _LISTED, _SPELLED)
"""Each reads by the rules of the one before it and by one more, so that until it differs it is that one."""

_AUTOMATON = AhoCorasick(list(LETTER_WORDS))
_ASCII_LOWER = {code: code + 32 for code in range(65, 91)}
_ESCAPED_SPACE = re.compile(r"\\[nrt]")
_WORD_BEGUN = re.compile(r"(?<![a-z])(?:[a-z]+|x[- ](?:ra?)?)\Z")
_LONGEST = max(map(len, LETTER_WORDS)) + 1
_LETTER = re.compile("[a-z]")


class Readings:
    """Follows one growing text. `held` is the offset of the earliest character that may still begin a match."""

    def __init__(self, patterns: Sequence[PatternSet | PatternIndex]) -> None:
        self._patterns = patterns
        self._plain: Trackers = [
            (Projector(form), trackers)
            for form in (LETTERS, VISIBLE)
            if (trackers := [found.tracker() for found in patterns if found.form == form])
        ]
        self._bullets = any(found.form == VISIBLE for found in patterns)
        self._ways: dict[str, _Way] = {}
        self._before = ""
        self._begun = False
        self._told: set[tuple[Owners, int, int]] = set()
        self.held: int | None = None

    def feed(self, text: str, offset: int) -> list[Sighting]:
        """The matches that end in `text`, which begins at `offset`, as far as it is known what it says."""
        if not self._plain or not text:
            return []
        found: list[Sighting] = []
        at = 0
        for place, reading in sorted(self._turns(text), key=_place):
            if place > at:
                found += self._follow(text[at:place], offset + at)
                at = place
            way = self._ways[reading.how] = _Way(reading, self._plain, self._below(reading))
            if reading is _LISTED and not place and not self._begun:
                way.begin_line(offset)
        found += self._follow(text[at:] if at else text, offset + at)
        self._before = (self._before + text)[-2:]
        self._begun = True
        if self._ways:
            self._close()
        self._hold()
        return found

    def finish(self) -> list[Sighting]:
        """The text has ended."""
        found = [sighting for way in self._ways.values() for sighting in self._new(way.feed(_NOTHING, last=True))]
        self._ways.clear()
        return found

    def _follow(self, text: str, offset: int) -> list[Sighting]:
        found: list[Sighting] = []
        for projector, trackers in self._plain:
            letters, offsets = projector.feed(text, offset)
            for tracker in trackers:
                found += [(owners, "", start, end) for owners, start, end in tracker.feed(letters, offsets)]
        if self._ways:
            self._told.update((owners, start, end) for owners, _, start, end in found)
            placed = _placed(text, offset)
            for way in self._ways.values():
                found += self._new(way.feed(placed))
        return found

    def _below(self, reading: _Reading) -> _Way | None:
        """What this reading is as long as nothing of its own was read; None for the plain text."""
        for each in reversed(_READINGS[: _READINGS.index(reading)]):
            if (way := self._ways.get(each.how)) is not None:
                return way
        return None

    def _close(self) -> None:
        """Let those readings go that nothing tells from what they began as."""
        for reading in reversed(_READINGS):
            way = self._ways.get(reading.how)
            if way is None:
                continue
            below = self._below(reading)
            if way.goes_on_as(self._plain if below is None else below.trackers):
                del self._ways[reading.how]
        if not self._ways:
            self._told.clear()

    def _new(self, found: list[Sighting]) -> Iterator[Sighting]:
        """Those that no other reading has told."""
        for owners, how, start, end in found:
            if (owners, start, end) not in self._told:
                self._told.add((owners, start, end))
                yield owners, how, start, end

    def _turns(self, text: str) -> Iterator[tuple[int, _Reading]]:
        """Where which reading begins to differ from the text, or may."""
        if _ESCAPED.how not in self._ways and (sign := ESCAPE_SIGN.search(text)) is not None:
            yield sign.start(), _ESCAPED
        if _LISTED.how not in self._ways:
            mark = MARK_SIGN if self._bullets else NUMBER_SIGN
            if not self._begun and mark.match("\n" + text):
                yield 0, _LISTED
            elif ("\n" in text or "\\" in text) and (sign := mark.search(text)) is not None:
                yield sign.start(), _LISTED
        if _SPELLED.how not in self._ways and (place := _first_word(text, self._before)) is not None:
            yield place, _SPELLED

    def _hold(self) -> None:
        held = [tracker.held for _, trackers in self._plain for tracker in trackers if tracker.held is not None]
        for way in self._ways.values():
            held += way.held(self._begins)
        self.held = min(held, default=None)

    def _begins(self, letters: str) -> bool:
        """Whether a pattern begins with one of these letters."""
        return any(found.begins_with(letter) for found in self._patterns if found.form == LETTERS for letter in letters)


class _Way:
    """One reading from where it goes its own way on."""

    def __init__(self, reading: _Reading, plain: Trackers, below: _Way | None) -> None:
        self._reading = reading
        begun = [stage.copy() for stage in below._stages] if below is not None else []
        self._stages = begun + [Respelled(rule) for rule in reading.rules[len(begun) :]]
        self.trackers: Trackers = [
            (projector.copy(), [tracker.copy() for tracker in trackers])
            for projector, trackers in (plain if below is None else below.trackers)
        ]

    def begin_line(self, offset: int) -> None:
        """The text begins here, and a line with it."""
        self.feed(("\n", [offset], [offset]))

    def feed(self, placed: Placed, *, last: bool = False) -> list[Sighting]:
        """The matches that end in this text, as far as it is known what it says."""
        for stage in self._stages:
            placed = stage.feed(placed, last=last)
        text, starts, ends = placed
        # What is one character of the text needs no note of where it ends.
        longer = {start: end for start, end in zip(starts, ends, strict=True) if end != start + 1}
        found: list[Sighting] = []
        for projector, trackers in self.trackers:
            letters, offsets = projector.place(text, starts)
            for tracker in trackers:
                found += [
                    (owners, self._reading.how, start, longer.get(end - 1, end))
                    for owners, start, end in tracker.feed(letters, offsets)
                ]
        return found

    def goes_on_as(self, begun: Trackers) -> bool:
        """Whether from here on it is what it began as."""
        if any(stage.waiting is not None for stage in self._stages):
            return False
        for (projector, trackers), (other, others) in zip(self.trackers, begun, strict=True):
            if any(one.standing != another.standing for one, another in zip(trackers, others, strict=True)):
                return False
            if not projector.goes_on_as(other) and any(tracker.held is not None for tracker in trackers):
                return False
        return True

    def held(self, begins: Callable[[str], bool]) -> Iterator[int]:
        """Where what may become a match begins. `begins`: whether a pattern begins with one of these letters."""
        for _, trackers in self.trackers:
            yield from (tracker.held for tracker in trackers if tracker.held is not None)
        if self._reading.waits is None:
            return
        waiting = self._stages[self._reading.waits].waiting
        if waiting is None:
            return
        text, start = waiting
        if self._reading is _ESCAPED or begins(LETTERS_BEGUN.get(text.lower(), "")):
            yield start


_NOTHING: Placed = ("", [], [])


def _placed(text: str, offset: int) -> Placed:
    end = offset + len(text)
    return text, list(range(offset, end)), list(range(offset + 1, end + 1))


def _place(turn: tuple[int, _Reading]) -> int:
    return turn[0]


def _first_word(text: str, before: str) -> int | None:
    """Where the first word that spells a letter stands, or one at the end that may become one. `before`: what stands
    before it, whose words were looked at.
    """
    known = len(before)
    text = before + text
    if "\\" in text:
        text = _ESCAPED_SPACE.sub("  ", text)
    text = text.lower() if text.isascii() else text.translate(_ASCII_LOWER)
    for _, start, end in _AUTOMATON.find_matches_as_indexes(text, overlapping=True):
        if start >= known and not _LETTER.match(text, end) and not (start and _LETTER.match(text, start - 1)):
            return start - known
    begun = _WORD_BEGUN.search(text[-_LONGEST:])
    if begun is None or begun.group() not in LETTERS_BEGUN:
        return None
    place = max(len(text) - _LONGEST, 0) + begun.start() - known
    return place if place >= 0 else None


def stand_in(text: str, patterns: Sequence[PatternSet | PatternIndex]) -> bool:
    """Whether a pattern stands in a whole text, in any reading."""
    if any(found.holds(project(text, found.form)) for found in patterns):
        return True
    readings = Readings(patterns)
    return bool(next(readings._turns(text), None)) and bool(readings.feed(text, 0) or readings.finish())
