"""Rows become labelled windows, cut from the same sanitised view that the firewall judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tqdm import tqdm

from service.firewall.sanitise import View, sanitise
from service.firewall.windows import windows
from training.corpus import BENIGN, Row

MAX_TOKENS = 128
OVERLAP = 32
# A window holds the injected text when it has half of it, or this many of its characters.
SPAN_CHARS = 48


class Windows(msgspec.Struct, frozen=True):
    """All windows of a set of rows, flat.

    `ids` int32 (tokens,), `starts` int64 (n + 1,), `label` int64 (n,), `row` int64 (n,), `weight` float32 (n,).
    `certain` bool (n,): false where an attack text has several windows and nobody knows which of them attack.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    certain: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label)

    def tokens(self, index: int) -> npt.NDArray[np.int32]:
        """The token ids of one window, specials included."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per window, int64 (n,)."""
        return np.diff(self.starts)


def encode(rows: Sequence[Row], tokenizer: Tokenizer, *, most: int, seed: int) -> Windows:
    """Cut rows into windows; of a long text at most `most` are kept, the ones with the injected span first."""
    rng = np.random.default_rng(seed)
    ids: list[list[int]] = []
    labels: list[int] = []
    owners: list[int] = []
    weights: list[float] = []
    certain: list[bool] = []
    for number, row in enumerate(tqdm(rows, desc="windows", unit="row", mininterval=5)):
        view = sanitise(row.text)
        cut = windows(view, tokenizer, MAX_TOKENS, OVERLAP)
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


def save(windows: Windows, path: Path) -> None:
    """Write aside, then rename."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **msgspec.structs.asdict(windows))
    partial.rename(path)


def load(path: Path) -> Windows:
    """Read what `save` wrote."""
    with np.load(path) as data:
        return Windows(**{name: data[name] for name in data.files})


def batches(
    lengths: npt.NDArray[np.int64], budget: int, most: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Indices of windows in batches of similar length: at most `budget` padded tokens and `most` windows each.

    The windows are shuffled, sorted by length within pools, cut, and the batches shuffled again.
    """
    order = rng.permutation(len(lengths))
    cut: list[npt.NDArray[np.int64]] = []
    pool = most * 64
    for at in range(0, len(order), pool):
        part = order[at : at + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        start = 0
        for end in range(1, len(part) + 1):
            full = end == len(part) or (end - start + 1) * lengths[part[end]] > budget or end - start >= most
            if full:
                cut.append(part[start:end])
                start = end
    return [cut[i] for i in rng.permutation(len(cut))]
