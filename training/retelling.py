"""The numbers of `service.firewall.retelling`: learned on one half of the written prompts, reported on the other.

`python -m training.retelling` prints those of the signs by words; those with what the encoder says are the artifact's,
since they depend on it (`learn`, a step of the pipeline), and are weighed on prompts that it was not trained on
(`training.told`). Honest replies, and texts of `datasets/dev` that have nothing to do with the prompt they are held
against, are what must not raise an alarm.
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
from tokenizers import Tokenizer

from service.firewall.retelling import LEAST_TOLD, PASSAGE_CHARS, weigh
from service.firewall.telling import signals, telling
from service.firewall.told_pairs import TOLD, ReplyPiece, chunks, closest, pair, reply_pieces
from service.scoring.artifact import Retelling
from training.corpus import BENIGN
from training.encode import origins
from training.leak import RATE, Told, read
from training.metrics import share
from training.told import BEGIN, END, LABEL

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Encode = Callable[[list[npt.NDArray[np.int32]]], tuple[Vectors, Vectors]]

DEV = Path(__file__).resolve().parents[1] / "datasets" / "dev"
_UNRELATED_WEIGHT = 0.15
"""There are ten times as many unrelated texts as honest replies, and they are no replies."""
_RIDGE = 1.0
_TONE_RIDGE = 100.0
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


def learn(
    encode: Encode, tokenizer: Tokenizer, trained: Sequence[Told], weighed: Sequence[Told], reported: Sequence[Told]
) -> tuple[Retelling, dict[str, Any]]:
    """The numbers with what the encoder says, and what they do on prompts on which nothing was learned.

    `encode` gives logits float32 (n, labels) and vectors float32 (n, dim) of windows of ids. The tone is learned from
    the replies that the encoder was trained on, and weighed with the other signs on those that it was not.
    """
    rows = _Rows(encode, tokenizer)
    rows.learn_tone(trained)
    leaks, honest = rows.leaks(weighed), rows.honest(weighed)
    others = rows.against(weighed, unrelated(0))
    weights, bias, _ = _fit(*(found[_asked(found)] for found in (leaks, honest, others)))
    limit = max(_limit(_sums(found, weights, bias)) for found in (honest, others))
    learned = Retelling(
        _rounded(rows.tone), round(rows.tone_bias, 4), _rounded(weights), round(bias, 4), round(limit + 5e-4, 4)
    )

    def share_of(found: Floats) -> dict[str, Any]:
        hits = _sums(found, weights, bias) >= learned.limit
        return dict(msgspec.structs.asdict(share(int(hits.sum()), len(hits))))

    figures: dict[str, Any] = {
        "prompts_trained": len(trained),
        "prompts_weighed": len(weighed),
        "prompts_reported": len(reported),
    }
    for kind in sorted({leak.kind for one in reported for leak in one.leaks}):
        figures[f"recall_{kind}"] = share_of(rows.leaks(reported, kind))
    figures["false_alarms"] = share_of(rows.honest(reported))
    figures["false_alarms_unrelated"] = share_of(rows.against(reported, unrelated(1)))
    return learned, figures


class _Rows:
    """The signs of replies with what the encoder says of them, float64 (n, 6)."""

    def __init__(self, encode: Encode, tokenizer: Tokenizer) -> None:
        self._encode = encode
        self._tokenizer = tokenizer
        self._first = origins(tokenizer)[TOLD]
        self.tone: Floats = np.zeros(0)
        self.tone_bias = 0.0

    def learn_tone(self, told: Sequence[Told]) -> None:
        """From all replies, whatever their prompt."""
        pieces: list[npt.NDArray[np.int32]] = []
        truth: list[float] = []
        for one in told:
            texts = [(reply.text, 1.0) for reply in one.leaks] + [(reply.text, 0.0) for reply in one.benign]
            for text, leak in texts:
                cut = reply_pieces(text[:PASSAGE_CHARS], self._tokenizer)
                pieces += [_alone(piece) for piece in cut]
                truth += [leak] * len(cut)
        vectors = self._encode(pieces)[1].astype(np.float64)
        self.tone, self.tone_bias = _logistic(vectors, np.array(truth), np.ones(len(truth)), _TONE_RIDGE)

    def leaks(self, told: Sequence[Told], kind: str = "") -> Floats:
        replies = [(one.prompt, reply.text) for one in told for reply in one.leaks if kind in ("", reply.kind)]
        return self._with_answers(_rows(told, leak=True, kind=kind), replies)

    def honest(self, told: Sequence[Told]) -> Floats:
        replies = [(one.prompt, reply.text) for one in told for reply in one.benign]
        return self._with_answers(_rows(told, leak=False), replies)

    def against(self, told: Sequence[Told], texts: Sequence[str]) -> Floats:
        replies = list(zip(_chosen(told, texts), texts, strict=True))
        return self._with_answers(_against(told, texts), replies)

    def _with_answers(self, signs: Floats, replies: Sequence[tuple[str, str]]) -> Floats:
        cut = {prompt: chunks(prompt, self._tokenizer) for prompt in {prompt for prompt, _ in replies}}
        windows: list[npt.NDArray[np.int32]] = []
        owners: list[int] = []
        is_pair: list[bool] = []
        for number, (prompt, reply) in enumerate(replies):
            if signs[number, 0] < LEAST_TOLD:
                continue
            pieces = reply_pieces(reply[:PASSAGE_CHARS], self._tokenizer)
            for chunk, piece in closest(cut[prompt], pieces):
                windows.append(np.asarray(pair(self._first, cut[prompt][chunk], pieces[piece], END), np.int32))
                owners.append(number)
                is_pair.append(True)
            windows += [_alone(piece) for piece in pieces]
            owners += [number] * len(pieces)
            is_pair += [False] * len(pieces)
        answers, tones = np.full(len(replies), -np.inf), np.full(len(replies), -np.inf)
        if windows:
            logits, vectors = self._encode(windows)
            beside, whose = np.array(is_pair), np.array(owners)
            np.maximum.at(answers, whose[beside], (logits[:, LABEL] - logits[:, BENIGN])[beside].astype(np.float64))
            np.maximum.at(tones, whose[~beside], vectors[~beside].astype(np.float64) @ self.tone + self.tone_bias)
        return np.column_stack([signs, answers, tones])


def _alone(piece: ReplyPiece) -> npt.NDArray[np.int32]:
    return np.asarray([BEGIN, *piece.ids, END], np.int32)


def _asked(rows: Floats) -> npt.NDArray[np.bool_]:
    """Of which replies the encoder was asked at all, bool (n,)."""
    found: npt.NDArray[np.bool_] = np.isfinite(rows[:, -2:]).sum(axis=1) == 2
    return found


def _sums(rows: Floats, weights: Floats, bias: float) -> Floats:
    """What `service.firewall.retelling` weighs; what it would not ask the encoder of is no leak to it."""
    asked = _asked(rows)
    found = np.full(len(rows), -np.inf)
    found[asked] = rows[asked] @ weights + bias
    return found


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
    pairs = zip(_chosen(told, texts), texts, strict=True)
    return np.array([signals(telling(prompt), {}, text) for prompt, text in pairs])


def _chosen(told: Sequence[Told], texts: Sequence[str]) -> list[str]:
    """A prompt of chance for each text."""
    chooser = random.Random(2)
    return [chooser.choice(told).prompt for _ in texts]


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
