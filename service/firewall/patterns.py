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
from collections.abc import Iterable, Mapping
from typing import Literal
from urllib.parse import quote

import msgspec
from ahocorasick_rs import AhoCorasick

from service.firewall.ngrams import FOLDS, IGNORED

Form = Literal["letters", "visible"]
LETTERS: Form = "letters"
VISIBLE: Form = "visible"

# A pattern shorter than this in a projection would match ordinary text.
MIN_PATTERN = 8
# Letters farther apart than this in the text do not belong together; bounds what is held.
MAX_GAP = 256
_GAP = "\0"
_HEAD = 4


class Owner(msgspec.Struct, frozen=True):
    """Whose pattern it is. `disguise` is one of those that `disguises` names."""

    name: str
    kind: Literal["secret", "prompt", "canary"]
    disguise: str = "exact"


class _Letters(dict[str, str]):
    def __missing__(self, char: str) -> str:
        letters = FOLDS[char][0]
        if len(self) < 65_536:
            self[char] = letters
        return letters


class _Visible(dict[str, str]):
    def __missing__(self, char: str) -> str:
        visible = ""
        if not char.isspace() and FOLDS[char][1] != IGNORED:
            plain = unicodedata.normalize("NFKC", char).casefold()
            visible = "".join(c for c in plain if not c.isspace())
        if len(self) < 65_536:
            self[char] = visible
        return visible


_TABLES: dict[Form, dict[str, str]] = {LETTERS: _Letters(), VISIBLE: _Visible()}


def project(text: str, form: Form) -> str:
    """The projection of a whole text."""
    table = _TABLES[form]
    return "".join([table[char] for char in text])


class Projector:
    """The projection of one growing text, with the offset of the character that each of its characters came from."""

    def __init__(self, form: Form) -> None:
        self._table = _TABLES[form]
        self._last = 0
        self._apart = True

    def feed(self, text: str, offset: int) -> tuple[str, list[int]]:
        """Project `text`, which begins at `offset`. A NUL stands where more than MAX_GAP characters were dropped."""
        table = self._table
        out: list[str] = []
        offsets: list[int] = []
        last = self._last
        for index, char in enumerate(text, offset):
            kept = table[char]
            if kept:
                if index - last > MAX_GAP and not self._apart:
                    out.append(_GAP)
                    offsets.append(index)
                self._apart = False
                last = index
                out.append(kept)
                offsets.append(index)
                if len(kept) > 1:
                    offsets.extend([index] * (len(kept) - 1))
        end = offset + len(text)
        if end - last > MAX_GAP and not self._apart:
            out.append(_GAP)
            offsets.append(end - 1)
            self._apart = True
        self._last = last
        return "".join(out), offsets


class PatternSet:
    """Patterns of one projection, shared by all replies. Raises ValueError for a pattern below MIN_PATTERN."""

    def __init__(self, form: Form, patterns: Mapping[str, Owner]) -> None:
        self.form: Form = form
        self.sorted = sorted(patterns)
        if any(len(pattern) < MIN_PATTERN for pattern in self.sorted):
            raise ValueError("a pattern is too short")
        self.owners = [patterns[pattern] for pattern in self.sorted]
        self.automaton = AhoCorasick(self.sorted)
        self.heads = {pattern[:length] for pattern in self.sorted for length in range(1, _HEAD + 1)}
        self.longest = max(map(len, self.sorted), default=0)

    def begins(self, text: str) -> bool:
        """Whether a pattern longer than `text` begins with it."""
        if text[:_HEAD] not in self.heads:
            return False
        at = bisect_right(self.sorted, text)
        return at < len(self.sorted) and self.sorted[at].startswith(text)


class PatternTracker:
    """Follows one projected text. `held` is the offset of the earliest character that may still begin a match."""

    def __init__(self, patterns: PatternSet) -> None:
        self._patterns = patterns
        self._tail = ""
        self._offsets: list[int] = []
        self.held: int | None = None

    def feed(self, text: str, offsets: list[int]) -> list[tuple[Owner, int, int]]:
        """(owner, start, end) of the matches that end in this projected text; offsets are those of the whole text."""
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


def disguises(value: str) -> Iterable[tuple[str, str]]:
    """(disguise, text) of every way of writing a secret that is looked for."""
    yield "exact", value
    yield "reversed", value[::-1]
    yield "rot13", codecs.encode(value, "rot13")
    yield "url", quote(value, safe="")
    # Tool arguments are JSON: a key of several lines has the letter n in the place of its line ends there.
    yield "escaped", json.dumps(value)[1:-1]
    yield "escaped", json.dumps(value, ensure_ascii=False)[1:-1]
    # In \u0073, &#115; and lists of codes only the letters and digits count.
    yield "escaped", "".join(f"u{unit.hex()}" for unit in _utf16(value))
    yield "codes", "".join(str(ord(char)) for char in value)
    raw = value.encode()
    yield "hex", raw.hex()
    yield "hex", "".join(f"0x{byte:02x}" for byte in raw)
    yield "hex", "".join(f"x{byte:02x}" for byte in raw)
    for shift in range(3):
        # Only the characters that depend on nothing but the secret, at each of its three places in a group of bytes.
        first, last = -(-8 * shift // 6), 8 * (shift + len(raw)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield "base64", encode(bytes(shift) + raw).decode()[first:last]
    for shift in range(5):
        first, last = -(-8 * shift // 5), 8 * (shift + len(raw)) // 5
        yield "base32", base64.b32encode(bytes(shift) + raw).decode()[first:last]


def _utf16(value: str) -> Iterable[bytes]:
    raw = value.encode("utf-16-be")
    return (raw[at : at + 2] for at in range(0, len(raw), 2))


def secret_patterns(name: str, value: str) -> Iterable[tuple[Form, str, Owner]]:
    """(form, pattern, owner) for a secret in all its disguises. Nothing where it is too short to be looked for."""
    for disguise, text in disguises(value):
        owner = Owner(name, "secret", disguise)
        letters, visible = project(text, LETTERS), project(text, VISIBLE)
        if len(letters) >= MIN_PATTERN:
            yield LETTERS, letters, owner
        edged = disguise in ("exact", "reversed") and not (_is_letter(visible[:1]) and _is_letter(visible[-1:]))
        if len(visible) >= MIN_PATTERN and (edged or len(letters) < MIN_PATTERN):
            yield VISIBLE, visible, owner


def _is_letter(char: str) -> bool:
    return bool(char and FOLDS[char][0])
