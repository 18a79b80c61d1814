"""Similarity to known attacks: a FAISS index of their vectors, built with the very model that serves."""

from __future__ import annotations

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
    """Exact inner-product search over the artifact's attack vectors (rows, dim), normalised.

    Raises ArtifactError naming the file where index, rows and manifest do not fit together.
    """

    def __init__(self, artifact: Artifact) -> None:
        # FAISS's own threads fight with the encoder's and make short searches several times slower.
        faiss.omp_set_num_threads(1)
        try:
            self._index = faiss.read_index(str(artifact.index_path))
        except RuntimeError as error:
            raise ArtifactError(f"{artifact.index_path}: FAISS cannot read it") from error
        path = artifact.attacks_path
        try:
            lines = path.read_bytes().splitlines()
            self._attacks = [msgspec.json.decode(line, type=Attack) for line in lines if line.strip()]
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: {error}") from error
        dim = artifact.manifest.embedding_dim
        if self._index.d != dim or self._index.ntotal != len(self._attacks):
            raise ArtifactError(
                f"{artifact.index_path}: {self._index.ntotal} rows of {self._index.d} dimensions, "
                f"the manifest says {dim} and {path.name} has {len(self._attacks)} rows"
            )

    def __len__(self) -> int:
        return len(self._attacks)

    def search(self, vectors: Floats) -> tuple[Floats, Rows]:
        """The nearest attack of each vector.

        Takes float32 (n, dim), L2-normalised; gives cosine similarity float32 (n,) and the row int64 (n,). An empty
        index gives similarity 0 and row -1.
        """
        if not self._attacks or not len(vectors):
            return np.zeros(len(vectors), np.float32), np.full(len(vectors), -1, np.int64)
        similarity, rows = self._index.search(np.ascontiguousarray(vectors, np.float32), 1)
        return similarity[:, 0], rows[:, 0]

    def vectors(self) -> Floats:
        """All rows: float32 (rows, dim), L2-normalised, as exact as the index keeps them."""
        if not self._attacks:
            return np.empty((0, self._index.d), np.float32)
        return np.asarray(self._index.reconstruct_n(0, self._index.ntotal), np.float32)

    def category(self, row: int) -> str:
        """The category of an index row."""
        return self._attacks[row].category
