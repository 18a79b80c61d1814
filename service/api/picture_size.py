"""How large a picture is, from the first bytes of its PNG, JPEG, GIF or WebP. Nothing is decompressed.

Sources: PNG (W3C, 11.2.2), GIF89a (18), RFC 9649 (WebP), ITU-T T.81 (JPEG, B.2).
"""

from __future__ import annotations

import binascii
import re

_MAX_CHARS = 262_144
"""Of base64: what stands before the size of a photograph (a preview, a colour profile) is seldom longer."""
_MAX_SEGMENTS = 256
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset(range(0xD0, 0xD8)) | {0x01}
_END, _SCAN = 0xD9, 0xDA


def size_of(value: str) -> tuple[int, int] | None:
    """Width and height in pixels of a picture in base64, bare or as a `data:` URL; None for all that cannot be read
    without doubt, addresses among them.
    """
    start = 0
    if value[:5].lower() == "data:":
        comma = value.find(",", 0, 256)
        if comma < 0 or not value[:comma].lower().endswith(";base64"):
            return None
        start = comma + 1
    encoded = value[start : start + _MAX_CHARS]
    # A reader that skips what is no base64 would see other bytes than one that does not.
    if not _BASE64.fullmatch(encoded):
        return None
    try:
        head = binascii.a2b_base64(encoded[: len(encoded) // 4 * 4])
    except binascii.Error:
        return None
    size = _size(head)
    return size if size and all(size) else None


def _size(head: bytes) -> tuple[int, int] | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR" and len(head) >= 24:
        return _number(head[16:20]), _number(head[20:24])
    if head[:6] in {b"GIF87a", b"GIF89a"} and len(head) >= 10:
        return _small(head[6:8]), _small(head[8:10])
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP" and len(head) >= 30:
        return _webp(head)
    if head.startswith(b"\xff\xd8"):
        return _jpeg(head)
    return None


def _webp(head: bytes) -> tuple[int, int] | None:
    match head[12:16]:
        case b"VP8X":
            return _small(head[24:27]) + 1, _small(head[27:30]) + 1
        case b"VP8L" if head[20] == 0x2F:
            bits = _small(head[21:25])
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            return _small(head[26:28]) & 0x3FFF, _small(head[28:30]) & 0x3FFF
    return None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        if head[at : at + 1] != b"\xff" or at + 9 > len(head):
            return None
        marker = head[at + 1]
        if marker == 0xFF:  # a filler
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            return _number(head[at + 7 : at + 9]), _number(head[at + 5 : at + 7])
        elif marker in {_END, _SCAN}:
            return None
        else:
            at += 2 + max(2, _number(head[at + 2 : at + 4]))
    return None


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _small(raw: bytes) -> int:
    return int.from_bytes(raw, "little")
