"""Letters of other scripts that look like Latin ones, and where folding them is safe.

The table is written from the shapes in the Unicode code charts, after the idea of UTS #39 (skeletons of confusable
identifiers). It is used word by word and never on whole texts: Russian or Greek prose must reach the classifier as it
was written.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Pairs whose shapes cannot be told apart in common fonts. A word made of nothing else may be a disguised Latin word.
_STRICT = {
    # Cyrillic
    "аᴀ": "a", "с": "c", "е": "e", "о": "o", "р": "p", "х": "x", "у": "y", "і": "i", "ј": "j", "ѕ": "s", "һ": "h",
    "ԁ": "d", "ԛ": "q", "ԝ": "w", "ѵ": "v", "ӏ": "l", "ԍ": "g", "ү": "y", "ҽ": "e", "ӕ": "a", "ԧ": "h", "ո": "n",
    "А": "A", "В": "B", "Е": "E", "К": "K", "М": "M", "Н": "H", "О": "O", "Р": "P", "С": "C", "Т": "T", "Х": "X",
    "У": "Y", "І": "I", "Ј": "J", "Ѕ": "S", "Ԁ": "D", "Ԛ": "Q", "Ԝ": "W", "Ѵ": "V", "Ү": "Y", "Ԍ": "G", "Һ": "H",
    "Ӏ": "I",
    # Greek
    "ο": "o", "ν": "v", "ι": "i", "ρ": "p", "α": "a", "υ": "u", "ϲ": "c", "ϳ": "j", "κ": "k", "γ": "y",
    "Α": "A", "Β": "B", "Ε": "E", "Ζ": "Z", "Η": "H", "Ι": "I", "Κ": "K", "Μ": "M", "Ν": "N", "Ο": "O", "Ρ": "P",
    "Τ": "T", "Υ": "Y", "Χ": "X", "Ϲ": "C", "Ϳ": "J",
    # Armenian
    "օ": "o", "ս": "u", "հ": "h", "ց": "g", "զ": "q", "ռ": "n", "ք": "p", "յ": "j", "Օ": "O", "Տ": "S", "Ս": "U",
    "Լ": "L", "ա": "w", "ւ": "i",
    # Cherokee (capitals, then the small letters added in Unicode 8)
    "Ꭰ": "D", "Ꭱ": "R", "Ꭲ": "T", "Ꭵ": "i", "Ꭹ": "y", "Ꭺ": "A", "Ꭻ": "J", "Ꭼ": "E", "Ꮃ": "W", "Ꮇ": "M", "Ꮋ": "H",
    "Ꮍ": "Y", "Ꮐ": "G", "Ꮒ": "h", "Ꮓ": "Z", "Ꮞ": "4", "Ꮟ": "b", "Ꮢ": "R", "Ꮤ": "W", "Ꮥ": "S", "Ꮩ": "V", "Ꮪ": "S",
    "Ꮮ": "L", "Ꮯ": "C", "Ꮲ": "P", "Ꮶ": "K", "Ꮷ": "d", "Ᏼ": "B", "Ꮎ": "O",
    "ꭰ": "d", "ꭱ": "r", "ꭲ": "t", "ꭵ": "i", "ꮃ": "w", "ꮇ": "m", "ꮋ": "h", "ꮍ": "y", "ꮓ": "z", "ꮩ": "v", "ꮪ": "s",
    "ꮮ": "l", "ꮯ": "c", "ꮲ": "p", "ꮶ": "k", "ꭼ": "e", "ꭺ": "a", "ꭻ": "j", "ꮎ": "o",
    # Lisu
    "ꓐ": "B", "ꓑ": "P", "ꓒ": "d", "ꓓ": "D", "ꓔ": "T", "ꓖ": "G", "ꓗ": "K", "ꓙ": "J", "ꓚ": "C", "ꓜ": "Z", "ꓝ": "F",
    "ꓟ": "M", "ꓠ": "N", "ꓡ": "L", "ꓢ": "S", "ꓣ": "R", "ꓦ": "V", "ꓧ": "H", "ꓪ": "W", "ꓫ": "X", "ꓬ": "Y", "ꓮ": "A",
    "ꓰ": "E", "ꓲ": "I", "ꓳ": "O", "ꓴ": "U",
    # Coptic
    "ⲁ": "a", "ⲃ": "b", "ⲉ": "e", "ⲏ": "h", "ⲓ": "i", "ⲕ": "k", "ⲙ": "m", "ⲛ": "n", "ⲟ": "o", "ⲣ": "p", "ⲥ": "c",
    "ⲧ": "t", "ⲩ": "y", "ⲭ": "x", "Ⲁ": "A", "Ⲃ": "B", "Ⲉ": "E", "Ⲏ": "H", "Ⲓ": "I", "Ⲕ": "K", "Ⲙ": "M", "Ⲛ": "N",
    "Ⲟ": "O", "Ⲣ": "P", "Ⲥ": "C", "Ⲧ": "T", "Ⲩ": "Y", "Ⲭ": "X",
    # Latin letters in disguise: small capitals and phonetic forms that NFKC leaves alone
    "ʙ": "b", "ᴄ": "c", "ᴅ": "d", "ᴇ": "e", "ꜰ": "f", "ɢ": "g", "ɡ": "g", "ʜ": "h", "ɪ": "i", "ı": "i", "ᴊ": "j",
    "ȷ": "j", "ᴋ": "k", "ʟ": "l", "ᴍ": "m", "ɴ": "n", "ᴏ": "o", "ᴘ": "p", "ꞯ": "q", "ʀ": "r", "ꜱ": "s", "ᴛ": "t",
    "ᴜ": "u", "ᴠ": "v", "ᴡ": "w", "ʏ": "y", "ᴢ": "z", "ɑ": "a", "ɩ": "i", "ǀ": "l", "ƅ": "b", "ꞵ": "b", "ʋ": "v",
    "ɯ": "w", "ƽ": "s", "ɾ": "r", "ʍ": "w",
}  # fmt: skip
# Likenesses that only a word with real Latin letters in it makes believable.
_LOOSE = {
    "к": "k", "м": "m", "т": "t", "в": "b", "н": "h", "п": "n", "г": "r", "и": "u", "з": "3", "б": "6", "ъ": "b",
    "ь": "b", "я": "r", "Я": "R", "И": "N", "Г": "r", "З": "3", "ё": "e", "ї": "i", "Ї": "I", "ɐ": "a", "э": "e",
    "η": "n", "τ": "t", "ε": "e", "σ": "o", "ω": "w", "χ": "x", "μ": "u", "β": "b", "δ": "d", "λ": "l", "π": "n",
    "Σ": "E", "Λ": "A", "ς": "s", "ά": "a", "έ": "e", "ή": "n", "ί": "i", "ό": "o", "ύ": "u", "ώ": "w",
    "ɛ": "e", "ʃ": "s", "ß": "b", "ƈ": "c", "ɖ": "d", "ƒ": "f", "ɠ": "g", "ɦ": "h", "ƙ": "k", "ɱ": "m", "ɳ": "n",
    "ƥ": "p", "ʠ": "q", "ʂ": "s", "ƭ": "t", "ƴ": "y", "ʐ": "z", "ɓ": "b", "ɗ": "d", "ɲ": "n", "ŋ": "n", "ɵ": "o",
    "ס": "o", "ט": "u", "ו": "i", "א": "x", "ᗩ": "A", "ᗷ": "B", "ᑕ": "C", "ᗪ": "D", "ᗴ": "E", "ᖴ": "F",
    "ᕼ": "H", "ᒍ": "J", "ᒪ": "L", "ᗰ": "M", "ᑎ": "N", "ᑭ": "P", "ᖇ": "R", "ᔕ": "S", "ᑌ": "U", "ᐯ": "V", "ᗯ": "W",
    "᙭": "X", "ჿ": "o", "ყ": "y", "ო": "m", "ხ": "b",

}  # fmt: skip

STRICT: dict[str, str] = {char: latin for chars, latin in _STRICT.items() for char in chars}
# Real letters of Latin orthographies (German ß, Hausa, Sami, Turkish ı) stay as they are in words of their own script.
_ORTHOGRAPHIC = frozenset("ßıŋɓɗƙƴɛƒɲ")
LOOSE: dict[str, str] = {char: latin for char, latin in _LOOSE.items() if char not in STRICT}
_DISGUISED_LATIN = frozenset(char for char in STRICT if unicodedata.name(char, "").startswith("LATIN"))
FOLD: dict[int, str] = {ord(char): latin for char, latin in (LOOSE | STRICT).items()}

CANDIDATE = re.compile("[" + "".join(set(STRICT) | set(LOOSE)) + "]")
_WORD = re.compile(r"([^\W\d_]+)")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
_ALL_STRICT = re.compile("(?:[" + "".join(STRICT) + "])+")

LATIN, FOREIGN, MIXED, LOOKALIKE = range(4)
_SHORT = 32


def word_kind(word: str) -> int:
    """LATIN, FOREIGN (a real word of another script), MIXED (foldable disguise) or LOOKALIKE (nothing but doubles)."""
    if word.isascii():
        return LATIN
    # Only words of ordinary length are remembered: a cache of megabyte-long ones would be a way to fill the memory.
    return _short_word_kind(word) if len(word) <= _SHORT else _word_kind(word)


def _word_kind(word: str) -> int:
    if CANDIDATE.search(word) is None:
        return LATIN if _LATIN.search(word) else FOREIGN
    foreign = [char for char in word if not _LATIN.match(char) or (char in STRICT and char not in _ORTHOGRAPHIC)]
    if not foreign:
        return LATIN
    if _ALL_STRICT.fullmatch(word):
        # Small capitals and the like are Latin letters already: nobody else's word is made of them.
        return MIXED if len(word) > 2 and all(char in _DISGUISED_LATIN for char in word) else LOOKALIKE
    if len(foreign) == len(word):
        return FOREIGN
    foldable = sum(char in STRICT or char in LOOSE for char in foreign)
    # "USBшник": letters without a Latin double show a real word of both scripts; one of them alone is an evasion.
    return MIXED if foldable * 3 >= len(foreign) * 2 else FOREIGN


_short_word_kind = lru_cache(maxsize=32_768)(_word_kind)


def fold(text: str) -> str:
    """Fold disguised Latin words; the result has the same length. Linear in the text.

    Words that mix Latin with lookalikes are folded. Words of lookalikes only are folded where the words around them
    are Latin; a real word of another script next to them keeps them as they are.
    """
    if CANDIDATE.search(text) is None:
        return text
    parts = _WORD.split(text)  # what lies between words at even places, words at odd ones
    kinds = list(map(word_kind, parts[1::2]))
    before = _nearest(kinds)
    after = _nearest(kinds[::-1])[::-1]
    only_doubles = kinds.count(LOOKALIKE) >= 3 and FOREIGN not in kinds and LATIN not in kinds
    for position, kind in enumerate(kinds):
        if kind < MIXED:
            continue
        near = (before[position], after[position])
        if kind == MIXED or (FOREIGN not in near and (LATIN in near or MIXED in near or only_doubles)):
            word = parts[2 * position + 1]
            parts[2 * position + 1] = _folded(word) if len(word) <= _SHORT else word.translate(FOLD)
    return "".join(parts)


@lru_cache(maxsize=32_768)
def _folded(word: str) -> str:
    return word.translate(FOLD)


def _nearest(kinds: list[int]) -> list[int]:
    """For each word the kind of the closest earlier word that is not itself a LOOKALIKE (-1: none)."""
    nearest, last = [], -1
    for kind in kinds:
        nearest.append(last)
        if kind != LOOKALIKE:
            last = kind
    return nearest
