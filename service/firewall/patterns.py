"""Literal patterns in a text that comes in pieces, each with its disguises, and what must be held meanwhile.

Texts and patterns are compared in a projection that throws away what a disguise plays with:

    letters   folded letters and digits only: case, accents, separators, spacing, invisible characters do not count
    visible   case-folded characters without white space: for secrets made of punctuation, or beginning or ending in it

Matches are found by Aho-Corasick (Aho & Corasick 1975, the `ahocorasick_rs` package). That package keeps no state
between calls, so the tracker keeps the longest tail that is the beginning of a pattern, searched for among the sorted
patterns, and scans tail and news together. A start that failed once never comes back, so the cost is linear in the
text but for the comparison of one tail in each call.
"""

from __future__ import annotations

import base64
import codecs
import json
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Literal
from urllib.parse import quote

from ahocorasick_rs import AhoCorasick

from service.firewall.ngrams import FOLDS, IGNORED
from service.firewall.owners import Owner, Owners

Form = Literal["letters", "visible"]
LETTERS: Form = "letters"
VISIBLE: Form = "visible"

# A pattern shorter than this in a projection would match ordinary text.
MIN_PATTERN = 8
# Letters with more visible characters than this between them do not belong together. White space and what is invisible
# does not count: whoever reads the text does not see that anything is between.
MAX_GAP = 256
# A shorter beginning of a pattern is no piece of it.
MIN_PIECE = 3
MOST_BEGUN = 64
_GAP = "\0"
_HEAD = 4
_STARTS = 32
# Letters to Unicode, and nothing to the eye.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")


class _Letters(dict[str, str]):
    def __missing__(self, char: str) -> str:
        letters = "" if char in _BLANK else FOLDS[char][0]
        if len(self) < 65_536:
            self[char] = letters
        return letters


class _Visible(dict[str, str]):
    def __missing__(self, char: str) -> str:
        visible = ""
        if not _is_blank(char):
            plain = unicodedata.normalize("NFKC", char).casefold()
            visible = "".join(c for c in plain if not c.isspace())
        if len(self) < 65_536:
            self[char] = visible
        return visible


def _is_blank(char: str) -> bool:
    """Whether nothing is seen where it stands."""
    return char.isspace() or char in _BLANK or FOLDS[char][1] == IGNORED


_TABLES: dict[Form, dict[str, str]] = {LETTERS: _Letters(), VISIBLE: _Visible()}


_ASCII = {form: {code: table[chr(code)] or None for code in range(128)} for form, table in _TABLES.items()}


def project(text: str, form: Form) -> str:
    """The projection of a whole text."""
    if text.isascii():
        return text.translate(_ASCII[form])
    table = _TABLES[form]
    return "".join([table[char] for char in text])


class Projector:
    """The projection of one growing text, with the offset of the character that each of its characters came from."""

    def __init__(self, form: Form) -> None:
        self.form: Form = form
        self._table = _TABLES[form]
        self._dropped = 0  # visible characters since the last one that was kept
        self._apart = True

    def feed(self, text: str, offset: int) -> tuple[str, list[int]]:
        """Project `text`, which begins at `offset`. A NUL stands where more than MAX_GAP visible ones were dropped."""
        return self.place(text, range(offset, offset + len(text)))

    def place(self, text: str, places: Sequence[int]) -> tuple[str, list[int]]:
        """The same for a text each character of which has a place of its own."""
        table = self._table
        out: list[str] = []
        offsets: list[int] = []
        for index, char in zip(places, text, strict=True):
            kept = table[char]
            if kept:
                self._apart = False
                self._dropped = 0
                out.append(kept)
                offsets.append(index)
                if len(kept) > 1:
                    offsets.extend([index] * (len(kept) - 1))
            elif char != " " and not self._apart and not _is_blank(char):
                self._dropped += 1
                if self._dropped > MAX_GAP:
                    out.append(_GAP)
                    offsets.append(index)
                    self._apart = True
        return "".join(out), offsets

    def copy(self) -> Projector:
        """One that goes on from here by itself."""
        return copy(self)

    def goes_on_as(self, other: Projector) -> bool:
        """Whether both make the same of whatever follows."""
        return (self._dropped, self._apart) == (other._dropped, other._apart)


