"""Disentangled attention without gathers, for training.

The library looks up the score of every pair of places in a table of distances, and its backward pass scatters it back,
which costs a processor more than the products do. Along a row of the scores the distance falls by one from place to
place, so a table that is written out for all distances of the length at hand *is* the scores, read with another stride.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta

from training.model import FirewallModel


def without_gathers(model: FirewallModel) -> None:
    """Let the model's attention compute the same function in half the time; weights and their names stay.

    What is exported is loaded anew and keeps the library's code.
    """
    for module in model.modules():
        if isinstance(module, deberta.DisentangledSelfAttention):
            module.forward = MethodType(_forward, module)


def _forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, None]:
    """The library's forward for self-attention whose key serves content and places alike, over padded batches.

    `hidden_states` (n, length, hidden), `attention_mask` (n, 1, length, length), `rel_embeddings` (2 x buckets,
    hidden). Padded places get other, equally meaningless values than the library's. Returns (n, length, hidden).
    """
    if output_attentions or query_states is not None or rel_embeddings is None or not self.share_att_key:
        raise NotImplementedError("attention without gathers is for shared keys and without outputs of its scores")
    count, length, _ = hidden_states.shape
    heads, scale = self.num_attention_heads, 1 / math.sqrt(3 * self.attention_head_size)

    def by_head(states: Tensor) -> Tensor:  # (heads, texts x length, head size)
        return states.view(-1, heads, self.attention_head_size).transpose(0, 1)

    if torch.is_autocast_enabled(hidden_states.device.type):
        hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    places = rel_embeddings[_buckets(length, self.pos_ebd_size, self.max_relative_positions, hidden_states.device)]
    query = by_head(self.query_proj(hidden_states) * scale).contiguous()
    key = by_head(self.key_proj(hidden_states)).contiguous()
    value = by_head(self.value_proj(hidden_states)).contiguous()
    place_query = by_head(self.query_proj(places) * scale)
    place_key = by_head(self.key_proj(places)).flip(1)
    by_place = _slanted(query @ place_key.transpose(1, 2), count, length)
    by_place = by_place + _slanted(key @ place_query.transpose(1, 2), count, length).transpose(1, 2)
    hidden = torch.zeros_like(attention_mask[:, 0, :1, :], dtype=by_place.dtype)
    hidden = hidden.masked_fill(~attention_mask[:, 0, :1, :].bool(), torch.finfo(by_place.dtype).min / 2)
    by_place = (by_place.view(heads, count, length, length) + hidden).view(-1, length, length)
    query, key, value = (states.view(heads * count, length, -1) for states in (query, key, value))
    shares = nn.functional.softmax(torch.baddbmm(by_place, query, key.transpose(1, 2)), dim=-1)
    context = self.dropout(shares) @ value
    return context.view(heads, count, length, -1).permute(1, 2, 0, 3).reshape(count, length, -1), None


def _buckets(length: int, span: int, most: int, device: torch.device) -> Tensor:
    """Row of the table for the distances -(length - 1) to length - 1, int64 (2 x length - 1,)."""
    distance = torch.arange(1 - length, length, device=device)
    bucket: Tensor = deberta.make_log_bucket_position(distance, span, most).long() + span
    return bucket.clamp(0, 2 * span - 1)


def _slanted(table: Tensor, count: int, length: int) -> Tensor:
    """From (heads, count x length, 2 x length - 1) to (heads x count, length, length).

    Row i of a text is read from its place length - 1 - i on.
    """
    width = 2 * length - 1
    table = table.contiguous()
    size = (table.shape[0] * count, length, length)
    return table.as_strided(size, (length * width, width - 1, 1), length - 1)
