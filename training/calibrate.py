"""From the serving model's outputs on the calibration split to the numbers that turn them into decisions.

temperature   one factor on the logits                         (Guo et al., arXiv:1706.04599)
fusion        logistic regression of attack / benign on the classifier's log-odds and the index's similarity
length        what the maximum over n windows gains by chance on benign text, so that the rate holds at any length
thresholds    score quantiles of benign texts, pooled and by role
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.firewall.text_score import window_logits
from service.scoring.artifact import Calibration, Fusion, Threshold
from training.corpus import BENIGN, LABELS, Row
from training.metrics import recall_at, threshold_at

Floats = npt.NDArray[np.float64]

RATES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
# A role's own threshold needs this many benign texts at a rate; below it the pooled one stands in, marked.
ROLE_TEXTS = {0.001: 3_000, 0.002: 1_500, 0.005: 600, 0.01: 300, 0.02: 150, 0.05: 100}
# Texts made to look like attacks, and what each counts for in a rate: about one text in thirteen is taken to be such.
HARD_SOURCES, HARD_WEIGHT = ("written", "composed"), 0.3
ROLES = ("user", "tool", "document", "system")
LENGTH_POINTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Uses of the similarity that are tried: benign quantiles from which a copy's distance counts (none where benign
# windows come nearer than `NEAREST`), then shares of the regression's slope.
COPY_QUANTILES, NEAREST, COPY = (1.0, 0.9995, 0.999, 0.995), 0.995, 8.0
SIMILARITY_SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
_LENGTH_DRAWS = 4_000
_LENGTH_RATE = 0.01


def fit_temperature(logits: npt.NDArray[np.float32], label: npt.NDArray[np.int64]) -> float:
    """The temperature with the least cross-entropy, classes weighted equally."""
    weight = _balanced(label)
    grid = np.geomspace(0.25, 8.0, 141)
    losses = [float((weight * _cross_entropy(logits / t, label)).sum()) for t in grid]
    return float(grid[int(np.argmin(losses))])


def fit_fusion(
    logits: npt.NDArray[np.float32], similarity: npt.NDArray[np.float32], attack: npt.NDArray[np.bool_], heat: float
) -> Fusion:
    """Logistic regression by Newton's method, both classes weighted equally, a little ridge on the slopes; then the use
    of the similarity that has the best recall at 1 % and 0.1 % false positives.

    The regression minds the middle, thresholds lie in the tail. Tried are a copy's distance (only what is nearer to a
    known attack than nearly all benign windows counts, and a copy of one for `COPY` in log-odds), shares of the
    regression's slope, and none at all; of equal ones the first.
    """
    plain = Calibration(temperature=heat)
    odds = window_logits(logits, similarity, plain, BENIGN)
    # A saturated classifier would decide the slope by its few loudest windows.
    design = np.column_stack([np.ones(len(odds)), np.clip(odds, -12, 12), similarity])
    weight = _balanced(attack.astype(np.int64)) * len(odds)
    beta = np.zeros(3)
    ridge = np.diag([0.0, 1e-3, 1e-1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (weight * (p - attack)) + ridge @ beta
        hessian = design.T @ (design * (weight * p * (1 - p))[:, None]) + ridge
        step = np.linalg.solve(hessian, gradient)
        beta -= step
        if np.abs(step).max() < 1e-9:
            break
    slope = float(beta[1]) if beta[1] > 0 else 1.0
    mean = float(np.average(similarity, weights=weight))
    flat = float(beta[0] + beta[2] * mean) if beta[1] > 0 else 0.0
    ways = [
        Fusion(flat, slope, COPY / (1 - near), near)
        for near in (float(np.quantile(similarity[~attack], q)) for q in COPY_QUANTILES)
        if near < NEAREST
    ]
    # Similarity that speaks against an attack would be noise: leave it out rather than reward distance.
    linear = float(beta[2]) if beta[1] > 0 and beta[2] > 0 else 0.0
    ways += [Fusion(flat - share * linear * mean, slope, share * linear) for share in SIMILARITY_SHARES]

    def recall(fusion: Fusion) -> float:
        score = window_logits(logits, similarity, Calibration(temperature=heat, fusion=fusion), BENIGN)
        return sum(recall_at(score[attack], score[~attack], rate).value for rate in (0.01, 0.001))

    return max(ways, key=recall)


def fit_length(logit: Floats, seed: int = 1) -> tuple[tuple[int, float], ...]:
    """How far the benign 99 % quantile of a maximum over n windows lies above that of one window, for n of a grid.

    `logit` are the fused logits of benign windows, float64 (n,). Monotone; windows are drawn independently, which is
    the hard case: windows of one text resemble each other.
    """
    rng = np.random.default_rng(seed)
    base = float(np.quantile(logit, 1 - _LENGTH_RATE))
    points: list[tuple[int, float]] = []
    highest = 0.0
    for count in LENGTH_POINTS:
        drawn = logit[rng.integers(0, len(logit), (_LENGTH_DRAWS, count))].max(axis=1)
        highest = max(highest, float(np.quantile(drawn, 1 - _LENGTH_RATE)) - base) if count > 1 else 0.0
        points.append((count, highest))
    return tuple(points)


def fit_thresholds(score: Floats, rows: Sequence[Row]) -> dict[str, dict[str, Threshold]]:
    """Thresholds per role and rate from the scores of whole texts; only benign rows count.

    A rate is a promise about traffic, and traffic has few texts that were made to look like attacks: the project's own
    and composed rows count `HARD_WEIGHT` each. A role's own threshold is used only where its texts, so
    counted, are enough.
    """
    benign = np.asarray([row.label == BENIGN for row in rows])
    roles = np.asarray([row.role for row in rows])
    weight = np.asarray([HARD_WEIGHT if row.source.startswith(HARD_SOURCES) else 1.0 for row in rows])

    def threshold(chosen: npt.NDArray[np.bool_], rate: float) -> float:
        return threshold_at(score[chosen], rate, weight[chosen])

    pooled = {rate: Threshold(threshold(benign, rate), int(benign.sum())) for rate in RATES}
    table = {"pooled": {_key(rate): value for rate, value in pooled.items()}}
    for role in ROLES:
        own = benign & (roles == role)
        count = int(own.sum())
        table[role] = {
            _key(rate): Threshold(threshold(own, rate), count)
            if weight[own].sum() >= ROLE_TEXTS[rate]
            else Threshold(pooled[rate].threshold, count, pooled=True)
            for rate in RATES
        }
    return table


def _key(rate: float) -> str:
    return f"{rate:g}"


def _balanced(label: npt.NDArray[np.int64]) -> Floats:
    """Weights that sum to one and give each class present the same share, float64 (n,)."""
    counts = np.bincount(label, minlength=len(LABELS)).astype(np.float64)
    present = counts > 0
    weight = np.zeros_like(counts)
    weight[present] = 1 / counts[present] / present.sum()
    return np.asarray(weight[label])


def _cross_entropy(logits: npt.NDArray[np.float32], label: npt.NDArray[np.int64]) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(label)), label])
