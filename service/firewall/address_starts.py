"""How addresses begin in a text, in every spelling that a browser or a mail program takes for one.

Schemes may be written with entities, with backslashes for slashes, with none after the colon, and with tabs and line
ends in them, which are dropped (URL Standard, "basic URL parser"); or left out, where an attribute, parentheses or the
definition of a reference show that an address is meant.
"""

from __future__ import annotations

import html
import re


def _spelled(char: str, name: str = "") -> str:
    """A character, or the entity for it: in an attribute or a Markdown link they are the same."""
    codes = sorted({ord(char.lower()), ord(char.upper())})
    ways = [way for code in codes for way in (rf"\#0{{0,5}}{code}", rf"\#x0{{0,5}}{code:x}")]
    return f"(?:{re.escape(char)}|&(?:{'|'.join([*ways, name] if name else ways)});?)"


_DROPPED = r"(?:[\t\n\r]|&(?:tab|newline|\#0{0,5}(?:9|10|13)|\#x0{0,5}[9ad]);?){0,4}"
_COLON = _spelled(":", "colon")
_SLASH = f"(?:{_spelled('/', 'sol')}|{_spelled(chr(92), 'bsol')})"
_SCHEMES = ("https", "http", "wss", "ws", "ftp")
MAIL = "mailto:"
_LEAD = r"""(?:[("'=<]|\]:)\s{0,64}"""


def _whole(scheme: str) -> str:
    return _DROPPED.join([*map(_spelled, scheme), _COLON])


def _begun(scheme: str) -> str:
    """The beginnings of a scheme and of the slashes after it."""
    begun = ""
    for part in reversed([*map(_spelled, scheme[1:]), _COLON, _SLASH, _SLASH, _SLASH]):
        begun = f"(?:{_DROPPED}{part}{begun})?"
    return _spelled(scheme[0]) + begun


START = re.compile(
    rf"""(?=[hwfm&("'=<\]])(?:
        (?<![0-9A-Za-z])(?:{"|".join(map(_whole, _SCHEMES))})(?:{_DROPPED}(?P<slashes>{_SLASH}{{1,4}})|(?=[\w\[%]))
        |(?<![0-9A-Za-z])(?P<mail>{_whole(MAIL[:-1])})
        |{_LEAD}(?P<bare>{_SLASH}{{2,4}})
        |(?<![\w.@/-])www\.
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""The beginning of an address; of one without a scheme, which is `bare`, what shows that it is meant stands before it.
What has neither `slashes` nor a dot in its host is none.
"""
MARKS = (":", "&", "//", "\\", "w.", "W.")
"""One of them stands in every beginning of an address."""
OPEN = re.compile(
    rf"""(?=[hwfm&("'=<\]])(?:
        (?<![0-9A-Za-z])(?:{"|".join(map(_begun, (*_SCHEMES, MAIL[:-1])))}|w{{1,3}}\.?){_DROPPED}(?:&[\w\#]{{0,9}})?
        |(?<![0-9A-Za-z])&[\w\#]{{0,9}}
        |{_LEAD}(?:{_SLASH}|&[\w\#]{{0,9}})
    )\Z""",
    re.IGNORECASE | re.VERBOSE,
)
"""What may become one when more text comes."""
LOOK = 128
"""Characters in which that stands."""
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8});", re.IGNORECASE)


def plain_address(text: str, first: int, at: int, end: int) -> str:
    """The address at [first, end) as whoever fetches it reads it; its beginning ends at `at`."""
    start = re.sub(r"[\t\n\r]", "", html.unescape(text[first:at]))
    return start.lower() + _ENTITY.sub(lambda entity: html.unescape(entity[0]), text[at:end])
