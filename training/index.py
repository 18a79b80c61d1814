"""The FAISS indexes of known attacks and known benign texts, built with the very model that serves.

They ship vectors and ids, no text. Half precision: the third decimal of a cosine decides nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from service.scoring.artifact import BENIGN_INDEX
from training.corpus import BENIGN, LABELS, Row
from training.encode import Windows

MOST = 4_000
_CANDIDATES = 6_000
# Two texts nearer than this teach the index nothing twice.
NEAR = 0.97


def attack_candidates(windows: Windows, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """Attack windows that surely hold the attack: written and public ones before composed and transformed ones."""
    return _in_order(np.flatnonzero((windows.label != BENIGN) & windows.certain), windows, rows)


def benign_candidates(windows: Windows, rows: Sequence[Row], first: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Benign windows, those marked in `first` bool (n,) (own and hard ones) before others."""
    benign = windows.label == BENIGN
    chosen = [_in_order(np.flatnonzero(benign & part), windows, rows) for part in (first, ~first)]
    return np.concatenate(chosen)[:_CANDIDATES]


def _in_order(chosen: npt.NDArray[np.int64], windows: Windows, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    def order(index: np.int64) -> tuple[int, str]:
        row = rows[windows.row[index]]
        later = 2 if "+" in row.kind else 1 if row.source == "composed" else 0
        return later, hashlib.sha256(row.text.encode()).hexdigest()

    return np.asarray(sorted(chosen, key=order)[:_CANDIDATES], np.int64)


def build_attacks(
    vectors: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64], windows: Windows, rows: Sequence[Row], folder: Path
) -> int:
    """Write `attacks.faiss` and `attacks.jsonl` from the candidates' vectors; returns the number of rows."""
    index, kept = _spread(vectors)
    lines: list[bytes] = []
    for window in chosen[kept]:
        digest = hashlib.sha256(rows[windows.row[window]].text.encode()).hexdigest()[:12]
        source = rows[windows.row[window]].source
        lines.append(msgspec.json.encode({"id": f"{source}:{digest}", "category": LABELS[windows.label[window]]}))
    faiss.write_index(index, str(folder / "attacks.faiss"))
    (folder / "attacks.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return len(lines)


def build_benign(vectors: npt.NDArray[np.float32], folder: Path) -> int:
    """Write `benign.faiss`; returns the number of rows."""
    index, kept = _spread(vectors)
    faiss.write_index(index, str(folder / BENIGN_INDEX))
    return len(kept)


def _spread(vectors: npt.NDArray[np.float32]) -> tuple[Any, list[int]]:
    """An index of at most MOST of the vectors, no two of them nearer than NEAR, and their positions."""
    dim = vectors.shape[1]
    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    kept: list[int] = []
    for position, vector in enumerate(vectors):
        if len(kept) >= MOST:
            break
        if kept and index.search(vector[None], 1)[0][0, 0] > NEAR:
            continue
        index.add(vector[None])
        kept.append(position)
    return index, kept
