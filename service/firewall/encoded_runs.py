"""Long runs of a prompt's words in a reply that writes them in base64 or hex, found while the encoded text comes.

Every stretch of the alphabet is decoded at each place where a group of bytes may begin, and the decoded words follow
the same fingerprints as plain ones. Random data decodes to no word of the prompt, so it is not held. Offsets are those
of the encoded text.
"""

from __future__ import annotations

import binascii
import codecs
import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

from service.firewall.fingerprint import Fingerprint, RunTracker
from service.firewall.ngrams import Token, WordReader, words
from service.firewall.owners import Owners

# A run of eight words is longer in any code; shorter stretches that have ended are ordinary words.
_MIN_STRETCH = 20
# Of a text whose coding begins anywhere in a stretch so many letters of a word are let go before it is held; at the
# stretch's own beginning, none.
_MIN_LETTERS = 3
_LAST_LETTERS = re.compile(rb"[A-Za-z]+\Z")
# Five words, or five ideographs, in a row: what decodes to less tells nothing.
_READABLE = re.compile("[^\ufffd]{9}|[^\x00-\x7f\ufffd]{5}")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


class _Code(msgspec.Struct, frozen=True):
    """`stretch` and `more` find digits with `noise` among them; `group` digits of `bits` bits each are whole bytes."""

    stretch: re.Pattern[str]
    more: re.Pattern[str]
    noise: re.Pattern[str]
    group: int
    bits: int
    decode: Callable[[str], bytes]
    marked: bool = False  # 0x may stand before a byte


def _from_base64(digits: str) -> bytes:
    return binascii.a2b_base64(digits.replace("-", "+").replace("_", "/"))


