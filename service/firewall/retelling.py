"""A prompt told in other words: weak signs over a whole passage, weighed together.

No single sign says it. Which of the prompt's telling words (names, numbers, long words) does the reply say that the
user did not, and how much of the reply are they; does it speak of what it was told, may not say or does in secret; does
it refuse (`telling`)? A logistic regression weighs them. Where there is an encoder that has learned it, two more signs
are what it says of the reply beside the prompt (`told_pairs`), and whether the reply's vector has the tone of one who
speaks of what he was told, both in any language. All numbers were learned by `training.retelling`, and are reported on
prompts that nothing was learned on. The order of words does not matter, so lists, summaries and retellings that keep
some names are found; what keeps none is not.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from functools import cached_property
from typing import Protocol

import numpy as np

from service.firewall.asked import CallPart
from service.firewall.sentences import split
from service.firewall.telling import Signals, said_in, stems_of, telling
from service.firewall.told_pairs import TELLS, TOLD, Chunk, chunks, closest, pair, reply_pieces, tells
from service.firewall.watched import Opening, Sight
from service.scoring.artifact import Artifact
from service.scoring.encoder import Encoded
from service.settings import Leakage

# Learned: log of the weight told, its share of the passage, confessions where something is told, refusals.
WEIGHTS = (0.427, 2.587, 6.406, -1.585)
BIAS = -2.049
LIMIT = 1.132
"""The sum from which one honest reply in a hundred of those learned on, at most, raises an alarm."""

_LEAST_WEIGHT = 2.0
LEAST_TOLD = math.log1p(_LEAST_WEIGHT)
"""Below this much of a prompt, two words or so, no encoder is asked."""
_MAX_PROMPTS = 8
_CACHED_PROMPTS = 256
_MAX_PROMPT_CHARS = 32_768
_INLINE_CHARS = 4_000  # longer texts are weighed in a thread, so that the event loop goes on
_MAX_CHARS = 100_000
"""Of one text of a reply; what comes after is looked at by the judge of protected texts only."""
PASSAGE_CHARS = 800


class Batches(Protocol):
    """Where windows of ids go (`scoring.batcher.Batcher`)."""

    async def encode(self, ids: Sequence[Sequence[int]], deadline_s: float) -> Encoded:
        """One row per window. Raises Overloaded, DeadlineExceeded."""
        ...


class KnownPrompt:
    """A prompt's telling words, and its chunks from when they are first asked for."""

    def __init__(self, text: str) -> None:
        self._text = text[:_MAX_PROMPT_CHARS]
        self.words = telling(self._text)
        self._chunks: list[Chunk] | None = None

    async def chunks(self, cut: Callable[[str], list[Chunk]]) -> list[Chunk]:
        """All of it, cut by `cut`."""
        if self._chunks is None:
            is_long = len(self._text) > _INLINE_CHARS
            self._chunks = await asyncio.to_thread(cut, self._text) if is_long else cut(self._text)
        return self._chunks


class RetellingGuard:
    """Opens a watcher for each reply; keeps the words of prompts seen. Without a `reader` the signs by words alone are
    weighed.
    """

    def __init__(self, settings: Leakage, reader: PairReader | None = None) -> None:
        self.settings = settings
        self._reader = reader
        self._prompts: OrderedDict[bytes, KnownPrompt] = OrderedDict()

    def watch(self, opening: Opening) -> RetellingWatcher | None:
        """A watcher for one reply; None where there is no prompt, or nothing is looked for."""
        if self.settings.retelling == "allow" or not opening.prompts:
            return None
        # The request's own texts come last, and are looked at first.
        prompts = [self._known(text) for text in opening.prompts[::-1][:_MAX_PROMPTS]]
        return RetellingWatcher(self.settings, prompts, opening.user_texts, self._reader)

    def _known(self, prompt: str) -> KnownPrompt:
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        found = self._prompts.get(key)
        if found is None:
            found = self._prompts[key] = KnownPrompt(prompt)
            while len(self._prompts) > _CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return found


