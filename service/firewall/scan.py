"""Scoring a long stream of texts offline: constant memory, full batches, results in input order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
import numpy as np

from service.firewall.injection import attack_finding, hidden_findings
from service.firewall.normalize import views
from service.firewall.policy import RolePolicy
from service.firewall.prompt import FOREIGN, Role, Segment
from service.firewall.text_score import TextScore, TextScorer, TextWindow, WindowRows
from service.firewall.verdict import Verdict, decide
from service.scoring.encoder import WindowEncoder

# So many windows are sorted by length together; their text is all that is held.
CHUNK_WINDOWS = 2_048


class Scanned(msgspec.Struct, frozen=True):
    """One text's result."""

    score: TextScore
    verdict: Verdict


class _Waiting(msgspec.Struct):
    """A text whose windows are collected for the next chunk."""

    segment: Segment
    hidden: tuple[tuple[int, int, str], ...]
    cut: list[TextWindow]


def scan(
    texts: Iterable[tuple[str, Role]],
    scorer: TextScorer,
    encoder: WindowEncoder,
    policies: Mapping[Role, RolePolicy],
    *,
    digest: Callable[[str], str] = lambda text: "",
    chunk_windows: int = CHUNK_WINDOWS,
) -> Iterator[Scanned]:
    """Score (text, role) pairs, one result each, in order. Reads ahead by one chunk of windows.

    Texts of any length are judged whole: caps and deadlines are for the service.
    """
    waiting: list[_Waiting] = []
    windows = 0
    for text, role in texts:
        readings = views(text)
        segment = Segment(text, role, "", foreign=role in FOREIGN)
        cut = scorer.cut(readings, segment.origin)
        waiting.append(_Waiting(segment, readings[0].hidden, cut))
        windows += len(cut)
        # Texts without windows count too, or an endless row of empty lines would never be answered.
        if windows + len(waiting) >= chunk_windows:
            yield from _judged(waiting, _scored(waiting, scorer, encoder, chunk_windows), policies, digest)
            waiting, windows = [], 0
    yield from _judged(waiting, _scored(waiting, scorer, encoder, chunk_windows), policies, digest)


def _scored(waiting: list[_Waiting], scorer: TextScorer, encoder: WindowEncoder, size: int) -> Iterator[TextScore]:
    """The score of each text; equal windows are encoded once."""
    distinct: dict[tuple[int, ...], int] = {}
    places = [[distinct.setdefault(tuple(part.ids), len(distinct)) for part in text.cut] for text in waiting]
    rows = _rows(list(distinct), scorer, encoder, size)
    for text, place in zip(waiting, places, strict=True):
        yield scorer.score_rows(text.cut, WindowRows(rows.logits[place], rows.similarity[place]))


def _judged(
    waiting: list[_Waiting],
    scores: Iterable[TextScore],
    policies: Mapping[Role, RolePolicy],
    digest: Callable[[str], str],
) -> Iterator[Scanned]:
    for text, score in zip(waiting, scores, strict=True):
        finding = attack_finding(text.segment, score, policies[text.segment.role], digest)
        found = [finding] if finding else []
        yield Scanned(score, decide([*found, *hidden_findings(text.segment, text.hidden, digest)]))


def _rows(ids: list[tuple[int, ...]], scorer: TextScorer, encoder: WindowEncoder, size: int) -> WindowRows:
    """Encode in slices, so that one endless text does not hold the vectors of all its windows."""
    parts = [scorer.rows(encoder.encode(ids[first : first + size])) for first in range(0, len(ids), size)]
    if not parts:
        return WindowRows(np.empty((0, 0), np.float32), np.empty(0, np.float32))
    return WindowRows(
        np.concatenate([part.logits for part in parts]), np.concatenate([part.similarity for part in parts])
    )
