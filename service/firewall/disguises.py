"""Finding text whose letters are moved rather than encoded: ROT13, written backwards, spaced out, leet.

Each is only reported where the undone text has more common words than the text as it stands.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

from service.firewall.encodings import Run
from service.firewall.language import COMMON, pairs_share, segmented
from service.firewall.symbols import symbol_runs

_ROT_TWINS = """bar fur one nun ore nag tang ones sync err env she gel sent onyx terra"""
_BACK_TWINS = """saw nor net ton eon won tub peek keep loot live era sah emit pets reed trap tel red ned sed sel ser ret
drawer edit lee mad deer gulp spot stun star lap part nip tar rat bad dog god tool"""
# Words that are common in both readings decide nothing.
_LONG = [word for word in COMMON if len(word) > 2 and word.isascii()]
_ROT = frozenset(codecs.encode(word, "rot13") for word in _LONG) - COMMON - frozenset(_ROT_TWINS.split())
_BACK = frozenset(word[::-1] for word in _LONG) - COMMON - frozenset(_BACK_TWINS.split())
_LATIN_WORD = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z]{3,}+(?![A-Za-z0-9_])")
# Single letters, one to four separators between them, six letters or more.
_SPACED = re.compile(r"(?<![^\W_])[^\W\d_](?:[ \t\n.\-_*|/,~+·•]{1,4}[^\W_](?![^\W_])){5,}+")
_SPACING = re.compile(r"[\W_]+")
_LEET_SIGNS = "01345789@$!|+"
_LEET_WORD = re.compile(rf"(?<![A-Za-z0-9@$!|+])[A-Za-z]*+[{_LEET_SIGNS}][A-Za-z{_LEET_SIGNS}]*+")
# An i or an l is written as 1, as ! and as |; which of the two is tried out.
_LEET = str.maketrans("03457@$89+!|", "oeastasbgt11")
_PLAIN_RUN = re.compile(r"[\w@$!|+]+")
_LINE_CHARS = 400
_LONGEST_WORD = 20


def turned_runs(text: str) -> Iterator[list[Run]]:
    """Regions that read as language after ROT13, then those that do backwards: as a whole, and word by word."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few letters grow when lowered; their offsets would be wrong
        lowered = "".join(low if len(low := char.lower()) == 1 else char for char in text)
    words = _LATIN_WORD.findall(lowered)
    for marks, turns in _TURNS:
        found = list(map(marks.get, words))
        if found.count(1) < 2:
            continue
        regions = list(_regions(lowered, found))
        for kind, turn in turns:
            turned = ((start, end, turn(text[start:end])) for start, end in regions)
            yield [Run(start, end, new, kind) for start, end, new in turned if _reads_better(new, text[start:end])]

    yield from _caesar_runs(text, lowered, words)


def _caesar_runs(text: str, lowered: str, words: list[str]) -> Iterator[list[Run]]:
    """The alphabet moved by another number than thirteen, or mirrored: whichever gives most common words."""
    found = list(map(_SHIFTED.get, words))
    counts = Counter(shift for shift in found if shift is not None)
    for shift, count in counts.most_common(2):
        if count < 3:
            return
        marks = [
            1 if mark == shift else -1 if word in COMMON else None for mark, word in zip(found, words, strict=True)
        ]
        turned = ((start, end, text[start:end].translate(_ALPHABETS[shift])) for start, end in _regions(lowered, marks))
        yield [Run(start, end, new, "shifted") for start, end, new in turned if _reads_better(new, text[start:end])]


def _alphabet(moved: str) -> dict[int, int]:
    return str.maketrans(_LETTERS + _LETTERS.upper(), moved + moved.upper())


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# How to undo each: a shift by 1-25, and 0 for the mirrored alphabet (Atbash).
_ALPHABETS = [_alphabet(_LETTERS[::-1]), *(_alphabet(_LETTERS[-n:] + _LETTERS[:-n]) for n in range(1, 26))]
_SHIFTED = {
    word.translate(_ALPHABETS[(26 - n) % 26]): n for n in range(26) if n != 13 for word in _LONG if len(word) > 3
}
for _word in COMMON:
    _SHIFTED.pop(_word, None)


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def _backwards(text: str) -> str:
    return text[::-1]


def _words_backwards(text: str) -> str:
    return re.sub(r"\w+", lambda match: match.group()[::-1], text)


def _marks(disguised: frozenset[str]) -> dict[str, int]:
    """1 for words that are common when turned, -1 for words that are common as they are."""
    return dict.fromkeys(COMMON, -1) | dict.fromkeys(disguised, 1)


_TURNS: tuple[tuple[dict[str, int], tuple[tuple[str, Callable[[str], str]], ...]], ...] = (
    (_marks(_ROT), (("rot13", _rot13),)),
    (_marks(_BACK), (("reversed", _backwards), ("reversed_words", _words_backwards))),
)


def _reads_better(turned: str, plain: str) -> bool:
    return pairs_share(turned) > pairs_share(plain) + 0.1


