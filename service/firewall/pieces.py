"""Cutting long texts into pieces, so that no single step grows with the whole text."""

from __future__ import annotations

import re

_SPACE = re.compile(r"\s")
# A cut looks back this far for a space.
_NEAR_CHARS = 2_048


def split(text: str, size: int) -> list[str]:
    """Pieces of at most `size` characters that join to the text again, cut before a space where there is one near."""
    if len(text) <= size:
        return [text] if text else []
    pieces = []
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            spaces = [match.start() for match in _SPACE.finditer(text, max(start + 1, end - _NEAR_CHARS), end)]
            end = spaces[-1] if spaces else end
        pieces.append(text[start:end])
        start = end
    return pieces
