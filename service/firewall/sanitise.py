"""The sanitised view of a text: what a model reads when nothing hides in how it is written.

    NFKC · invisible, bidirectional and control characters out · tag characters and selector bytes revealed ·
    stacked marks off · lookalike letters folded inside Latin text        (RFC 8264, UTR #36, UTS #39, UAX #15)

Every character of a view knows where in the original it came from, so findings speak of the caller's own text.
Scripts other than Latin stay as they were written. All steps are linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.confusables import fold

Offsets = npt.NDArray[np.int32]
Hidden = tuple[int, int, str]

_MAX_HIDDEN = 32
# One character may become at most this many: U+FDFA alone would make eighteen out of one.
_MAX_EXPANSION = 4

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TERMINAL_ESCAPE = re.compile(r"(?:\x1b\[|\x9b)[0-9;?]*[ -/]*[@-~]")
_INHERITED = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_OVERLAY = "\u0334-\u0338\u0488\u0489\u20d2\u20d3\u20d8-\u20de\u20e0\u20e2-\u20e6\u20ea\u20eb"
_STACKED = re.compile(f"[{_INHERITED}]{{2}}|[{_OVERLAY}]")
_STACK_MARK = re.compile(f"[{_INHERITED}]")
_OVERLAY_MARK = re.compile(f"[{_OVERLAY}]")
# Only the basic plane: character classes beyond it are searched one range after the other.
_MARKS = "".join(
    re.escape(chr(code)) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me")
)
_CLUSTER = re.compile(f"[^{_MARKS}][{_MARKS}]+|[\u1100-\u11ff]{{2,}}", re.DOTALL)

_TAGS = "\U000e0001\U000e0020-\U000e007f"
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_FLAG = "\U0001f3f4"
_FLAG_TAGS = re.compile("\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074|"
                        "\U000e0077\U000e006c\U000e0073)\U000e007f")  # fmt: skip
_INVISIBLE = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufeff"
    "\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
_REMOVED = re.compile(f"[{_TAGS}{_SELECTORS}{_BIDI}{_INVISIBLE}]")
# Runs whose treatment depends on what stands around them, and runs that only go.
_SPECIAL = re.compile(f"[{_TAGS}]+|[{_SELECTORS}]+|(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
_UNSEEN = re.compile(f"[{_BIDI}]+|[{_INVISIBLE}]+")
_BIDI_MARK = re.compile(f"[{_BIDI}]")
# Cf characters that are drawn: Arabic number signs and the like.
_DRAWN_FORMAT = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")


class View(msgspec.Struct, frozen=True, eq=False):
    """A reading of a text. `kind` is `main` or how it was decoded (`base64`, `rot13`, `base64+url`, …).

    `starts` int32 (len(text),), monotone: the original offset of each character; None for the identity.
    `stop` is where the last character's original ends; `hidden` lists invisible text in the original as
    (start, end, kind).
    """

    text: str
    kind: str
    starts: Offsets | None
    stop: int
    hidden: tuple[Hidden, ...] = ()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original's offsets of [start, end) of this view; whatever became one of its characters is inside."""
        starts = self.starts
        if starts is None:
            return start, end
        if not len(starts):
            return 0, self.stop
        first = int(starts[min(start, len(starts) - 1)])
        if end <= start:
            return first, first
        last = starts[min(end, len(starts)) - 1]
        following = int(np.searchsorted(starts, last, side="right"))
        return first, int(starts[following]) if following < len(starts) else self.stop


def sanitise(text: str) -> View:
    """The `main` view of a text."""
    if text.isascii() and _CONTROL.search(text) is None:
        return View(text, "main", None, len(text))
    chars, hidden = _plain_characters(text)
    if chars is None:
        clean, starts = text, None
    else:
        clean, starts = _assemble(chars, None)
    edits = list(_composed(clean))
    if edits:
        chars = list(clean)
        for start, end, replacement in edits:
            chars[start:end] = [replacement, *[""] * (end - start - 1)]
        clean, starts = _assemble(chars, starts)
    return View(fold(clean), "main", starts, len(text), hidden)


def _assemble(chars: list[str], starts: Offsets | None) -> tuple[str, Offsets | None]:
    """Join replacements, one per character, and carry the offsets along."""
    clean = "".join(chars)
    lengths = np.fromiter(map(len, chars), np.int32, len(chars))
    if (lengths == 1).all():
        return clean, starts
    origin = np.arange(len(chars), dtype=np.int32) if starts is None else starts
    return clean, np.repeat(origin, lengths)


def _plain_characters(text: str) -> tuple[list[str] | None, tuple[Hidden, ...]]:
    """One replacement per character (None where nothing changes), and where text is hidden."""
    table = {char: _plain(char) for char in set(text)}
    if all(char == plain for char, plain in table.items()):
        return None, ()
    chars = list(map(table.__getitem__, text))
    hidden: list[Hidden] = []
    if "\x1b" in table or "\x9b" in table:
        for match in _TERMINAL_ESCAPE.finditer(text):
            chars[match.start() : match.end()] = [""] * (match.end() - match.start())
    for match in _SPECIAL.finditer(text):
        kind = _special(text, match.start(), match.end(), chars)
        if kind and len(hidden) < _MAX_HIDDEN:
            hidden.append((match.start(), match.end(), kind))
    for match in _UNSEEN.finditer(text):
        start, end = match.span()
        if (start, end) == (0, 1) and text[0] == "\ufeff":
            continue
        if end - start > 1 or text[start] not in "\u200c\u200d" or not _joined(text, start):
            hidden.append((start, end, "bidi" if _BIDI_MARK.match(text, start) else "invisible"))
            if len(hidden) >= 2 * _MAX_HIDDEN:
                break
    return chars, tuple(sorted(hidden)[:_MAX_HIDDEN])


