"""What was scored before: whole texts, and single windows, so that a growing conversation pays for its new turn.

Texts joined over turns grow at their end; their earlier windows hold the same tokens as before and are not encoded
again. Nothing is kept but hashes and numbers, and entries of one scope are invisible to another: otherwise the time of
an answer would tell one tenant what another one sent.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b
from threading import Lock
from typing import Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.sanitise import Hidden
from service.firewall.text_score import TextScore

T = TypeVar("T")
Key = bytes


class ScoredText(msgspec.Struct, frozen=True):
    """A text's score, what is hidden in it, how many windows all its views had, and the coarse cell of its first."""

    score: TextScore
    hidden: tuple[Hidden, ...]
    windows: int
    cell: int = -1


class WindowRow(msgspec.Struct, frozen=True, eq=False):
    """One window's logits float32 (labels,), its similarity to the nearest known attack, and its coarse cell."""

    logits: npt.NDArray[np.float32]
    similarity: float
    cell: int = -1


class Recent(Generic[T]):
    """The `size` most recently used values. Safe to use from several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Key, T] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> T | None:
        """The value, now the most recent; None where it is not known."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: Key, value: T) -> None:
        """Keep a value; the least recently used one goes."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)


def scope_key(scope: str, version: str) -> bytes:
    """The prefix that separates tenants, policies, artifacts and index versions."""
    return blake2b(f"{len(scope)}:{scope}{version}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def text_key(prefix: bytes, text: str, origin: str = "") -> Key:
    """The key of a text in its scope; foreign text is scored otherwise than the same words of the caller."""
    hashed = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=24, person=origin.encode())
    return prefix + hashed.digest()


def window_key(prefix: bytes, ids: list[int]) -> Key:
    """The key of a window in its scope."""
    return prefix + blake2b(array("i", ids).tobytes(), digest_size=24).digest()
