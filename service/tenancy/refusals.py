"""Callers who are refused again and again: after so many times a minute they are told to wait, and no more is written.

A refusal before the reservation spends nothing of any limit, and each leaves a durable row. So wrong keys are counted
by the network that they come from, and whatever else is refused by the key that asked. A right key passes whatever
else comes from its network: behind a proxy all callers have one address. A key that is refused has to wait itself, but
each of its calls that gets its reservation makes up for one: only who is refused more often than not comes to that.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Literal

import msgspec
import structlog

from service.errors import LimitExceeded, RequestError, Unauthenticated

MAX_BUCKETS = 8_192
"""Networks and keys that are remembered, those that were refused last."""
_MINUTE_S = 60.0
_IPV6_NETWORK_BITS = 64  # what one host is given, and can choose its addresses from

_Name = tuple[Literal["network", "key"], str]

_log = structlog.get_logger("tenancy")


class TooManyRefused(LimitExceeded):
    """Refused too often. The `first` of a spell is for the record; it ends once all refusals are made up for."""

    def __init__(self, message: str, *, headers: dict[str, str], first: bool) -> None:
        super().__init__(message, headers=headers)
        self.first = first


class _Bucket(msgspec.Struct, eq=False):
    """`left` refusals are free at the time `at` (seconds); `told`: the present spell is on record."""

    left: float
    at: float
    told: bool = False


class Refusals:
    """Counts for one process; of several workers each does. With `per_minute` 0 it lets everything pass."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[_Name, _Bucket] = OrderedDict()

    def admit(self, key_id: str) -> None:
        """Raises TooManyRefused for a key that was refused too often."""
        bucket = self._find(("key", key_id))
        if bucket is not None and bucket.left < 1.0:
            raise self._too_many(("key", key_id), bucket)

    def weigh(self, error: RequestError, address: str, key_id: str) -> RequestError:
        """Count what was refused before its reservation; the error to answer with: this one, or TooManyRefused.

        A limit that is reached is not counted: whoever waits for a place asks often, and says nothing wrong.
        """
        if isinstance(error, LimitExceeded):
            return error
        unknown = isinstance(error, Unauthenticated)
        name: _Name = ("network", network_of(address)) if unknown else ("key", key_id)
        return self._take(name) or error

    def count(self, key_id: str) -> None:
        """As `weigh`, for what is answered in its own way whatever comes of it."""
        self._take(("key", key_id))

    def served(self, key_id: str) -> None:
        """A call of this key got its reservation."""
        bucket = self._find(("key", key_id))
        if bucket is not None:
            self._fill(bucket, 1.0)

    def _take(self, name: _Name) -> TooManyRefused | None:
        if not self._per_minute or name == ("key", ""):  # open mode knows no keys
            return None
        bucket = self._find(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(float(self._per_minute), self._clock())
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        if bucket.left < 1.0:
            return self._too_many(name, bucket)
        bucket.left -= 1.0
        return None

    def _find(self, name: _Name) -> _Bucket | None:
        bucket = self._buckets.get(name)
        if bucket is not None:
            self._buckets.move_to_end(name)
            now = self._clock()
            self._fill(bucket, (now - bucket.at) * self._per_minute / _MINUTE_S)
            bucket.at = now
        return bucket

    def _fill(self, bucket: _Bucket, refusals: float) -> None:
        bucket.left = min(bucket.left + refusals, float(self._per_minute))
        if bucket.left >= self._per_minute:
            bucket.told = False

    def _too_many(self, name: _Name, bucket: _Bucket) -> TooManyRefused:
        first, bucket.told = not bucket.told, True
        kind, what = name
        if first:
            where = {"host": what} if kind == "network" else {"key_id": what}
            _log.warning("refused too often", count=self._per_minute, **where)
        wait_s = math.ceil((1.0 - bucket.left) * _MINUTE_S / self._per_minute)
        message = "Too many requests had no valid key." if kind == "network" else "Too many requests were refused."
        return TooManyRefused(message, headers={"retry-after": str(max(1, wait_s))}, first=first)


def network_of(address: str) -> str:
    """The address itself; of IPv6, the network that one host can choose its addresses from."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:  # a socket in the file system, or of which nothing is known
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return address
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(known), _IPV6_NETWORK_BITS), strict=False))