def _special(text: str, start: int, end: int, chars: list[str]) -> str:
    """Settle one run of invisible characters in `chars`; the kind of hidden text it is, or "" for ordinary use."""
    before = text[start - 1] if start else ""
    after = text[end] if end < len(text) else ""
    first = text[start]
    if "\U000e0001" <= first <= "\U000e007f":
        if before == _FLAG and _FLAG_TAGS.fullmatch(text, start, end):
            chars[start:end] = [""] * (end - start)
            return ""
        if end - start >= 4:  # a sentence, not letters strewn into words: keep it apart from its surroundings
            chars[start] = " " + chars[start]
            chars[end - 1] += " "
        return "tags"
    if "\ufe00" <= first <= "\ufe0f" or first >= "\U000e0100":
        revealed = _selector_text(text[start:end]) if end - start >= 4 else ""
        if revealed:
            chars[start:end] = [revealed[i] if i < len(revealed) else "" for i in range(end - start)]
            chars[start] = " " + chars[start]
            chars[end - 1] += " "
        # One selector chooses how the symbol or ideograph before it is drawn.
        drawn = not before.isascii() or (before in "0123456789#*" and after == "\u20e3")
        return "" if end - start == 1 and drawn else "selectors"
    if _joined(text, start):
        chars[start] = first if before < "\u2000" else ""
    return ""


def _joined(text: str, place: int) -> bool:
    """Whether a joiner at `place` is part of the writing around it."""
    return 0 < place < len(text) - 1 and _joins(text[place - 1]) and _joins(text[place + 1])


def _joins(char: str) -> bool:
    """Whether joiners are part of writing here: Arabic and Indic scripts, emoji sequences."""
    return char >= "\u0590" and not "\u2000" <= char <= "\u206f"


def _selector_text(run: str) -> str:
    """Bytes written as variation selectors (U+FE00-FE0F are 0-15, U+E0100-E01EF are 16-255), if they are text."""
    codes = bytes(c - 0xFE00 if c < 0x10000 else c - 0xE0100 + 16 for c in map(ord, run))
    try:
        text = codes.decode()
    except UnicodeDecodeError:
        return ""
    return text if all(char.isprintable() or char in "\n\t" for char in text) else ""


# Thai and Lao AM: NFKC takes them apart and keyboards never write the parts.
_KEPT = frozenset("\u0e33\u0eb3")
_WHITE = {"\t": "\t", "\n": "\n", "\r": "\r", "\x0b": " ", "\x0c": " "}


@lru_cache(maxsize=65_536)
def _plain(char: str) -> str:
    """What stands for one character in the main view, seen by itself."""
    if char < "\x80":
        return char if " " <= char < "\x7f" else _WHITE.get(char, "")
    category = unicodedata.category(char)
    if category in ("Cf", "Mn", "Lo", "Zl", "Zp", "Zs", "Cc", "Cs", "So", "Cn") and char not in _DRAWN_FORMAT:
        code = ord(char)
        if 0xE0020 <= code <= 0xE007E:
            return chr(code - 0xE0000)
        if category in ("Zl", "Zp") or code == 0x85:
            return "\n"
        if category == "Zs" or code == 0x2800:  # the Braille pattern without dots
            return " "
        if category == "Cs":  # a lone surrogate is no character and cannot be encoded
            return "\ufffd"
        if category in ("Cc", "Cf") or _REMOVED.match(char):
            return ""
        if category == "So" and (letter := _letter_symbol(code)):
            return letter
    if char in _KEPT or unicodedata.is_normalized("NFKC", char):
        return char
    plain = unicodedata.normalize("NFKC", char)
    if len(plain) > _MAX_EXPANSION or (plain[0] == " " and len(plain) > 1):
        return char
    return "".join(_plain(part) for part in plain) if len(plain) > 1 or plain.isascii() else plain


def _letter_symbol(code: int) -> str:
    """Letters drawn as symbols that NFKC leaves alone or wraps: boxed, parenthesised, regional indicators."""
    for first, base in ((0x249C, "a"), (0x1F110, "A"), (0x1F150, "A"), (0x1F170, "A"), (0x1F1E6, "A")):
        if first <= code < first + 26:
            return chr(ord(base) + code - first)
    return ""


def _composed(text: str) -> Iterable[tuple[int, int, str]]:
    """Edits that compose base and marks (NFKC) and take off stacks of marks that no orthography has."""
    if text.isascii():
        return
    stacked = _STACKED.search(text) is not None
    if not stacked and unicodedata.is_normalized("NFC", text):
        return
    for match in _CLUSTER.finditer(text):
        cluster = match.group()
        composed = _compose(cluster) if len(cluster) <= 32 else _compose_long(cluster)
        if composed != cluster:
            yield match.start(), match.end(), composed


@lru_cache(maxsize=32_768)
def _compose(cluster: str) -> str:
    composed = unicodedata.normalize("NFC", cluster)
    # Vietnamese, Yoruba or polytonic Greek keep at most one mark that has no composed letter.
    if len(_STACK_MARK.findall(composed[1:])) >= 2 or _OVERLAY_MARK.search(composed):
        return _bare(composed)
    return composed


def _compose_long(cluster: str) -> str:
    # Canonical reordering of one huge cluster is quadratic: nothing of it is orthography, so it is not composed.
    return unicodedata.normalize("NFC", cluster) if "\u1100" <= cluster[0] <= "\u11ff" else _bare(cluster)


def _bare(cluster: str) -> str:
    base = unicodedata.normalize("NFD", cluster[0])[0]
    return base + _STACK_MARK.sub("", cluster[1:])
