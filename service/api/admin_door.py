"""Who may use the admin API: whoever has its one token. Wrong ones are counted by the address that they come from."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from time import monotonic

import structlog

from service.errors import LimitExceeded, Unauthenticated

TOKEN_VARIABLE = "FIREWALL_ADMIN_TOKEN"  # noqa: S105 -- the name of the variable
MAX_WRONG = 10
WINDOW_S = 60.0
"""An address with so many wrong tokens in so many seconds is told to wait, and its further ones are not logged."""
_ADVISED_CHARS = 32
_MAX_ADDRESSES = 4_096

_log = structlog.get_logger("admin")


class AdminDoor:
    """Compares tokens in constant time. It counts for one process; of several workers each does."""

    def __init__(self, token: str, clock: Callable[[], float] = monotonic) -> None:
        if not token:
            raise ValueError("an empty token opens to everyone")
        if len(token) < _ADVISED_CHARS:
            _log.warning("admin token short", count=len(token))
        self._digest = _digest(token)
        self._clock = clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()

    def admit(self, headers: Mapping[str, str], address: str) -> None:
        """Raises Unauthenticated without saying what was wrong, and LimitExceeded after too many of them.

        The right token always passes: behind a proxy all addresses are one, and nobody is to lock the operators out.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Digests have one length, so that time does not tell the token's.
        if hmac.compare_digest(_digest(token.strip()), self._digest) and scheme.lower() == "bearer":
            return
        now = self._clock()
        wrong = self._wrong.get(address)
        while wrong and now - wrong[0] >= WINDOW_S:
            wrong.popleft()
        if wrong and len(wrong) >= MAX_WRONG:
            wait_s = max(1, math.ceil(wrong[0] + WINDOW_S - now))
            raise LimitExceeded("Too many wrong tokens came from here.", headers={"retry-after": str(wait_s)})
        self._wrong.setdefault(address, deque()).append(now)
        self._wrong.move_to_end(address)
        if len(self._wrong) > _MAX_ADDRESSES:
            self._wrong.popitem(last=False)
        _log.warning("admin refused", status=Unauthenticated.status, host=address)
        raise Unauthenticated("The admin token is missing or not valid.")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