class PairReader:
    """Asks the encoder of passages beside prompts, and weighs its answer with the other signs."""

    def __init__(self, batches: Batches, artifact: Artifact, deadline_s: float) -> None:
        manifest = artifact.manifest
        learned = manifest.calibration.retelling
        self._batches = batches
        self._tokenizer = artifact.tokenizer
        self._deadline_s = deadline_s
        self._first, self._begin, self._end = manifest.origins[TOLD], manifest.cls_id, manifest.sep_id
        self._classes = (manifest.labels.index(TELLS), manifest.labels.index("benign"))
        self._weights, self._bias = np.asarray(learned.weights), learned.bias
        self._tone, self._tone_bias = np.asarray(learned.tone, np.float32), learned.tone_bias
        self.limit = learned.limit

    @classmethod
    def of(cls, batches: Batches, artifact: Artifact, deadline_s: float) -> PairReader | None:
        """One for an artifact that has learned to read pairs, else None."""
        learned = artifact.manifest.calibration.retelling.tone and TOLD in artifact.manifest.origins
        return cls(batches, artifact, deadline_s) if learned else None

    async def highest(self, told: Sequence[tuple[KnownPrompt, Signals]], passage: str) -> float:
        """The log-odds that the passage tells the prompt that it tells most; all are asked of at once, with their
        signs. Raises UnavailableError.
        """
        pieces = reply_pieces(passage, self._tokenizer)
        asked: list[tuple[Signals, list[list[int]]]] = []
        for prompt, signs in told:
            cut = await prompt.chunks(self._cut)
            pairs = [pair(self._first, cut[chunk], pieces[piece], self._end) for chunk, piece in closest(cut, pieces)]
            if pairs:
                asked.append((signs, pairs))
        if not asked:
            return -math.inf
        alone = [[self._begin, *piece.ids, self._end] for piece in pieces]
        windows = [*alone, *(window for _, pairs in asked for window in pairs)]
        encoded = await self._batches.encode(windows, self._deadline_s)
        tone = float((encoded.vectors[: len(alone)] @ self._tone).max()) + self._tone_bias
        highest, at = -math.inf, len(alone)
        for signs, pairs in asked:
            says = tells(encoded.logits[at : at + len(pairs)], *self._classes)
            highest = max(highest, float(np.append(signs, (says, tone)) @ self._weights) + self._bias)
            at += len(pairs)
        return highest

    def _cut(self, prompt: str) -> list[Chunk]:
        return chunks(prompt, self._tokenizer)


