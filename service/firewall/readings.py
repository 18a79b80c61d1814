"""Patterns in a growing text as it stands and as it reads: with its escapes undone, without the numbers of its lists.

A reading goes its own way only from where it may differ on. It begins with all that the plain text has left standing,
and ends where nothing tells the two apart any more: text without escapes and lists is looked through once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from service.firewall.owners import Owners
from service.firewall.pattern_index import IndexTracker, PatternIndex
from service.firewall.patterns import LETTERS, VISIBLE, Form, PatternSet, PatternTracker, Projector, project
from service.firewall.respelled import (
    ESCAPE_SIGN,
    ESCAPES,
    LISTS,
    MARK_SIGN,
    NUMBER_SIGN,
    Placed,
    Respelled,
    Rule,
)

Sighting = tuple[Owners, str, int, int]
"""Whose text stands there, how it is written where the pattern does not say that, its start and its end."""
Trackers = list[tuple[Projector, list[PatternTracker | IndexTracker]]]
Heard = Callable[[Form, str, list[int], Sequence[PatternTracker | IndexTracker]], list[Sighting]]
"""Told of the next letters of the text as it stands, with their offsets, after these trackers were."""


def projections(patterns: Sequence[PatternSet | PatternIndex]) -> Trackers:
    """What follows one text through each projection."""
    return [
        (Projector(form), trackers)
        for form in (LETTERS, VISIBLE)
        if (trackers := [each.tracker() for each in patterns if each.form == form])
    ]


class _Reading(msgspec.Struct, frozen=True):
    """`how` is told of what is found in it."""

    how: str
    rules: tuple[Rule, ...]


_ESCAPED = _Reading("escaped", (ESCAPES,))
_LISTED = _Reading("in a list", (ESCAPES, LISTS))
_READINGS = (_ESCAPED, _LISTED)
"""Each reads by the rules of the one before it and by one more, so that until it differs it is that one."""


class Readings:
    """Follows one growing text. `held` is the offset of the earliest character that may still begin a match. `heard`
    may find more in the text as it stands.
    """

    def __init__(self, patterns: Sequence[PatternSet | PatternIndex], heard: Heard | None = None) -> None:
        self._heard = heard
        self._plain = projections(patterns)
        self._bullets = any(found.form == VISIBLE for found in patterns)
        self._ways: dict[str, _Way] = {}
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
        self._begun = True
        if self._ways:
            self._close()
        self._hold()
        return found

    def finish(self) -> list[Sighting]:
        """The text has ended."""
        found = [sighting for way in self._ways.values() for sighting in self._new(way.feed(_NOTHING, last=True))]
        self._ways.clear()
        self.held = None
        return found

    def _follow(self, text: str, offset: int) -> list[Sighting]:
        found: list[Sighting] = []
        for projector, trackers in self._plain:
            letters, offsets = projector.feed(text, offset)
            for tracker in trackers:
                found += [(owners, "", start, end) for owners, start, end in tracker.feed(letters, offsets)]
            if letters and self._heard is not None:
                found += self._heard(projector.form, letters, offsets, trackers)
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

    def _hold(self) -> None:
        held = [tracker.held for _, trackers in self._plain for tracker in trackers if tracker.held is not None]
        for way in self._ways.values():
            held += way.held()
        self.held = min(held, default=None)


class _Way:
    """One reading from where it goes its own way on."""

    def __init__(self, reading: _Reading, plain: Trackers, below: _Way | None) -> None:
        self._reading = reading
        begun: list[Respelled] = [stage.copy() for stage in below._stages] if below is not None else []
        self._stages: list[Respelled] = begun + [Respelled(rule) for rule in reading.rules[len(begun) :]]
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

    def held(self) -> Iterator[int]:
        """Where what may become a match begins."""
        for _, trackers in self.trackers:
            yield from (tracker.held for tracker in trackers if tracker.held is not None)
        # What waits of a list's mark begins a match only as it stands, and is held as such.
        waiting = self._stages[0].waiting
        if waiting is not None:
            yield waiting[1]


_NOTHING: Placed = ("", [], [])


def _placed(text: str, offset: int) -> Placed:
    end = offset + len(text)
    return text, list(range(offset, end)), list(range(offset + 1, end + 1))


def _place(turn: tuple[int, _Reading]) -> int:
    return turn[0]


def stand_in(text: str, patterns: Sequence[PatternSet | PatternIndex]) -> bool:
    """Whether a pattern stands in a whole text, in any reading."""
    if any(found.holds(project(text, found.form)) for found in patterns):
        return True
    readings = Readings(patterns)
    return bool(next(readings._turns(text), None)) and bool(readings.feed(text, 0) or readings.finish())