def _stretches(first: str, more: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Those that are long enough for a run, and the one at the end, which may go on; and what one goes on with."""
    longer = rf"{first}{more}{{{_MIN_STRETCH - 1},}}+"
    return re.compile(rf"(?<!{first})(?:{longer}|{first}{more}*+\Z)"), re.compile(f"{more}+")


_BASE64 = _Code(
    *_stretches("[A-Za-z0-9+/_-]", r"[A-Za-z0-9+/_\r\n-]"),
    noise=re.compile(r"[\r\n]+"),
    group=4,
    bits=6,
    decode=_from_base64,
)
_HEX = _Code(
    *_stretches("[0-9A-Fa-f]", r"[0-9A-Fa-fxX\\%:,; \r\n-]"),
    noise=re.compile(r"0[xX]|[^0-9A-Fa-f]+"),
    group=2,
    bits=4,
    decode=binascii.a2b_hex,
    marked=True,
)


class EncodedRuns:
    """Follows one growing text. `held` is the offset of the earliest character that may still begin a run."""

    def __init__(self, prints: Sequence[Fingerprint]) -> None:
        self._readers = [_Stretches(code, prints) for code in (_BASE64, _HEX)]

    @property
    def held(self) -> int | None:
        """None where nothing needs to be held."""
        return min((at for reader in self._readers if (at := reader.held) is not None), default=None)

    def feed(self, text: str, offset: int) -> list[tuple[Owners, int, int]]:
        """(owners, start, end) of the runs that are completed or extended in `text`, which begins at `offset`."""
        return [run for reader in self._readers for run in reader.feed(text, offset)]

    def finish(self) -> list[tuple[Owners, int, int]]:
        """The text has ended."""
        return [run for reader in self._readers for run in reader.finish()]


def may_hold(text: str, prints: Sequence[Fingerprint], least: int) -> bool:
    """Whether a whole ASCII text can hold so many words of a prompt in base64 or hex: cheap, and in doubt yes."""
    for code in (_BASE64, _HEX):
        for match in code.stretch.finditer(text):
            if len(match.group()) < _MIN_STRETCH:
                continue
            digits = code.noise.sub("", match.group())
            for lead in range(code.group):
                raw = code.decode(digits[lead : len(digits) - (len(digits) - lead) % code.group])
                decoded = raw.decode("utf-8", "replace")
                if not _READABLE.search(decoded):
                    continue
                found = words(_plain(decoded))
                if any(sum(token.word in p.singles for token in found) >= least for p in prints):
                    return True
    return False


def _plain(decoded: str) -> str:
    """Spaces for what parts words in decoded bytes: what is no UTF-8, and control characters."""
    return _CONTROL.sub(" ", decoded.replace("\ufffd", " "))


class _Stretches:
    """One code. A stretch is only decoded in full once it is long enough for a run; until then it waits."""

    def __init__(self, code: _Code, prints: Sequence[Fingerprint]) -> None:
        self._code = code
        self._prints = prints
        self._lanes: list[_Lane] = []
        self._digits = ""
        self._places: list[int] = []
        self._end = -1  # of the stretch that is still open; -1 for none
        self._zero = False  # its last character is a 0, which an x may follow
        self._wide = any(fingerprint.wide for fingerprint in prints)

    @property
    def held(self) -> int | None:
        if self._lanes:
            return min((at for lane in self._lanes if (at := lane.held) is not None), default=None)
        if not self._digits or not self._may_begin():
            return None
        lane = _Lane(self._code, self._prints, 0)
        lane.feed(self._digits, self._places)
        return lane.held

    def feed(self, text: str, offset: int) -> list[tuple[Owners, int, int]]:
        found: list[tuple[Owners, int, int]] = []
        at = 0
        if self._end >= 0:
            match = self._code.more.match(text)
            if match is not None:
                at = match.end()
                found += self._take(match.group(), offset, last=at == len(text))
            if at < len(text):
                found += self.finish()
        for match in self._code.stretch.finditer(text, at):
            last = match.end() == len(text)
            found += self._take(match.group(), offset + match.start(), last=last)
            if not last:
                found += self.finish()
        return found

    def finish(self) -> list[tuple[Owners, int, int]]:
        """The stretch has ended."""
        found: list[tuple[Owners, int, int]] = []
        if self._zero and self._lanes:
            found += [run for lane in self._lanes for run in lane.feed("0", [self._end - 1])]
        found += [run for lane in self._lanes for run in lane.finish()]
        self._lanes, self._digits, self._places, self._end, self._zero = [], "", [], -1, False
        return found

    def _take(self, text: str, start: int, *, last: bool) -> list[tuple[Owners, int, int]]:
        digits, places = _digits("0" * self._zero + text, start - self._zero, self._code.noise)
        self._end = start + len(text)
        self._zero = self._code.marked and last and text.endswith("0")
        if self._zero:
            digits, places = digits[:-1], places[:-1]
        if not self._lanes:
            digits, places = self._digits + digits, self._places + places
            if len(digits) < _MIN_STRETCH:
                self._digits, self._places = digits, places
                return []
            self._lanes = [_Lane(self._code, self._prints, lead) for lead in range(self._code.group)]
            self._digits, self._places = "", []
        return [run for lane in self._lanes for run in lane.feed(digits, places)]

    def _may_begin(self) -> bool:
        """Whether a short stretch can end in a word of a prompt: cheap, and in doubt yes."""
        size = len(self._digits) * self._code.bits // 8
        raw = self._code.decode(self._digits + "0" * (-len(self._digits) % self._code.group))[:size]
        if not raw or (self._wide and raw[-1] > 127):
            return True
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        text = utf8.decode(raw)
        if utf8.getstate()[0]:  # half a character, and who knows what it does to the word before it
            return True
        reader = WordReader()
        ended = reader.feed(_plain(text), 0)
        if reader.partial is not None:
            return any(reader.partial[0] in prints.heads for prints in self._prints)
        return bool(ended) and any(ended[-1].word in prints.singles for prints in self._prints)


def _digits(text: str, offset: int, noise: re.Pattern[str]) -> tuple[str, list[int]]:
    """The digits among the noise, and their offsets."""
    digits: list[str] = []
    places: list[int] = []
    done = 0
    for match in noise.finditer(text):
        digits.append(text[done : match.start()])
        places += range(offset + done, offset + match.start())
        done = match.end()
    digits.append(text[done:])
    places += range(offset + done, offset + len(text))
    return "".join(digits), places


class _Lane:
    """A stretch decoded from its digit number `lead` on."""

    def __init__(self, code: _Code, prints: Sequence[Fingerprint], lead: int) -> None:
        self._code = code
        self._first = lead == 0
        self._skip = lead
        self._digits = ""
        self._places: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._words = WordReader()
        self._runs = [RunTracker(fingerprint) for fingerprint in prints]
        self._length = 0  # of the decoded text
        self._offsets: list[int] = []  # of its last characters, one for each
        self._end = 0
        self._char = -1  # offset of a character that is not whole yet, -1 for none
        self._wide = any(fingerprint.wide for fingerprint in prints)
        self.held: int | None = None

    def feed(self, digits: str, places: list[int]) -> list[tuple[Owners, int, int]]:
        skipped = min(self._skip, len(digits))
        self._skip -= skipped
        digits, places = self._digits + digits[skipped:], self._places + places[skipped:]
        if not digits:
            return []
        whole = len(digits) - len(digits) % self._code.group
        text, offsets = self._text(self._code.decode(digits[:whole]), places)
        self._digits, self._places = digits[whole:], places[whole:]
        if whole:
            self._end = places[whole - 1] + 1
        start = self._length - len(self._offsets)
        tokens = self._words.feed(text, self._length)
        self._length += len(text)
        self._offsets += offsets
        found = self._follow(tokens, start)
        partial = self._words.partial
        # Only a word that has begun is told by its place later on.
        kept = self._length - partial[1] if partial is not None else 0
        self._offsets = self._offsets[len(self._offsets) - kept :] if kept else []
        self._hold(partial)
        return found

    def finish(self) -> list[tuple[Owners, int, int]]:
        rest = self._digits + "0" * (-len(self._digits) % self._code.group)
        raw = self._code.decode(rest)[: len(self._digits) * self._code.bits // 8]
        start = self._length - len(self._offsets)
        text, offsets = self._text(raw, self._places)
        if self._places:
            self._end = self._places[-1] + 1
        self._offsets += offsets
        return self._follow(self._words.feed(text, self._length) + self._words.finish(), start)

    def _text(self, raw: bytes, places: list[int]) -> tuple[str, list[int]]:
        step = self._code.bits
        if raw.isascii() and not self._utf8.getstate()[0]:
            return _CONTROL.sub("\ufffd", raw.decode()), [places[at * 8 // step] for at in range(len(raw))]
        text: list[str] = []
        offsets: list[int] = []
        for at, byte in enumerate(raw):
            place = places[at * 8 // step]
            chars = self._utf8.decode(bytes((byte,)))
            text.append(chars)
            offsets += [self._char if self._char >= 0 else place] * len(chars)
            if not self._utf8.getstate()[0]:
                self._char = -1
            elif chars or self._char < 0:
                self._char = place
        return _CONTROL.sub("\ufffd", "".join(text)), offsets

    def _follow(self, tokens: list[Token], start: int) -> list[tuple[Owners, int, int]]:
        if not tokens:
            return []
        placed = [
            Token(token.word, self._offsets[token.start - start], self._after(token.end - start), token.weight)
            for token in tokens
        ]
        return [run for runs in self._runs for run in runs.feed(placed)]

    def _after(self, at: int) -> int:
        return self._offsets[at] + 1 if at < len(self._offsets) else self._end

    def _hold(self, partial: tuple[str, int] | None) -> None:
        word = None
        if partial is not None and (self._first or len(partial[0]) >= _MIN_LETTERS):
            word = partial[0], self._offsets[0]
        begun = [at for runs in self._runs if (at := runs.held(word)) is not None]
        if self._first:
            begun += self._begin()
        self.held = min(begun, default=None)

    def _begin(self) -> Iterator[int]:
        """Where a word may begin in bytes that are no whole character yet, and in digits that are no whole group."""
        if self._wide and self._char >= 0:
            yield self._char
        if not self._digits:
            return
        bits = self._code.bits
        digits = self._digits + "0" * (-len(self._digits) % self._code.group)
        raw = self._code.decode(digits)[: len(self._digits) * bits // 8]
        if not raw and not self._length and self._char < 0:
            yield self._places[0]
        if self._wide and raw[-1:] > b"\x7f":
            yield self._places[0]
        letters = _LAST_LETTERS.search(raw)
        if letters is not None:
            word = letters.group().decode().lower(), self._places[letters.start() * 8 // bits]
            yield from (at for runs in self._runs if (at := runs.held(word)) is not None)
