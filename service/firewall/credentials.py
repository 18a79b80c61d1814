"""Credentials that nobody registered, by their form, in a text that comes in pieces.

One automaton over the prefixes of the formats and the words that announce a value (`credential_formats`) says where to
look; what stands there is read when it has ended. Only what may be the credential itself is held, not the word before
it: `password = ` leaves at once. Whether a place is a match depends on the text alone, never on how it was cut.

Not found: passwords of one plain word or of several, credentials in a disguise (those of `patterns` are for registered
secrets, which are known; tokens with escapes in them are `credential_readings`' matter), and 16-digit card numbers,
which are personal data and not keys.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from copy import copy
from functools import partial

import msgspec
from ahocorasick_rs import AhoCorasick

from service.firewall import credential_checks as checks
from service.firewall.credential_formats import FORMATS, PASSWORDS, SECRETS, TOKENS, WEBHOOKS
from service.firewall.credential_keys import read_pem, read_putty
from service.firewall.credential_sights import ALNUM, Read, Reader, Sight, Wait
from service.firewall.credential_tokens import (
    DISCORD,
    DISCORD_ID,
    read_behind,
    read_discord,
    read_format,
    read_jwt,
    read_telegram,
)
from service.firewall.credential_values import read_address, read_value

_CONTEXT = 160


def _anchors() -> dict[str, list[Reader]]:
    found: dict[str, list[Reader]] = {}

    def add(anchor: str, reader: Reader) -> None:
        found.setdefault(anchor.lower(), []).append(reader)

    for form in FORMATS:
        body = re.compile(form.body)
        for prefix in form.prefixes:
            add(prefix, _bounded(partial(read_format, form, body, prefix)))
    for kind, words in (("password", PASSWORDS), ("secret", SECRETS), ("token", TOKENS), ("basic", ("basic",))):
        for word in words:
            add(word, partial(read_value, kind, word))
    for name, anchor, rest in WEBHOOKS:
        add(anchor, partial(read_behind, name, anchor, re.compile(rest)))
    add("eyJ", _bounded(read_jwt))
    add("----BEGIN", _read_dashes)
    add("---- BEGIN", _read_dashes)
    add("Private-Lines:", read_putty)
    add("://", read_address)
    add(":AA", read_telegram)
    return found


def _bounded(reader: Reader) -> Reader:
    def read(text: str, at: int, ended: bool) -> Read:
        return reader(text, at, ended) if _begins_word(text, at) else None

    return read


def _read_dashes(text: str, at: int, ended: bool) -> Read:
    return read_pem(text, at - 1 if text[max(at - 1, 0)] == "-" else at, ended)


def _begins_word(text: str, at: int) -> bool:
    """Whether no letter or digit stands before; the n of an escaped line end is none."""
    return at == 0 or not ALNUM.match(text[at - 1]) or (at > 1 and text[at - 2] == "\\" and text[at - 1] in "nrt")


_READERS = _anchors()
_KEYS = list(_READERS)
_AUTOMATON = AhoCorasick(_KEYS)
_LONGEST = max(map(len, _KEYS))
# What is held while it may become a prefix; of words that only announce a value nothing is.
_PREFIXES = sorted({prefix for form in FORMATS for prefix in form.prefixes} | {"eyJ"})
_PREFIX_CHARS = max(map(len, _PREFIXES)) - 1
_WORD_START = re.compile(r"(?<![0-9A-Za-z])[0-9A-Za-z]|(?<=\\[nrt])[0-9A-Za-z]")
_DASHES_OPEN = re.compile("-{1,5} ?(?:B(?:E(?:G(?:IN?)?)?)?)?\\Z")
_TELEGRAM_OPEN = re.compile(r"\d{8}:A?\Z")
_ASCII_LOWER = {code: code + 32 for code in range(65, 91)}


def _lower(text: str) -> str:
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else text.translate(_ASCII_LOWER)


def may_hold(text: str) -> bool:
    """Whether a whole text can hold a credential: cheap, and in doubt yes."""
    return bool(_AUTOMATON.find_matches_as_indexes(_lower(text))) or DISCORD.search(text) is not None


class CredentialScanner:
    """Follows one growing text. `held` is the offset of the earliest character that may be part of a credential."""

    def __init__(self) -> None:
        self._text = ""
        self._base = 0
        self._pending: list[tuple[int, Reader]] = []
        self._growing: list[Sight] = []
        self.held: int | None = None

    def feed(self, text: str, offset: int) -> list[Sight]:
        """What is found, or goes on, in `text`, which begins at `offset`; offsets are those of the whole text."""
        known = len(self._text)
        self._text += text
        if known == 0:
            self._base = offset
        self._look(known)
        return self._read(ended=False)

    def finish(self) -> list[Sight]:
        """The text has ended."""
        return self._read(ended=True)

    def copy(self) -> CredentialScanner:
        """One that goes on from here by itself."""
        other = copy(self)
        other._pending = list(self._pending)
        return other

    @property
    def base(self) -> int:
        """Where the text begins that is still looked at."""
        return self._base

    @property
    def is_idle(self) -> bool:
        """Whether nothing has begun that may be a credential."""
        return not self._pending and not self._growing and self.held is None

    def _look(self, known: int) -> None:
        first = max(0, known - _LONGEST + 1)
        window = self._text[first:] if first else self._text
        base = self._base + first
        for number, start, end in _AUTOMATON.find_matches_as_indexes(_lower(window), overlapping=True):
            if first + end > known:
                self._pending += [(base + start, reader) for reader in _READERS[_KEYS[number]]]
        if "." in window:
            for match in DISCORD.finditer(self._text, max(0, known - 8)):
                user = DISCORD_ID.search(self._text, max(0, match.start() - 30), match.start())
                if match.end() > known and user is not None and checks.discord_id(user.group()):
                    self._pending.append((self._base + match.end(), read_discord))

    def _read(self, *, ended: bool) -> list[Sight]:
        text, base = self._text, self._base
        found: list[Sight] = []
        held: list[int] = []
        keep = base + len(text) - _CONTEXT
        going: list[Sight] = []
        for sight in self._growing:
            self._go_on(sight, ended, found, held, going)
        pending = []
        for place, reader in self._pending:
            read = reader(text, place - base, ended)
            if isinstance(read, Wait):
                pending.append((place, reader))
                keep = min(keep, place - 12)
                if read.hold is not None:
                    held.append(base + read.hold)
            elif read is not None:
                sight = msgspec.structs.replace(read, start=base + read.start, end=base + read.end)
                if sight.grows is None:
                    found.append(sight)
                else:
                    self._go_on(sight, ended, found, held, going)
        self._pending, self._growing = pending, going
        found = _distinct(found)
        if not ended and (open_ := _open_prefix(text)) is not None:
            held.append(base + open_)
        self.held = min(held, default=None)
        if keep - base > _CONTEXT:
            # What goes on is read from its end, which is within the context.
            self._text, self._base = text[keep - base :], keep
        return found

    def _go_on(self, sight: Sight, ended: bool, found: list[Sight], held: list[int], going: list[Sight]) -> None:
        assert sight.grows is not None
        end, open_ = sight.grows(self._text, sight.end - self._base, ended)
        sight = msgspec.structs.replace(sight, end=self._base + end)
        found.append(sight)
        if open_:
            going.append(sight)
            if end < len(self._text):
                held.append(sight.end)


def _distinct(found: list[Sight]) -> list[Sight]:
    """Without those that lie within a surer one: `secret_access_key` announces what `access_key` does."""
    kept: list[Sight] = []
    for sight in sorted(found, key=lambda sight: (-sight.score, sight.start - sight.end)):
        if not any(other.start <= sight.start and sight.end <= other.end for other in kept):
            kept.append(sight)
    return sorted(kept, key=lambda sight: sight.start)


def _open_prefix(text: str) -> int | None:
    """Where the end of the text may begin a prefix."""
    size = len(text)
    last = max(0, size - _PREFIX_CHARS)
    last = max(text.rfind(" ", last), text.rfind("\n", last), last - 1) + 1
    for match in _WORD_START.finditer(text, last):
        start = match.start()
        tail = text[start:]
        at = bisect_right(_PREFIXES, tail)
        if at < len(_PREFIXES) and _PREFIXES[at].startswith(tail):
            return start
    if "-" in text[-11:] and (dashes := _DASHES_OPEN.search(text, max(0, size - 11))) is not None:
        return dashes.start()
    if text.endswith((":", ":A")) and _TELEGRAM_OPEN.search(text, size - 10 if size > 10 else 0):
        return text.rindex(":")
    return None
