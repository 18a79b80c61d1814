"""Coarse cells of the embedding space: where a text lies, in so few bits that it says nothing of what the text is.

A cell is the side of six hyperplanes on which a vector lies (Charikar 2002): seeded random directions through the mean
of the artifact's attack vectors, since texts fill a narrow cone and planes through the origin would not divide it. The
same artifact has the same cells everywhere. A k-means over the attack vectors, which was tried as well, spends most of
its cells where only attacks lie, and tells one topic from many less well.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_PLANES = 6
CELLS = 2**_PLANES
_SEED = 7

Floats = npt.NDArray[np.float32]


class CoarseCells:
    """`CELLS` fixed cells; `vectors` float32 (rows, dim), L2-normalised, say around which point they lie."""

    def __init__(self, vectors: Floats) -> None:
        dim = vectors.shape[1]
        centre = vectors.mean(axis=0) if len(vectors) else np.zeros(dim, np.float32)
        self._directions = np.random.default_rng(_SEED).standard_normal((dim, _PLANES)).astype(np.float32)
        self._offsets = centre @ self._directions

    def of(self, vectors: Floats) -> npt.NDArray[np.int64]:
        """The cell of each vector float32 (n, dim), L2-normalised: int64 (n,), in [0, CELLS)."""
        sides = vectors @ self._directions > self._offsets
        return np.asarray(sides @ (1 << np.arange(_PLANES)), np.int64)
