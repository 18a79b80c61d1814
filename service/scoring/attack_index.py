"""Similarity to known attacks, less that to known benign texts: FAISS indexes of their vectors, built with the very
model that serves.

What resembles an attack mostly resembles benign texts as well; which of the two is nearer says more than either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from service.errors import ArtifactError
from service.scoring.artifact import Artifact

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Attack(msgspec.Struct, frozen=True):
    """One row of the index. Its text is not kept."""

    id: str
    category: str


class AttackIndex:
    """Exact inner-product search over the artifact's vectors, (rows, dim), normalised.

    Raises ArtifactError naming the file where index, rows and manifest do not fit together.
    """

    def __init__(self, artifact: Artifact) -> None:
        # FAISS's own threads fight with the encoder's and make short searches several times slower.
        faiss.omp_set_num_threads(1)
        dim = artifact.manifest.embedding_dim
        self._index = _read(artifact.index_path, dim)
        self._benign = _read(artifact.benign_path, dim) if artifact.benign_path else None
        self._benign_weight = artifact.manifest.calibration.fusion.benign
        path = artifact.attacks_path
        try:
            lines = path.read_bytes().splitlines()
            self._attacks = [msgspec.json.decode(line, type=Attack) for line in lines if line.strip()]
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: {error}") from error
        if self._index.ntotal != len(self._attacks):
            raise ArtifactError(
                f"{artifact.index_path}: {self._index.ntotal} rows, but {path.name} has {len(self._attacks)}"
            )

    def __len__(self) -> int:
        return len(self._attacks)

    def search(self, vectors: Floats) -> tuple[Floats, Rows]:
        """The nearest attack of each vector.

        Takes float32 (n, dim), L2-normalised; gives float32 (n,), the cosine to that attack less the artifact's weight
        of benign neighbours times the cosine to the nearest of them, and the attack's row int64 (n,). Empty indexes
        have cosine 0 and row -1.
        """
        if not len(vectors):
            return np.zeros(0, np.float32), np.full(0, -1, np.int64)
        similarity, rows = _nearest(self._index, vectors)
        if self._benign is not None and self._benign_weight:
            similarity = similarity - np.float32(self._benign_weight) * _nearest(self._benign, vectors)[0]
        return similarity, rows

    def category(self, row: int) -> str:
        """The category of an index row."""
        return self._attacks[row].category


def _read(path: Path, dim: int) -> Any:
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{path}: FAISS cannot read it") from error
    if index.d != dim:
        raise ArtifactError(f"{path}: rows of {index.d} dimensions, the manifest says {dim}")
    return index


def _nearest(index: Any, vectors: Floats) -> tuple[Floats, Rows]:
    if not index.ntotal:
        return np.zeros(len(vectors), np.float32), np.full(len(vectors), -1, np.int64)
    similarity, rows = index.search(np.ascontiguousarray(vectors, np.float32), 1)
    return similarity[:, 0], rows[:, 0]
