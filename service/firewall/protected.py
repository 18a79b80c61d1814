"""Texts that must not leave: registered secrets and prompts, and the request's own system text."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import chain
from threading import Lock

import msgspec

from service.errors import ConfigError
from service.firewall.fingerprint import Fingerprint
from service.firewall.ngrams import Token, short_grams, words
from service.firewall.owners import ProtectedText, concerned
from service.firewall.patterns import MIN_PATTERN, VISIBLE, PatternSet, project
from service.firewall.prints import Prints, prints_of, says_enough
from service.firewall.told_secrets import ToldSecrets, told_secrets
from service.firewall.values import surely_clean_text

__all__ = ("ProtectedText", "ProtectedTexts", "RequestProtection")

# Words of system texts seen in requests, kept for the next turn of the conversation; up to 400 bytes each.
_CACHED_WORDS = 100_000
OWN_PROMPT = "system prompt"
MAX_RECENT = 200
MAX_RECENT_CHARS = 400_000
"""So many texts, and so much text, may be added before all is built anew; each change builds what was added anew."""
_BULK = 5
"""What is added at once and is more than so many times that is not built twice."""
MAX_MEANT = 64
"""Registered prompts of a tenant, and of all, that sentences are compared with by meaning; the others by words. So many
secrets as well.
"""


class _Typed(msgspec.Struct, frozen=True, eq=False):
    spelled: str
    grams: Set[int]


class RequestProtection:
    """What one reply to a tenant is compared with. `prompts` are the protected prompts' texts, and secrets that read as
    one, that its sentences are compared with by meaning: never another tenant's. `near` are words of such secrets.

    `supplied` are the user's and other texts that the caller has, which excuse a prompt's words; `results` are those of
    tools and documents, which must not leave in an address.
    """

    def __init__(
        self,
        groups: Sequence[Prints],
        user_texts: Sequence[str],
        tenant: str = "",
        prompts: Sequence[str] = (),
        near: Sequence[Fingerprint] = (),
        *,
        supplied: Sequence[str] = (),
        results: Sequence[str] = (),
        guards_others: bool = False,
        marked: bool = False,
    ) -> None:
        self._groups = tuple(groups)
        self.tenant = tenant
        self.guards_others = guards_others  # other tenants' texts are among them
        self.patterns = tuple(patterns for group in groups for patterns in group.patterns)
        self.fingerprints = tuple(group.fingerprint for group in groups if group.fingerprint is not None)
        self._near = (*self.fingerprints, *near)
        self.prompts = tuple(prompts)
        self.user_texts = tuple(user_texts)
        self.supplied = (*user_texts, *supplied)
        self.results = tuple(results)
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
        """Whether the words of `text`, forwards or backwards, stand in this order in something the caller supplied."""
        if not self.supplied:
            return False
        spelled = self.typed.spelled
        return _spelled(words(text)) in spelled or _spelled(words(text[::-1])) in spelled

    def overlap(self, tokens: Sequence[Token], *, typed: bool) -> tuple[str, float]:
        """(prompt's name, share of the sentence's 4-grams in it) where it is a near-verbatim copy, else ("", 0.0).

        `typed`: words that the caller supplied count as not in the prompt. Other tenants' prompts are told by verbatim
        runs alone: nearness to a text that nobody here can see is no reason to stop a reply.
        """
        without: Set[int] = self.typed.grams if typed else frozenset()
        for fingerprint in self._near:
            owners, share = fingerprint.overlap(tokens, without)
            if owners and (owner := concerned(owners, self.tenant)) is not None:
                return owner.name, share
        return "", 0.0

    @cached_property
    def typed(self) -> _Typed:
        """The caller's texts, folded. Worked out at the first suspicion only: they are long, and suspicions are few."""
        tokens = [words(text) for text in self.supplied]
        grams = frozenset(gram for text in tokens for gram in short_grams(text))
        return _Typed("\n".join(map(_spelled, tokens)), grams)


class _State(msgspec.Struct, frozen=True, eq=False):
    """What lookups see; replaced whole. `near` is of the same groups as the three before it. `prompts` are by tenant;
    `tenants` are those that have texts of their own.
    """

    named: Prints = Prints()
    base: Prints = Prints()
    recent: Prints = Prints()
    near: tuple[ToldSecrets, ToldSecrets, ToldSecrets] = (ToldSecrets(), ToldSecrets(), ToldSecrets())
    prompts: Mapping[str, tuple[str, ...]] = {}
    tenants: frozenset[str] = frozenset()


