"""The quantisation gate stops a loss that is real, and lets pass one that chance explains."""

from __future__ import annotations

import numpy as np
import pytest

from training import gate


def _logits(margin: np.ndarray) -> np.ndarray:
    return np.column_stack([-margin, margin, np.full(len(margin), -9.0), np.full(len(margin), -9.0)]).astype(np.float32)


def _both(noise: float, count: int = 2_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    attack = np.arange(count) % 2 == 0
    margin = np.where(attack, 1.0, -1.0) + rng.normal(0, 0.7, count)
    return _logits(margin), _logits(margin + rng.normal(0, noise, count)), attack


def test_equal_models_lose_nothing_and_pass() -> None:
    wide, _, attack = _both(0.0)
    figures = gate.compare(wide, wide, attack, ~attack)
    assert figures["float32_recall_at_1pct"] == figures["int8_recall_at_1pct"]
    assert figures["loss_auc_low"] == figures["loss_auc_high"] == 0
    gate.check(figures)


def test_a_model_that_scores_much_worse_is_stopped() -> None:
    wide, small, attack = _both(2.0)
    with pytest.raises(gate.QualityError, match="auc"):
        gate.check(gate.compare(wide, small, attack, ~attack))


@pytest.mark.parametrize(("low", "stopped"), [(-0.01, False), (0.001, True)])
def test_a_loss_over_the_limit_is_stopped_only_where_its_interval_leaves_out_zero(low: float, stopped: bool) -> None:
    wide, _, attack = _both(0.0, 200)
    figures = gate.compare(wide, wide, attack, ~attack)
    figures |= {"int8_auc": figures["float32_auc"] - 5 * gate.LIMIT, "loss_auc_low": low}
    if not stopped:
        gate.check(figures)
        return
    with pytest.raises(gate.QualityError, match="auc"):
        gate.check(figures)


def test_a_loss_within_its_interval_is_not_stopped() -> None:
    wide, small, attack = _both(0.15, 200)
    figures = gate.compare(wide, small, attack, ~attack)
    gate.check(figures | {"loss_recall_at_1pct_low": -0.001})
