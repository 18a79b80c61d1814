"""Texts of a reply that come in parts, which their readers join: judged across the seams as well.

The `output_text` of OpenAI's SDK joins the parts of all messages of a response; LangChain joins those of a chat's.
"""

from __future__ import annotations

import re

_PARTS = re.compile(r"(output|choices/\d+)(?:/[^/]+)?/content/\d+/text\Z")
_SEAM_CHARS = 256


class Seams:
    """Follows the parts of all texts of one reply."""

    def __init__(self) -> None:
        self._seams: dict[str, _Seam] = {}

    def joined(self, channel: str, text: str) -> tuple[str, str] | None:
        """The next text of a channel: (channel, text) of the joined text that it belongs to, None where it has no other
        part.
        """
        parts = _PARTS.match(channel)
        if parts is None:
            return None
        said = self._seams.setdefault(parts[1], _Seam()).add(channel, text)
        return None if said is None else (f"{parts[1]}#parts", said)


class _Seam:
    """Follows a text over its parts: from the second part on it tells what the joined text says, seam included."""

    def __init__(self) -> None:
        self._part = self._tail = ""
        self._crossed = False

    def add(self, part: str, text: str) -> str | None:
        """The next text of a part; what is to be judged of the joined text, None where that is the part's own."""
        lead = self._tail if text and part != self._part and not self._crossed else ""
        self._crossed = self._crossed or bool(lead)
        self._part = part if text else self._part
        self._tail = (self._tail + text)[-_SEAM_CHARS:]
        return lead + text if self._crossed else None
