"""Long runs of a prompt's words in a reply, found as the words come.

Words are compared folded (case, accents, lookalikes, width), whatever stands between them; scripts written without
spaces are compared by characters, which count half. After Manber, "Finding similar files in a large file system"
(1994), without the sampling: every n-gram is kept, so no run slips between two samples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence, Set
from itertools import pairwise

import msgspec

from service.firewall.confusables import STRICT

# A run of this weight is a leak: eight words, or sixteen characters of a script without spaces.
RUN_WEIGHT = 8.0
_LONG = 8
_SHORT = 4
# A near-verbatim sentence: this share of its 4-grams stand in the prompt, three at the least.
_NEAR_SHARE = 0.6
_NEAR_HITS = 3
_NEAR_WEIGHT = 6.0
# A longer "word" is no word; it is cut so that what is held stays bounded.
_MAX_WORD = 64

BREAK, IGNORED, LETTER, IDEOGRAPH = range(4)
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


class Token(msgspec.Struct, frozen=True):
    """One folded word or ideograph at [start, end) of its text; `weight` is 1.0 or 0.5."""

    word: str
    start: int
    end: int
    weight: float


class _Folds(dict[str, tuple[str, int]]):
    """What one character becomes, and what it is: (folded letters and digits, kind)."""

    def __missing__(self, char: str) -> tuple[str, int]:
        folded = _fold(char)
        if len(self) < 65_536:
            self[char] = folded
        return folded


def _fold(char: str) -> tuple[str, int]:
    letters = "".join(_latin(c) for c in unicodedata.normalize("NFKD", char).casefold() if c.isalnum())
    code = ord(char)
    if letters:
        return letters, IDEOGRAPH if any(first <= code <= last for first, last in _UNSPACED) else LETTER
    if 0xE0020 <= code <= 0xE007E:  # tag characters spell ASCII
        return _fold(chr(code - 0xE0000))
    category = unicodedata.category(char)
    return "", IGNORED if category in (
        "Cf",
        "Mn",
        "Mc",
        "Me",
    ) or (category == "Cc" and char not in "\t\n\r\x0b\x0c") else BREAK


def _latin(char: str) -> str:
    # A small letter is folded as its capital is where only that one has a double, so that case never matters.
    return (STRICT.get(char) or STRICT.get(char.upper(), char)).casefold()


FOLDS = _Folds()

# ASCII folds letter by letter, so that whole texts of it are cut by a regular expression.
_ASCII = {code: FOLDS[chr(code)][0] or " " for code in range(128)}
_ASCII_TEXT = re.compile(r"[\t-\r -~]*")  # without the control characters that are ignored within words
_ASCII_WORD = re.compile("[^ ]+")


class WordReader:
    """Cuts one growing text into folded words."""

    def __init__(self) -> None:
        self._letters: list[str] = []
        self._start = 0
        self._end = 0

    @property
    def partial(self) -> tuple[str, int] | None:
        """The word that has begun and not ended: (its folded letters so far, its start)."""
        return ("".join(self._letters), self._start) if self._letters else None

    def feed(self, text: str, offset: int) -> list[Token]:
        """The words that ended in `text`, which begins at `offset`."""
        if _ASCII_TEXT.fullmatch(text):
            return self._feed_ascii(text, offset)
        tokens: list[Token] = []
        letters = self._letters
        for index, char in enumerate(text, offset):
            folded, kind = FOLDS[char]
            if kind == LETTER:
                if not letters:
                    self._start = index
                letters.append(folded)
                self._end = index + 1
                if len(letters) >= _MAX_WORD:
                    tokens.append(self._word())
            elif kind != IGNORED:
                if letters:
                    tokens.append(self._word())
                if kind == IDEOGRAPH:
                    tokens.append(Token(folded, index, index + 1, 0.5))
        return tokens

    def _feed_ascii(self, text: str, offset: int) -> list[Token]:
        tokens: list[Token] = []
        letters = self._letters
        size = len(text)
        done = 0  # where the word that is open may go on
        for match in _ASCII_WORD.finditer(text.translate(_ASCII)):
            start, end = match.span()
            if not letters and end < size and end - start < _MAX_WORD:
                tokens.append(Token(match[0], offset + start, offset + end, 1.0))
                continue
            if letters and start > done:
                tokens.append(self._word())
            while start < end:
                if not letters:
                    self._start = offset + start
                part = match.string[start : min(end, start + _MAX_WORD - len(letters))]
                letters.extend(part)
                start += len(part)
                self._end = offset + start
                if len(letters) >= _MAX_WORD:
                    tokens.append(self._word())
            done = end
        if letters and done < size:
            tokens.append(self._word())
        return tokens

    def finish(self) -> list[Token]:
        """The text has ended, and its last word with it."""
        return [self._word()] if self._letters else []

    def _word(self) -> Token:
        token = Token("".join(self._letters), self._start, self._end, 1.0)
        self._letters.clear()
        return token


def words(text: str) -> list[Token]:
    """The words of a whole text."""
    reader = WordReader()
    return reader.feed(text, 0) + reader.finish()


def ascii_words(text: str) -> list[str] | None:
    """The folded words of a whole ASCII text; None where it holds anything else or a word too long for one token."""
    if not _ASCII_TEXT.fullmatch(text):
        return None
    spelled = text.translate(_ASCII).split(" ")
    return spelled if max(map(len, spelled)) < _MAX_WORD else None


def may_run(spelled: Sequence[str], prints: Fingerprint) -> bool:
    """Whether so many words of the prompt stand in a row that they may be a run of it; empty ones are skipped."""
    run = 0
    for word in spelled:
        if word in prints.singles:
            run += 1
            if run >= _LONG:
                return True
        elif word:
            run = 0
    return False


class Fingerprint:
    """The word n-grams of one or several prompts, as hashes seeded anew in each process."""

    def __init__(self, prompts: Iterable[tuple[str, Sequence[Token]]]) -> None:
        self.heads: set[str] = set()
        self.singles: set[str] = set()
        self.pairs: set[int] = set()
        self.shorts: dict[int, str] = {}
        self.longs: dict[int, str] = {}
        for name, tokens in prompts:
            spelled = [token.word for token in tokens]
            self.singles.update(spelled)
            self.pairs.update(map(hash, pairwise(spelled)))
            self.shorts.update((gram, name) for gram in grams(spelled, _SHORT))
            self.longs.update((gram, name) for gram in grams(spelled, _LONG))
        self.wide = any(not word.isascii() for word in self.singles)
        for word in self.singles:
            self.heads.update(word[:length] for length in range(1, len(word) + 1))

    def overlap(self, tokens: Sequence[Token], typed: Set[int]) -> tuple[str, float]:
        """(prompt's name, share of the 4-grams that stand in it), or ("", 0.0) where that is no near-verbatim copy.

        4-grams in `typed` are the user's own words and count as not in the prompt.
        """
        if sum(token.weight for token in tokens) < _NEAR_WEIGHT:
            return "", 0.0
        found = short_grams(tokens)
        hits = [gram for gram in found if gram in self.shorts and gram not in typed]
        if len(hits) < _NEAR_HITS or len(hits) < _NEAR_SHARE * len(found):
            return "", 0.0
        return self.shorts[hits[0]], len(hits) / len(found)


def grams(spelled: Sequence[str], size: int) -> list[int]:
    """Hashes of the n-grams of words, in order."""
    return [hash(tuple(spelled[i : i + size])) for i in range(len(spelled) - size + 1)]


def short_grams(tokens: Sequence[Token]) -> list[int]:
    """Hashes of the 4-grams of words, as `Fingerprint.overlap` compares them."""
    return grams([token.word for token in tokens], _SHORT)


class RunTracker:
    """Follows one text's words through a fingerprint.

    A run is over-estimated from 2-, 4- and 8-grams, never under-estimated: what may become a match is held.
    """

    def __init__(self, prints: Fingerprint) -> None:
        self._prints = prints
        self._run: list[Token] = []
        self._matched = False

    def feed(self, tokens: Sequence[Token]) -> list[tuple[str, int, int]]:
        """(name, start, end) of the runs that these words complete or extend."""
        found: list[tuple[str, int, int]] = []
        prints = self._prints
        for token in tokens:
            if token.word not in prints.singles:
                self._run.clear()
                continue
            run = self._run
            run.append(token)
            length = self._length(run)
            if length < len(run):
                del run[: len(run) - length]
            name = prints.longs.get(_last(run, _LONG)) if length >= _LONG else None
            if name is not None and sum(t.weight for t in run) >= RUN_WEIGHT:
                found.append((name, run[0].start, token.end))
                # Sixteen tokens weigh enough by themselves: the run's head is told and need not be kept.
                del run[: max(0, len(run) - 2 * _LONG)]
        return found

    def held(self, partial: tuple[str, int] | None) -> int | None:
        """The start of the run that may still become a match; None where there is none."""
        if partial is not None:
            if partial[0] not in self._prints.heads:
                return None
            return self._run[0].start if self._run else partial[1]
        return self._run[0].start if self._run else None

    def _length(self, run: list[Token]) -> int:
        """How many of the last words may stand in a row in the prompt; at least 1.

        Words before the last were found to be such a run already.
        """
        size = len(run)
        if size >= _LONG:
            if _last(run, _LONG) in self._prints.longs:
                return size
            size = _LONG - 1
        if size >= _SHORT:
            if _last(run, _SHORT) in self._prints.shorts:
                return size
            size = _SHORT - 1
        if size >= 2:
            return size if _last(run, 2) in self._prints.pairs else 1
        return 1


def _last(run: list[Token], size: int) -> int:
    return hash(tuple([token.word for token in run[-size:]]))
