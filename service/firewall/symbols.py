"""Finding letters written as other signs: Morse, Braille, upside-down, accents on everything."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from service.firewall.encodings import Run
from service.firewall.language import COMMON, pairs_share

_MORSE_SIGNS = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.."
)
_MORSE = dict(zip(_MORSE_SIGNS.split(), "abcdefghijklmnopqrstuvwxyz", strict=True)) | {"/": " ", "|": " "}
_MORSE_RUN = re.compile(r"(?<![^\s])(?:[.\-]{1,5}[ \n]{1,3}|[/|] {0,2}){8,}+[.\-]{0,5}")
_DASHES = str.maketrans("·•−–—_", "..----")

# Dots 1-6 as bits 0-5 (Unicode block Braille Patterns).
_BRAILLE_CODES = (1, 3, 9, 25, 17, 11, 27, 19, 10, 26, 5, 7, 13, 29, 21, 15, 31, 23, 14, 30, 37, 39, 58, 45, 61, 53)
_BRAILLE = {0x2800 + code: chr(97 + number) for number, code in enumerate(_BRAILLE_CODES)}
_BRAILLE_RUN = re.compile("[\u2801-\u28ff][\u2801-\u28ff ]{4,}+")

_FLIPPED = dict(
    zip(
        "ɐqɔpǝɟɓɥıɾʞlɯuodbɹsʇnʌʍxʎzᴉƃⅎʅᵷ",
        "abcdefghijklmnopqrstuvwxyzigflg",
        strict=True,
    )
)
_TURNED_CAPITALS = dict(zip("∀ᗺƆᗡƎℲ⅁פſ˥WԀΌᴚ┴∩ΛM⅄˙¿¡", "ABCDEFGGJLMPQRTUVWY.?!", strict=True))
_FLIP = {ord(char): latin for char, latin in (_FLIPPED | _TURNED_CAPITALS).items()}
_FLIP |= {ord("n"): "u", ord("u"): "n", ord("'"): ",", ord(","): "'"}
_FLIP_SIGN = re.compile("[ɐɔǝɟɓɥɾʞɯɹʇʌʍʎᴉƃ]")
_FLIP_CHARS = "a-zA-Z0-9" + "".join(char for char in _FLIPPED | _TURNED_CAPITALS if not char.isascii())
_FLIP_RUN = re.compile(f"[{_FLIP_CHARS}][{_FLIP_CHARS} \n,.;:'\"!?()-]{{5,}}+")

_LATIN_MARKED = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_WORDS = re.compile(r"[^\W\d_]{4,}+")


def symbol_runs(text: str) -> Iterator[list[Run]]:
    """The runs of each way of writing by itself."""
    if ".-" in text or "-." in text or "·" in text or "•" in text:
        yield list(_morse(text))
    if text.isascii():
        return
    yield list(_braille(text))
    yield list(_flipped(text))
    yield list(_accented(text))


def _morse(text: str) -> Iterator[Run]:
    for match in _MORSE_RUN.finditer(text.translate(_DASHES)):
        read = "".join(
            "".join(_MORSE.get(sign, "") for sign in word.replace("/", " / ").replace("|", " | ").split()) + " "
            for word in re.split(r"\n| {3}", match.group())
        )
        if pairs_share(read) >= 0.35:
            yield Run(match.start(), match.end(), " ".join(read.split()), "morse")


def _braille(text: str) -> Iterator[Run]:
    for match in _BRAILLE_RUN.finditer(text):
        yield Run(match.start(), match.end(), match.group().translate(_BRAILLE), "braille")


def _flipped(text: str) -> Iterator[Run]:
    if len(_FLIP_SIGN.findall(text)) < 3:
        return
    for match in _FLIP_RUN.finditer(text):
        if len(_FLIP_SIGN.findall(match.group())) >= 3:
            read = match.group()[::-1].translate(_FLIP)
            if pairs_share(read) >= 0.35:
                yield Run(match.start(), match.end(), read, "flipped")


def _accented(text: str) -> Iterator[Run]:
    """Words that become common English ones without their marks; no orthography has three of those by chance."""
    if _LATIN_MARKED.search(text) is None:
        return
    hits = []
    for match in _WORDS.finditer(text):
        word = match.group()
        if not word.isascii() and len(word) < 24 and _bare(word).lower() in COMMON and word.lower() not in COMMON:
            hits.append(match.span())
    if len(hits) >= 3:
        start, end = hits[0][0], hits[-1][1]
        yield Run(start, end, _bare(text[start:end]), "accents")


def _bare(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))
