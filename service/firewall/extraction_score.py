"""From the counts of a window to a score: how much these calls look like the copying of a model.

Each signal is in [0, 1] and can only raise the score: `sigmoid(bias + weights · signals)`, no weight below 0. Weights
and threshold were fitted on half of the simulated tenants of `benchmarks/extraction.py`, which reports the other half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from service.firewall.extraction_sketch import Counts, Sketch
from service.firewall.text_score import sigmoid
from service.scoring.cells import CELLS

_ENOUGH: Final = 40.0  # calls at which a share is believed by half
_SWEPT: Final = 12.0
_WIDE: Final = (0.7, 0.9)  # breadth: few topics, about all there are
_SURGE: Final = (0.0, 4.0)  # doublings of the usual hour
_SHOWN: Final = 0.1  # of the sum of all signals: what has less part in a score is no reason for it
_TELLING: Final = 0.5  # what is so plain is told all the same, for whoever has to look into it

SIGNALS: Final = {
    "sweep": "logit biases that change from call to call",
    "spread": "single new texts of no template over many topics",
    "burst": "those, far more often than is usual here",
    "drill": "one text with a slot, filled from more topics than an application has, far more often than is usual here",
    "confidences": "the same with log-probabilities",
    "distribution": "log-probabilities",
    "labels": "greedy answers of a token or so",
    "template": "one text with a varying slot",
    "slots": "one text with a slot that is filled from many topics",
}
"""Names of the signals, and what each stands for."""

TOLD: Final = frozenset({"distribution", "labels", "template", "slots"})
"""Ordinary applications have these as well: they weigh nothing and are told to whoever looks into an alarm."""

BIAS: Final = -6.91
WEIGHTS: Final[Mapping[str, float]] = {
    "sweep": 15.89,
    "spread": 6.3,
    "burst": 26.7,
    "drill": 33.75,
    "confidences": 15.95,
    **dict.fromkeys(sorted(TOLD), 0.0),
}


class Assessment(msgspec.Struct, frozen=True):
    """`score` in [0, 1]; `reasons` are names of `SIGNALS`, the weightiest first; `calls` those of the window."""

    score: float
    reasons: tuple[str, ...] = ()
    calls: int = 0


def assess(sketch: Sketch) -> Assessment:
    """The higher of the last hour's and the last day's score: a slow copy shows in the day only."""
    return max(map(_judged, signals_of(sketch), sketch.windows()), key=lambda found: found.score)


def _judged(signals: Mapping[str, float], counts: Counts) -> Assessment:
    parts = {name: WEIGHTS[name] * value for name, value in signals.items()}
    total = sum(parts.values())
    shown = sorted((name for name in parts if parts[name] > _SHOWN * total), key=lambda name: -parts[name])
    shown += [name for name in signals if signals[name] >= _TELLING and name not in shown]
    return Assessment(sigmoid(BIAS + total), tuple(shown), counts.calls)


def signals_of(sketch: Sketch) -> tuple[dict[str, float], ...]:
    """The signals of each window, by their names, each in [0, 1]. Surges are of the hour."""
    hour, day = sketch.windows()
    return _signals(hour, sketch.usual_lone, sketch.usual_slotted), _signals(day, math.inf, math.inf)


def _signals(counts: Counts, usual_lone: float, usual_slotted: float) -> dict[str, float]:
    calls = counts.calls
    if not calls:
        return dict.fromkeys(SIGNALS, 0.0)
    believed = 1.0 / (calls + _ENOUGH)
    spread = breadth(counts.lone_cells) * counts.lone * believed
    wide = _between(breadth(counts.slotted_cells), *_WIDE)
    surge = _surge(counts.slotted, usual_slotted)
    return {
        "sweep": -math.expm1(-counts.swept / _SWEPT),
        "spread": spread,
        "burst": spread * _surge(counts.lone, usual_lone),
        "drill": wide * counts.slotted * believed * surge,
        "confidences": wide * min(counts.logprobs, counts.slotted) * believed * surge,
        "distribution": counts.logprobs * believed,
        "labels": min(counts.short, counts.greedy) * believed,
        "template": counts.templated * believed,
        "slots": wide * counts.slotted * believed,
    }


def _surge(calls: int, usual: float) -> float:
    """Doublings of the usual hour, `_SURGE` of them from none to full."""
    return _between(math.log2(calls / usual), *_SURGE) if calls > usual else 0.0


def breadth(cells: Sequence[int]) -> float:
    """Entropy of the occupied cells over its maximum, corrected for few calls (Miller 1955): in [0, 1]."""
    occupied = [count for count in cells if count]
    total = sum(occupied)
    if not total:
        return 0.0
    entropy = math.log(total) - sum(count * math.log(count) for count in occupied) / total
    return min(1.0, (entropy + (len(occupied) - 1) / (2 * total)) / math.log(CELLS))


def _between(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))
