"""Texts that must not leave: registered secrets and prompts, and the request's own system text."""

from __future__ import annotations

import codecs
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import chain
from threading import Lock
from typing import Literal

import msgspec

from service.errors import ConfigError
from service.firewall.ngrams import RUN_WEIGHT, Fingerprint, Token, short_grams, words
from service.firewall.owners import Owner, Owners, concerned, joined
from service.firewall.pattern_index import PatternIndex, Secret, build
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
from service.firewall.values import surely_clean, surely_clean_text

# A prompt below the weight of a run is looked for as a whole, if it says this much.
_WHOLE_PROMPT_WORDS = 4.0
_WHOLE_PROMPT_CHARS = 20
# Fingerprints of system texts seen in requests, kept for the next turn of the conversation; about 400 bytes per word.
_CACHED_WORDS = 100_000
# Values found clean, kept for the next reply: models, versions, the protocol's own constants.
_CLEAN_VALUES = 64
OWN_PROMPT = "system prompt"
MAX_RECENT = 200
"""Texts that may be added or removed before everything is built anew; with fewer, there is nothing but an automaton."""
_BULK = 4
MAX_MEANT = 64
"""Registered prompts of a tenant, and of all, that sentences are compared with by meaning; the others by words."""


class ProtectedText(msgspec.Struct, frozen=True):
    """One registered text; `tenant` is empty for every tenant, `id` for a text of the configuration."""

    name: str
    kind: Literal["secret", "prompt"]
    tenant: str
    value: str
    id: str = ""

    def __repr__(self) -> str:
        return f"ProtectedText({self.name!r}, {self.kind!r}, {self.tenant!r})"


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


class _Typed(msgspec.Struct, frozen=True, eq=False):
    spelled: str
    grams: Set[int]


class RequestProtection:
    """What one reply to a tenant is compared with. `prompts` are the protected prompts' texts that its sentences are
    compared with by meaning: never another tenant's.
    """

    def __init__(
        self,
        groups: Sequence[Prints],
        user_texts: Sequence[str],
        tenant: str = "",
        prompts: Sequence[str] = (),
        *,
        guards_others: bool = False,
        marked: bool = False,
    ) -> None:
        self._groups = tuple(groups)
        self.tenant = tenant
        self.guards_others = guards_others  # other tenants' texts are among them
        self.patterns = tuple(patterns for group in groups for patterns in group.patterns)
        self.fingerprints = tuple(group.fingerprint for group in groups if group.fingerprint is not None)
        self.prompts = tuple(prompts)
        self.user_texts = tuple(user_texts)
        self.marked = marked  # a canary is among them

    @property
    def has_prompts(self) -> bool:
        """Whether there is a prompt to compare sentences with."""
        return bool(self.prompts)

    def clears(self, value: str, *, by_meaning: bool) -> bool:
        """Whether a short value that is complete in itself surely holds nothing protected; constants are remembered."""
        by_meaning = by_meaning and self.has_prompts
        return all(group.clears(value, self.tenant, by_meaning) for group in self._groups)

    def clears_text(self, text: str) -> bool:
        """Whether a whole text surely holds nothing protected, meanings aside."""
        return surely_clean_text(text, self.patterns, self.fingerprints)

    def typed_by_user(self, text: str) -> bool:
        """Whether the words of `text`, forwards or backwards, stand in this order in something the user wrote."""
        if not self.user_texts:
            return False
        spelled = self.typed.spelled
        return _spelled(words(text)) in spelled or _spelled(words(text[::-1])) in spelled

    def overlap(self, tokens: Sequence[Token], *, typed: bool) -> tuple[str, float]:
        """(prompt's name, share of the sentence's 4-grams in it) where it is a near-verbatim copy, else ("", 0.0).

        `typed`: words that the user wrote count as not in the prompt. Other tenants' prompts are told by verbatim runs
        alone: nearness to a text that nobody here can see is no reason to stop a reply.
        """
        without: Set[int] = self.typed.grams if typed else frozenset()
        for fingerprint in self.fingerprints:
            owners, share = fingerprint.overlap(tokens, without)
            if owners and (owner := concerned(owners, self.tenant)) is not None:
                return owner.name, share
        return "", 0.0

    @cached_property
    def typed(self) -> _Typed:
        """The user's texts, folded. Worked out at the first suspicion only: they are long, and suspicions are few."""
        tokens = [words(text) for text in self.user_texts]
        grams = frozenset(gram for text in tokens for gram in short_grams(text))
        return _Typed("\n".join(map(_spelled, tokens)), grams)


