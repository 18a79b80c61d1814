"""Words as they are compared: folded (case, accents, lookalikes, width), whatever stands between them. Scripts written
without spaces are compared by characters, which count half.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import msgspec

from service.firewall.confusables import STRICT

SHORT = 4
"""Words in a row that sentences are compared by."""
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


class Token(msgspec.Struct, frozen=True, gc=False):
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
    spelled = text.translate(_ASCII).split()
    return spelled if max(map(len, spelled), default=0) < _MAX_WORD else None


def spell(text: str) -> tuple[list[str], float]:
    """The folded words of a whole text, and what they weigh together. `words` says the same, more slowly."""
    spelled = ascii_words(text)
    if spelled is not None:
        return spelled, float(len(spelled))
    tokens = words(text)
    return [token.word for token in tokens], sum(token.weight for token in tokens)


def grams(spelled: Sequence[str], size: int) -> list[int]:
    """Hashes of the n-grams of words, in order."""
    return [hash(tuple(spelled[i : i + size])) for i in range(len(spelled) - size + 1)]


def short_grams(tokens: Sequence[Token]) -> list[int]:
    """Hashes of the 4-grams of words, as `Fingerprint.overlap` compares them."""
    return grams([token.word for token in tokens], SHORT)
