"""The guard of the input: every text of a prompt is scored whole and judged by its role's policy.

    Prompt ─▶ segments and joined segments ─▶ views ─▶ windows ─▶ batcher ─▶ TextScore ─▶ policy ─▶ Verdict

When it cannot judge (queue full, deadline over, encoder broken) `on_error` decides: "block" raises, "allow" gives a
verdict with `unjudged = ("injection",)`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Protocol

import msgspec
import numpy as np

from service.errors import DeadlineExceeded, GuardFailed, UnavailableError
from service.firewall.normalize import BLOCK_CHARS, views
from service.firewall.pieces import split
from service.firewall.policy import RolePolicy, as_category, role_policies
from service.firewall.prompt import Prompt, Segment, joined_segments
from service.firewall.score_cache import Recent, ScoredText, WindowRow, scope_key, text_key, window_key
from service.firewall.text_score import TextScore, TextScorer, TextWindow, WindowRows
from service.firewall.verdict import Action, Finding, Verdict, decide, severest
from service.scoring.artifact import Artifact
from service.scoring.attack_index import AttackIndex
from service.scoring.cells import CoarseCells
from service.scoring.encoder import Encoded
from service.settings import Detection

__all__ = ["InjectionGuard", "TextScore", "TextScorer", "TextWindow", "attack_finding", "hidden_findings"]

GUARD = "injection"
# No text has fewer tokens than one per this many characters in practice; beyond it, tokenising is not even tried.
CHARS_PER_TOKEN = 12
CACHED_TEXTS = 16_384
CACHED_WINDOWS = 65_536
_MAX_HIDDEN_FINDINGS = 8

Digest = Callable[[str], str]
_Found = tuple[list[Finding], tuple[str, ...], int]
"""Findings, who could not judge, the prompt's cell."""


class EncodesWindows(Protocol):
    """The batcher, as this guard sees it."""

    async def encode(self, ids: list[list[int]], deadline_s: float) -> Encoded:
        """One row per window."""
        ...


class _Text(msgspec.Struct):
    """One text on its way: what of it is known, what has to be encoded."""

    segment: Segment
    joined: bool
    key: bytes
    scored: ScoredText | None = None
    cut: list[TextWindow] = []
    keys: list[bytes] = []
    hidden: tuple[tuple[int, int, str], ...] = ()


class _Job(msgspec.Struct):
    """All texts of a prompt, and each distinct window once: known rows, and ids still to encode."""

    texts: list[_Text] = []
    rows: dict[bytes, WindowRow] = {}
    missing: dict[bytes, list[int]] = {}
    oversize: bool = False


