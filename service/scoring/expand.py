"""`semantic-firewall artifact expand`: from the shipped int8 file to a float model for GPUs, without torch.

The int8 file holds every weight as 8-bit integers with one scale per output channel; `graph.onnx` is the float graph
with its weights left out. Filling the one from the other gives a float model that computes what the int8 one does but
for the rounding of activations, so one committed file serves both kinds of hardware. Needs the `onnx` package (extra
`expand`), at image build only.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from service.errors import ArtifactError
from service.scoring.artifact import BENIGN, Artifact, Model, describe, load_artifact, verify, write_manifest
from service.scoring.encoder import Encoder

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp16", "fp32"]

GRAPH = "graph.onnx"
PROBES = "probes.npz"
"""Token ids (`ids`, cut at `starts`) and labels (`attack`) of texts to compare models on."""

# The gate: at the threshold that gives int8 this rate of false positives, how much worse a float model may be beyond
# chance, and how near its embeddings must be on average.
GATE_WINDOWS = 700
GATE_RATE = 0.01
GATE_LOSS = 0.003
GATE_CHANCE = 0.02
GATE_COSINE = 0.99
GATE_AGREEMENT = 0.9
_TURNED = "_Transposed"


def expand(folder: Path, precision: Precision = "fp16", out: Path | None = None) -> Path:
    """Write the float artifact derived from `folder` into `out` (default: `<folder>/<precision>`) and return it.

    The derived folder has its own manifest and checksums, and the same tokenizer, index and thresholds. Raises
    ArtifactError where a file is missing or altered, or where the float model judges differently from the int8 one.
    """
    artifact = load_artifact(folder)
    target = out or folder / precision
    aside = target.with_name(target.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    name = f"model.{precision}.onnx"
    _save(filled(artifact, precision), aside / name)
    kept = ("tokenizer.json", "attacks.faiss", "attacks.jsonl")
    for file in kept:
        shutil.copyfile(folder / file, aside / file)
    manifest = msgspec.structs.replace(
        artifact.manifest,
        model=Model(file=name, precision=precision, opset=artifact.manifest.model.opset),
        files=describe(aside, (name, *kept)),
        quantisation=artifact.manifest.quantisation | {"expanded_from": artifact.version},
    )
    write_manifest(manifest, aside)
    figures = _gate(artifact, load_artifact(aside))
    write_manifest(msgspec.structs.replace(manifest, parity=artifact.manifest.parity | {"expanded": figures}), aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


def filled(artifact: Artifact, precision: Precision) -> onnx.ModelProto:
    """The float graph with every emptied initializer filled from the int8 file. Raises ArtifactError."""
    import onnx
    from onnx import numpy_helper

    entry = artifact.manifest.files.get(GRAPH)
    path = artifact.folder / GRAPH
    if entry is None or not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
        raise ArtifactError(f"{path}: missing or not the file that the manifest names")
    graph = onnx.load(str(path))
    small = onnx.load(str(artifact.model_path))
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.graph.initializer}
    for tensor in graph.graph.initializer:
        size = int(np.prod(tensor.dims))
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.raw_data) == 4 * size:
            continue
        values = _weights(tensor.name, known)
        if values is None or list(values.shape) != list(tensor.dims):
            raise ArtifactError(f"{artifact.model_path}: has no weights for {tensor.name}")
        tensor.raw_data = values.astype("<f4").tobytes()
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        graph = convert_float_to_float16(graph, keep_io_types=True, disable_shape_infer=True)
    return graph


def _weights(name: str, known: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32] | None:
    """A tensor by its float name: as it is, or dequantised along the axis that its scales fit."""
    if name in known:
        return known[name].astype(np.float32)
    packed = known.get(f"{name}_quantized")
    if packed is None:
        # The quantiser turns a Gemm's weight over to make a MatMul of it.
        turned = None if name.endswith(_TURNED) else _weights(name + _TURNED, known)
        return None if turned is None else np.ascontiguousarray(turned.T)
    scale = known[f"{name}_scale"].astype(np.float32)
    zero = known[f"{name}_zero_point"].astype(np.float32)
    if scale.ndim and scale.size > 1:
        # Per channel: the output channels are the columns of a MatMul's weight, the rows of a Gather's table.
        axis = packed.ndim - 1 if packed.shape[-1] == scale.size else 0
        shape = [1] * packed.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((packed.astype(np.float32) - zero) * scale, np.float32)


def _gate(int8: Artifact, wide: Artifact) -> dict[str, float]:
    """Both models on the artifact's probes. Raises ArtifactError where the float model finds fewer attacks or more."""
    windows, attack = _probes(int8)
    left, right = Encoder(int8, 0).encode(windows), Encoder(wide, 0).encode(windows)
    cosine = float((left.vectors * right.vectors).sum(1).mean())
    benign = int8.manifest.labels.index(BENIGN)
    before, after = _log_odds(left.logits, benign), _log_odds(right.logits, benign)
    threshold = float(np.quantile(before[~attack], 1 - GATE_RATE))
    figures = {"cosine": cosine, "windows": float(len(windows))}
    for name, rows, sign in (("recall", attack, 1), ("false_positives", ~attack, -1)):
        old, new = before[rows] > threshold, after[rows] > threshold
        worse = sign * (float(old.mean()) - float(new.mean()))
        # The rounding of activations moves windows over the threshold in both directions: so far chance goes.
        chance = min(2 * math.sqrt(float((old != new).sum())) / len(old), GATE_CHANCE)
        figures |= {f"{name}_int8": float(old.mean()), f"{name}": float(new.mean()), f"{name}_chance": chance}
        if worse > GATE_LOSS + chance:
            raise ArtifactError(f"{wide.model_path}: {name} is worse than int8's by {worse:.4f} of the probes")
    figures["agreement"] = float((left.logits.argmax(1) == right.logits.argmax(1)).mean())
    if not cosine >= GATE_COSINE or figures["agreement"] < GATE_AGREEMENT:
        raise ArtifactError(
            f"{wide.model_path}: differs from int8 (cosine of embeddings {cosine:.4f}, same class for "
            f"{figures['agreement']:.1%} of the probes)"
        )
    return figures


def _probes(artifact: Artifact) -> tuple[list[list[int]], npt.NDArray[np.bool_]]:
    """Windows of the project's own development texts, and which of them attack. Raises ArtifactError."""
    verify(artifact.folder, PROBES, artifact.manifest.files.get(PROBES))
    with np.load(artifact.folder / PROBES) as data:
        ids, starts, attack = data["ids"], data["starts"], data["attack"]
    if attack.all() or not attack.any():
        raise ArtifactError(f"{artifact.folder / PROBES}: needs attacks and benign windows")
    # A processor takes its time over half precision: some hundreds of probes are enough.
    every = math.ceil(len(attack) / GATE_WINDOWS)
    windows = [ids[first:last].tolist() for first, last in pairwise(starts)]
    return windows[::every], attack[::every]


def _log_odds(logits: npt.NDArray[np.float32], benign: int) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    others = np.delete(wide, benign, axis=1)
    return np.asarray(np.logaddexp.reduce(others, axis=1) - wide[:, benign])


def _save(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    onnx.save(model, str(path))
