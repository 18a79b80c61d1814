"""A mark in the system text that stands nowhere else: a reply that holds it has read the system text out.

80 bits from a keyed hash, so that nobody who does not hold the key can say it, and none has to be kept. It is looked
for as registered secrets are, in every disguise.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import time

import msgspec

from service.firewall.owners import Owners
from service.firewall.patterns import LETTERS, VISIBLE, Form, PatternSet, secret_patterns
from service.settings import Canary

_BYTES = 10
NAME = "canary"


class Canaries:
    """Makes the marks. `digest` is a keyed hash as hex, at least 80 bits; `clock` gives seconds since 1970."""

    def __init__(self, settings: Canary, digest: Callable[[str], str], clock: Callable[[], float] = time) -> None:
        self._mode = settings.mode
        self._digest = digest
        self._clock = clock

    def mark(self, tenant: str, request_id: str) -> str:
        """Sixteen letters and digits; empty where there is to be none. Those of a day differ from tenant to tenant."""
        if self._mode == "off":
            return ""
        day = datetime.fromtimestamp(self._clock(), UTC).date().isoformat()
        of = f"request {request_id}" if self._mode == "request" else f"day {day} {tenant}"
        return base64.b32encode(bytes.fromhex(self._digest(of))[:_BYTES]).decode().lower()


def sentence(mark: str) -> str:
    """What is put before the system text. It asks for nothing: a model that does as it is told changes nothing."""
    return f"Internal reference of this conversation: {mark}."


def patterns(mark: str) -> Sequence[PatternSet]:
    """The mark in all its disguises; none for an empty one."""
    found: dict[Form, dict[str, Owners]] = {LETTERS: {}, VISIBLE: {}}
    for form, pattern, owner in secret_patterns(NAME, mark) if mark else ():
        found[form].setdefault(pattern, (msgspec.structs.replace(owner, kind="canary"),))
    return tuple(PatternSet(form, entries) for form, entries in found.items() if entries)
