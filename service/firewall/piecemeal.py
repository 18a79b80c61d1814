"""A prompt that is asked for bit by bit: what one caller has been told of it in many replies adds up.

Each bit by itself stays below what the judge of one reply calls a leak: four words in a row are no run of eight. Their
union over a window is the prompt. Kept are hashes of four words, of one process, and only of those that were told; a
caller's own words are no telling. Honest answers repeat a few of a prompt's phrases too, always the same ones, so that
their union stays small.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence, Set
from time import monotonic

from service.firewall import ngrams
from service.firewall.asked import CallPart
from service.firewall.ngrams import Token, WordReader, short_grams, words
from service.firewall.verdict import Action
from service.firewall.watched import Opening, Sight
from service.settings import Piecemeal

_RUN = 4
_MIN_GRAMS = 10
"""Fewer told phrases say little of any prompt, whatever their share."""
_MAX_GRAMS = 4_096
_MAX_CHARS = 32_768
"""Of a prompt: about as many phrases."""
_INLINE_CHARS = 4_000  # longer user texts are read in a thread, so that the event loop goes on
_MAX_PROMPTS = 8
_CACHED_PROMPTS = 256
_MAX_KEPT = 400_000
"""Hashes kept in all; about 100 bytes each."""


class ToldBefore:
    """What of which prompt each caller was told within the window. Memory is bounded: the oldest pairs are forgotten.

    `clock` gives seconds. Each process remembers its own replies.
    """

    def __init__(self, settings: Piecemeal, clock: Callable[[], float] = monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._told: OrderedDict[tuple[str, bytes], dict[int, float]] = OrderedDict()
        self._kept = 0
        self._prompts: OrderedDict[bytes, frozenset[int]] = OrderedDict()

    def watch(self, opening: Opening) -> PiecemealWatcher | None:
        """A watcher for one reply; None where nothing is watched, or nothing could be told."""
        if self.settings.action == "allow":
            return None
        # The request's own texts come last, and are asked for first.
        prompts = [self._grams_of(text) for text in opening.prompts[::-1][:_MAX_PROMPTS]]
        prompts = [(key, grams) for key, grams in prompts if len(grams) >= _MIN_GRAMS]
        return PiecemealWatcher(self, opening.asked.caller, prompts, opening.user_texts) if prompts else None

    def _grams_of(self, prompt: str) -> tuple[bytes, frozenset[int]]:
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        grams = self._prompts.get(key)
        if grams is None:
            grams = self._prompts[key] = frozenset(short_grams(words(prompt[:_MAX_CHARS]))[:_MAX_GRAMS])
            while len(self._prompts) > _CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return key, grams

    def add(self, caller: str, prompt: bytes, grams: Set[int]) -> int:
        """The caller is told these; how many different ones it was told within the window."""
        now = self._clock()
        told = self._told.setdefault((caller, prompt), {})
        self._told.move_to_end((caller, prompt))
        self._kept -= len(told)
        for gram in grams:
            told.pop(gram, None)
            told[gram] = now  # those told longest ago stand first
        while now - told[first := next(iter(told))] > self.settings.window_s:
            del told[first]
        self._kept += len(told)
        while len(self._told) > self.settings.max_entries or (self._kept > _MAX_KEPT and len(self._told) > 1):
            self._kept -= len(self._told.popitem(last=False)[1])
        return len(told)


class PiecemealWatcher:
    """Follows one reply (`watched.Watcher`)."""

    guard = "piecemeal"

    def __init__(
        self,
        told: ToldBefore,
        caller: str,
        prompts: Sequence[tuple[bytes, frozenset[int]]],
        user_texts: Sequence[str],
    ) -> None:
        self._told = told
        self._caller = caller
        self._prompts = prompts
        self._user_texts = user_texts
        self._typed: frozenset[int] | None = None  # read at the first phrase that is told
        self._all = frozenset().union(*(grams for _, grams in prompts))
        self._holds = told.settings.action in ("block", "redact")
        self._readers: dict[str, WordReader] = {}
        self._last: dict[str, deque[Token]] = {}
        self._lengths: dict[str, int] = {}
        self._ended: set[str] = set()

    async def _is_typed(self, gram: int) -> bool:
        if self._typed is None:
            is_long = sum(map(len, self._user_texts)) > _INLINE_CHARS
            self._typed = await asyncio.to_thread(self._read_typed) if is_long else self._read_typed()
        return gram in self._typed

    def _read_typed(self) -> frozenset[int]:
        return frozenset(gram for text in self._user_texts for gram in short_grams(words(text)))

    def held(self, channel: str, end: int) -> int:
        """The start of the last words, which may become a phrase of the prompt; nothing with action `flag`."""
        last = self._last.get(channel)
        if not self._holds or channel in self._ended or last is None:
            return end
        partial = self._readers[channel].partial
        if len(last) >= _RUN - 1:
            return last[1 - _RUN].start
        return last[0].start if last else partial[1] if partial else end

    def clears(self, channel: str, spelled: Sequence[str]) -> bool:
        """Whether no run of words is one of a prompt's."""
        del channel
        return self._all.isdisjoint(ngrams.grams([word for word in spelled if word], _RUN))

    async def called(self, parts: Sequence[CallPart]) -> list[Sight]:
        """Nothing: the channels say it."""
        del parts
        return []

    async def feed(self, channel: str, text: str) -> list[Sight]:
        """Read the next words."""
        reader = self._readers.setdefault(channel, WordReader())
        start = self._lengths.get(channel, 0)
        self._lengths[channel] = start + len(text)
        return await self._take(channel, reader.feed(text, start))

    async def end(self, channel: str) -> list[Sight]:
        """Read the last word."""
        if channel in self._ended or channel not in self._readers:
            return []
        self._ended.add(channel)
        return await self._take(channel, self._readers[channel].finish())

    async def finish(self) -> list[Sight]:
        """Read the last word of each channel."""
        return [sight for channel in list(self._readers) for sight in await self.end(channel)]

    async def _take(self, channel: str, tokens: Sequence[Token]) -> list[Sight]:
        last = self._last.setdefault(channel, deque(maxlen=_RUN))
        found: list[Sight] = []
        for token in tokens:
            last.append(token)
            if len(last) < _RUN:
                continue
            gram = hash(tuple([word.word for word in last]))
            if gram in self._all and not await self._is_typed(gram):
                found += self._add(gram, channel, last[0].start, token.end)
        return found

    def _add(self, gram: int, channel: str, start: int, end: int) -> list[Sight]:
        found: list[Sight] = []
        settings = self._told.settings
        for prompt, grams in self._prompts:
            if gram not in grams:
                continue
            count = self._told.add(self._caller, prompt, {gram})
            share = count / len(grams)
            if count >= _MIN_GRAMS and share >= settings.share:
                action: Action = settings.action
                detail = "told in many replies"
                found.append(Sight("leak.piecemeal", action, channel, start, end, str(gram), detail, min(share, 1.0)))
        return found
