"""Attention without gathers computes what the library's attention computes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import DebertaV2Config

from training.attention import without_gathers
from training.model import FirewallModel, pad


def small(share_att_key: bool = True) -> FirewallModel:
    torch.manual_seed(3)
    config = DebertaV2Config(
        vocab_size=200, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=512, type_vocab_size=0,
        relative_attention=True, max_relative_positions=-1, position_buckets=16, pos_att_type=["c2p", "p2c"],
        share_att_key=share_att_key, norm_rel_ebd="layer_norm", attn_implementation="eager",
    )  # fmt: skip
    model = FirewallModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def batch(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(sum(lengths))
    return pad([rng.integers(4, 200, length).tolist() for length in lengths], 1)


@pytest.mark.parametrize("lengths", [(1,), (2, 1), (3, 17, 16), (90, 128, 2), (300, 299)])
def test_outputs_equal_the_librarys(lengths: tuple[int, ...]) -> None:
    """Whatever the lengths and the padding, logits and embeddings are the same."""
    model = small().eval()
    fast = copy.deepcopy(model)
    without_gathers(fast)
    for expected, found in zip(model(*batch(lengths)), fast(*batch(lengths)), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_gradients_equal_the_librarys() -> None:
    """Every weight, the table of distances included, gets the same gradient."""
    model = small()
    fast = copy.deepcopy(model)
    without_gathers(fast)
    for one in (model, fast):
        logits, embedding = one(*batch((40, 33, 7)))
        (logits.square().sum() + embedding[:, 3].sum()).backward()
    found = dict(fast.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(found[name].grad, parameter.grad, atol=1e-4, rtol=1e-3, msg=name)


def test_places_with_weights_of_their_own_are_refused() -> None:
    """A model whose places do not share the content's weights is told so instead of being computed wrongly."""
    model = small(share_att_key=False)
    without_gathers(model)
    with pytest.raises(NotImplementedError, match="shared"):
        model(*batch((4,)))