class RetellingWatcher:
    """Follows one reply (`watched.Watcher`). With `block` a text waits for its end: what tells is the whole of it."""

    guard = "retelling"

    def __init__(
        self,
        settings: Leakage,
        prompts: Sequence[KnownPrompt],
        user_texts: Sequence[str],
        reader: PairReader | None = None,
    ) -> None:
        self._settings = settings
        self._prompts = prompts
        self._user_texts = user_texts
        self._reader = reader
        self._limit = LIMIT if reader is None else reader.limit
        self._texts: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}
        self._ended: set[str] = set()

    @cached_property
    def _typed(self) -> dict[str, float]:
        return {stem: weight for text in self._user_texts for stem, weight in telling(text).items()}

    def held(self, channel: str, end: int) -> int:
        """All of a text that has not ended, with `block`."""
        waits = self._settings.retelling == "block" and channel in self._texts and channel not in self._ended
        return 0 if waits else end

    def clears(self, channel: str, spelled: Sequence[str]) -> bool:
        """Whether its words tell nothing, or too little, of any prompt that the user did not say."""
        if "#" in channel:
            return True
        stems = stems_of(spelled)
        if not self._says(stems, frozenset()):
            return True
        is_long = sum(map(len, self._user_texts)) > _INLINE_CHARS
        return not is_long and not self._says(stems, self._typed.keys())

    def _says(self, stems: Set[str], typed: Set[str]) -> bool:
        """Whether a text with these words could tell a prompt."""
        known = (prompt.words for prompt in self._prompts)
        told = (sum(map(words.__getitem__, (words.keys() & stems) - typed)) for words in known)
        return any(told) if self._reader is None else any(weight >= _LEAST_WEIGHT for weight in told)

    async def called(self, parts: Sequence[CallPart]) -> list[Sight]:
        """Nothing: the channels say it."""
        del parts
        return []

    async def feed(self, channel: str, text: str) -> list[Sight]:
        """Keep the text. Repeated forms of another (`#`) say nothing new."""
        size = self._sizes.get(channel, 0)
        if "#" not in channel and size < _MAX_CHARS:
            self._texts.setdefault(channel, []).append(text)
            self._sizes[channel] = size + len(text)
        return []

    async def end(self, channel: str) -> list[Sight]:
        """Weigh the text's passages."""
        if channel in self._ended or channel not in self._texts:
            return []
        self._ended.add(channel)
        text = "".join(self._texts.pop(channel))
        is_long = len(text) + sum(map(len, self._user_texts)) > _INLINE_CHARS
        suspects = await asyncio.to_thread(self._suspects, text) if is_long else self._suspects(text)
        found: list[Sight] = []
        for start, end, passage, signs in suspects:
            if (total := await self._sum(passage, signs)) >= self._limit:
                score = 1.0 / (1.0 + math.exp(-total))
                action = self._settings.retelling
                found.append(Sight("leak.prompt", action, channel, start, end, passage, "told in other words", score))
        return found

    async def finish(self) -> list[Sight]:
        """Weigh the passages of all texts."""
        return [sight for channel in list(self._texts) for sight in await self.end(channel)]

    def _suspects(self, text: str) -> list[tuple[int, int, str, list[Signals]]]:
        """The passages that may tell a prompt, with their signs for each."""
        found: list[tuple[int, int, str, list[Signals]]] = []
        for start, end, passage in passages(text):
            said = said_in(passage)
            if not self._may_tell([said.signs(prompt.words, {}) for prompt in self._prompts]):
                continue
            # What the user typed can only lower them.
            signs = [said.signs(prompt.words, self._typed) for prompt in self._prompts]
            if self._may_tell(signs):
                found.append((start, end, passage, signs))
        return found

    def _may_tell(self, signs: Sequence[Signals]) -> bool:
        """Whether the words tell, or where the encoder is still to be asked, say enough of a prompt at all."""
        if self._reader is None:
            return any(weigh(each) >= LIMIT for each in signs)
        return any(each[0] >= LEAST_TOLD for each in signs)

    async def _sum(self, passage: str, signs: Sequence[Signals]) -> float:
        """The log-odds for the prompt that is told most. Raises UnavailableError."""
        if self._reader is None:
            return max(map(weigh, signs))
        told = [(prompt, each) for prompt, each in zip(self._prompts, signs, strict=True) if each[0] >= LEAST_TOLD]
        return await self._reader.highest(told, passage)


def weigh(found: Signals) -> float:
    """The signs' sum, a log-odds."""
    return float(found @ np.asarray(WEIGHTS)) + BIAS


def passages(text: str) -> list[tuple[int, int, str]]:
    """(start, end, text) of pieces of whole sentences, up to PASSAGE_CHARS each where sentences are shorter."""
    found: list[tuple[int, int, str]] = []
    start = end = 0
    for sentence in split(text):
        at = text.find(sentence, end)
        last = (at if at >= 0 else end) + len(sentence)
        if last - start > PASSAGE_CHARS and end > start:
            found.append((start, end, text[start:end]))
            start = end
        end = last
    if end > start:
        found.append((start, end, text[start:end]))
    return found
