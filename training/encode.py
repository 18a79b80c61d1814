"""Rows become labelled windows, cut from the same sanitised view that the firewall judges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from service.firewall.sanitise import View, sanitise
from service.firewall.windows import windows
from training.corpus import BENIGN, Row
from training.model import ORIGINS
from training.windows import Windows

MAX_TOKENS = 128
OVERLAP = 32
# A window holds the injected text when it has half of it, or this many of its characters.
SPAN_CHARS = 48


def origins(tokenizer: Tokenizer) -> dict[str, int]:
    """The first token of foreign text by where it comes from: behind the tokenizer's ids, so no text spells it."""
    return {origin: tokenizer.get_vocab_size() + number for number, origin in enumerate(ORIGINS)}


def encode(rows: Sequence[Row], tokenizer: Tokenizer, *, most: int, seed: int) -> Windows:
    """Cut rows into windows; of a long text at most `most` are kept, the ones with the injected span first."""
    rng = np.random.default_rng(seed)
    marks = origins(tokenizer)
    ids: list[list[int]] = []
    labels: list[int] = []
    owners: list[int] = []
    weights: list[float] = []
    certain: list[bool] = []
    for number, row in enumerate(tqdm(rows, desc="windows", unit="row", mininterval=5)):
        view = sanitise(row.text)
        cut = windows(view, tokenizer, MAX_TOKENS, OVERLAP, cls_id=marks.get(row.role, 0))
        marked = [(window.ids, _label(row, view, window.start, window.end)) for window in cut]
        marked = [(tokens, label) for tokens, label in marked if label >= 0]
        if len(marked) > most:
            order = sorted(rng.permutation(len(marked)), key=lambda i: marked[i][1] == BENIGN)
            marked = [marked[i] for i in order[:most]]
        for tokens, label in marked:
            ids.append(tokens)
            labels.append(label)
            owners.append(number)
            # A long text counts for more than a short one, but not for as much as its windows.
            weights.append(row.weight / len(marked) ** 0.5)
            certain.append(label == BENIGN or row.span is not None or len(marked) == 1)
    return Windows(
        ids=np.concatenate([np.asarray(tokens, np.int32) for tokens in ids]),
        starts=np.concatenate([[0], np.cumsum([len(tokens) for tokens in ids])]).astype(np.int64),
        label=np.asarray(labels, np.int64),
        row=np.asarray(owners, np.int64),
        weight=np.asarray(weights, np.float32),
        certain=np.asarray(certain, np.bool_),
    )


def _label(row: Row, view: View, start: int, end: int) -> int:
    """The window's label, or -1 where it holds too little of the injected text to say."""
    if row.label == BENIGN or row.span is None:
        return row.label
    first, last = view.span(start, end)
    shared = min(last, row.span[1]) - max(first, row.span[0])
    if shared <= 0:
        return BENIGN
    return row.label if shared >= min(SPAN_CHARS, (row.span[1] - row.span[0]) / 2) else -1
