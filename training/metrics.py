"""How good scores are: area under the curve, recall at a false-positive rate, intervals, calibration error."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Z95 = 1.959963984540054


class Share(msgspec.Struct, frozen=True):
    """`hits` of `total` with the 95 % Wilson interval (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""

    value: float
    low: float
    high: float
    hits: int
    total: int


def share(hits: int, total: int) -> Share:
    """A proportion with its interval; nan of nothing."""
    if not total:
        return Share(math.nan, 0.0, 1.0, 0, 0)
    p = hits / total
    centre = (p + Z95**2 / (2 * total)) / (1 + Z95**2 / total)
    half = Z95 * math.sqrt(p * (1 - p) / total + Z95**2 / (4 * total**2)) / (1 + Z95**2 / total)
    return Share(p, max(0.0, centre - half), min(1.0, centre + half), hits, total)


def auc(attack: Floats, benign: Floats) -> float:
    """Probability that an attack scores above a benign text, ties counted half."""
    if not len(attack) or not len(benign):
        return math.nan
    _, inverse, counts = np.unique(np.concatenate([attack, benign]), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    return float((ranks[: len(attack)].sum() - len(attack) * (len(attack) + 1) / 2) / (len(attack) * len(benign)))


def threshold_at(benign: Floats, rate: float, weight: Floats | None = None) -> float:
    """The smallest threshold with at most `rate` of the benign scores above it (a score above is an alarm).

    With `weight`, float64 like the scores, at most `rate` of the weight. Raises ValueError where there is no score.
    """
    if not len(benign):
        raise ValueError("a threshold needs benign scores")
    order = np.argsort(-benign, kind="stable")
    if weight is None:
        return float(benign[order[min(math.floor(rate * len(order)), len(order) - 1)]])
    above = np.cumsum(weight[order]) / weight.sum()
    place = int(np.searchsorted(above, rate * (1 + 1e-12), side="right"))
    return float(benign[order[min(place, len(order) - 1)]])


def recall_at(attack: Floats, benign: Floats, rate: float) -> Share:
    """Share of attacks above the threshold that gives the benign scores this false-positive rate."""
    threshold = threshold_at(benign, rate)
    return share(int((attack > threshold).sum()), len(attack))


def calibration_error(probability: Floats, truth: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error over equal-width bins (Guo et al., arXiv:1706.04599)."""
    if not len(probability):
        return math.nan
    which = np.minimum((probability * bins).astype(int), bins - 1)
    total = 0.0
    for number in range(bins):
        inside = which == number
        if inside.any():
            total += inside.sum() * abs(probability[inside].mean() - truth[inside].mean())
    return float(total / len(probability))
