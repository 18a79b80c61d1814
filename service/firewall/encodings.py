"""Finding runs of encoded text that a model reads as easily as plain text: base64, hex, escapes, codes, percent.

Each finder is one linear pass. A run is only reported where what it decodes to reads as writing, so hashes, UUIDs,
identifiers and binary data give nothing.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import msgspec

from service.firewall.language import pairs_share, reads_as_code, reads_as_text
from service.firewall.sanitise import sanitise


class Run(msgspec.Struct, frozen=True):
    """[start, end) of a text and what it decodes to."""

    start: int
    end: int
    text: str
    kind: str


_B64 = "[A-Za-z0-9+/_-]"
_BASE64 = re.compile(rf"(?<![A-Za-z0-9+/_=-]){_B64}{{16,}}+={{0,2}}(?:\r?\n[ \t]{{0,8}}{_B64}{{2,}}+={{0,2}})*+")
_BASE64_LINE = re.compile(rf"{_B64}{{16,}}+={{0,2}}")
_BASE64_PART = re.compile(r"[A-Za-z0-9]{16,}+(?:={1,2})?")
_URLSAFE = str.maketrans("-_", "+/", "= \t\r\n")
# Base64 in blocks of equal size, as tools and people break it.
_BLOCKS = "|".join(rf"(?:{_B64}{{{size}}}\s{{1,2}}){{4,}}" for size in (4, 5, 6, 8, 10, 12))
_BASE64_BLOCKS = re.compile(rf"(?<!\S)(?:{_BLOCKS})(?:{_B64}{{1,12}}={{0,2}})?(?!\S)")
_BASE32 = re.compile(r"(?<![A-Z2-7])[A-Z2-7]{16,}+={0,6}")
_BASE58_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58 = re.compile(r"(?<![0-9A-Za-z+/=_-])[1-9A-HJ-NP-Za-km-z]{24,2000}(?![0-9A-Za-z+/=_-])")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x|\\x)?[0-9A-Fa-f]{2}(?:[ ,:;-]{0,2}(?:0x|\\x)?[0-9A-Fa-f]{2}){7,}+")
_HEX_NOISE = re.compile(r"0x|\\x|[^0-9A-Fa-f]")
_BINARY = re.compile(r"(?<!\d)[01]{8}(?:[ ,]{0,2}[01]{8}){5,}+")
_CODE = r"(?:1[01]\d|12[0-6]|3[2-9]|[4-9]\d)"
_DECIMAL = re.compile(rf"(?<!\d){_CODE}(?:[ ,;]{{1,2}}{_CODE}){{6,}}+(?!\d)")
_PERCENT = re.compile(r"(?:%(?:25)*[0-9A-Fa-f]{2})++")
_PERCENT_TWICE = re.compile(r"%(?:25)+(?=[0-9A-Fa-f]{2})")
_ENTITY = re.compile(r"&(?:#\d{2,7}|#[xX][0-9a-fA-F]{2,6}|[A-Za-z]{2,31});")
_ESCAPE = re.compile(
    r"(?:\\u[0-9a-fA-F]{4}|\\u\{[0-9a-fA-F]{1,6}\}|\\U[0-9a-fA-F]{8}|\\x[0-9a-fA-F]{2}|\\[0-7]{3}|U\+[0-9A-F]{4,6})++"
)
_ESCAPE_ONE = re.compile(r"\\u\{([0-9a-fA-F]+)\}|\\[uUx]([0-9a-fA-F]{2,8})|\\([0-7]{3})|U\+([0-9A-F]{4,6})")
_TEXT_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz \n\r\t,.'"
# So many printable bytes in a row are no accident in random data (0.38 to the power of 24).
_PRINTABLE = re.compile(rb"[\t\r\n -~]{24,}+")
# Escapes this close belong to one run; between %20s stands a word.
_GAP = 40


def encoded_runs(text: str) -> list[Run]:
    """All runs, in order and without overlap. Linear in the text."""
    found: list[Run] = []
    for find in _FINDERS:
        found += find(text)
    found.sort(key=lambda run: (run.start, -run.end))
    runs: list[Run] = []
    for run in found:
        if not runs or run.start >= runs[-1].end:
            runs.append(run)
    return runs


def bytes_as_text(raw: bytes) -> str:
    """The text that bytes hold (UTF-8, UTF-16 with many Latin letters, or ASCII with some noise), else "".

    Text that may itself be encoded again passes too; whether it is worth judging is the caller's question.
    """
    if len(raw) < 8:
        return ""
    plain = len(raw) - len(raw.translate(None, _TEXT_BYTES))
    if plain * 10 >= len(raw) * 7:
        text = raw.decode("utf-8", "replace").replace("\x00", "")
    elif raw.count(0) * 5 >= len(raw) * 2:
        text = raw.decode("utf-16-be" if raw[0] == 0 else "utf-16-le", "replace")
    else:
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            # The cut may go through the last character; anything earlier is data, perhaps with writing in it.
            if error.start < len(raw) - 3:
                return "\n".join(run.decode() for run in _PRINTABLE.findall(raw) if reads_as_text(run.decode()))
            text = raw[: error.start].decode()
    if not text.isascii():
        text = sanitise(text).text
    return text if reads_as_text(text) or reads_as_code(text) else ""


def _base64(text: str) -> Iterator[Run]:
    for match in _BASE64.finditer(text):
        start, end = match.span()
        decoded = _from_base64(text[start:end])
        if decoded:
            yield Run(start, end, decoded, "base64")
            continue
        lines = list(_BASE64_LINE.finditer(text, start, end))
        for line in lines:
            decoded = _from_base64(line.group()) if len(lines) > 1 or line.end() < end else ""
            if decoded:
                yield Run(line.start(), line.end(), decoded, "base64")
                continue
            yield from _base64_inside(text, line.start(), line.end())


def _base64_blocks(text: str) -> Iterator[Run]:
    for match in _BASE64_BLOCKS.finditer(text):
        decoded = _from_base64(match.group())
        if decoded:
            yield Run(match.start(), match.end(), decoded, "base64")


def _base64_inside(text: str, start: int, end: int) -> Iterator[Run]:
    """A run glued to a path, a name or a few letters of junk: try its parts, then the other three alignments."""
    for part in _BASE64_PART.finditer(text, start, end):
        whole = part.span() == (start, end)
        decoded = "" if whole else _from_base64(part.group())
        if decoded:
            yield Run(part.start(), part.end(), decoded, "base64")
    if end - start >= 24:
        for shift in (1, 2, 3):
            decoded = _from_base64(text[start + shift : end])
            if decoded:
                yield Run(start + shift, end, decoded, "base64")
                return


def _from_base64(run: str) -> str:
    # Text in base64 has both cases; identifiers, hashes and numbers are turned away without decoding.
    if run.islower() or run.isupper() or run.isdecimal():
        return ""
    body = run.translate(_URLSAFE)
    body = body[: len(body) - (len(body) % 4 == 1)]
    try:
        return bytes_as_text(binascii.a2b_base64(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        return ""


def _base58(text: str) -> Iterator[Run]:
    for match in _BASE58.finditer(text):
        number = 0
        for digit in match.group():
            number = number * 58 + _BASE58_DIGITS.index(digit)
        decoded = bytes_as_text(number.to_bytes((number.bit_length() + 7) // 8))
        if decoded:
            yield Run(match.start(), match.end(), decoded, "base58")


def _base32(text: str) -> Iterator[Run]:
    for match in _BASE32.finditer(text):
        body = match.group().rstrip("=")
        body = body[: len(body) - len(body) % 8] if len(body) % 8 in (1, 3, 6) else body
        decoded = bytes_as_text(base64.b32decode(body + "=" * (-len(body) % 8)))
        if decoded:
            yield Run(match.start(), match.end(), decoded, "base32")


def _hex(text: str) -> Iterator[Run]:
    for match in _HEX.finditer(text):
        digits = _HEX_NOISE.sub("", match.group())
        decoded = bytes_as_text(bytes.fromhex(digits[: len(digits) & ~1]))
        if decoded:
            yield Run(match.start(), match.end(), decoded, "hex")


def _binary(text: str) -> Iterator[Run]:
    for match in _BINARY.finditer(text):
        digits = re.sub("[^01]", "", match.group())
        raw = bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits) - 7, 8))
        decoded = bytes_as_text(raw)
        if decoded:
            yield Run(match.start(), match.end(), decoded, "binary")


def _decimal(text: str) -> Iterator[Run]:
    for match in _DECIMAL.finditer(text):
        decoded = "".join(map(chr, map(int, re.findall(r"\d+", match.group()))))
        if reads_as_text(decoded) and pairs_share(decoded) >= 0.4:
            yield Run(match.start(), match.end(), decoded, "decimal")


def _percent(text: str) -> Iterator[Run]:
    if "%" in text:
        yield from _escaped(text, _PERCENT, _unquote, "url", 3)


def _entities(text: str) -> Iterator[Run]:
    if "&" in text:
        yield from _escaped(text, _ENTITY, _entity, "html", 0)


def _escapes(text: str) -> Iterator[Run]:
    if "\\" in text or "U+" in text:
        yield from _escaped(text, _ESCAPE, _unescape, "escape", 0)


def _unquote(run: str) -> str:
    return unquote_to_bytes(_PERCENT_TWICE.sub("%", run)).decode("utf-8", "replace")


@lru_cache(maxsize=4_096)
def _entity(entity: str) -> str:
    return html.unescape(entity)


def _unescape(run: str) -> str:
    codes = [
        int(a or b or d, 16) if a or b or d else int(c, 8)
        for a, b, c, d in (match.groups() for match in _ESCAPE_ONE.finditer(run))
    ]
    joined = "".join(chr(code) if code <= 0x10FFFF else "\ufffd" for code in codes)
    # Two \u escapes may be one character (RFC 8259, section 7).
    return joined.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _escaped(
    text: str, pattern: re.Pattern[str], decode: Callable[[str], str], kind: str, spaces_needed: int
) -> Iterator[Run]:
    """Group escapes that stand close together; report a group that hides letters (or, in URLs, spaces)."""
    group: list[tuple[int, int, str]] = []
    for match in pattern.finditer(text):
        if group and match.start() - group[-1][1] > _GAP:
            yield from _escaped_run(text, group, kind, spaces_needed)
            group = []
        group.append((match.start(), match.end(), decode(match.group())))
    yield from _escaped_run(text, group, kind, spaces_needed)


def _escaped_run(text: str, group: list[tuple[int, int, str]], kind: str, spaces_needed: int) -> Iterator[Run]:
    hidden = "".join(decoded for _, _, decoded in group)
    latin = sum(char.isascii() and char.isalnum() for char in hidden)
    other = sum(not char.isascii() and char.isalpha() for char in hidden)
    spaces = hidden.count(" ") if spaces_needed else 0
    if latin < 3 and other < 6 and (not spaces_needed or spaces < spaces_needed):
        return
    start, end = group[0][0], group[-1][1]
    # Words may be half escaped: take in the plain letters at both ends.
    while start > 0 and text[start - 1].isalnum() and group[0][0] - start < _GAP:
        start -= 1
    while end < len(text) and text[end].isalnum() and end - group[-1][1] < _GAP:
        end += 1
    pieces: list[str] = []
    done = start
    for first, last, decoded in group:
        pieces += (text[done:first], decoded)
        done = last
    pieces.append(text[done:end])
    yield Run(start, end, "".join(pieces), kind)


_FINDERS: tuple[Callable[[str], Iterator[Run]], ...] = (
    _base64,
    _base64_blocks,
    _base32,
    _base58,
    _hex,
    _binary,
    _decimal,
    _percent,
    _entities,
    _escapes,
)
