"""The FAISS index of known attacks, built with the very model that serves. It ships vectors and ids, no text.

Half precision: the third decimal of a cosine decides nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from training.corpus import BENIGN, LABELS, Row
from training.windows import Windows

MOST = 4_000
# Two attacks nearer than this teach the index nothing twice.
NEAR = 0.97


def candidates(windows: Windows, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """Attack windows that surely hold the attack: written and public ones before composed and transformed ones."""
    attack = np.flatnonzero((windows.label != BENIGN) & windows.certain & windows.plain)

    def order(index: np.int64) -> tuple[int, str]:
        row = rows[windows.row[index]]
        later = 2 if "+" in row.kind else 1 if row.source == "composed" else 0
        return later, hashlib.sha256(row.text.encode()).hexdigest()

    return np.asarray(sorted(attack, key=order)[: MOST * 3 // 2], np.int64)


def build(
    vectors: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64], windows: Windows, rows: Sequence[Row], folder: Path
) -> int:
    """Write `attacks.faiss` and `attacks.jsonl` from the candidates' vectors; returns the number of rows."""
    dim = vectors.shape[1]
    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    lines: list[bytes] = []
    for vector, window in zip(vectors, chosen, strict=True):
        if len(lines) >= MOST:
            break
        if index.ntotal and index.search(vector[None], 1)[0][0, 0] > NEAR:
            continue
        index.add(vector[None])
        row = rows[windows.row[window]]
        digest = hashlib.sha256(row.text.encode()).hexdigest()[:12]
        lines.append(msgspec.json.encode({"id": f"{row.source}:{digest}", "category": LABELS[windows.label[window]]}))
    faiss.write_index(index, str(folder / "attacks.faiss"))
    (folder / "attacks.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return len(lines)
