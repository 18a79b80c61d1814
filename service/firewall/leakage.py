"""The guard of replies: what a reply is compared with, and the comparison of its sentences with prompts by meaning."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.errors import GuardFailed
from service.firewall.asked import Asked
from service.firewall.canary import patterns
from service.firewall.ngrams import words
from service.firewall.owners import Owners
from service.firewall.patterns import Form
from service.firewall.protected import ProtectedTexts, RequestProtection
from service.firewall.sentences import split
from service.firewall.split_secrets import SplitSecrets, ToldSecrets
from service.firewall.stream import ReplyJudge
from service.firewall.verdict import Action
from service.firewall.watched import Opening, Watch, WatchedJudge
from service.scoring.artifact import Artifact
from service.scoring.encoder import Encoded
from service.settings import Leakage

Vectors = npt.NDArray[np.float32]

# A sentence that is as near to what the user wrote, or to what every assistant says, tells nothing of the prompt.
MARGIN = 0.02
_MIN_WORDS = 4.0
_MAX_PROMPT_SENTENCES = 256
_MAX_USER_SENTENCES = 32
_CACHED_PROMPTS = 256
_CACHED_VALUES = 256
_VALUE_CHARS = 128
# Longer texts are read in a thread, so that the event loop goes on.
_INLINE_CHARS = 4_000

GENERIC = (
    "I am a helpful assistant.",
    "You are a helpful assistant.",
    "How can I help you today?",
    "I'm sorry, but I can't help with that.",
    "I can't share my instructions.",
    "Is there anything else I can help you with?",
    "Let me know if you have any questions.",
    "Sure, I'd be happy to help.",
    "Here is the answer to your question.",
    "Thank you for your message.",
    "Please provide more details.",
    "I don't have access to that information.",
)


class Batcher(Protocol):
    """What encodes windows for many requests at once."""

    async def encode(self, ids: Sequence[Sequence[int]], deadline_s: float) -> Encoded:
        """One row per window. Raises Overloaded, DeadlineExceeded."""
        ...


class LeakageGuard:
    """Opens a judge for each reply.

    `digest` is the keyed hash that findings carry. Without `batcher` and `artifact` sentences are compared word by word
    only. `deadline_s` bounds each encoding. `watches` open what
    else looks at a reply; `canary` is what follows from a mark of the system text in it.
    """

    def __init__(
        self,
        settings: Leakage,
        protected: ProtectedTexts,
        batcher: Batcher | None,
        artifact: Artifact | None,
        *,
        digest: Callable[[str], str],
        deadline_s: float = 20.0,
        watches: Sequence[Watch] = (),
        canary: Action = "block",
    ) -> None:
        self._watches = watches
        self._canary: Action = canary
        self._settings = settings
        self._protected = protected
        self._digest = digest
        self._told = ToldSecrets()
        self._embedder = (
            Embedder(batcher, artifact, deadline_s) if batcher is not None and artifact is not None else None
        )

    async def open(
        self, tenant: str, system_texts: Sequence[str], user_texts: Sequence[str], asked: Asked | None = None
    ) -> ReplyJudge | WatchedJudge:
        """A judge that knows all protected texts and this request's own, with watchers where it is told what was
        `asked`. Raises GuardFailed where the registered ones cannot be read and the policy is to fail closed; else the
        judge says that it could not judge by them.
        """
        if self._protected.stale and self._settings.on_error == "block":
            raise GuardFailed("The protected texts cannot be read.")
        marks = patterns(asked.canary) if asked is not None else ()
        given = Asked() if asked is None else asked
        request = (tenant, system_texts, user_texts, marks, given.supplied, given.results)
        if sum(map(len, system_texts)) > _INLINE_CHARS:
            protection = await asyncio.to_thread(self._protected.for_request, *request)
        else:
            protection = self._protected.for_request(*request)
        pieces = self._told.follow(given.caller, lambda form, pattern: _registered(protection, form, pattern))
        judge = self.judge(protection, self._digest, pieces)
        if self._protected.stale:
            judge.doubt()
        if asked is None or not self._watches:
            return judge
        opening = Opening(tenant, asked, tuple(system_texts), tuple(user_texts), protection.prompts)
        watchers = [watcher for watch in self._watches if (watcher := watch(opening)) is not None]
        return WatchedJudge(judge, watchers, self._digest, fails_closed=self._settings.on_error == "block")

    def judge(
        self, protection: RequestProtection, digest: Callable[[str], str], pieces: SplitSecrets | None = None
    ) -> ReplyJudge:
        """A judge for a protection made beforehand, and for what the caller was told of secrets before. To be called on
        the event loop.
        """
        closeness = None
        if self._embedder is not None and protection.has_prompts and self._settings.stream != "exact":
            closeness = MeaningCheck(self._embedder, protection)
        return ReplyJudge(protection, self._settings, digest, closeness, self._canary, pieces)


def _registered(protection: RequestProtection, form: Form, pattern: str) -> Owners:
    """Whose secret is written so; nobody's where it is registered no more."""
    return tuple(
        owner
        for patterns in protection.patterns
        if patterns.form == form
        for text, owners in patterns.beginning(pattern[:-1])
        if text == pattern
        for owner in owners
        if owner.kind == "secret"
    )


