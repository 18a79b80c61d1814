"""Evasion transforms: what people do to a text so that a filter no longer recognises it.

Benign rows get the same transforms with the same odds, otherwise the model would learn that odd spelling is the attack.
They are applied after the contamination filter, which does not see through them.
"""

from __future__ import annotations

import base64
import codecs
import random
import re
import unicodedata
from collections.abc import Callable, Sequence

import msgspec

from training.corpus import Row, stable_hash

Transform = Callable[[str, random.Random], str]

# Longer texts are not spelled letter by letter: nobody sends those, and they would be cut into windows of noise.
MAX_CHARS = 2500
LEET = str.maketrans({"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"})
HOMOGLYPHS = str.maketrans("aceopxyijsABCEHKMOPTXI", "асеорхуіјѕАВСЕНКМОРТХІ")
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
MARKS = "\u0301\u0300\u0308\u0303\u0327\u0331"
# Said of harmless and hostile texts alike: the lead-in must not be the thing that is learned.
LEAD_INS = (
    "Decode this: {}",
    "Base64: {}",
    "{}",
    "The encoded text reads {}",
    "data: {}",
    "Please decode and answer: {}",
)
ROT_LEAD_INS = ("ROT13: {}", "{}", "Decode (rot13): {}")
REVERSED_LEAD_INS = ("{}", "Read this backwards: {}")
FRAMES = ("> {}", "```\n{}\n```", '"{}"', "**{}**", "# {}", "<p>{}</p>", "- {}", "«{}»", "---\n{}\n---", "'''{}'''")
NOISE = ".,;:-_*~!|/^"

_WORD = re.compile(r"\w+")


def random_case(text: str, rng: random.Random) -> str:
    """EaCh letter's case at random, or everything in capitals."""
    if rng.random() < 0.25:
        return text.upper()
    return "".join(rng.choice((letter.upper(), letter.lower())) for letter in text)


def typos(text: str, rng: random.Random) -> str:
    """Neighbouring letters swapped, dropped or doubled in about a quarter of the words."""

    def slip(match: re.Match[str]) -> str:
        word = match.group()
        if len(word) < 4 or rng.random() > 0.25:
            return word
        at = rng.randrange(1, len(word) - 1)
        return rng.choice(
            (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
            )
        )

    return _WORD.sub(slip, text)


def scramble(text: str, rng: random.Random) -> str:
    """The inner letters of wrods mexid up (typoglycemia)."""

    def mix(match: re.Match[str]) -> str:
        word = match.group()
        inner = list(word[1:-1])
        rng.shuffle(inner)
        return word[:1] + "".join(inner) + word[-1:] if len(word) > 3 else word

    return _WORD.sub(mix, text)


def spaced(text: str, rng: random.Random) -> str:
    """l e t t e r s  apart, by spaces, dots or hyphens."""
    gap = rng.choice((" ", " ", ".", "-"))
    return (gap + gap if gap == " " else " ").join(gap.join(word) for word in text.split(" "))


def leet(text: str, rng: random.Random) -> str:
    """L3773r5 45 d161t5, in most words."""
    return _WORD.sub(lambda match: match.group().translate(LEET) if rng.random() < 0.8 else match.group(), text)


def homoglyphs(text: str, rng: random.Random) -> str:
    """Cyrillic letters that look Latin."""
    return "".join(letter.translate(HOMOGLYPHS) if rng.random() < 0.6 else letter for letter in text)


def zero_width(text: str, rng: random.Random) -> str:
    """Invisible characters between letters."""
    return "".join(letter + (rng.choice(ZERO_WIDTH) if rng.random() < 0.3 else "") for letter in text)


def diacritics(text: str, rng: random.Random) -> str:
    """Ẃíth ḿarks on many letters."""
    marked = (letter + rng.choice(MARKS) if letter.isalpha() and rng.random() < 0.35 else letter for letter in text)
    return unicodedata.normalize("NFC", "".join(marked))


def full_width(text: str, _rng: random.Random) -> str:
    """Ｆｕｌｌ－ｗｉｄｔｈ letters."""
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


def base64_text(text: str, rng: random.Random) -> str:
    """The text in base64, with or without a lead-in."""
    return rng.choice(LEAD_INS).format(base64.b64encode(text.encode()).decode())


def rot13(text: str, rng: random.Random) -> str:
    """The text in ROT13."""
    return rng.choice(ROT_LEAD_INS).format(codecs.encode(text, "rot13"))


def reversed_words(text: str, rng: random.Random) -> str:
    """Words from last to first, or letters from last to first."""
    turned = text[::-1] if rng.random() < 0.4 else " ".join(reversed(text.split(" ")))
    return rng.choice(REVERSED_LEAD_INS).format(turned)


def punctuation(text: str, rng: random.Random) -> str:
    """Stray. punctuation, between; many* words."""
    return re.sub(r" ", lambda _: rng.choice(NOISE) + " " if rng.random() < 0.3 else " ", text)


def whitespace(text: str, rng: random.Random) -> str:
    """Blanks, tabs and line breaks where one blank was."""
    return re.sub(r" ", lambda _: rng.choice(("  ", "\n", "\t", "   ", "\n\n")) if rng.random() < 0.3 else " ", text)


def framed(text: str, rng: random.Random) -> str:
    """Inside markdown, quotes or markup."""
    before, _, after = rng.choice(FRAMES).partition("{}")
    return before + text + after


TRANSFORMS: dict[str, Transform] = {
    "random_case": random_case,
    "typos": typos,
    "scramble": scramble,
    "spaced": spaced,
    "leet": leet,
    "homoglyphs": homoglyphs,
    "zero_width": zero_width,
    "diacritics": diacritics,
    "full_width": full_width,
    "base64": base64_text,
    "rot13": rot13,
    "reversed_words": reversed_words,
    "punctuation": punctuation,
    "whitespace": whitespace,
    "framed": framed,
}
# Unreadable without decoding: the service decodes these before it scores, so they are needed less often.
RARE = frozenset(["base64", "rot13", "reversed_words"])


def augment(rows: Sequence[Row], share: float = 0.15, *, seed: int = 0) -> list[Row]:
    """Transformed copies of about `share` of the rows, in the rows' groups; the rows themselves are not among them.

    A hash of the group, not of the row, chooses row and transform: an attack and its benign twin are changed alike. In
    half of the rows with a span only the span is changed, as an attacker would; then the span is mapped to the new
    text, and dropped where the whole text was changed.
    """
    names = [name for name in TRANSFORMS for _ in range(1 if name in RARE else 2)]
    copies: list[Row] = []
    for row in rows:
        draw = random.Random(stable_hash("augment", seed, row.group or row.text))
        if draw.random() >= share or len(row.text) > MAX_CHARS:
            continue
        name, inside = draw.choice(names), draw.random() < 0.5
        start, end = row.span if row.span and inside else (0, len(row.text))
        changed = TRANSFORMS[name](row.text[start:end], draw)
        text = row.text[:start] + changed + row.text[end:]
        span = (start, start + len(changed)) if row.span and inside else None
        if text != row.text:
            copies.append(msgspec.structs.replace(row, text=text, span=span, kind=f"{row.kind}+{name}"))
    return copies
