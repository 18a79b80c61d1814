"""The numbers of `service.firewall.retelling`: learned on one half of the written prompts, reported on the other.

`python -m training.retelling` prints those of the signs by words; those with the tone are the artifact's, since they
depend on its encoder (`learn`, a step of the pipeline). Honest replies of a half, and texts of `datasets/dev` that have
nothing to do with the prompt they are held against, are what must not raise an alarm.
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
from service.scoring.artifact import Retelling
from training.leak import RATE, Embed, Told, read
from training.metrics import share

Floats = npt.NDArray[np.float64]

DEV = Path(__file__).resolve().parents[1] / "datasets" / "dev"
_UNRELATED_WEIGHT = 0.15
"""There are ten times as many unrelated texts as honest replies, and they are no replies."""
_RIDGE = 1.0
_TONE_RIDGE = 100.0
_FOLDS = 4
_STEPS = 50
_SETTLED = 1e-8


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
    """Numbers for the signs by words."""
    leaks, honest, others = _rows(told, leak=True), _rows(told, leak=False), _against(told, apart)
    weights, bias, limit = _fit(leaks, honest, others)
    return Learned(tuple(round(float(value), 3) for value in weights), round(bias, 3), round(limit + 5e-4, 3))


def learn(embed: Embed, told: Sequence[Told]) -> tuple[Retelling, dict[str, Any]]:
    """The numbers with the tone, from every other prompt, and what they do on the rest.

    `embed` gives float32 (n, dim), L2-normalised, one row a text. While the signs are weighed against each other, the
    tone of a reply is read by what was learned on other prompts, for on its own it looks surer than it is.
    """
    half, rest = told[::2], told[1::2]
    texts = [text for one in half for text in (*(r.text for r in one.leaks), *(r.text for r in one.benign))]
    truth = np.array([leak for one in half for leak in [1.0] * len(one.leaks) + [0.0] * len(one.benign)])
    fold = np.array([number % _FOLDS for number, one in enumerate(half) for _ in (*one.leaks, *one.benign)])
    vectors = embed(texts).astype(np.float64)
    read_out = np.zeros(len(texts))
    for out in range(_FOLDS):
        tone, bias = _logistic(vectors[fold != out], truth[fold != out], np.ones(int((fold != out).sum())), _TONE_RIDGE)
        read_out[fold == out] = vectors[fold == out] @ tone + bias
    tone, tone_bias = _logistic(vectors, truth, np.ones(len(texts)), _TONE_RIDGE)

    def others(several: Sequence[Told], texts: Sequence[str]) -> Floats:
        return np.column_stack([_against(several, texts), embed(texts) @ tone + tone_bias])

    leaks = np.column_stack([_rows(half, leak=True), read_out[truth == 1]])
    honest = np.column_stack([_rows(half, leak=False), read_out[truth == 0]])
    weights, bias, limit = _fit(leaks, honest, others(half, unrelated(0)))
    learned = Retelling(_rounded(tone), round(tone_bias, 4), _rounded(weights), round(bias, 4), round(limit + 5e-4, 4))

    def share_of(rows: Floats) -> dict[str, Any]:
        hits = rows @ weights + bias >= limit
        return dict(msgspec.structs.asdict(share(int(hits.sum()), len(hits))))

    figures: dict[str, Any] = {"prompts_learned": len(half), "prompts_reported": len(rest)}
    for kind in sorted({leak.kind for one in rest for leak in one.leaks}):
        said = embed([leak.text for one in rest for leak in one.leaks if leak.kind == kind]) @ tone + tone_bias
        figures[f"recall_{kind}"] = share_of(np.column_stack([_rows(rest, leak=True, kind=kind), said]))
    said = embed([reply.text for one in rest for reply in one.benign]) @ tone + tone_bias
    figures["false_alarms"] = share_of(np.column_stack([_rows(rest, leak=False), said]))
    figures["false_alarms_unrelated"] = share_of(others(rest, unrelated(1)))
    return learned, figures


def _fit(leaks: Floats, honest: Floats, others: Floats) -> tuple[Floats, float, float]:
    """Weights, bias, and the limit: the highest that either kind of honest text needs."""
    rows = np.concatenate([leaks, honest, others])
    truth = np.concatenate([np.ones(len(leaks)), np.zeros(len(honest) + len(others))])
    weight = np.concatenate(
        [np.full(len(leaks), len(honest) / len(leaks)), np.ones(len(honest)), np.full(len(others), _UNRELATED_WEIGHT)]
    )
    weights, bias = _logistic(rows, truth, weight, _RIDGE, len(leaks) + len(honest))
    return weights, bias, max(_limit(honest @ weights + bias), _limit(others @ weights + bias))


def _logistic(
    rows: Floats, truth: Floats, weight: Floats, penalty: float, first: int | None = None
) -> tuple[Floats, float]:
    """Ridge logistic regression by Newton's method; the signs are standardised by the `first` rows."""
    mean, spread = rows[:first].mean(0), rows[:first].std(0) + 1e-9
    scaled = np.column_stack([(rows - mean) / spread, np.ones(len(rows))])
    ridge = np.diag([penalty] * rows.shape[1] + [0.0])
    sums = np.zeros(scaled.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-scaled @ sums))
        slope = scaled.T @ (weight * (chance - truth)) + ridge @ sums
        bend = scaled.T @ (scaled * (weight * chance * (1 - chance))[:, None]) + ridge
        step = np.linalg.solve(bend, slope)
        sums -= step
        if np.abs(step).max() < _SETTLED:
            break
    weights = sums[:-1] / spread
    return weights, float(sums[-1] - mean @ weights)


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


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