class _State(msgspec.Struct, frozen=True, eq=False):
    """What lookups see; replaced whole. `prompts` are by tenant; `tenants` are those that have texts of their own."""

    named: Prints = Prints()
    base: Prints = Prints()
    recent: Prints = Prints()
    prompts: Mapping[str, tuple[str, ...]] = {}
    tenants: frozenset[str] = frozenset()


class ProtectedTexts:
    """All registered texts of all tenants, ready to be looked for. Safe to use from several threads.

    One group, `base`, holds nearly all of them and is costly to build; what was added since is in a small one beside
    it, and what was removed is left out of what is found. `compact` makes both into a new `base`.
    """

    def __init__(self, texts: Iterable[ProtectedText] = ()) -> None:
        self._lock = Lock()
        self._compacting = Lock()
        self._seen_lock = Lock()
        self._named: list[ProtectedText] = []
        self._stored: dict[str, ProtectedText] = {}
        self._in_base: frozenset[str] = frozenset()
        self._gone: set[str] = set()
        self._lost_prompt = False
        self._state = _State()
        self._seen: OrderedDict[bytes, Prints] = OrderedDict()
        self._seen_words = 0
        self.version = 0
        self.stale = False
        """What is registered cannot be read: nothing that was compared with these texts alone has been judged."""
        self.replace(texts)

    def __len__(self) -> int:
        return len(self._named) + len(self._stored)

    @property
    def needs_compacting(self) -> bool:
        """Whether so much was added or removed that `compact` is worth its time; a removed prompt always is."""
        return self._recent > MAX_RECENT or len(self._gone) > MAX_RECENT or self._lost_prompt

    @property
    def _recent(self) -> int:
        return len(self._stored) - len(self._in_base) + len(self._gone)

    def replace(self, texts: Iterable[ProtectedText]) -> None:
        """Take these texts in the place of those of the configuration. Raises ConfigError naming one that is too short
        to be looked for.
        """
        named = list(texts)
        for text in named:
            if (
                not says_enough(text.value)
                if text.kind == "prompt"
                else len(project(text.value, VISIBLE)) < MIN_PATTERN
            ):
                raise ConfigError(f"protected {text.name!r}: too short to be looked for")
        with self._lock:
            self._named = named
            self._rebuild(named=prints_of(named))

    def merge(self, added: Iterable[ProtectedText], removed: Iterable[str] = ()) -> None:
        """Texts with ids of their own that are new, and ids of those that are no more. Slow for many: see `compact`."""
        with self._lock:
            for each in removed:
                known = self._stored.pop(each, None)
                if known is not None and each in self._in_base:
                    self._gone.add(each)
                    # A run of words may be another prompt's as well: this one is found until all is built anew.
                    self._lost_prompt |= known.kind == "prompt"
            # A text never changes under its id: whoever is told of it again has only been told of its seal.
            self._stored |= {text.id: text for text in added}
            if self._recent <= _BULK * MAX_RECENT:
                self._rebuild()
                return
        self.compact()

    def compact(self) -> None:
        """Build everything anew: some 0.15 ms a secret. Lookups go on meanwhile with what they had."""
        with self._compacting:
            with self._lock:
                stored = dict(self._stored) if len(self._stored) > MAX_RECENT else {}
                self._lost_prompt = False
            base = prints_of(stored.values(), gone := set[str](), many=True)
            with self._lock:
                self._in_base = frozenset(stored)
                gone.update(stored.keys() - self._stored.keys())
                self._gone = gone
                self._rebuild(base=base)

    def _rebuild(self, *, named: Prints | None = None, base: Prints | None = None) -> None:
        recent = [text for each, text in self._stored.items() if each not in self._in_base]
        prompts: dict[str, tuple[str, ...]] = {}
        for text in chain(self._named, self._stored.values()):
            if text.kind == "prompt" and len(prompts.setdefault(text.tenant, ())) < MAX_MEANT:
                prompts[text.tenant] += (text.value,)
        tenants = frozenset(text.tenant for text in chain(self._named, self._stored.values()) if text.tenant)
        state = self._state
        self._state = _State(named or state.named, base or state.base, prints_of(recent), prompts, tenants)
        self.version += 1

    def for_request(
        self,
        tenant: str,
        system_texts: Sequence[str] = (),
        user_texts: Sequence[str] = (),
        marks: Sequence[PatternSet] = (),
    ) -> RequestProtection:
        """What a reply to this tenant is compared with, and `marks` of this request. Slow for long texts not seen
        before: 2 µs a character.
        """
        state = self._state
        own = {text: self._own(text) for text in system_texts if text}
        prompts = [*state.prompts.get("", ()), *(state.prompts.get(tenant, ()) if tenant else ())]
        prompts += [text for text, prints in own.items() if prints.tells]
        groups = [group for group in (state.named, state.recent, state.base) if group.patterns or group.fingerprint]
        others = len(state.tenants) > (tenant in state.tenants)
        marked = [Prints(tuple(marks))] if marks else []
        groups += [*own.values(), *marked]
        return RequestProtection(groups, user_texts, tenant, prompts, guards_others=others, marked=bool(marks))

    def _own(self, text: str) -> Prints:
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        with self._seen_lock:
            prints = self._seen.get(key)
            if prints is not None:
                self._seen.move_to_end(key)
                return prints
        prints = prints_of([ProtectedText(OWN_PROMPT, "prompt", "", text)])
        with self._seen_lock:
            if key not in self._seen:
                self._seen[key] = prints
                self._seen_words += prints.size
            while self._seen_words > _CACHED_WORDS:
                self._seen_words -= self._seen.popitem(last=False)[1].size
        return prints


