"""`semantic-firewall artifact expand`: from the shipped int8 file to a float model for GPUs, without torch.

The int8 file holds every weight as 8-bit integers with one scale per output channel; `graph.onnx` is the float graph
with its weights left out. Filling the one from the other gives a float model that computes what the int8 one does but
for the rounding of activations, so one committed file serves both kinds of hardware. Needs the `onnx` package (extra
`expand`), at image build only.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from service.errors import ArtifactError
from service.scoring.artifact import Artifact, Model, describe, load_artifact, write_manifest
from service.scoring.encoder import Encoder

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp16", "fp32"]

GRAPH = "graph.onnx"
# The gate: share of probe windows on which the classes may differ, and how far attack log-odds may move on average.
GATE_DISAGREEMENT = 0.003
_PROBES = 512
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
    _save(_filled(artifact, precision), aside / name)
    for kept in ("tokenizer.json", "attacks.faiss", "attacks.jsonl"):
        shutil.copyfile(folder / kept, aside / kept)
    manifest = msgspec.structs.replace(
        artifact.manifest,
        model=Model(file=name, precision=precision, opset=artifact.manifest.model.opset),
        files=describe(aside, (name, "tokenizer.json", "attacks.faiss", "attacks.jsonl")),
        quantisation=artifact.manifest.quantisation | {"expanded_from": artifact.version},
    )
    write_manifest(manifest, aside)
    figures = _gate(artifact, load_artifact(aside))
    write_manifest(msgspec.structs.replace(manifest, parity=artifact.manifest.parity | {"expanded": figures}), aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


def _filled(artifact: Artifact, precision: Precision) -> onnx.ModelProto:
    """The float graph with every emptied initializer filled from the int8 file."""
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
    """Both models on windows made of the vocabulary itself. Raises ArtifactError where they disagree too often."""
    windows = _probe_windows(int8)
    left, right = Encoder(int8, 0).encode(windows), Encoder(wide, 0).encode(windows)
    disagreement = float((left.logits.argmax(1) != right.logits.argmax(1)).mean())
    cosine = float((left.vectors * right.vectors).sum(1).mean())
    if disagreement > max(GATE_DISAGREEMENT, 1.5 / len(windows)) or cosine < 0.99:
        raise ArtifactError(
            f"{wide.model_path}: disagrees with int8 on {disagreement:.2%} of windows (cosine {cosine:.4f})"
        )
    return {"disagreement": disagreement, "cosine": cosine, "windows": float(len(windows))}


def _probe_windows(artifact: Artifact) -> list[list[int]]:
    """Windows of ordinary sentences about the vocabulary's own words; fixed, so that the gate can be repeated."""
    rng = np.random.default_rng(5)
    manifest = artifact.manifest
    size = artifact.tokenizer.get_vocab_size()
    windows: list[list[int]] = []
    for _ in range(_PROBES):
        length = int(rng.integers(4, manifest.max_tokens - 2))
        # Frequent pieces come first in the vocabulary: a skewed draw looks more like text than an even one.
        ids = (size * rng.random(length) ** 4).astype(int)
        windows.append([manifest.cls_id, *np.maximum(ids, 4).tolist(), manifest.sep_id])
    return windows


def _save(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    onnx.save(model, str(path))
