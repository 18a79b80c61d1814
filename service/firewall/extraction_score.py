"""From the counts of a window to a score: how much these calls look like the copying of a model.

Each signal is in [0, 1] and can only raise the score: `sigmoid(bias + weights · signals)`, no weight below 0. Weights
and threshold were fitted on half of the simulated tenants of `benchmarks/extraction.py`, which reports the other half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from service.firewall.extraction_sketch import Counts, Sketch
from service.firewall.text_score import sigmoid
from service.scoring.cells import CELLS

_ENOUGH: Final = 40.0  # calls at which a share is believed by half
_SWEPT: Final = 12.0
_FEW, _MANY = 100.0, 10_000.0
_SURGE: Final = (0.0, 4.0)  # doublings of the usual hour
_SHOWN: Final = 0.1  # of the sum of all signals: what has less part in a score is no reason for it
_TELLING: Final = 0.5  # what is so plain is told all the same, for whoever has to look into it

SIGNALS: Final = {
    "sweep": "logit biases that change from call to call",
    "distribution": "log-probabilities",
    "labels": "greedy answers of a token or so",
    "template": "one text with a varying slot",
    "drill": "one text with a varying slot, far more often than calls are usual here",
    "spread": "single new texts over many topics",
    "harvest": "many new texts over many topics",
    "surge": "far more calls than is usual here",
}
"""Names of the signals, and what each stands for."""

BIAS: Final = -8.69
WEIGHTS: Final[Mapping[str, float]] = {
    "sweep": 12.52,
    "distribution": 0.0,
    "labels": 0.0,
    "template": 0.0,
    "drill": 0.0,
    "spread": 10.2,
    "harvest": 3.14,
    "surge": 6.1,
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
    """The signals of each window, by their names, each in [0, 1]. A surge is one of the hour."""
    hour, day = sketch.windows()
    return _signals(hour, sketch.usual_calls), _signals(day, math.inf)


def _signals(counts: Counts, usual: float) -> dict[str, float]:
    calls = counts.calls
    if not calls:
        return dict.fromkeys(SIGNALS, 0.0)
    believed = 1.0 / (calls + _ENOUGH)
    broad = breadth(counts)
    single = counts.single / calls
    surge = _between(math.log2(calls / usual), *_SURGE) if calls > usual else 0.0
    spread = broad * single * counts.fresh * believed
    return {
        "sweep": -math.expm1(-counts.swept / _SWEPT),
        "distribution": counts.logprobs * believed,
        "labels": min(counts.short, counts.greedy) * believed,
        "template": counts.templated * believed,
        "drill": counts.templated * believed * surge,
        "spread": spread,
        "harvest": spread * _between(math.log(max(counts.fresh, 1)), math.log(_FEW), math.log(_MANY)),
        "surge": surge,
    }


def breadth(counts: Counts) -> float:
    """Entropy of the occupied cells over its maximum, corrected for few calls (Miller 1955): in [0, 1]."""
    occupied = [count for count in counts.cells if count]
    total = sum(occupied)
    if not total:
        return 0.0
    entropy = math.log(total) - sum(count * math.log(count) for count in occupied) / total
    return min(1.0, (entropy + (len(occupied) - 1) / (2 * total)) / math.log(CELLS))


def _between(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))