def prints_of(texts: Iterable[ProtectedText], gone: Set[str] = frozenset(), *, many: bool = False) -> Prints:
    """What is looked for on behalf of these texts.

    `many`: secrets go into a compact index, where ids in `gone` are not found, not into an automaton.
    """
    patterns: dict[Form, dict[str, Owners]] = {LETTERS: {}, VISIBLE: {}}
    secrets: list[Secret] = []
    prompts: list[ProtectedText] = []
    tells = False
    for text in texts:
        if text.kind == "prompt":
            weight = sum(token.weight for token in words(text.value))
            if weight >= RUN_WEIGHT:
                prompts.append(text)
            elif _says_enough(text.value, weight):
                tells = True
                for disguise, written in disguises(text.value):
                    if len(letters := project(written, LETTERS)) >= MIN_PATTERN:
                        found = "whole" if disguise == "exact" else disguise
                        _own_pattern(patterns[LETTERS], letters, Owner(text.name, "prompt", found, text.tenant))
        elif many:
            secrets.append(Secret(text.id, text.name, text.tenant, text.value))
        else:
            for form, pattern, owner in secret_patterns(text.name, text.value, text.tenant):
                _own_pattern(patterns[form], pattern, owner)
    # One after the other: the words of very many prompts at once would take gigabytes.
    fingerprint = Fingerprint(each for prompt in prompts for each in _turned(prompt)) if prompts else None
    return Prints(
        (*(PatternSet(form, entries) for form, entries in patterns.items() if entries), *build(secrets, gone)),
        fingerprint,
        100 + (fingerprint.size if fingerprint else 0),
        tells or bool(prompts),
    )


def _turned(prompt: ProtectedText) -> Iterator[tuple[Owner, list[Token]]]:
    """A prompt's words, and those of its disguises by letters; those by bytes are undone in the reply
    (`EncodedRuns`). The plain one comes last: where several hold a run, it gives the name.
    """
    for how, written in (
        (", reversed", prompt.value[::-1]),
        (", rot13", codecs.encode(prompt.value, "rot13")),
        ("", prompt.value),
    ):
        yield Owner(prompt.name + how, "prompt", "verbatim", prompt.tenant), words(written)


def _own_pattern(patterns: dict[str, Owners], pattern: str, owner: Owner) -> None:
    """Of one tenant the first to write a pattern has it: disguises go from the plain to the far-fetched."""
    known = patterns.get(pattern, ())
    if all(each.tenant != owner.tenant for each in known):
        patterns[pattern] = joined(known, owner)


def says_enough(prompt: str) -> bool:
    """Whether a prompt says enough to be looked for: four words, or twenty characters."""
    return _says_enough(prompt, sum(token.weight for token in words(prompt)))


def _says_enough(prompt: str, weight: float) -> bool:
    letters = len(project(prompt, LETTERS))
    return letters >= MIN_PATTERN and (weight >= _WHOLE_PROMPT_WORDS or len(prompt.strip()) >= _WHOLE_PROMPT_CHARS)


def _spelled(tokens: Sequence[Token]) -> str:
    return " " + " ".join([token.word for token in tokens]) + " "
