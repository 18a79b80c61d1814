"""A model to go on from: what an earlier run left, or a shipped artifact, whose int8 weights become float again.

An artifact holds an ONNX graph, and the exporter has folded and renamed most of its weights. Which initializer is which
parameter is found by exporting a fresh model of the same shape: its random weights are told apart by their values.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer

from service.scoring.artifact import load_artifact
from service.scoring.expand import filled
from training import export, model
from training.e5_file import E5

MANIFEST = "manifest.json"


def is_artifact(folder: Path) -> bool:
    """Whether the folder is an artifact, not a run."""
    return (folder / MANIFEST).exists()


def former(folder: Path) -> dict[str, Any]:
    """What is recorded of the training that made it."""
    if is_artifact(folder):
        manifest = load_artifact(folder).manifest
        return {"artifact": manifest.created, "data": manifest.data.get("sha256"), **manifest.metrics["training"]}
    notes = msgspec.json.decode((folder / "notes.json").read_bytes())
    return dict(notes["training"])


def vocabulary(folder: Path, e5: E5, tokenizer: Path) -> list[int]:
    """Copy its tokenizer to `tokenizer`; the pieces of the base's vocabulary that it keeps, as ids of the base.

    Raises ValueError for a piece that the base does not have.
    """
    if not is_artifact(folder):
        shutil.copyfile(folder / "artifact" / "tokenizer.json", tokenizer)
        return [int(piece) for piece in np.load(folder / "kept.npy")]
    shutil.copyfile(folder / "tokenizer.json", tokenizer)
    known = {piece: number for number, piece in enumerate(e5.pieces)}
    kept = Tokenizer.from_file(str(tokenizer))
    pieces = [str(kept.id_to_token(number)) for number in range(kept.get_vocab_size())]
    unknown = [piece for piece in pieces if piece not in known]
    if unknown:
        raise ValueError(f"{folder}: {len(unknown)} pieces are not of the base's vocabulary")
    return [known[piece] for piece in pieces]


def restore(folder: Path, e5: E5) -> model.FirewallModel:
    """The model itself. Raises ArtifactError for an altered artifact, ValueError where a weight finds no place."""
    if not is_artifact(folder):
        return model.load(folder / "model.pt")
    with tempfile.TemporaryDirectory() as scratch:
        weights = _initializers(filled(load_artifact(folder), "fp32"))
        layers = sum(name.endswith(".intermediate.dense.bias") for name in weights)
        size = len(weights["encoder.embeddings.word_embeddings.weight"])
        torch.manual_seed(0)
        restored = model.FirewallModel(model.build_config(e5, size, layers))
        for name, parameter in restored.named_parameters():
            if parameter.ndim == 1 or name == "projection.weight":  # constants at first, not to be told apart
                torch.nn.init.normal_(parameter)
        export.export(restored, Path(scratch, "fresh.onnx"), e5.pad_id)
        fresh = _initializers(onnx.load(str(Path(scratch, "fresh.onnx"))))
    places = {_key(array): name for name, array in fresh.items() if array.size > 1}
    state = restored.state_dict()
    for name, parameter in restored.named_parameters():
        values = parameter.detach().numpy()
        if (place := places.get(_key(values))) is not None:
            found = weights[place]
        elif values.ndim == 2 and (place := places.get(_key(values.T))) is not None:
            found = weights[place].T
        else:
            raise ValueError(f"{folder}: its graph has no weights for {name}")
        state[name] = torch.from_numpy(np.array(found, dtype=np.float32))
    restored.load_state_dict(state)
    return restored


def _initializers(graph: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def _key(array: Any) -> tuple[tuple[int, ...], bytes]:
    return array.shape, np.ascontiguousarray(array).ravel()[:16].tobytes()
