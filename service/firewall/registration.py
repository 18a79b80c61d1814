"""Which texts can be protected at all, and how often one would be found where nobody told it."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from itertools import pairwise

import msgspec

from service.errors import ConfigError
from service.firewall.credential_checks import entropy
from service.firewall.fingerprint import RunTracker
from service.firewall.ngrams import words
from service.firewall.owners import ProtectedText
from service.firewall.patterns import MIN_PATTERN, VISIBLE, project
from service.firewall.prints import prints_of, says_enough
from service.firewall.readings import stand_in
from service.settings import Settings

MIN_BITS = 30.0
"""A secret with less would be guessed, and would stand in replies that never knew it."""


class FalseAlarms(msgspec.Struct, frozen=True, kw_only=True):
    """How many of so many ordinary texts a protected text is found in; `rate` is their share."""

    hits: int
    texts: int

    @property
    def rate(self) -> float:
        """In [0, 1]."""
        return self.hits / self.texts


def check_text(where: str, text: ProtectedText) -> None:
    """Refuse a text that would be found in ordinary language. Raises ConfigError beginning with `where`, which never
    quotes the text.
    """
    if text.kind == "prompt":
        if not says_enough(text.value):
            raise ConfigError(f"{where}: a prompt needs at least four words or 20 characters")
    elif len(project(text.value, VISIBLE)) < MIN_PATTERN:
        raise ConfigError(f"{where}: a secret needs at least {MIN_PATTERN} characters besides white space")
    elif (bits := bits_of(text.value)) < MIN_BITS:
        raise ConfigError(f"{where}: a secret needs at least {MIN_BITS:.0f} bits of entropy; this one has {bits:.0f}")


def bits_of(value: str) -> float:
    """An estimate from above of a secret's entropy: Shannon's of its characters, times those that say something new.

    A character that repeats the one before it, or goes on counting (abcd, 4321), says nothing; a value that is one
    piece over and over is that piece.
    """
    visible = project(value, VISIBLE)
    period = (visible + visible).find(visible, 1)
    piece = visible[:period] if period > 0 else visible
    steps = [ord(b) - ord(a) for a, b in pairwise(piece)]
    told = sum(step == 0 or (abs(step) == 1 and at > 0 and steps[at - 1] == step) for at, step in enumerate(steps))
    return entropy(piece) * (len(piece) - told)


def false_alarms(text: ProtectedText) -> FalseAlarms:
    """Look for a text in ordinary ones (`ordinary.txt`: letters, manuals, chats in several languages, written for this
    project). A rate of nought says only that it is none of these: below 1 in 500 it cannot be measured here.
    """
    prints = prints_of([text])
    hits = 0
    for ordinary in _ordinary():
        found = stand_in(ordinary, prints.patterns)
        if not found and prints.fingerprint is not None:
            found = bool(RunTracker(prints.fingerprint).feed(words(ordinary)))
        hits += found
    return FalseAlarms(hits=hits, texts=len(_ordinary()))


@cache
def _ordinary() -> tuple[str, ...]:
    text = files("service.firewall").joinpath("ordinary.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def warning_of(found: FalseAlarms) -> str:
    """What is to be said of it; empty where there is nothing."""
    if not found.hits:
        return ""
    return (
        f"this text stands in {found.hits} of {found.texts} ordinary texts ({found.rate:.1%}): replies that never "
        "knew it will be stopped"
    )


def registered(settings: Settings) -> list[ProtectedText]:
    """Read the texts that the configuration names. One trailing newline is not part of a text.

    Raises ConfigError naming the key: a variable that is not set, a file that cannot be read, a text that is refused.
    """
    texts: list[ProtectedText] = []
    for index, entry in enumerate(settings.protected):
        where = f"protected[{index}]"
        if entry.value_env:
            where = f"{where}.value_env"
            if entry.value_env not in os.environ:
                raise ConfigError(f"{where}: environment variable {entry.value_env} is not set")
            value = os.environ[entry.value_env]
        else:
            where = f"{where}.file"
            try:
                value = (settings.folder / entry.file).read_bytes().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{where}: {entry.file} cannot be read as UTF-8 text") from error
        value = value.removesuffix("\n").removesuffix("\r")
        text = ProtectedText(entry.name, entry.kind, entry.tenant, value)
        check_text(where, text)
        texts.append(text)
    return texts
