"""A prompt that is asked for bit by bit: what one caller has been told of it in many replies adds up.

Each bit by itself stays below what the judge of one reply calls a leak: four words in a row are no run of eight. Their
union over a window is the prompt. Kept are hashes of four words, of one process, and only of those that were told,
whatever else stood in the prompt then: one that shows the time is another text at every turn. A caller's own words are
no telling. Honest answers repeat a few of a prompt's phrases too, always the same ones, so their union stays small.

They add up for each end user, and, since whoever holds a key can invent users, for the key as well. Many honest users
of a key together are told more than one is. What sets them apart from one who goes by many names is that hardly a reply
to them says anything new: there only phrases count that the key was not told before, every reply takes a little off
again (the cumulative sum of E. S. Page, "Continuous inspection schemes", 1954), and no user makes up more than half of
what is too much. So somebody who is found out is no trouble to the others, and the key's own figure says something only
where several are told ever new bits.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
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
_CACHED_GRAMS = 200_000
_MAX_KEPT = 200_000
"""Hashes kept in all; about 200 bytes each."""
_MAX_OWNED = 16_384
"""Hashes kept for one user or one key."""
_TAKEN_OFF = 0.25
"""New phrases in each reply that a key's users may be told for nothing. The first honest replies to a prompt hold 0.34
on average, all later ones hardly any; bits of four words hold one, of six words three.
"""


class _Record:
    """What one user, or all users of a key, were told: of each phrase when it was last told, and in which reply and to
    whom first. Those told longest ago stand first.
    """

    def __init__(self) -> None:
        self.replies = 0
        self.told: dict[int, tuple[float, int, int]] = {}

    def add(self, gram: int, now: float, window_s: float, reply: int, user: int) -> bool:
        """Whether it is new to these within the window."""
        told = self.told
        while told and (now - told[oldest := next(iter(told))][0] > window_s or len(told) > _MAX_OWNED):
            del told[oldest]
        _, reply_first, user_first = told.pop(gram, (now, reply, user))
        told[gram] = (now, reply_first, user_first)
        return reply_first == reply


class ToldBefore:
    """What phrases each end user and each key was told within the window. Memory is bounded: what was told to those who
    were told nothing for longest is forgotten.

    `clock` gives seconds. Each process remembers its own replies.
    """

    def __init__(self, settings: Piecemeal, clock: Callable[[], float] = monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._records: OrderedDict[tuple[str, str | None], _Record] = OrderedDict()
        self._kept = 0
        self._prompts: OrderedDict[bytes, frozenset[int]] = OrderedDict()
        self._cached = 0

    def watch(self, opening: Opening) -> PiecemealWatcher | None:
        """A watcher for one reply; None where nothing is watched, or nothing could be told."""
        if self.settings.action == "allow":
            return None
        # The request's own texts come last, and are asked for first.
        prompts = [self._grams_of(text) for text in opening.prompts[::-1][:_MAX_PROMPTS]]
        prompts = [grams for grams in prompts if len(grams) >= _MIN_GRAMS]
        if not prompts:
            return None
        asked = opening.asked
        if (key := self._records.get((asked.caller, None))) is not None:
            key.replies += 1
        listener = Listener(self, asked.caller, asked.end_user, key.replies if key is not None else 0)
        return PiecemealWatcher(listener, prompts, (*opening.user_texts, *asked.supplied))

    def _grams_of(self, prompt: str) -> frozenset[int]:
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        grams = self._prompts.get(key)
        if grams is None:
            grams = self._prompts[key] = frozenset(short_grams(words(prompt[:_MAX_CHARS]))[:_MAX_GRAMS])
            self._cached += len(grams)
            while len(self._prompts) > _CACHED_PROMPTS or (self._cached > _CACHED_GRAMS and len(self._prompts) > 1):
                self._cached -= len(self._prompts.popitem(last=False)[1])
        else:
            self._prompts.move_to_end(key)
        return grams

    def add(self, key: str, user: str, reply: int, gram: int) -> bool:
        """A user of the key is told the phrase; whether it is new to the key."""
        now, who, new = self._clock(), hash(user), False
        for record in (self._record(key, user), self._record(key, None)):
            before = len(record.told)
            new = record.add(gram, now, self.settings.window_s, reply, who)
            self._kept += len(record.told) - before
        while len(self._records) > max(self.settings.max_entries, 2) or self._kept > _MAX_KEPT:
            self._kept -= len(self._records.popitem(last=False)[1].told)
        return new

    def _record(self, key: str, user: str | None) -> _Record:
        record = self._records.get((key, user))
        if record is None:
            record = self._records[key, user] = _Record()
        self._records.move_to_end((key, user))
        return record

    def count(self, key: str, user: str, grams: frozenset[int], *, new: bool) -> float:
        """How many of a prompt's phrases the user was told, or, where a phrase is `new` to the key and this is more,
        the figure of the key.
        """
        told = self._record(key, user).told
        count = float(len(told.keys() & grams))
        return max(count, self._progress(self._record(key, None), grams)) if new else count

    def _progress(self, record: _Record, grams: frozenset[int]) -> float:
        most = max(_MIN_GRAMS, self.settings.share * len(grams)) / 2
        total, last, by_user = 0.0, 0, Counter[int]()
        for reply, user in sorted(record.told[gram][1:] for gram in record.told.keys() & grams):
            total = max(0.0, total - _TAKEN_OFF * (reply - last))
            last = reply
            if by_user[user] < most:
                by_user[user] += 1
                total += 1.0
        return total


class Listener:
    """To whom one reply goes, the `number`th to its key."""

    def __init__(self, told: ToldBefore, key: str, user: str, number: int) -> None:
        self.settings = told.settings
        self._told = told
        self._key, self._user, self._number = key, user, number
        self._enough: dict[int, float] = {}

    def told(self, gram: int, prompts: Sequence[frozenset[int]]) -> list[float]:
        """The shares told, in [0, 1], of those prompts that have the phrase and of which that is too much."""
        new = self._told.add(self._key, self._user, self._number, gram)
        found: list[float] = []
        for at, grams in enumerate(prompts):
            if gram not in grams:
                continue
            share = self._enough.get(at)
            if share is None:
                count = self._told.count(self._key, self._user, grams, new=new)
                share = min(count / len(grams), 1.0)
                if count < _MIN_GRAMS or share < self.settings.share:
                    continue
                self._enough[at] = share  # what follows in this reply is more of it, and need not be counted
            found.append(share)
        return found


class PiecemealWatcher:
    """Follows one reply (`watched.Watcher`)."""

    guard = "piecemeal"

    def __init__(self, listener: Listener, prompts: Sequence[frozenset[int]], supplied: Sequence[str]) -> None:
        self._listener = listener
        self._prompts = prompts
        self._supplied = supplied
        self._typed: frozenset[int] | None = None  # read at the first phrase that is told
        self._all = frozenset().union(*prompts)
        self._holds = listener.settings.action in ("block", "redact")
        self._readers: dict[str, WordReader] = {}
        self._last: dict[str, deque[Token]] = {}
        self._lengths: dict[str, int] = {}
        self._ended: set[str] = set()

    async def _is_typed(self, gram: int) -> bool:
        if self._typed is None:
            is_long = sum(map(len, self._supplied)) > _INLINE_CHARS
            self._typed = await asyncio.to_thread(self._read_typed) if is_long else self._read_typed()
        return gram in self._typed

    def _read_typed(self) -> frozenset[int]:
        return frozenset(gram for text in self._supplied for gram in short_grams(words(text)))

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
        action: Action = self._listener.settings.action
        found: list[Sight] = []
        for token in tokens:
            last.append(token)
            if len(last) < _RUN:
                continue
            gram = hash(tuple([word.word for word in last]))
            if gram not in self._all or await self._is_typed(gram):
                continue
            for share in self._listener.told(gram, self._prompts):
                start, detail = last[0].start, "told in many replies"
                found.append(Sight("leak.piecemeal", action, channel, start, token.end, str(gram), detail, share))
        return found
