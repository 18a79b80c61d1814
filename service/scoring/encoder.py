"""The ONNX session: token ids in, logits and vectors out. Synchronous; callers bring their own thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.errors import ArtifactError
from service.scoring.artifact import Artifact
from service.scoring.session import open_session

Floats = npt.NDArray[np.float32]

# Padded tokens of one run: large enough for full speed on CPUs, small enough for the cache and for a prompt answer.
BATCH_TOKENS = 4_096


class Encoded(msgspec.Struct, frozen=True, eq=False):
    """`logits` float32 (n, labels), uncalibrated; `vectors` float32 (n, embedding_dim), L2-normalised."""

    logits: Floats
    vectors: Floats


class WindowEncoder(Protocol):
    """What can encode windows: the ONNX session, or a stand-in."""

    def encode(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """One row per window, in the order given."""
        ...


class Encoder:
    """An ONNX Runtime session over the artifact's model.

    `threads` bounds the threads inside one operator (0: one per core). Raises ArtifactError naming the file where ONNX
    Runtime cannot load it. `execution_provider` says what it runs on.
    """

    def __init__(self, artifact: Artifact, threads: int = 0) -> None:
        wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in ort.get_available_providers()]
        path = artifact.model_path
        try:
            self._session = open_session(path, threads, wanted)
        except Exception as error:  # onnxruntime raises many types, none of them public
            raise ArtifactError(f"{path}: ONNX Runtime cannot load it ({type(error).__name__})") from error
        outputs = {output.name for output in self._session.get_outputs()}
        if not {"logits", "sentence_embedding"} <= outputs:
            raise ArtifactError(f"{path}: outputs are {sorted(outputs)}, not logits and sentence_embedding")
        self._pad_id = artifact.manifest.pad_id
        self._labels = len(artifact.manifest.labels)
        self._dim = artifact.manifest.embedding_dim
        self.execution_provider: str = self._session.get_providers()[0]

    def encode(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Encode windows; row i of the result belongs to `ids[i]`. Sorted by length inside, to pad little."""
        logits = np.empty((len(ids), self._labels), np.float32)
        vectors = np.empty((len(ids), self._dim), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for rows in _batches(order, ids):
            input_ids, mask = pad([ids[row] for row in rows], self._pad_id)
            logits[rows], vectors[rows] = self._session.run(
                ["logits", "sentence_embedding"], {"input_ids": input_ids, "attention_mask": mask}
            )
        return Encoded(logits, vectors)


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pad windows to the longest: input_ids and attention_mask, both int64 (n, longest)."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    mask = (np.arange(lengths.max(initial=1))[None, :] < lengths[:, None]).astype(np.int64)
    input_ids = np.full(mask.shape, pad_id, np.int64)
    input_ids[mask.astype(bool)] = np.concatenate([np.asarray(window, np.int64) for window in ids])
    return input_ids, mask


def _batches(order: list[int], ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut rows sorted by length into runs whose padded size stays within BATCH_TOKENS."""
    batches: list[list[int]] = []
    for row in order:
        if not batches or (len(batches[-1]) + 1) * len(ids[row]) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches
