"""Private keys: PEM and PuTTY blocks, also with their lines written as one."""

from __future__ import annotations

import re

from service.firewall import credential_checks as checks
from service.firewall.credential_sights import Read, Sight, Wait

_PEM_LEAD = 800

_PEM = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_PEM_OPEN = re.compile(r"-{4,5}(?: ?B?(?:(?<=B)E?)?|(?: ?BEGIN[A-Z0-9 ]{0,60})-{0,5})")
_PEM_BODY = re.compile("[0-9A-Za-z+/]{24}")
_PEM_PART = re.compile(
    r"""[\s"',]+|\\{1,4}[nrt"']|-{4,5} ?END [A-Z0-9 ]{0,60}-{4,5}|=[0-9A-Za-z+/]{4}(?![0-9A-Za-z+/=])"""
)
_PEM_WORD = re.compile("[0-9A-Za-z+/]+=*")
_GAP = 64
"""Between two lines; of more than so many characters all are taken for the key's."""
_PUTTY = re.compile(r"Private-Lines: *\d+\s+")


def read_pem(text: str, at: int, ended: bool) -> Read:
    """The body of a PEM private key whose dashes begin at `at`."""
    head = _PEM.match(text, at)
    if head is None or head.end() == len(text):
        short = len(text) - at < 90 and (head is not None or _PEM_OPEN.fullmatch(text, at) is not None)
        return Wait(at) if short and not ended else None
    return _read_key_body(text, at, head.end(), ended)


def read_putty(text: str, at: int, ended: bool) -> Read:
    """The private lines of a PuTTY key file."""
    head = _PUTTY.match(text, at)
    if head is None or head.end() == len(text):
        return Wait(None) if len(text) - at < 40 and not ended else None
    return _read_key_body(text, head.end(), head.end(), ended)


def _read_key_body(text: str, start: int, at: int, ended: bool) -> Read:
    limit = at + _PEM_LEAD
    stop = text.find("-----", at, limit)
    body = _PEM_BODY.search(text, at, min(limit, len(text)) if stop < 0 else stop)
    if body is None:
        return Wait(start) if stop < 0 and len(text) < limit and not ended else None
    if checks.made_up(body.group()):
        return None
    return Sight("private key", start, body.end(), 1.0, _KeyGrowth())


class _KeyGrowth:
    """Follows a key's lines to its END; where none comes, to the second word that is too short to be a line.

    White space, quotes and commas belong to it only where another line or the END follows: what stands behind the last
    line may close the string that holds the key.
    """

    def __init__(self) -> None:
        self._line = True

    def __call__(self, text: str, at: int, ended: bool) -> tuple[int, bool]:
        end = at  # of what belongs to the key for sure
        while at < len(text):
            if self._line:  # within a line that is known to be one
                word = _PEM_WORD.match(text, at)
                end = at = word.end() if word is not None else at
                self._line = at == len(text)
                if self._line:
                    break
            part = _PEM_PART.match(text, at)
            if part is not None:
                at = part.end()
                if "END" in part.group():
                    return at, False
                if part.group().startswith(("=", "\\")):
                    end = at if part.group()[0] == "=" or at - end > _GAP else end
                else:  # counted character by character, so that no cut matters
                    end += (at - end) // (_GAP + 1) * (_GAP + 1)
                continue
            word = _PEM_WORD.match(text, at)
            if word is None:
                dashes = text[at : at + 90]
                is_open = len(dashes) < 90 and _OPEN_END.fullmatch(dashes) is not None
                return end, not ended and is_open
            if word.end() - at >= 24:
                self._line = True
                end = at = word.end()
                self._line = at == len(text)
                continue
            if word.end() == len(text) and not ended:
                return end, True
            # The last line of a key may be short, but what stands behind it is its end.
            behind = text[word.end() : word.end() + 24].lstrip(" \r\n\"'\\nr,")
            if behind in ("", "-") and len(text) - word.end() < 24 and not ended:
                return end, True
            if behind.startswith(("--", "=")) or word.group().endswith("="):
                end = at = word.end()
                continue
            return end, False
        return end, not ended


_OPEN_END = re.compile(r"-{1,5}(?: ?E?(?:(?<=E)N?)?| ?END [A-Z0-9 ]{0,60}-{0,5}| ?END)|=[0-9A-Za-z+/]{0,4}|\\{1,4}")
