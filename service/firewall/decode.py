"""Decoded readings of a text: every encoded or disguised run, put back in place, up to two layers deep."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from service.firewall.disguises import disguised_runs
from service.firewall.encodings import Run, encoded_runs
from service.firewall.language import reads_as_text
from service.firewall.sanitise import Offsets, View, sanitise

DEPTH = 2
# Runs closer than this are read as one text.
_JOIN_CHARS = 40
# A decoded run with fewer words needs its surroundings to be understood.
_ALONE_WORDS = 4
_CONTEXT_CHARS = 120
_MAX_VIEWS = 8
_WORD = re.compile(r"[^\W\d_]{2,}")

# (start in the parent, end in the parent, text or None for the parent's own)
Piece = tuple[int, int, str | None]


def decoded_views(main: View) -> list[View]:
    """All decoded views of a sanitised text, none of them equal to another or to the text itself.

    Together at most 2 · len + 2048 characters: what is beyond that stays judged as it is written.
    """
    budget = 2 * len(main.text) + 2_048
    seen = {main.text}
    layer, found = [main], []
    for _ in range(DEPTH):
        following = []
        for view in layer:
            for child in _children(view):
                if child.text in seen or budget < len(child.text):
                    continue
                seen.add(child.text)
                budget -= len(child.text)
                following.append(child)
        # A layer that is still encoded is only a step on the way.
        found += [view for view in following if reads_as_text(view.text)]
        layer = following
    return found


def _children(parent: View) -> Iterable[View]:
    """One layer of decoding. Encodings are undone together, each disguise by itself: they may overlap."""
    text = parent.text
    yield from _spliced(parent, encoded_runs(text))
    for runs in disguised_runs(text):
        yield from _spliced(parent, runs)


def _spliced(parent: View, runs: list[Run]) -> Iterable[View]:
    """Views of runs in their surroundings, one for each group of neighbouring runs; many groups share one view."""
    groups: list[list[Run]] = []
    for run in runs:
        if groups and run.start - groups[-1][-1].end <= _JOIN_CHARS:
            groups[-1].append(run)
        else:
            groups.append([run])
    pieces: list[list[Piece]] = []
    apart = len(groups) <= _MAX_VIEWS
    for number, group in enumerate(groups):
        # Contexts stop at the neighbouring group, and in one view no part of the text is repeated: all of them together
        # are no longer than the text, and offsets never go back.
        floor = 0 if not number else groups[number - 1][-1].end if apart else pieces[-1][-1][1]
        ceiling = groups[number + 1][0].start if number + 1 < len(groups) else len(parent.text)
        pieces.append(_pieces(parent.text, group, floor, ceiling))
    if apart:
        for group, one in zip(groups, pieces, strict=True):
            yield _view(parent, one, group[0].kind)
        return
    joined: list[Piece] = []
    for one in pieces:
        joined += [(one[0][0], one[0][0], "\n"), *one]
    yield _view(parent, joined, groups[0][0].kind)


def _pieces(text: str, group: list[Run], floor: int, ceiling: int) -> list[Piece]:
    start, end = group[0].start, group[-1].end
    pieces: list[Piece] = []
    before, after = start, end
    words = sum(len(_WORD.findall(run.text[:400])) for run in group)
    alone = words >= _ALONE_WORDS or not any(reads_as_text(run.text) for run in group)
    if not alone:
        before = max(floor, start - _CONTEXT_CHARS)
        after = min(ceiling, end + _CONTEXT_CHARS)
        if before < start and _readable(text[before:start]):
            pieces.append((before, start, None))
    for position, run in enumerate(group):
        if position and group[position - 1].end < run.start:
            pieces.append((group[position - 1].end, run.start, None))
        pieces.append((run.start, run.end, run.text))
    if not alone and end < after and _readable(text[end:after]):
        pieces.append((end, after, None))
    return pieces


def _readable(context: str) -> bool:
    return reads_as_text(context.strip()) or bool(_WORD.search(context) and len(context.strip()) < 24)


def _even_offsets(pieces: list[Piece], texts: list[str]) -> Offsets:
    """Offsets spread evenly over each run: every encoding here is of nearly constant rate."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    begins = np.array([start for start, _, _ in pieces], np.int64)
    spans = np.array([end - start for start, end, _ in pieces], np.int64)
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    spread = inside * np.repeat(spans, lengths) // np.repeat(np.maximum(lengths, 1), lengths)
    return np.asarray(np.repeat(begins, lengths) + spread, np.int32)


def _view(parent: View, pieces: list[Piece], kind: str) -> View:
    """Join pieces into a view whose offsets lead through the parent to the original."""
    texts: list[str] = []
    uneven: list[tuple[int, Offsets, int, float]] = []
    at = 0
    for start, end, text in pieces:
        if text is None:
            texts.append(parent.text[start:end])
        elif text.isascii() and text.isprintable():
            texts.append(text)
        else:
            clean = sanitise(text)
            texts.append(clean.text)
            if clean.starts is not None:
                uneven.append((at, clean.starts, start, (end - start) / len(text)))
        at += len(texts[-1])
    starts = _even_offsets(pieces, texts)
    for first, inner, start, rate in uneven:
        starts[first : first + len(inner)] = start + inner * rate
    if parent.starts is not None:
        starts = parent.starts[np.minimum(starts, len(parent.starts) - 1)]
    name = kind if parent.kind == "main" else f"{parent.kind}+{kind}"
    stop = parent.span(pieces[-1][0], pieces[-1][1])[1] if pieces[-1][0] < pieces[-1][1] else parent.stop
    return View("".join(texts), name, starts, stop)
