"""The numbers of `service.firewall.retelling`: learned on one half of the written prompts, reported on the other.

`python -m training.retelling` prints them. Honest replies of a half, and texts of `datasets/dev` that have nothing to
do with the prompt they are held against, are what must not raise an alarm.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.retelling import PASSAGE_CHARS, signals, telling, weigh
from training.leak import RATE, Told, read
from training.metrics import share

Floats = npt.NDArray[np.float64]

DEV = Path(__file__).resolve().parents[1] / "datasets" / "dev"
_UNRELATED_WEIGHT = 0.15
"""There are ten times as many unrelated texts as honest replies, and they are no replies."""
_RIDGE = 1.0
_STEPS = 50


class Learned(msgspec.Struct, frozen=True):
    """What `service.firewall.retelling` holds as constants."""

    weights: tuple[float, ...]
    bias: float
    limit: float


def unrelated(half: int) -> list[str]:
    """Every second benign text of `datasets/dev`, from the `half`-th on."""
    found: list[str] = []
    for path in sorted(DEV.glob("*.jsonl")):
        rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        found += [row["text"][:PASSAGE_CHARS] for row in rows if row["label"] == "benign"]
    return found[half::2]


def fit(told: Sequence[Told], apart: Sequence[str]) -> Learned:
    """Ridge logistic regression by Newton's method on standardised signs; the limit is the highest that either kind of
    honest text needs.
    """
    leaks = _rows(told, leak=True)
    honest = _rows(told, leak=False)
    others = _against(told, apart)
    rows = np.concatenate([leaks, honest, others])
    truth = np.concatenate([np.ones(len(leaks)), np.zeros(len(honest) + len(others))])
    weight = np.concatenate(
        [np.full(len(leaks), len(honest) / len(leaks)), np.ones(len(honest)), np.full(len(others), _UNRELATED_WEIGHT)]
    )
    mean, spread = rows[: len(leaks) + len(honest)].mean(0), rows[: len(leaks) + len(honest)].std(0)
    scaled = np.column_stack([(rows - mean) / spread, np.ones(len(rows))])
    ridge = np.diag([_RIDGE] * rows.shape[1] + [0.0])
    sums = np.zeros(scaled.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-scaled @ sums))
        slope = scaled.T @ (weight * (chance - truth)) + ridge @ sums
        bend = scaled.T @ (scaled * (weight * chance * (1 - chance))[:, None]) + ridge
        sums -= np.linalg.solve(bend, slope)
    weights = sums[:-1] / spread
    bias = float(sums[-1] - mean @ weights)
    limit = max(_limit(honest @ weights + bias), _limit(others @ weights + bias))
    return Learned(tuple(round(float(value), 3) for value in weights), round(bias, 3), round(limit + 5e-4, 3))


def report(told: Sequence[Told], apart: Sequence[str], found: Callable[[Floats], bool]) -> dict[str, Any]:
    """Recall by kind of leak, and false alarms, of `found` over the signs of a reply."""
    figures: dict[str, Any] = {"recall": {}}
    for kind in sorted({leak.kind for one in told for leak in one.leaks}):
        hits = [found(row) for row in _rows(told, leak=True, kind=kind)]
        figures["recall"][kind] = msgspec.structs.asdict(share(sum(hits), len(hits)))
    for name, rows in (("honest", _rows(told, leak=False)), ("unrelated", _against(told, apart))):
        alarms = [found(row) for row in rows]
        figures[f"false_alarms_{name}"] = msgspec.structs.asdict(share(sum(alarms), len(alarms)))
    return figures


def _limit(scores: Floats) -> float:
    """Just above the alarm that is one too many."""
    return float(np.sort(scores)[::-1][int(RATE * len(scores))])


def _rows(told: Sequence[Told], *, leak: bool, kind: str = "") -> Floats:
    rows = []
    for one in told:
        prompt = telling(one.prompt)
        if leak:
            rows += [signals(prompt, {}, reply.text) for reply in one.leaks if kind in ("", reply.kind)]
        else:
            rows += [signals(prompt, telling(reply.user), reply.text) for reply in one.benign]
    return np.array(rows)


def _against(told: Sequence[Told], texts: Sequence[str]) -> Floats:
    chooser = random.Random(2)
    prompts = [telling(one.prompt) for one in told]
    return np.array([signals(chooser.choice(prompts), {}, text) for text in texts])


def main() -> None:
    """Print the constants, and what they do on the other half."""
    told = read()
    learned = fit(told[::2], unrelated(0))
    print(learned)
    there = np.asarray(learned.weights)
    figures = report(told[1::2], unrelated(1), lambda row: float(row @ there) + learned.bias >= learned.limit)
    print(json.dumps(figures, indent=1))
    print("as shipped:", [round(weigh(row), 2) for row in _rows(told[1:2], leak=True)])


if __name__ == "__main__":
    main()
