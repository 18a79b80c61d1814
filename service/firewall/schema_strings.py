"""What a JSON schema asks of a string: `pattern` and `format`, in bounded time.

A pattern is followed where its time has a bound that can be told beforehand: no quantifier or choice within what is
itself repeated, no references back, no looking around. ECMA-262 is read as JSON Schema 2020-12 has it, where Python
reads it otherwise: `$` is the end of the string only, a dot is no line end, `\\d` and `\\w` are ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

MAX_PATHS = 1_000_000
"""Ways to match a text with a pattern, at most, that are gone; one of more than so many is not looked at."""
_MAX_PATTERN_CHARS = 1_000
_MAX_TIMES = 1_000
_TOKEN = re.compile(
    r"""(?P<atom>\\(?:[dDwWsSbBtnrfv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^0-9A-Za-z])|[^\\()\[\]{}|*+?^$.])"""
    r"""|(?P<set>\[\^?+(?:[^\\\]]|\\(?:[dDwWsSbtnrfv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^0-9A-Za-z]))+\])"""
    r"""|(?P<times>[*+?]|\{\d{1,4}(?:,\d{0,4})?\})\??"""
    r"""|(?P<opens>\((?:\?:|(?!\?)))|(?P<other>[)|^$.])""",
    re.DOTALL | re.ASCII,
)
_IN_SET = re.compile(r"\\.|\[", re.DOTALL)
_SET_OF_SETS = re.compile(r"--|&&|~~|\|\|")  # Python may come to read these otherwise
_TIMES = {"*": (0, _MAX_TIMES * _MAX_TIMES), "+": (1, _MAX_TIMES * _MAX_TIMES), "?": (0, 1)}


class NotFollowed(Exception):
    """The pattern has no bound on its time, or says something that is not known here."""


class Pattern(NamedTuple):
    """A pattern that can be searched for, and what bounds the time: how often each part may be repeated, and how many
    choices there are.
    """

    search: re.Pattern[str]
    times: tuple[tuple[int, int], ...]
    choices: int
    anchored: bool

    def paths(self, length: int) -> int:
        """At most so many ways are gone in a text of this length; more than MAX_PATHS are not counted."""
        paths = self.choices * (1 if self.anchored else length + 1)
        for least, most in self.times:
            paths *= max(1, min(most, length) - least + 1)
            if paths > MAX_PATHS:
                break
        return paths


@lru_cache(maxsize=256)
def followed(source: str) -> Pattern:
    """The pattern. Raises NotFollowed."""
    if len(source) > _MAX_PATTERN_CHARS:
        raise NotFollowed("too long")
    made: list[str] = []
    times: list[tuple[int, int]] = []
    choices = 1
    plain = [True]  # of each open group: nothing in it is repeated or chosen
    repeats: bool | None = None  # whether what stands before may be repeated; None where nothing does
    at, at_top = 0, True
    while at < len(source):
        token = _TOKEN.match(source, at)
        if token is None:
            raise NotFollowed("not known")
        at, text = token.end(), token[0]
        if token["times"]:
            bounds = _bounds(token["times"])
            if repeats is None or (bounds[1] > 1 and not repeats):
                raise NotFollowed("nested")
            times.append(bounds)
            plain[-1], repeats = False, None
        elif token["opens"]:
            plain.append(True)
            repeats = None
        elif text == ")":
            if len(plain) == 1:
                raise NotFollowed("not known")
            repeats = plain.pop()
            plain[-1] = plain[-1] and repeats
        elif text == "|":
            choices = min(choices * 2, MAX_PATHS + 1)
            plain[-1], repeats = False, None
            at_top = at_top and len(plain) > 1
        elif text in "^$" and not token["atom"]:
            repeats = None
            text = r"\Z" if text == "$" else text
        else:
            repeats = True
            if token["set"]:
                if _SET_OF_SETS.search(text):
                    raise NotFollowed("not known")
                text = "[" + _IN_SET.sub(lambda found: r"\[" if found[0] == "[" else found[0], text[1:])
            elif text == "." and not token["atom"]:
                text = r"[^\n\r\u2028\u2029]"
        made.append(text)
    if len(plain) > 1:
        raise NotFollowed("not known")
    try:
        search = re.compile("".join(made), re.ASCII)
    except (re.error, OverflowError):
        raise NotFollowed("not known") from None
    return Pattern(search, tuple(times), choices, at_top and source.startswith("^"))


def _bounds(times: str) -> tuple[int, int]:
    if times in _TIMES:
        return _TIMES[times]
    least, comma, most = times[1:-1].partition(",")
    if max(int(least), int(most or 0)) > _MAX_TIMES:
        raise NotFollowed("too often")
    return int(least), int(most) if most else _TIMES["*"][1] if comma else int(least)


_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([zZ]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)
_EMAIL = re.compile(r"""(?:"[^"\r\n]{1,62}"|[^\s"@<>(),:;\[\]\\]{1,64})@(?:\[[^\s\[\]@]{1,64}\]|[\w-]+(?:\.[\w-]+)*)""")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*")
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")


def _is_date(text: str) -> bool:
    found = _DATE.fullmatch(text)
    try:
        return found is not None and date(*map(int, found.groups())) is not None
    except ValueError:
        return False


def _is_date_time(text: str) -> bool:
    return text[10:11] in ("T", "t") and _is_date(text[:10]) and _TIME.fullmatch(text, 11) is not None


def _is_address(kind: type[IPv4Address] | type[IPv6Address]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            return len(text) < 64 and "%" not in text and text.isascii() and bool(kind(text).packed)
        except ValueError:
            return False

    return check


FORMATS: dict[str, Callable[[str], bool]] = {
    "date": _is_date,
    "date-time": _is_date_time,
    "email": lambda text: len(text) <= 320 and _EMAIL.fullmatch(text) is not None,
    "uri": lambda text: _URI.fullmatch(text) is not None,
    "uuid": lambda text: _UUID.fullmatch(text) is not None,
    "ipv4": _is_address(IPv4Address),
    "ipv6": _is_address(IPv6Address),
}
"""Whether a string has a format (RFC 3339, 5321, 3986, 4122, 2673, 4291), in time that grows with its length."""
