"""One growing text of a reply: what is kept of it, what is held, what is redacted."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from service.firewall.argument_values import ArgumentValues
from service.firewall.credential_readings import CredentialReadings
from service.firewall.encoded_runs import EncodedRuns
from service.firewall.exfiltration import ExfiltrationScanner
from service.firewall.fingerprint import RunTracker
from service.firewall.ngrams import Token, WordReader
from service.firewall.patterns import Form
from service.firewall.protected import RequestProtection
from service.firewall.readings import Heard, Readings, Trackers
from service.firewall.sentences import SentenceSplitter

REDACTED = "[redacted]"
# Characters to let go of at once; fewer are not worth the copy.
_TRIM = 256
_ARGUMENTS = re.compile(r"/(?:arguments|partial_json)\Z")


def values_in(name: str) -> ArgumentValues | None:
    """What reads the values in a channel of this name; None where it is no JSON."""
    return ArgumentValues() if _ARGUMENTS.search(name) else None


class Channel:
    """What is kept of one channel: the text from `base`, the matchers' states, the redacted ranges."""

    def __init__(
        self,
        name: str,
        protection: RequestProtection,
        by_sentence: bool,
        credentials: CredentialReadings | None = None,
        exfiltration: ExfiltrationScanner | None = None,
        heard: Heard | None = None,
    ) -> None:
        self.name = name
        self.base = 0
        self.end = 0
        self.cleared = 0
        self.rendered = 0
        self.judged = 0
        self.keep = 0
        self.ended = False
        self.redactions: list[tuple[int, int]] = []
        self.patterns = Readings(protection.patterns, heard)
        # A text that repeats another in another form tells nothing more; of arguments each value is a text.
        self.is_text = "#" not in name
        self.values = values_in(name) if protection.patterns else None
        self.value: Trackers = []
        self.value_number = 0
        self.going_on: dict[Form, int] = {}
        """Where begins what goes on with a secret that another text has begun."""
        self.runs = [RunTracker(prints) for prints in protection.fingerprints]
        self.encoded = EncodedRuns(protection.fingerprints) if self.runs else None
        self.words = WordReader() if self.runs or by_sentence else None
        self.sentences = SentenceSplitter()
        self.tokens: list[Token] = []
        self.credentials = credentials
        self.exfiltration = exfiltration
        self.carrying = False  # an address that goes on was found to carry something
        self._parts: list[str] = []

    def append(self, text: str) -> None:
        """Take the next text."""
        self._parts.append(text)
        self.end += len(text)

    def slice(self, start: int, end: int) -> str:
        """The channel's text [start, end), as far as it is still kept."""
        return self._joined()[max(start - self.base, 0) : max(end - self.base, 0)]

    def _joined(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def held(self) -> int:
        """The start of the earliest text that can still become part of a protected one; `end` where there is none."""
        if self.ended:
            return self.end
        held = self.end
        if (at := self.patterns.held) is not None and at < held:
            held = at
        if self.encoded is not None and (at := self.encoded.held) is not None and at < held:
            held = at
        for runs in self.runs:
            first = runs.held(self.words.partial if self.words is not None else None)
            if first is not None and first < held:
                held = first
        return min(held, *self.going_on.values()) if self.going_on else held

    def pop_tokens(self, end: int) -> list[Token]:
        """Take the words that begin before `end`."""
        count = 0
        while count < len(self.tokens) and self.tokens[count].start < end:
            count += 1
        taken, self.tokens = self.tokens[:count], self.tokens[count:]
        return taken

    def redact(self, start: int, end: int) -> None:
        """Add a range and merge it with those it meets. Matches come nearly in order: the last are looked at."""
        later: list[tuple[int, int]] = []
        ranges = self.redactions
        while ranges and ranges[-1][1] >= start:
            first, last = ranges.pop()
            if first > end:
                later.append((first, last))
            else:
                start, end = min(start, first), max(end, last)
        ranges.append((start, end))
        ranges.extend(reversed(later))

    def redacted(self, start: int, end: int) -> bool:
        """Whether [start, end) will not be seen anyway."""
        at = bisect_right(self.redactions, start, key=_first) - 1
        return at >= 0 and end <= self.redactions[at][1]

    def pieces(self, start: int, end: int) -> Iterator[str]:
        """The text [start, end), a mark in the place of every redacted range that begins in it."""
        at = start
        for index in range(bisect_left(self.redactions, start, key=_last), len(self.redactions)):
            first, last = self.redactions[index]
            if first >= end:
                break
            if first >= start:
                yield self.slice(at, first)
                yield REDACTED
            at = max(at, min(last, end))
        yield self.slice(at, end)

    def trim(self) -> None:
        """Let go of text that was rendered and can be part of no match."""
        first = min(self.rendered, self.keep)
        if first - self.base < _TRIM:
            return
        text = self._joined()
        self._parts = [text[first - self.base :]] if first < self.end else []
        self.base = first
        # A range that ends right here may still grow.
        self.redactions = [(start, end) for start, end in self.redactions if end >= first]


def _first(span: tuple[int, int]) -> int:
    return span[0]


def _last(span: tuple[int, int]) -> int:
    return span[1]