class ProtectedTexts:
    """All registered texts of all tenants, ready to be looked for. Safe to use from several threads.

    One group, `base`, holds nearly all of them and takes seconds to build; what was added since is in a small one
    beside it, and what was removed is left out of what is found. `compact` makes both into a new `base`.
    """

    def __init__(self, texts: Iterable[ProtectedText] = ()) -> None:
        self._lock = Lock()
        self._compacting = Lock()
        self._seen_lock = Lock()
        self._named: list[ProtectedText] = []
        self._base: dict[str, ProtectedText] = {}
        self._gone: set[str] = set()  # of the base
        self._recent: dict[str, ProtectedText] = {}
        self._load = 0.0  # of what was added since
        self._state = _State()
        self._seen: OrderedDict[bytes, Prints] = OrderedDict()
        self._seen_words = 0
        self.version = 0
        self.stale = False
        """What is registered cannot be read: nothing that was compared with these texts alone has been judged."""
        self.replace(texts)

    def __len__(self) -> int:
        return len(self._named) + len(self._base) - len(self._gone) + len(self._recent)

    @property
    def needs_compacting(self) -> bool:
        """Whether so much was added or removed that `compact` is worth its time."""
        return len(self._gone) > MAX_RECENT or self._load > 1

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
            self._rebuild(named=prints_of(named), near_named=told_secrets(named))

    def merge(self, added: Iterable[ProtectedText], removed: Iterable[str] = ()) -> None:
        """Texts with ids of their own that are new, and ids of those that are no more. Slow for many: see `compact`."""
        with self._lock:
            gone = {each for each in removed if self._recent.pop(each, None) is None and each in self._base}
            # A text never changes under its id: whoever is told of it again has only been told of its seal.
            self._recent |= {text.id: text for text in added if text.id not in self._base or text.id in self._gone}
            if gone:
                self._gone |= gone
                self._state.base.forget(self._gone)
                self._state.near[1].forget(self._gone)
            self._load = _load_of(self._recent)
            if self._load <= _BULK:
                self._rebuild()
                return
        self.compact()

    def compact(self) -> None:
        """Build everything anew: some 0.15 ms a text. Lookups go on meanwhile with what they had."""
        with self._compacting:
            with self._lock:
                stored = dict(self._stored())
            if _load_of(stored) <= 1:
                stored = {}
            base, near = prints_of(stored.values(), many=True), told_secrets(stored.values())
            with self._lock:
                now = dict(self._stored())
                self._gone = stored.keys() - now.keys()
                self._base, self._recent = stored, {each: text for each, text in now.items() if each not in stored}
                self._load = _load_of(self._recent)
                base.forget(self._gone)
                near.forget(self._gone)
                self._rebuild(base=base, near_base=near)

    def _stored(self) -> Iterator[tuple[str, ProtectedText]]:
        yield from ((each, text) for each, text in self._base.items() if each not in self._gone)
        yield from self._recent.items()

    def _rebuild(
        self,
        *,
        named: Prints | None = None,
        base: Prints | None = None,
        near_named: ToldSecrets | None = None,
        near_base: ToldSecrets | None = None,
    ) -> None:
        state, recent = self._state, prints_of(self._recent.values(), many=self._load > 1)
        near = (near_named or state.near[0], near_base or state.near[1], told_secrets(self._recent.values()))
        prompts: dict[str, tuple[str, ...]] = {}
        tenants = set[str]()
        for text in chain(self._named, (text for _, text in self._stored())):
            tenants.add(text.tenant)
            if text.kind == "prompt" and len(prompts.setdefault(text.tenant, ())) < MAX_MEANT:
                prompts[text.tenant] += (text.value,)
        secrets: dict[str, tuple[str, ...]] = {}
        for text in chain(near[0].texts, near[1].without(self._gone), near[2].texts):
            if len(secrets.setdefault(text.tenant, ())) < MAX_MEANT:
                secrets[text.tenant] += (text.value,)
        for tenant, values in secrets.items():  # first: what looks at a few only begins at the other end
            prompts[tenant] = values + prompts.get(tenant, ())
        named, base = named or state.named, base or state.base
        self._state = _State(named, base, recent, near, prompts, frozenset(tenants - {""}))
        self.version += 1

    def for_request(
        self,
        tenant: str,
        system_texts: Sequence[str] = (),
        user_texts: Sequence[str] = (),
        marks: Sequence[PatternSet] = (),
        supplied: Sequence[str] = (),
        results: Sequence[str] = (),
    ) -> RequestProtection:
        """What a reply to this tenant is compared with, and `marks` of this request; `supplied` and `results` are as
        `Asked` has them. Slow for long texts not seen before: 1 µs a character.
        """
        state = self._state
        own = {text: self._own(text) for text in system_texts if text}
        prompts = [*state.prompts.get("", ()), *(state.prompts.get(tenant, ()) if tenant else ())]
        prompts += [text for text, prints in own.items() if prints.tells]
        groups = [group for group in (state.named, state.recent, state.base) if group.patterns or group.fingerprint]
        others = len(state.tenants) > (tenant in state.tenants)
        marked = [Prints(tuple(marks))] if marks else []
        groups += [*own.values(), *marked]
        near = [prints for group in state.near for prints in group.prints]
        return RequestProtection(
            groups,
            user_texts,
            tenant,
            prompts,
            near,
            supplied=supplied,
            results=results,
            guards_others=others,
            marked=bool(marks),
        )

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


def _load_of(texts: Mapping[str, ProtectedText]) -> float:
    """How much of what may be added before all is built anew these are."""
    return max(len(texts) / MAX_RECENT, sum(len(text.value) for text in texts.values()) / MAX_RECENT_CHARS)


def _spelled(tokens: Sequence[Token]) -> str:
    return " " + " ".join([token.word for token in tokens]) + " "
