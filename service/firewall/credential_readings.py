"""Tokens that nobody registered in a growing text as it reads: with its escapes undone, without what is invisible in
it, wide letters as plain ones. `ghp\\_…` in Markdown is the token for whoever reads the page.

The text is looked at a second time only from where it may read otherwise on until some way behind. Only tokens with a
form of their own are told from there: a word that announces a password stands in escaped texts of every kind.
"""

from __future__ import annotations

import re
import unicodedata

import msgspec

from service.firewall import credentials
from service.firewall.credential_formats import FORMATS
from service.firewall.credential_sights import Sight
from service.firewall.credentials import CredentialScanner
from service.firewall.ngrams import FOLDS, IGNORED
from service.firewall.respelled import ESCAPE_SIGN, ESCAPES, Placed, Respelled

_NAMES = frozenset({form.name for form in FORMATS} | {"json web token"})
_HIDDEN = (
    "\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\uff01-\uff5e"
    "\U0001d400-\U0001d7ff\U000e0000-\U000e01ef"
)
_OTHERWISE = re.compile(f"{ESCAPE_SIGN.pattern}|[{_HIDDEN}]")
# No reader looks back so far.
_BEHIND = 512
# Characters whose places are let go of at once.
_TRIM = 4_096


class CredentialReadings:
    """Follows one growing text, as `CredentialScanner` does."""

    def __init__(self) -> None:
        self._plain = CredentialScanner()
        self._way: _Way | None = None
        self.held: int | None = None

    def feed(self, text: str, offset: int) -> list[Sight]:
        """What is found, or goes on, in `text`, which begins at `offset`; offsets are those of the whole text."""
        at = 0
        found: list[Sight] = []
        sign = _sign_of(text).search(text)
        if sign is not None and self._way is None:
            at = sign.start()
            found += self._plain.feed(text[:at], offset) if at else []
            self._way = _Way(self._plain, offset + at)
        rest = text[at:] if at else text
        found += self._plain.feed(rest, offset + at)
        if self._way is not None:
            found += _new(self._way.feed(rest, offset + at), found)
            if sign is None and self._way.is_over(offset + len(text)):
                self._way = None
        ahead = (self._plain.held, self._way.held if self._way is not None else None)
        self.held = min((place for place in ahead if place is not None), default=None)
        return found

    def finish(self) -> list[Sight]:
        """The text has ended."""
        found = self._plain.finish()
        if self._way is not None:
            found += _new(self._way.finish(), found)
        self._way, self.held = None, None
        return found


class _Way:
    """The text as it reads from one place on."""

    def __init__(self, plain: CredentialScanner, start: int) -> None:
        self._scanner = plain.copy()
        self._stage = Respelled(ESCAPES)
        self._start = start
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._other = start  # where it last read otherwise

    def feed(self, text: str, offset: int) -> list[Sight]:
        end = offset + len(text)
        for sign in _sign_of(text).finditer(text):
            self._other = offset + sign.end()
        return self._take(self._stage.feed((text, list(range(offset, end)), list(range(offset + 1, end + 1)))))

    def finish(self) -> list[Sight]:
        found = self._take(self._stage.feed(("", [], []), last=True))
        return found + self._told(self._scanner.finish())

    def is_over(self, end: int) -> bool:
        """Whether what reads otherwise is so far behind that nothing tells the text from it."""
        return end - self._other > _BEHIND and self._stage.waiting is None and self._scanner.is_idle

    @property
    def held(self) -> int | None:
        """The place of the earliest character that may be part of a credential."""
        waiting = self._stage.waiting
        held = self._scanner.held
        at = None if held is None else self._place(held, self._starts)
        if waiting is not None and (at is None or waiting[1] < at):
            return waiting[1]
        return at

    def _take(self, placed: Placed) -> list[Sight]:
        text, starts, ends = _plain(placed)
        if not text:
            return []
        coordinate = self._start + len(self._starts)
        self._starts += starts
        self._ends += ends
        found = self._told(self._scanner.feed(text, coordinate))
        if (known := self._scanner.base - self._start) > _TRIM:
            self._start += known
            self._starts, self._ends = self._starts[known:], self._ends[known:]
        return found

    def _told(self, found: list[Sight]) -> list[Sight]:
        return [
            msgspec.structs.replace(
                sight,
                start=self._place(sight.start, self._starts),
                end=self._place(sight.end - 1, self._ends),
            )
            for sight in found
            if sight.name in _NAMES
        ]

    def _place(self, coordinate: int, places: list[int]) -> int:
        """Where what the scanner has at this place begins (`_starts`) or ends (`_ends`) in the text."""
        at = coordinate - self._start
        if at < 0:
            return coordinate + (places is self._ends)
        return places[at] if at < len(places) else self._ends[-1] if self._ends else coordinate


def may_hold(text: str) -> bool:
    """Whether a whole text can hold a credential: cheap, and in doubt yes."""
    if credentials.may_hold(text):
        return True
    if _sign_of(text).search(text) is None:
        return False
    places = list(range(len(text)))
    stage = Respelled(ESCAPES)
    said = [_plain(stage.feed((text, places, places)))[0], _plain(stage.feed(("", [], []), last=True))[0]]
    return credentials.may_hold("".join(said))


def _sign_of(text: str) -> re.Pattern[str]:
    return ESCAPE_SIGN if text.isascii() else _OTHERWISE


def _plain(placed: Placed) -> Placed:
    """Without what is invisible, and with plain letters for wide ones."""
    if placed[0].isascii():
        return placed
    text: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for char, start, end in zip(*placed, strict=True):
        for plain in char if char.isascii() or char.isspace() else _seen(char):
            text.append(plain)
            starts.append(start)
            ends.append(end)
    return "".join(text), starts, ends


def _seen(char: str) -> str:
    if FOLDS[char][1] == IGNORED:
        return ""
    plain = unicodedata.normalize("NFKC", char)
    return plain if plain.isascii() else char


def _new(sights: list[Sight], told: list[Sight]) -> list[Sight]:
    """Those that the text as it stands does not tell."""
    known = {(sight.name, sight.start, sight.end) for sight in told}
    return [sight for sight in sights if (sight.name, sight.start, sight.end) not in known]