class PatternSet:
    """Patterns of one projection, shared by all replies. Raises ValueError for a pattern below MIN_PATTERN."""

    def __init__(self, form: Form, patterns: Mapping[str, Owners]) -> None:
        self.form: Form = form
        self.sorted = sorted(patterns)
        if any(len(pattern) < MIN_PATTERN for pattern in self.sorted):
            raise ValueError("a pattern is too short")
        self.owners = [patterns[pattern] for pattern in self.sorted]
        self.automaton = AhoCorasick(self.sorted)
        self.heads = {pattern[:length] for pattern in self.sorted for length in range(1, _HEAD + 1)}
        self.longest = max(map(len, self.sorted), default=0)

    def tracker(self) -> PatternTracker:
        """For one projected text."""
        return PatternTracker(self)

    def holds(self, text: str) -> bool:
        """Whether a pattern stands in a whole projected text."""
        return bool(self.automaton.find_matches_as_indexes(text))

    def begins(self, text: str) -> bool:
        """Whether a pattern longer than `text` begins with it."""
        if text[:_HEAD] not in self.heads:
            return False
        at = bisect_right(self.sorted, text)
        return at < len(self.sorted) and self.sorted[at].startswith(text)

    def beginning(self, text: str) -> list[tuple[str, Owners]]:
        """(pattern, whose it is) of patterns longer than `text` that begin with it, at most MOST_BEGUN."""
        if text[:_HEAD] not in self.heads:
            return []
        first = last = bisect_right(self.sorted, text)
        while last < min(len(self.sorted), first + MOST_BEGUN) and self.sorted[last].startswith(text):
            last += 1
        return list(zip(self.sorted[first:last], self.owners[first:last], strict=True))


Begun = tuple[str, Owners, int]
"""A pattern, whose it is, and with how many of its first characters a text ends."""


def begun(tail: str, beginning: Callable[[str], list[tuple[str, Owners]]]) -> list[Begun]:
    """The patterns that are begun where a projected text ends with `tail`."""
    found: list[Begun] = []
    for start in range(min(len(tail) - MIN_PIECE + 1, _STARTS)):
        told = tail[start:]
        found += [(pattern, owners, len(told)) for pattern, owners in beginning(told)]
    return found


class PatternTracker:
    """Follows one projected text. `held` is the offset of the earliest character that may still begin a match."""

    def __init__(self, patterns: PatternSet) -> None:
        self._patterns = patterns
        self._tail = ""
        self._offsets: list[int] = []
        self.held: int | None = None

    def feed(self, text: str, offsets: list[int]) -> list[tuple[Owners, int, int]]:
        """(owners, start, end) of the matches that end in this projected text; offsets are those of the whole text."""
        if not text:
            return []
        patterns = self._patterns
        known = len(self._tail)
        text = self._tail + text
        offsets = self._offsets + offsets
        found = [
            (patterns.owners[number], offsets[start], offsets[end - 1] + 1)
            for number, start, end in patterns.automaton.find_matches_as_indexes(text, overlapping=True)
            if end > known
        ]
        size = len(text)
        # Where nothing of the tail is left alive, starts too far back for the longest pattern need no look.
        first = max(0, size - patterns.longest + 1)
        heads = patterns.heads
        for start in range(first, size):
            if text[start : start + _HEAD] in heads and patterns.begins(text[start:]):
                self._tail, self._offsets, self.held = text[start:], offsets[start:], offsets[start]
                return found
        self._tail, self._offsets, self.held = "", [], None
        return found

    def begun(self) -> list[Begun]:
        """The patterns that the text so far ends in the middle of."""
        return begun(self._tail, self._patterns.beginning)

    def copy(self) -> PatternTracker:
        """One that goes on from here by itself."""
        return copy(self)

    @property
    def standing(self) -> tuple[str, list[int]]:
        """What may still become a match, and its offsets: all that matters of what it was told."""
        return self._tail, self._offsets


class _Codes(dict[int, str]):
    """The number of each character, in digits."""

    def __missing__(self, code: int) -> str:
        return str(code)


_CODES = _Codes({code: str(code) for code in range(256)})


