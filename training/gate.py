"""The quantisation gate: what int8 loses against float32 on the same windows, and whether that is more than chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from service.firewall.text_score import window_logits
from service.scoring.artifact import Calibration
from training.corpus import BENIGN
from training.metrics import auc, recall_at

Logits = npt.NDArray[np.float32]

LIMIT = 0.01
"""Of area under the curve, and of recall at 1 % false positives."""

_DRAWS = 300


class QualityError(RuntimeError):
    """A gate did not hold; nothing was shipped."""


def compare(
    float32: Logits, int8: Logits, attack: npt.NDArray[np.bool_], benign: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """AUC and recall at 1 % false positives of both, and int8's loss with its 95 % interval (paired bootstrap).

    Logits are float32 (n, labels) of the same windows; windows neither `attack` nor `benign`, bool (n,), do not count.
    """
    nothing = np.zeros(len(float32), np.float32)
    wide, small = (window_logits(logits, nothing, Calibration(), BENIGN) for logits in (float32, int8))
    figures: dict[str, float] = {"windows": float(attack.sum() + benign.sum())}
    rng = np.random.default_rng(1)
    attacks, others = np.flatnonzero(attack), np.flatnonzero(benign)
    draws = [(rng.choice(attacks, len(attacks)), rng.choice(others, len(others))) for _ in range(_DRAWS)]
    for name in ("auc", "recall_at_1pct"):

        def value(
            score: npt.NDArray[np.float64], a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], name: str = name
        ) -> float:
            return auc(score[a], score[b]) if name == "auc" else recall_at(score[a], score[b], 0.01).value

        figures[f"float32_{name}"] = value(wide, attacks, others)
        figures[f"int8_{name}"] = value(small, attacks, others)
        losses = [value(wide, a, b) - value(small, a, b) for a, b in draws]
        figures[f"loss_{name}_low"], figures[f"loss_{name}_high"] = np.quantile(losses, [0.025, 0.975]).tolist()
    return figures


def check(figures: dict[str, float]) -> None:
    """Raises QualityError for a loss over the limit that chance does not explain."""
    for name in ("auc", "recall_at_1pct"):
        loss = figures[f"float32_{name}"] - figures[f"int8_{name}"]
        if loss > LIMIT and figures[f"loss_{name}_low"] > 0:
            raise QualityError(f"int8 loses {loss:.4f} of {name} against float32; the limit is {LIMIT}")
