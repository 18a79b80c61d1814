"""Personal data in a growing text: cut into short windows, each looked at by itself, whatever pieces the text comes in.

Data are short, and none goes on behind a plain word of five letters or more: there a window ends. Where no such word
comes, windows overlap by half. What is found thus does not depend on how a text was cut, and no step grows with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

WINDOW_CHARS = 512
MAX_DATUM_CHARS = WINDOW_CHARS // 2
"""Longer ones may be found in part."""
CONTEXT_CHARS = 80
"""Before a datum, in which words tell what it is."""
_PLAIN_WORD = re.compile(r"(?<!\S)[^\W\d_]{5,}[.,;:!?\"')\]]*\s")
# Nothing is found in a window that has neither an at sign nor four digits, nor a long word, nor what an address in
# IPv6 has. Most have none of that.
_WORTH_A_LOOK = re.compile(r"@|\d(?:\D*\d){3}|\w{26}|:[0-9A-Fa-f]*:")


class Spotted(msgspec.Struct, frozen=True):
    """A datum of the kind `entity` at [start, end) of a text; `score` in [0, 1] says how sure that is."""

    entity: str
    start: int
    end: int
    score: float


Recognise = Callable[[str, str], Sequence[Spotted]]
"""What may stand in a (window, behind this text). Its members may overlap."""


class Scan:
    """Follows one text. `before` is what stands before it and tells of it, such as the name of a JSON member.

    `held` is the first character that may still be part of what is found later.
    """

    def __init__(self, recognise: Recognise, before: str = "") -> None:
        self._recognise = recognise
        self._context = before
        self._waiting = ""
        self._told = 0
        self.held = 0

    def feed(self, text: str) -> list[Spotted]:
        """What stands in windows that are whole with this text: in order, none over another."""
        self._waiting += text
        found: list[Spotted] = []
        at = 0
        while True:
            # A slice: what stood before it must not matter, or it would matter how the text was cut.
            word = _PLAIN_WORD.search(self._waiting[at : at + WINDOW_CHARS])
            if word is not None:
                found += self._look(at, at + word.end(), is_whole=True)
                at += word.end()
            elif len(self._waiting) - at >= WINDOW_CHARS:
                found += self._look(at, at + WINDOW_CHARS, is_whole=False)
                at += MAX_DATUM_CHARS
            else:
                break
        self._context = (self._context + self._waiting[:at])[-CONTEXT_CHARS:]
        self._waiting = self._waiting[at:]
        self.held += at
        return found

    def finish(self) -> list[Spotted]:
        """What stands at the end of the text."""
        found = self._look(0, len(self._waiting), is_whole=True)
        self.held += len(self._waiting)
        self._waiting = ""
        return found

    def _look(self, start: int, end: int, *, is_whole: bool) -> list[Spotted]:
        window = self._waiting[start:end]
        if not _WORTH_A_LOOK.search(window):
            return []
        context = (self._context + self._waiting[:start])[-CONTEXT_CHARS:]
        found: list[Spotted] = []
        for seen in _apart(self._recognise(window, context)):
            if not is_whole and seen.end == len(window) and seen.start >= MAX_DATUM_CHARS:
                continue  # it may go on: the next window has it whole
            first, last = self.held + start + seen.start, self.held + start + seen.end
            if last > self._told:
                found.append(Spotted(seen.entity, max(first, self._told), last, seen.score))
                self._told = last
        return found


def spotted_in(recognise: Recognise, text: str, before: str = "") -> list[Spotted]:
    """All data in a whole text: in order, none over another."""
    if not _WORTH_A_LOOK.search(text):
        return []
    scan = Scan(recognise, before)
    return [*scan.feed(text), *scan.finish()]


def _apart(seen: Sequence[Spotted]) -> list[Spotted]:
    """In order and none over another: the surer is kept, of equals the longer."""
    kept: list[Spotted] = []
    for one in sorted(seen, key=lambda s: (-s.score, s.start - s.end, s.start, s.entity)):
        if all(one.end <= other.start or other.end <= one.start for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda s: s.start)
