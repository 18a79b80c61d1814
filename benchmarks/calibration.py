"""How far a score is a probability: the share of attacks among texts of about the same score."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from training.metrics import calibration_error, share

Floats = npt.NDArray[np.float64]

BINS = 15


def calibration(logit: Floats, attack: npt.NDArray[np.bool_], bins: int = BINS) -> dict[str, Any]:
    """The expected calibration error of float64 (n,) log-odds, and the points of the curve; bins of equal width.

    A point has the mean score of its texts and the share of attacks among them; empty bins have none.
    """
    # A text without windows has a logit of minus infinity.
    probability = 1.0 / (1.0 + np.exp(-np.clip(logit, -700.0, 700.0)))
    which = np.minimum((probability * bins).astype(int), bins - 1)
    points = []
    for number in range(bins):
        inside = which == number
        if inside.any():
            found = share(int(attack[inside].sum()), int(inside.sum()))
            points.append({"score": float(probability[inside].mean()), "attacks": msgspec.structs.asdict(found)})
    return {"ece": calibration_error(probability, attack, bins), "base_rate": float(attack.mean()), "points": points}