class InjectionGuard:
    """Judges prompts. One per process; `close()` ends its threads.

    Raises ConfigError where the settings ask for rates that the artifact has no thresholds for.
    """

    def __init__(self, detection: Detection, artifact: Artifact, batcher: EncodesWindows, index: AttackIndex) -> None:
        self._detection = detection
        self._policies = role_policies(detection, artifact.manifest)
        self._batcher = batcher
        self._scorer = TextScorer(artifact, index)
        self._cells = CoarseCells(index.vectors())
        self._version = artifact.version
        self._max_chars = detection.max_windows * (artifact.manifest.max_tokens - artifact.manifest.overlap_tokens)
        self._max_chars *= CHARS_PER_TOKEN
        self._max_words = detection.max_windows * artifact.manifest.max_tokens
        self._texts: Recent[ScoredText] = Recent(CACHED_TEXTS)
        self._windows: Recent[WindowRow] = Recent(CACHED_WINDOWS)
        self._executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="judge")

    def close(self) -> None:
        """End the worker threads without waiting for work that nobody awaits any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def judge(self, prompt: Prompt, *, digest: Digest, cache_scope: str) -> Verdict:
        """The verdict on a prompt within `detection.deadline_s`, which each group of texts has that are judged apart.

        `digest` makes the keyed hash that findings carry; `cache_scope` names whose cached scores may be used (tenant
        and policy version). Raises Overloaded, DeadlineExceeded or GuardFailed where on_error is "block".
        """
        if not self._detection.enabled:
            return Verdict()
        noted = [
            Finding(GUARD, "unscannable", 0.0, self._detection.on_unscannable, pointer=item.pointer, detail=item.kind)
            for item in prompt.unscannable
        ]
        try:
            found, unjudged, cell = await self._judge(prompt, digest, cache_scope)
        except UnavailableError:
            if self._detection.on_error == "block":
                raise
            return decide(noted, (GUARD,))
        except Exception as error:
            if self._detection.on_error != "block":
                return decide(noted, (GUARD,))
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("judging took longer than detection.deadline_s") from error
            raise GuardFailed(f"the injection guard failed ({type(error).__name__})") from error
        return msgspec.structs.replace(decide([*noted, *found], unjudged), cell=cell)

    async def score(self, text: str) -> TextScore:
        """One text whole, beside any policy or cache, within `detection.deadline_s`. Raises UnavailableError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._detection.deadline_s):
                cut = await loop.run_in_executor(self._executor, lambda: self._scorer.cut(views(text)))
                if not cut:
                    return self._scorer.score_rows(
                        [], WindowRows(np.empty((0, 0), np.float32), np.empty(0, np.float32))
                    )
                encoded = await self._batcher.encode([part.ids for part in cut], self._detection.deadline_s)
                return await loop.run_in_executor(
                    self._executor, lambda: self._scorer.score_rows(cut, self._scorer.rows(encoded))
                )
        except TimeoutError as error:
            raise DeadlineExceeded("judging took longer than detection.deadline_s") from error

    async def _judge(self, prompt: Prompt, digest: Digest, cache_scope: str) -> _Found:
        """Texts that stand apart are judged in as many groups as their windows need, one after the other: only a text
        that is too long by itself is oversize.
        """
        async with asyncio.timeout(self._detection.deadline_s):
            found = await self._judge_together(prompt, digest, cache_scope)
        if found is not None:
            return found
        segments = prompt.segments
        if not prompt.apart or len(segments) < 2:
            return self._oversize()
        half = len(segments) // 2
        halves = [msgspec.structs.replace(prompt, segments=part) for part in (segments[:half], segments[half:])]
        findings, unjudged, cell = await self._judge(halves[0], digest, cache_scope)
        if severest(finding.action for finding in findings) == "block":
            return findings, unjudged, cell
        more, others, last = await self._judge(halves[1], digest, cache_scope)
        return [*findings, *more], tuple(dict.fromkeys(unjudged + others)), last if last >= 0 else cell

    async def _judge_together(self, prompt: Prompt, digest: Digest, cache_scope: str) -> _Found | None:
        """None where there is more text than `detection.max_windows` windows."""
        deadline = monotonic() + self._detection.deadline_s
        if sum(len(segment.text) for segment in prompt.segments) > self._max_chars:
            return None
        loop = asyncio.get_running_loop()
        prefix = scope_key(cache_scope, self._version)
        job = await loop.run_in_executor(self._executor, self._prepare, prompt, prefix, deadline)
        if job.oversize:
            return None
        encoded = None
        if job.missing:
            encoded = await self._batcher.encode(list(job.missing.values()), deadline - monotonic())
        findings, cell = await loop.run_in_executor(self._executor, self._conclude, job, encoded, digest)
        return findings, (), cell

    def _oversize(self) -> _Found:
        action = self._detection.on_oversize
        detail = f"more than {self._detection.max_windows} windows"
        # Where policy lets it through, nothing of it was judged, and the record says so.
        return [Finding(GUARD, "oversize", 0.0, action, detail=detail)], () if action == "block" else (GUARD,), -1

    def _prepare(self, prompt: Prompt, prefix: bytes, deadline: float) -> _Job:
        """Everything before the model: look up, sanitise, decode, tokenise. Runs in a worker thread."""
        job = _Job()
        # Every word is at least one token: the clearest cases are told without reading them.
        if sum(map(_words, prompt.segments)) > self._max_words:
            return _Job(oversize=True)
        windows = 0
        for segment, joined in _with_joined(prompt):
            if monotonic() > deadline:  # the caller has gone; a thread cannot be cancelled
                raise DeadlineExceeded("judging took longer than detection.deadline_s")
            text = _Text(segment, joined, text_key(prefix, segment.text, segment.origin))
            text.scored = self._texts.get(text.key)
            if text.scored is None:
                readings = views(segment.text)
                text.hidden = readings[0].hidden
                text.cut = self._scorer.cut(readings, segment.origin)
                text.keys = [window_key(prefix, part.ids) for part in text.cut]
            # Joined texts repeat what was counted: the cap speaks of what the caller sent.
            windows += 0 if joined else text.scored.windows if text.scored else len(text.cut)
            if windows > self._detection.max_windows:
                return _Job(oversize=True)
            for key, part in zip(text.keys, text.cut, strict=True):
                if key in job.rows or key in job.missing:
                    continue
                row = self._windows.get(key)
                if row is not None:
                    job.rows[key] = row
                else:
                    job.missing[key] = part.ids
            job.texts.append(text)
        return job

    def _conclude(self, job: _Job, encoded: Encoded | None, digest: Digest) -> tuple[list[Finding], int]:
        """Everything after the model: similarity, scores, policy; and the cell of the last text that a user wrote, or
        of the last one. Runs in a worker thread.
        """
        if encoded is not None:
            rows, cells = self._scorer.rows(encoded), self._cells.of(encoded.vectors)
            for number, key in enumerate(job.missing):
                job.rows[key] = WindowRow(
                    rows.logits[number].copy(), float(rows.similarity[number]), int(cells[number])
                )
                self._windows.put(key, job.rows[key])
        findings: list[Finding] = []
        cell = last = -1
        for text in job.texts:
            scored = text.scored or self._score(text, job.rows)
            if not text.joined:
                last = scored.cell
                cell = scored.cell if text.segment.role == "user" else cell
            policy = self._policies[text.segment.role]
            finding = attack_finding(text.segment, scored.score, policy, digest, joined=text.joined)
            same = severest(f.action for f in findings if f.guard == GUARD)
            # A joined text that says no more than its parts is no finding of its own.
            if finding is not None and not (text.joined and severest((same, finding.action)) == same):
                findings.append(finding)
            if not text.joined:
                findings += hidden_findings(text.segment, scored.hidden, digest)
        return findings, cell if cell >= 0 else last

    def _score(self, text: _Text, known: dict[bytes, WindowRow]) -> ScoredText:
        rows = [known[key] for key in text.keys]
        stacked = WindowRows(
            np.stack([row.logits for row in rows]) if rows else np.empty((0, 0), np.float32),
            np.array([row.similarity for row in rows], np.float32),
        )
        cell = rows[0].cell if rows else -1  # the main view's first window
        scored = ScoredText(self._scorer.score_rows(text.cut, stacked), text.hidden, len(text.cut), cell)
        self._texts.put(text.key, scored)
        return scored