def _base64(encode: Callable[[bytes], bytes], shift: int) -> Callable[[str], str]:
    """Only the characters that depend on nothing but the secret, at each of its three places in a group of bytes."""

    def written(value: str) -> str:
        raw = value.encode()
        return encode(bytes(shift) + raw).decode()[-(-8 * shift // 6) : 8 * (shift + len(raw)) // 6]

    return written


def _base32(shift: int) -> Callable[[str], str]:
    def written(value: str) -> str:
        raw = value.encode()
        return base64.b32encode(bytes(shift) + raw).decode()[-(-8 * shift // 5) : 8 * (shift + len(raw)) // 5]

    return written


def _twice(encode: Callable[[bytes], bytes], inner: int, outer: int) -> Callable[[str], str]:
    once, again = _base64(encode, inner), _base64(base64.b64encode, outer)
    return lambda value: again(once(value))


def _backwards(write: Callable[[str], str]) -> Callable[[str], str]:
    return lambda value: write(value[::-1])


# A secret with fewer letters is hardly changed by such a spelling, or becomes a number as others are.
_MIN_LEET_LETTERS = 6


def _leet(letters: str, signs: str) -> Callable[[str], str]:
    """Each of these letters, wherever it stands, as the sign that looks like it."""
    table = str.maketrans(letters + letters.upper(), signs + signs)

    def written(value: str) -> str:
        spelled = value.translate(table)
        enough = sum(map(str.isalpha, value)) >= _MIN_LEET_LETTERS and any(map(str.isalpha, spelled))
        return spelled if enough and spelled != value else ""

    return written


_LETTER_NAMES = """
    bravo charlie delta echo foxtrot golf hotel india kilo lima mike november oscar papa quebec romeo sierra tango
    uniform victor whiskey xray yankee zulu
"""
_DIGIT_NAMES = "zero one two three four five six seven eight nine"
_SIGN_NAMES = {"-": "dash", "_": "underscore", ".": "dot", "/": "slash"}


def _spelled_out(a: str, j: str, *, digits: bool, signs: bool) -> Callable[[str], str]:
    """By the words of the alphabet for spelling (ICAO's); two of them are written in more ways than one."""
    names = {word[0]: word for word in (a, j, *_LETTER_NAMES.split())}
    names |= {str(digit): word for digit, word in enumerate(_DIGIT_NAMES.split())} if digits else {}
    names |= _SIGN_NAMES if signs else {}

    def written(value: str) -> str:
        spelled = value.lower().strip("".join(_SIGN_NAMES))
        # A number by its digits' names is no secret's own.
        return "".join(names.get(char, char) for char in spelled) if any(map(str.isalpha, spelled)) else ""

    return written


DISGUISES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("exact", lambda value: value),
    ("reversed", lambda value: value[::-1]),
    ("rot13", lambda value: codecs.encode(value, "rot13")),
    ("url", lambda value: quote(value, safe="")),
    # Tool arguments are JSON: a key of several lines has the letter n in the place of its line ends there.
    ("escaped", lambda value: json.dumps(value)[1:-1]),
    ("escaped", lambda value: json.dumps(value, ensure_ascii=False)[1:-1]),
    # In \u0073, &#115; and lists of codes only the letters and digits count.
    ("escaped", lambda value: "u" + value.encode("utf-16-be").hex("-", 2).replace("-", "u")),
    ("codes", lambda value: value.translate(_CODES)),
    ("hex", lambda value: value.encode().hex()),
    ("hex", lambda value: "0x" + value.encode().hex("-").replace("-", "0x")),
    ("hex", lambda value: "x" + value.encode().hex("-").replace("-", "x")),
    *(
        ("base64", _base64(encode, shift))
        for shift in range(3)
        for encode in (base64.b64encode, base64.urlsafe_b64encode)
    ),
    *(("base32", _base32(shift)) for shift in range(5)),
    *(
        ("base64 reversed", _backwards(_base64(encode, shift)))
        for shift in range(3)
        for encode in (base64.b64encode, base64.urlsafe_b64encode)
    ),
    *(
        ("base64 twice", _twice(encode, inner, outer))
        for inner in range(3)
        for outer in range(3)
        for encode in (base64.b64encode, base64.urlsafe_b64encode)
    ),
    *(
        ("spelled out", _spelled_out(a, j, digits=digits, signs=signs))
        for a, j in (("alpha", "juliett"), ("alpha", "juliet"), ("alfa", "juliett"))
        for digits in (True, False)
        for signs in (False, True)
    ),
    *(
        ("leet", _leet(letters, signs))
        for letters, signs in (
            ("aeo", "430"),
            ("aeio", "4310"),
            ("aeios", "43105"),
            ("aeiot", "43107"),
            ("aeiost", "431057"),
            ("aelost", "431057"),
            ("aeilost", "4311057"),
            ("abeiost", "4831057"),
            ("abegiost", "48391057"),
            ("abegilost", "483911057"),
            ("abegilostz", "4836110572"),
            ("aeios", "@310$"),
            ("aeiost", "@310$7"),
            ("aeios", "@3!0$"),
            ("aeiost", "@3!0$7"),
        )
    ),
)
"""(disguise, how a secret is written in it) of every way of writing that is looked for."""


def disguises(value: str) -> Iterable[tuple[str, str]]:
    """(disguise, text) of every way of writing a secret that is looked for."""
    return ((disguise, write(value)) for disguise, write in DISGUISES)


def written(value: str, number: int) -> Iterable[tuple[Form, str]]:
    """(form, pattern) of a secret in the disguise of this number. Nothing where that is too short to look for."""
    disguise, write = DISGUISES[number]
    return patterns_of(write(value), disguise)


def patterns_of(text: str, disguise: str) -> Iterator[tuple[Form, str]]:
    """(form, pattern) of a secret as it is written in a disguise."""
    letters = project(text, LETTERS)
    if len(letters) >= MIN_PATTERN:
        yield LETTERS, letters
        if disguise not in ("exact", "reversed"):
            return
    visible = project(text, VISIBLE)
    edged = disguise in ("exact", "reversed") and not (_is_letter(visible[:1]) and _is_letter(visible[-1:]))
    if len(visible) >= MIN_PATTERN and (edged or len(letters) < MIN_PATTERN):
        yield VISIBLE, visible


def secret_patterns(name: str, value: str, tenant: str = "") -> Iterable[tuple[Form, str, Owner]]:
    """(form, pattern, owner) for a secret in all its disguises."""
    for number, (disguise, _) in enumerate(DISGUISES):
        for form, pattern in written(value, number):
            yield form, pattern, Owner(name, "secret", disguise, tenant)


def _is_letter(char: str) -> bool:
    return bool(char and FOLDS[char][0])
