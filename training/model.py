"""The encoder: DeBERTa-v2 with a classification head and a sentence-embedding head, warm-started from a BERT.

No DeBERTa weights can be had without a model hub, so a BERT encoder is rewritten as a DeBERTa that starts out computing
nearly the same function (cosine >= 0.997 to the original at full depth), and learns disentangled attention from there
(He et al., DeBERTa, arXiv:2006.03654).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model

from training.e5_file import E5

LABELS = ("benign", "injection", "jailbreak", "extraction")
# What a window holds that is no user's text: words from elsewhere, or a prompt beside a reply. Each has a first token
# of its own.
ORIGINS = ("tool", "document", "told")
# The normalised embedding has components near 1/sqrt(384); scaled so, a linear head learns at the encoder's own rate.
EMBEDDING_SCALE = 20.0
# Which of twelve layers a shallower student keeps: of the subsets tried, those whose untrained output stays nearest
# to the full encoder's (cosine 0.93 for eight layers, 0.90 for six).
KEPT_LAYERS = {
    6: (0, 2, 4, 7, 9, 11),
    8: (0, 1, 2, 4, 6, 8, 10, 11),
    12: tuple(range(12)),
}
_BERT_PARTS = {
    "q": "attention.self.query_proj",
    "k": "attention.self.key_proj",
    "v": "attention.self.value_proj",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class FirewallModel(nn.Module):
    """One encoder, two heads, one pass.

    `forward(input_ids, attention_mask)`, both int64 (n, length), gives `logits` float32 (n, 4) over `LABELS` and
    `embedding` float32 (n, hidden), mean-pooled and L2-normalised.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__()
        self.encoder = DebertaV2Model(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Starts as the identity; lets the embedding stay with its teacher while the pooled state serves the classifier.
        self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        nn.init.eye_(self.projection.weight)
        self.head = nn.Linear(config.hidden_size, len(LABELS))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Classify and embed a padded batch of windows."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        pooled = nn.functional.normalize(pooled.float(), dim=-1)
        embedding = nn.functional.normalize(self.projection(pooled).float(), dim=-1)
        logits = self.head(self.dropout(pooled * EMBEDDING_SCALE))
        return logits.float(), embedding


def build_config(e5: E5, vocabulary: int, layers: int) -> DebertaV2Config:
    """The DeBERTa-v2 configuration that can hold this BERT's weights."""
    return DebertaV2Config(
        vocab_size=vocabulary,
        hidden_size=e5.hidden,
        num_hidden_layers=layers,
        num_attention_heads=e5.heads,
        intermediate_size=e5.ffn,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=512,
        type_vocab_size=0,
        layer_norm_eps=1e-12,
        relative_attention=True,
        max_relative_positions=-1,
        position_buckets=64,
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=True,
        pad_token_id=e5.pad_id,
        attn_implementation="eager",
    )


def with_origins(model: FirewallModel, first: int) -> FirewallModel:
    """The model with an embedding for each of ORIGINS at the ids from `first` on; new ones begin as the first token's.

    Words of a tool or a document begin with such a token instead of the usual one (`service.firewall.prompt.Segment`).
    """
    words = model.encoder.embeddings.word_embeddings
    missing = first + len(ORIGINS) - words.num_embeddings
    if missing > 0:
        words.weight = nn.Parameter(torch.cat([words.weight.data, words.weight.data[:1].expand(missing, -1)]))
        words.num_embeddings = model.encoder.config.vocab_size = len(words.weight)
    return model


def warm_start(e5: E5, kept_pieces: Sequence[int], layers: int) -> FirewallModel:
    """A DeBERTa that computes nearly what the BERT computes, with `kept_pieces` of its vocabulary and `layers` layers.

    The queries are scaled because DeBERTa divides scores by sqrt(3 d) where BERT divides by sqrt(d). The query bias
    enters through the position-to-content term too, so half of it is enough. Token type 0 is folded into the positions.
    """
    model = FirewallModel(build_config(e5, len(kept_pieces), layers))
    tensors = {name: torch.from_numpy(value) for name, value in e5.tensors.items()}
    state = model.encoder.state_dict()
    state["embeddings.word_embeddings.weight"] = tensors["emb.word"][torch.tensor(list(kept_pieces))]
    state["embeddings.position_embeddings.weight"] = tensors["emb.pos"] + tensors["emb.type"][0]
    state["embeddings.LayerNorm.weight"] = tensors["emb.ln.w"]
    state["embeddings.LayerNorm.bias"] = tensors["emb.ln.b"]
    for target, source in enumerate(KEPT_LAYERS[layers]):
        for short, long in _BERT_PARTS.items():
            weight, bias = tensors[f"l{source}.{short}.w"], tensors[f"l{source}.{short}.b"]
            if short == "q":
                weight, bias = weight * math.sqrt(3), bias * (math.sqrt(3) / 2)
            state[f"encoder.layer.{target}.{long}.weight"] = weight
            state[f"encoder.layer.{target}.{long}.bias"] = bias
    state["encoder.rel_embeddings.weight"] = torch.randn_like(state["encoder.rel_embeddings.weight"]) * 0.02
    state["encoder.LayerNorm.weight"] = torch.full_like(state["encoder.LayerNorm.weight"], 0.05)
    state["encoder.LayerNorm.bias"] = torch.zeros_like(state["encoder.LayerNorm.bias"])
    model.encoder.load_state_dict(state)
    return with_origins(model, len(kept_pieces))


def pad(windows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both int64 (n, longest)."""
    longest = max(len(window) for window in windows)
    ids = np.full((len(windows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(windows), longest), dtype=np.int64)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = window
        mask[row, : len(window)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def save(model: FirewallModel, path: Path) -> None:
    """Write configuration and weights, aside first."""
    partial = path.with_suffix(".partial")
    torch.save({"config": model.encoder.config.to_dict(), "state": model.state_dict()}, partial)
    partial.rename(path)


def load(path: Path) -> FirewallModel:
    """Read what `save` wrote."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    config = DebertaV2Config(**saved["config"])
    config._attn_implementation = "eager"
    model = FirewallModel(config)
    model.load_state_dict(saved["state"])
    return model
