"""From torch to the ONNX files of the artifact: float32 with a parity gate, int8 for CPUs, the bare graph for GPUs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.export import Dim

from service.scoring.session import open_session
from training.model import FirewallModel, pad

log = logging.getLogger(__name__)

OPSET = 20
INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("logits", "sentence_embedding")
PARITY_LIMIT = 1e-4
PARITY_LENGTHS = (1, 2, 3, 8, 63, 64, 65, 127, 128, 129, 255, 256, 400, 511, 512)
# Initializers above this many bytes are weights; smaller ones are shapes and constants that belong to the graph.
WEIGHT_BYTES = 1_024


class ParityError(RuntimeError):
    """The exported graph does not compute what the model computes."""


def export(model: FirewallModel, path: Path, pad_id: int) -> dict[str, float]:
    """Write the float32 graph and prove it equal. Raises ParityError; returns the greatest difference."""
    model.eval()
    example = pad([[0, *range(10, 10 + n), 2] for n in (5, 20, 62)], pad_id)
    batch, length = Dim("batch", min=1, max=4_096), Dim("length", min=1, max=512)
    torch.onnx.export(
        model,
        example,
        str(path),
        dynamo=True,
        dynamic_shapes={name: {0: batch, 1: length} for name in INPUTS},
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    worst = _parity(model, path, pad_id)
    if not worst <= PARITY_LIMIT:
        raise ParityError(f"{path}: differs from the model by {worst:.2e}, the limit is {PARITY_LIMIT:.0e}")
    return {"max_abs_difference": worst, "limit": PARITY_LIMIT, "lengths_tested": float(len(PARITY_LENGTHS))}


def _parity(model: FirewallModel, path: Path, pad_id: int) -> float:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(7)
    vocabulary = model.encoder.config.vocab_size
    worst = 0.0
    for length in PARITY_LENGTHS:
        for rows in (1, 3):
            lengths = [max(1, length - 5 * row) for row in range(rows)]
            ids, mask = pad([rng.integers(4, vocabulary, n).tolist() for n in lengths], pad_id)
            with torch.inference_mode():
                expected = model(ids, mask)
            got = session.run(list(OUTPUTS), {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            for left, right in zip(expected, got, strict=True):
                worst = max(worst, float(np.abs(left.numpy() - right).max()))
    return worst


def quantise(source: Path, target: Path) -> None:
    """Dynamic 8-bit weights, one scale per output channel (one per tensor loses accuracy).

    Unsigned: on processors without VNNI, ONNX Runtime's product of unsigned activations and signed weights saturates at
    16 bits (9 % error on full-range matrices), so that the same file would judge differently from machine to machine.
    """
    quantize_dynamic(
        str(source),
        str(target),
        per_channel=True,
        weight_type=QuantType.QUInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
    )
    model = onnx.load(str(target))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.UINT8:  # raw bytes, which serving can rewrite in place
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, str(target))


def strip_weights(source: Path, target: Path) -> None:
    """The float graph with the large initializers emptied: `artifact expand` fills them from the int8 file."""
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) > WEIGHT_BYTES:
            tensor.ClearField("raw_data")
    onnx.save(model, str(target))


class OnnxWindows:
    """Runs an ONNX file over windows, for calibration and measurements; two threads or what is given."""

    def __init__(self, path: Path, pad_id: int, threads: int = 0, *, quiet: bool = False) -> None:
        self._session = open_session(path, threads)
        self._pad_id = pad_id
        self._quiet = quiet

    def run(self, windows: list[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits float32 (n, 4) and embeddings float32 (n, hidden), in the order given."""
        from tqdm import tqdm

        logits: npt.NDArray[np.float32] = np.zeros((len(windows), 4), np.float32)
        vectors: npt.NDArray[np.float32] | None = None
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        with tqdm(total=len(order), desc="onnx", unit="window", mininterval=10, disable=self._quiet) as bar:
            at = 0
            while at < len(order):
                size = max(1, 4_096 // len(windows[order[min(at + 32, len(order) - 1)]]))
                chosen = order[at : at + size]
                ids, mask = pad([windows[i].tolist() for i in chosen], self._pad_id)
                got = self._session.run(list(OUTPUTS), {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
                if vectors is None:
                    vectors = np.zeros((len(windows), got[1].shape[1]), np.float32)
                logits[chosen], vectors[chosen] = got
                at += size
                bar.update(len(chosen))
        return logits, vectors if vectors is not None else np.zeros((0, 384), np.float32)