def _regions(lowered: str, marks: list[int | None]) -> Iterator[tuple[int, int]]:
    """Spans in which disguised common words outnumber plain ones."""
    spans = [match.span() for match in _LATIN_WORD.finditer(lowered)]
    hits = [position for position, mark in enumerate(marks) if mark == 1]
    group: list[int] = []
    for hit in [*hits, -1]:
        last = group[-1] if group else 0
        if group and (hit < 0 or hit - last > 12 or (hit - last > 3 and marks[last + 1 : hit].count(-1) > 2)):
            yield from _grown(spans, marks, group)
            group = []
        group.append(hit)


def _grown(spans: list[tuple[int, int]], marks: list[int | None], group: list[int]) -> Iterator[tuple[int, int]]:
    first, last = group[0], group[-1]
    plain = marks[first : last + 1].count(-1)
    if len(group) < 2 or plain * 3 > len(group) * 2 or len(group) * 4 < last + 1 - first:
        return
    for _ in range(6):  # words that are common in neither reading go along
        if first > 0 and marks[first - 1] is None:
            first -= 1
        if last + 1 < len(marks) and marks[last + 1] is None:
            last += 1
    yield spans[first][0], spans[last][1]


def spaced_runs(text: str) -> Iterator[Run]:
    """Letters written apart ("i g n o r e"): joined, with words parted where the gaps are wider."""
    for match in _SPACED.finditer(text):
        run = match.group()
        letters = _SPACING.sub("", run)
        if letters.isascii() and not _has_language(letters):
            continue
        gaps = Counter(_SPACING.findall(run))
        usual = max(gaps, key=lambda gap: (gaps[gap], -len(gap)))
        words = [letters for word in _wider(run, usual) if (letters := _SPACING.sub("", word))]
        # Where gaps of two widths tell the words apart, nothing is to be guessed.
        told = len(words) > 1 and max(map(len, words)) <= _LONGEST_WORD
        read = " ".join(words if told else map(segmented, words))
        yield Run(match.start(), match.end(), read, "spaced")


def _has_language(letters: str) -> bool:
    return any(pairs_share(letters[first : first + 4_096]) >= 0.4 for first in range(0, len(letters), 4_096))


def _wider(run: str, usual: str) -> list[str]:
    """The words of a spaced run: cut wherever the gap is another one than the usual."""
    return _SPACING.sub(lambda gap: "" if gap.group() == usual else "\0", run).split("\0")


def leet_runs(text: str) -> Iterator[Run]:
    """Lines in which at least two common words are written with digits and signs for letters."""
    hits: list[tuple[int, int]] = []
    for match in _LEET_WORD.finditer(text):
        word = match.group()
        if 4 <= len(word) <= 24 and not word.isdigit() and _leet_word(word.lower().rstrip("!")):
            hits.append(match.span())
    group: list[tuple[int, int]] = []
    for hit in [*hits, None]:
        if group and (hit is None or hit[0] - group[-1][1] > _LINE_CHARS // 4):
            if len(group) > 1:
                start, end = group[0][0], group[-1][1]
                start, end = _word_edges(text, start, end)
                yield Run(start, end, _PLAIN_RUN.sub(_plain_word, text[start:end]), "leet")
            group = []
        if hit is not None:
            group.append(hit)


def _word_edges(text: str, start: int, end: int) -> tuple[int, int]:
    """Grow a span by up to forty characters on both sides, to whole words."""
    before = text.rfind(" ", 0, max(0, start - 40)) + 1 if start > 40 else 0
    after = text.find(" ", end + 40)
    return max(before, start - 60), min(end + 60, after if after >= 0 else len(text))


def _leet_word(word: str) -> str:
    """The common word that a leet word stands for, or ""."""
    folded = word.translate(_LEET)
    ones = folded.count("1")
    if not ones:
        return folded if folded in COMMON or (folded[-1:] == "s" and folded[:-1] in COMMON) else ""
    if ones > 3:
        return ""
    for letters in product("il", repeat=ones):
        remaining = iter(letters)
        candidate = "".join(next(remaining) if char == "1" else char for char in folded)
        if candidate in COMMON or (candidate.endswith("s") and candidate[:-1] in COMMON):
            return candidate
    return ""


def _plain_word(match: re.Match[str]) -> str:
    word = match.group()
    if word.isalpha() or not any(map(str.isalnum, word)):
        return word
    tail = word[len(word.rstrip("!")) :]
    return (_leet_word(word.lower().rstrip("!")) or _leet_guess(word[: len(word) - len(tail)])) + tail


def _leet_guess(word: str) -> str:
    # Numbers and codes stay: only words whose digits stand among letters are folded.
    letters = sum(map(str.isalpha, word))
    return word.translate(_LEET).replace("1", "i") if letters * 2 >= len(word) else word


def disguised_runs(text: str) -> Iterator[list[Run]]:
    """The runs of each disguise by itself, in order and without overlap; disguises may overlap each other."""
    yield list(spaced_runs(text))
    yield from turned_runs(text)
    yield list(leet_runs(text))
    yield from symbol_runs(text)
