"""What reading at a place gives: a credential, the need for more text, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

# A token is judged by so many characters; what goes on behind them belongs to it.
CAP = 512
RUN = re.compile("[0-9A-Za-z_.+/=~$:%@-]*")
MORE = re.compile("[0-9A-Za-z_+/=-]*")
ALNUM = re.compile("[0-9A-Za-z]")

Growth = Callable[[str, int, bool], tuple[int, bool]]
"""(text, from, ended) → how far the match goes on in the text, and whether it may go on still."""


class Sight(msgspec.Struct, frozen=True):
    """A credential at [start, end). `score`: 1.0 where a checksum or structure proves it, else how sure its form is."""

    name: str
    start: int
    end: int
    score: float
    grows: Growth | None = None


class Wait(msgspec.Struct, frozen=True):
    """More text is needed. `hold`: from where on none may leave; None where the value has not begun."""

    hold: int | None = None


Read = Sight | Wait | None
Reader = Callable[[str, int, bool], Read]
"""(text, place of the anchor, whether the text has ended) → what stands there."""