class Embedder:
    """Sentences to vectors, and the vectors of whole texts kept for the next reply."""

    def __init__(self, batcher: Batcher, artifact: Artifact, deadline_s: float) -> None:
        self._batcher = batcher
        self._tokenizer = artifact.tokenizer
        self._manifest = artifact.manifest
        self._deadline_s = deadline_s
        # Where paraphrases end and answers on the prompt's topic begin depends on the encoder: its manifest knows.
        self.leak_cosine = artifact.manifest.calibration.leak_cosine
        self._texts: OrderedDict[bytes, asyncio.Task[Vectors]] = OrderedDict()
        self._values: OrderedDict[str, Vectors] = OrderedDict()

    async def vectors(self, sentences: Sequence[str]) -> tuple[Vectors, npt.NDArray[np.intp]]:
        """float32 (n_windows, dim), L2-normalised, and each row's sentence. Raises UnavailableError."""
        # Names of models and versions stand in every reply, each by itself.
        value = sentences[0] if len(sentences) == 1 and len(sentences[0]) <= _VALUE_CHARS else ""
        if value in self._values:
            self._values.move_to_end(value)
            return self._values[value], np.zeros(len(self._values[value]), np.intp)
        if sum(map(len, sentences)) > _INLINE_CHARS:
            ids, owners = await asyncio.to_thread(self._windows, sentences)
        else:
            ids, owners = self._windows(sentences)
        if not ids:
            return np.empty((0, self._manifest.embedding_dim), np.float32), np.empty(0, np.intp)
        encoded = await self._batcher.encode(ids, self._deadline_s)
        if value:
            self._values[value] = encoded.vectors
            while len(self._values) > _CACHED_VALUES:
                self._values.popitem(last=False)
        return encoded.vectors, np.asarray(owners, np.intp)

    def text(self, text: str, limit: int) -> asyncio.Task[Vectors]:
        """The vectors of a text's sentences, worked out once for all replies that ask; at most `limit` sentences."""
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        task = self._texts.get(key)
        if task is None:
            task = self._texts[key] = asyncio.get_running_loop().create_task(self._text(text, limit))
            task.add_done_callback(lambda done: self._forget_failure(key, done))
            while len(self._texts) > _CACHED_PROMPTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return task

    async def _text(self, text: str, limit: int) -> Vectors:
        sentences = await asyncio.to_thread(telling_sentences, text)
        rows, _ = await self.vectors(sentences[:limit])
        return rows

    def _forget_failure(self, key: bytes, task: asyncio.Task[Vectors]) -> None:
        if (task.cancelled() or task.exception() is not None) and self._texts.get(key) is task:
            del self._texts[key]

    def _windows(self, sentences: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        manifest = self._manifest
        body = manifest.max_tokens - 2
        ids: list[list[int]] = []
        owners: list[int] = []
        encodings = self._tokenizer.encode_batch(list(sentences), add_special_tokens=False)
        for number, encoding in enumerate(encodings):
            tokens = list(encoding.ids)
            for start in range(0, len(tokens), body):
                ids.append([manifest.cls_id, *tokens[start : start + body], manifest.sep_id])
                owners.append(number)
        return ids, owners


class MeaningCheck:
    """Compares the sentences of one reply with its protected prompts; begins to encode those at once."""

    def __init__(self, embedder: Embedder, protection: RequestProtection) -> None:
        self._embedder = embedder
        self._protection = protection
        self._prompts = [embedder.text(prompt, _MAX_PROMPT_SENTENCES) for prompt in protection.prompts]
        self._supplied: list[tuple[str, set[str]]] | None = None

    async def leaks(self, sentences: Sequence[str]) -> list[float | None]:
        """The cosine of each sentence that tells a prompt's sentence in its own words, None for the others.

        Raises UnavailableError.
        """
        # A failed or dropped encoding is begun anew: one full queue must not leave a conversation unjudged.
        prompts = [
            await asyncio.shield(self._embedder.text(text, _MAX_PROMPT_SENTENCES) if _failed(task) else task)
            for task, text in zip(self._prompts, self._protection.prompts, strict=True)
        ]
        told = np.concatenate(prompts) if prompts else np.empty((0, 0), np.float32)
        scores: list[float | None] = [None] * len(sentences)
        if not len(told):
            return scores
        rows, owners = await self._embedder.vectors(sentences)
        nearest = (rows @ told.T).max(axis=1, initial=-1.0)
        suspects = np.flatnonzero(nearest >= self._embedder.leak_cosine)
        if not len(suspects):
            return scores
        harmless = await self._harmless([sentences[owner] for owner in owners[suspects]])
        excuse = (rows[suspects] @ harmless.T).max(axis=1, initial=-1.0)
        for row, other in zip(suspects, excuse, strict=True):
            if nearest[row] - other >= MARGIN:
                score = min(float(nearest[row]), 1.0)
                owner = int(owners[row])
                scores[owner] = max(score, scores[owner] or 0.0)
        return scores

    async def _harmless(self, suspects: Sequence[str]) -> Vectors:
        """Vectors of what every assistant says and of those sentences of the caller's own texts that share most words
        with these.
        """
        generic = await asyncio.shield(self._embedder.text("\n".join(GENERIC), len(GENERIC)))
        wanted = {token.word for suspect in suspects for token in words(suspect)}
        typed = await asyncio.to_thread(self._nearest_by_words, wanted)
        rows, _ = await self._embedder.vectors(typed)
        return np.concatenate([generic, rows])

    def _nearest_by_words(self, wanted: set[str]) -> list[str]:
        if self._supplied is None:  # documents are long, and are cut once for the reply
            sentences = dict.fromkeys(each for text in self._protection.supplied for each in telling_sentences(text))
            self._supplied = [(sentence, {token.word for token in words(sentence)}) for sentence in sentences]
        ranked = [(len(spelled & wanted) / len(spelled | wanted), sentence) for sentence, spelled in self._supplied]
        ranked.sort(key=lambda pair: -pair[0])
        return [sentence for _, sentence in ranked[:_MAX_USER_SENTENCES]]


def _failed(task: asyncio.Task[Vectors]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def telling_sentences(text: str) -> list[str]:
    """A text's distinct sentences that have at least four words (eight ideographs)."""
    sentences = dict.fromkeys(split(text))
    return [s for s in sentences if sum(token.weight for token in words(s)) >= _MIN_WORDS]