def _words(segment: Segment) -> int:
    return sum(len(piece.split()) for piece in split(segment.text, BLOCK_CHARS))


def _with_joined(prompt: Prompt) -> Iterator[tuple[Segment, bool]]:
    """The segments as they are, then those that only their neighbourhood makes whole."""
    for segment in prompt.segments:
        yield segment, False
    for segment in joined_segments(prompt):
        yield segment, True


def attack_finding(
    segment: Segment, score: TextScore, policy: RolePolicy, digest: Digest, *, joined: bool = False
) -> Finding | None:
    """What policy makes of a score; None below the flagging threshold or where the category is allowed."""
    action: Action = policy.action(score.score, score.category, foreign=segment.foreign)
    if action == "allow":
        return None
    detail = score.view + (" joined" if joined else "")
    return Finding(
        GUARD,
        as_category(score.category),
        score.score,
        action,
        pointer=segment.pointer,
        start=score.start,
        end=score.end,
        digest=digest(segment.text),
        detail=detail,
    )


def hidden_findings(segment: Segment, hidden: tuple[tuple[int, int, str], ...], digest: Digest) -> list[Finding]:
    """A note that text is hidden in a segment. Never an action: what it says was judged with the rest."""
    mark = digest(segment.text) if hidden else ""
    return [
        Finding(GUARD, "hidden_text", 0.0, "allow", segment.pointer, start, end, mark, kind)
        for start, end, kind in hidden[:_MAX_HIDDEN_FINDINGS]
    ]
