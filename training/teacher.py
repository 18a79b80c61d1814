"""What the full base encoder makes of the training windows: the target that keeps the embedding head useful.

The base wants its texts prefixed; the student learns the prefixed vectors without the prefix, so that serving saves the
tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm
from transformers import BertConfig, BertModel

from training.e5_file import E5
from training.model import pad
from training.precision import bfloat16_pays

log = logging.getLogger(__name__)

PREFIX = "query: "
_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_FIRST = 0
_BATCH_TOKENS = 8_192 if not torch.cuda.is_available() else 131_072


def build(e5: E5, kept: Sequence[int]) -> BertModel:
    """The full-depth base as a BERT over the pruned vocabulary, in evaluation mode."""
    config = BertConfig(
        vocab_size=len(kept),
        hidden_size=e5.hidden,
        num_hidden_layers=e5.layers,
        num_attention_heads=e5.heads,
        intermediate_size=e5.ffn,
        max_position_embeddings=512,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    state = model.state_dict()
    tensors = {name: torch.from_numpy(value) for name, value in e5.tensors.items()}
    state["embeddings.word_embeddings.weight"] = tensors["emb.word"][torch.tensor(list(kept))]
    state["embeddings.position_embeddings.weight"] = tensors["emb.pos"]
    state["embeddings.token_type_embeddings.weight"] = tensors["emb.type"]
    state["embeddings.LayerNorm.weight"] = tensors["emb.ln.w"]
    state["embeddings.LayerNorm.bias"] = tensors["emb.ln.b"]
    for layer in range(e5.layers):
        for short, long in _PARTS.items():
            state[f"encoder.layer.{layer}.{long}.weight"] = tensors[f"l{layer}.{short}.w"]
            state[f"encoder.layer.{layer}.{long}.bias"] = tensors[f"l{layer}.{short}.b"]
    model.load_state_dict(state)
    return model


def prefix(tokenizer: Tokenizer) -> list[int]:
    """The tokens of what the base wants before a text."""
    return [int(token) for token in tokenizer.encode(PREFIX.strip(), add_special_tokens=False).ids]


class Teacher:
    """Embeds windows of token ids with the base. `vectors` gives float32 (n, hidden), L2-normalised."""

    def __init__(self, e5: E5, kept: Sequence[int], prefix: Sequence[int]) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = build(e5, kept).to(self._device)
        self._pad_id = e5.pad_id
        self._prefix = list(prefix)

    def vectors(self, windows: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
        """Embed windows (specials included). The prefix follows the first token, which is always the base's own."""
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        out = np.zeros((len(windows), self._model.config.hidden_size), np.float32)
        with tqdm(total=len(windows), desc="teacher", unit="window", mininterval=5) as bar, torch.inference_mode():
            at = 0
            while at < len(order):
                size = max(1, _BATCH_TOKENS // (len(windows[order[min(at + 64, len(order) - 1)]]) + 4))
                chosen = order[at : at + size]
                batch = [[_FIRST, *self._prefix, *windows[i][1:].tolist()] for i in chosen]
                ids, mask = pad(batch, self._pad_id)
                ids, mask = ids.to(self._device), mask.to(self._device)
                with torch.autocast(ids.device.type, torch.bfloat16, enabled=bfloat16_pays(ids.device.type)):
                    hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                weights = mask.unsqueeze(-1)
                pooled = (hidden * weights).sum(1) / weights.sum(1)
                out[chosen] = nn.functional.normalize(pooled, dim=-1).cpu().numpy()
                at += size
                bar.update(len(chosen))
        return out


def save(vectors: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64], path: Path) -> None:
    """Write the vectors of the `chosen` windows, aside first."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, vectors=vectors.astype(np.float16), chosen=chosen)
    partial.rename(path)
