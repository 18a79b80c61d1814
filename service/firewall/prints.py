"""What is looked for on behalf of a group of texts: runs of long prompts' words, and the patterns of all others."""

from __future__ import annotations

from collections.abc import Iterable, Set

import msgspec

from service.firewall.fingerprint import RUN_WEIGHT, Fingerprint
from service.firewall.ngrams import spell
from service.firewall.owners import Owner, Owners, ProtectedText, of_one_pattern
from service.firewall.pattern_index import PatternIndex, build
from service.firewall.patterns import (
    LETTERS,
    MIN_PATTERN,
    VISIBLE,
    Form,
    PatternSet,
    disguises,
    project,
    secret_patterns,
)
from service.firewall.values import surely_clean

# A prompt below the weight of a run is looked for as a whole, if it says this much.
_WHOLE_PROMPT_WORDS = 4.0
_WHOLE_PROMPT_CHARS = 20
# Values found clean, kept for the next reply: models, versions, the protocol's own constants.
_CLEAN_VALUES = 64


class Prints(msgspec.Struct, frozen=True, eq=False):
    """What is looked for on behalf of one group of texts."""

    patterns: tuple[PatternSet | PatternIndex, ...] = ()
    fingerprint: Fingerprint | None = None
    size: int = 0
    tells: bool = False  # a prompt among them says enough to be looked for
    clean: dict[tuple[str, str, bool], None] = {}

    def clears(self, value: str, tenant: str, by_meaning: bool) -> bool:
        """Whether a value that is complete in itself surely holds nothing of these."""
        if (tenant, value, by_meaning) in self.clean:
            return True
        prints = (self.fingerprint,) if self.fingerprint else ()
        if not surely_clean(value, self.patterns, prints, by_meaning=by_meaning):
            return False
        if len(self.clean) >= _CLEAN_VALUES:
            self.clean.clear()
        # By tenant: how long an answer takes must not tell one what is in another's replies.
        self.clean[tenant, value, by_meaning] = None
        return True

    def forget(self, gone: Set[str]) -> None:
        """Texts with these ids are found no longer; only for what was made with `many`."""
        for patterns in self.patterns:
            if isinstance(patterns, PatternIndex):
                patterns.gone = frozenset(gone)
        if self.fingerprint is not None:
            self.fingerprint.forget(gone)


def prints_of(texts: Iterable[ProtectedText], *, many: bool = False) -> Prints:
    """What is looked for on behalf of these texts. `many`: patterns go into a compact index, not into an automaton."""
    patterns: dict[Form, dict[str, Owners]] = {LETTERS: {}, VISIBLE: {}}
    indexed: list[ProtectedText] = []
    prompts: list[ProtectedText] = []
    tells = False
    for text in texts:
        if text.kind == "prompt":
            _, weight = spell(text.value)
            if weight >= RUN_WEIGHT:
                prompts.append(text)
                continue
            if not _says_enough(text.value, weight):
                continue
            tells = True
        if many:
            indexed.append(text)
            continue
        for form, pattern, owner in _patterns(text):
            patterns[form][pattern] = of_one_pattern((*patterns[form].get(pattern, ()), owner))
    fingerprint = Fingerprint(prompts) if prompts else None
    return Prints(
        (*(PatternSet(form, entries) for form, entries in patterns.items() if entries), *build(indexed)),
        fingerprint,
        100 + (fingerprint.size if fingerprint else 0),
        tells or bool(prompts),
    )


def _patterns(text: ProtectedText) -> Iterable[tuple[Form, str, Owner]]:
    if text.kind == "secret":
        yield from secret_patterns(text.name, text.value, text.tenant)
        return
    for disguise, written in disguises(text.value):
        if len(letters := project(written, LETTERS)) >= MIN_PATTERN:
            found = "whole" if disguise == "exact" else disguise
            yield LETTERS, letters, Owner(text.name, "prompt", found, text.tenant)


def says_enough(prompt: str) -> bool:
    """Whether a prompt says enough to be looked for: four words, or twenty characters."""
    return _says_enough(prompt, spell(prompt)[1])


def _says_enough(prompt: str, weight: float) -> bool:
    letters = len(project(prompt, LETTERS))
    return letters >= MIN_PATTERN and (weight >= _WHOLE_PROMPT_WORDS or len(prompt.strip()) >= _WHOLE_PROMPT_CHARS)
