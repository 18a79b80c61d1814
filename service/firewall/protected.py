"""Texts that must not leave: registered secrets and prompts, and the request's own system text."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from functools import cached_property
from threading import Lock
from typing import Literal

import msgspec

from service.errors import ConfigError
from service.firewall.ngrams import RUN_WEIGHT, Fingerprint, Token, short_grams, words
from service.firewall.patterns import (
    LETTERS,
    MIN_PATTERN,
    VISIBLE,
    Form,
    Owner,
    PatternSet,
    disguises,
    project,
    secret_patterns,
)
from service.firewall.values import surely_clean, surely_clean_text
from service.settings import Settings

# A prompt below the weight of a run is looked for as a whole, if it says this much.
_WHOLE_PROMPT_WORDS = 4.0
_WHOLE_PROMPT_CHARS = 20
# Fingerprints of system texts seen in requests, kept for the next turn of the conversation; about 400 bytes per word.
_CACHED_WORDS = 100_000
# Values found clean, kept for the next reply: models, versions, the protocol's own constants.
_CLEAN_VALUES = 64
OWN_PROMPT = "system prompt"


class ProtectedText(msgspec.Struct, frozen=True):
    """One registered text; `tenant` is empty for every tenant."""

    name: str
    kind: Literal["secret", "prompt"]
    tenant: str
    value: str

    def __repr__(self) -> str:
        return f"ProtectedText({self.name!r}, {self.kind!r}, {self.tenant!r})"


class _Prints(msgspec.Struct, frozen=True, eq=False):
    """What is looked for on behalf of one group of texts."""

    patterns: tuple[PatternSet, ...]
    fingerprint: Fingerprint | None
    prompts: tuple[str, ...]
    size: int
    clean: dict[tuple[str, bool], None] = {}

    def clears(self, value: str, by_meaning: bool) -> bool:
        if (value, by_meaning) in self.clean:
            return True
        prints = (self.fingerprint,) if self.fingerprint else ()
        if not surely_clean(value, self.patterns, prints, by_meaning=by_meaning and bool(self.prompts)):
            return False
        if len(self.clean) >= _CLEAN_VALUES:
            self.clean.clear()
        self.clean[value, by_meaning] = None
        return True


class _Typed(msgspec.Struct, frozen=True, eq=False):
    spelled: str
    grams: Set[int]


class RequestProtection:
    """What one reply is compared with. `prompts` are the protected prompts' texts, for the comparison by meaning."""

    def __init__(self, groups: Sequence[_Prints], user_texts: Sequence[str]) -> None:
        self._groups = tuple(groups)
        self.patterns = tuple(patterns for group in groups for patterns in group.patterns)
        self.fingerprints = tuple(group.fingerprint for group in groups if group.fingerprint is not None)
        self.prompts = tuple(prompt for group in groups for prompt in group.prompts)
        self.user_texts = tuple(user_texts)
        self.marked = any(owner.kind == "canary" for patterns in self.patterns for owner in patterns.owners[:1])

    @property
    def has_prompts(self) -> bool:
        """Whether there is a prompt to compare sentences with."""
        return bool(self.prompts)

    def clears(self, value: str, *, by_meaning: bool) -> bool:
        """Whether a short value that is complete in itself surely holds nothing protected; constants are remembered."""
        return all(group.clears(value, by_meaning) for group in self._groups)

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

        `typed`: words that the user wrote count as not in the prompt.
        """
        without: Set[int] = self.typed.grams if typed else frozenset()
        for fingerprint in self.fingerprints:
            name, share = fingerprint.overlap(tokens, without)
            if name:
                return name, share
        return "", 0.0

    @cached_property
    def typed(self) -> _Typed:
        """The user's texts, folded. Worked out at the first suspicion only: they are long, and suspicions are few."""
        tokens = [words(text) for text in self.user_texts]
        grams = frozenset(gram for text in tokens for gram in short_grams(text))
        return _Typed("\n".join(map(_spelled, tokens)), grams)


class ProtectedTexts:
    """All registered texts, ready to be looked for. Safe to use from several threads.

    Automata are built once for every tenant's texts and for those of all tenants, and thrown away by `replace`.
    """

    def __init__(self, texts: Iterable[ProtectedText] = ()) -> None:
        self._lock = Lock()
        self._texts: dict[str, list[ProtectedText]] = {}
        self._groups: dict[str, _Prints] = {}
        self._seen: OrderedDict[bytes, _Prints] = OrderedDict()
        self._seen_words = 0
        self.version = 0
        self.replace(texts)

    def replace(self, texts: Iterable[ProtectedText]) -> None:
        """Take these texts in the place of all former ones. Raises ConfigError naming a text that is too short."""
        by_tenant: dict[str, list[ProtectedText]] = {}
        for text in texts:
            check_text(f"protected {text.name!r}", text)
            by_tenant.setdefault(text.tenant, []).append(text)
        with self._lock:
            self._texts, self._groups = by_tenant, {}
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
        groups = [self._group(name) for name in dict.fromkeys(("", tenant)) if name in self._texts]
        own = [self._own(text) for text in dict.fromkeys(system_texts) if text]
        marked = [_Prints(tuple(marks), None, (), 0)] if marks else []
        return RequestProtection([*groups, *own, *marked], user_texts)

    def _group(self, tenant: str) -> _Prints:
        with self._lock:
            group = self._groups.get(tenant)
            if group is None:
                group = self._groups[tenant] = _prints(self._texts.get(tenant, []))
            return group

    def _own(self, text: str) -> _Prints:
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            prints = self._seen.get(key)
            if prints is not None:
                self._seen.move_to_end(key)
                return prints
        prints = _prints([ProtectedText(OWN_PROMPT, "prompt", "", text)])
        with self._lock:
            if key not in self._seen:
                self._seen[key] = prints
                self._seen_words += prints.size
            while self._seen_words > _CACHED_WORDS:
                self._seen_words -= self._seen.popitem(last=False)[1].size
        return prints


def _prints(texts: Iterable[ProtectedText]) -> _Prints:
    patterns: dict[Form, dict[str, Owner]] = {LETTERS: {}, VISIBLE: {}}
    long: list[tuple[str, list[Token]]] = []
    prompts: list[str] = []
    for text in texts:
        if text.kind == "secret":
            for form, pattern, owner in secret_patterns(text.name, text.value):
                patterns[form].setdefault(pattern, owner)
            continue
        tokens = words(text.value)
        weight = sum(token.weight for token in tokens)
        if weight >= RUN_WEIGHT:
            # Disguises by letters are other texts to look for; those by bytes are undone in the reply (`EncodedRuns`).
            long.append((f"{text.name}, reversed", words(text.value[::-1])))
            long.append((f"{text.name}, rot13", words(codecs.encode(text.value, "rot13"))))
            long.append((text.name, tokens))
        elif not _says_enough(text.value, weight):
            continue
        else:
            for disguise, written in disguises(text.value):
                if len(letters := project(written, LETTERS)) >= MIN_PATTERN:
                    found = "whole" if disguise == "exact" else disguise
                    patterns[LETTERS].setdefault(letters, Owner(text.name, "prompt", found))
        prompts.append(text.value)
    return _Prints(
        tuple(PatternSet(form, entries) for form, entries in patterns.items() if entries),
        Fingerprint(long) if long else None,
        tuple(prompts),
        100 + sum(len(tokens) for _, tokens in long),
    )


def _says_enough(prompt: str, weight: float) -> bool:
    letters = len(project(prompt, LETTERS))
    return letters >= MIN_PATTERN and (weight >= _WHOLE_PROMPT_WORDS or len(prompt.strip()) >= _WHOLE_PROMPT_CHARS)


def _spelled(tokens: Sequence[Token]) -> str:
    return " " + " ".join([token.word for token in tokens]) + " "


def check_text(where: str, text: ProtectedText) -> None:
    """Refuse a text that would be found in ordinary language. Raises ConfigError beginning with `where`."""
    if text.kind == "secret":
        if len(project(text.value, VISIBLE)) < MIN_PATTERN:
            raise ConfigError(f"{where}: a secret needs at least {MIN_PATTERN} characters besides white space")
    elif not _says_enough(text.value, sum(token.weight for token in words(text.value))):
        raise ConfigError(f"{where}: a prompt needs at least four words or {_WHOLE_PROMPT_CHARS} characters")


def registered(settings: Settings) -> list[ProtectedText]:
    """Read the texts that the configuration names. One trailing newline is not part of a text.

    Raises ConfigError naming the key: a variable that is not set, a file that cannot be read, a text too short.
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
