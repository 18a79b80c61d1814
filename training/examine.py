"""What the corpus gives away, and how varied it is: `python -m training.examine RUN/corpus --artifact models/NAME`.

*Leaks*: what a linear model finds that sees only the length, only the punctuation, or, of composed rows, only the
carrier, trained on the train split and judged on the calibration split. Near 0.5 is right; far above it, the detector
could learn a shortcut. *Diversity*: the share of four-word runs that are distinct, and the mean cosine of a text to its
nearest neighbour by the artifact's own vectors.
"""

from __future__ import annotations

import argparse
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.corpus import BENIGN, Row, stable_hash
from training.evaluate import read_rows
from training.export import OnnxWindows
from training.metrics import auc
from training.overlap import normalise

Floats = npt.NDArray[np.float64]

RIDGE = 1e-3
STEPS = 30
HASHED_WORDS = 1_024
SAMPLE = 2_000
_WORD = re.compile(r"\w+")


def length_features(row: Row) -> list[float]:
    """How long: characters, words, lines, and the words' mean length."""
    words = row.text.split()
    return [
        np.log1p(len(row.text)),
        np.log1p(len(words)),
        np.log1p(row.text.count("\n")),
        len(row.text) / max(1, len(words)),
    ]


def punctuation_features(row: Row) -> list[float]:
    """How spelled: each punctuation mark, digits, capitals and blanks by share of the text."""
    size = max(1, len(row.text))
    marks = [row.text.count(mark) / size for mark in string.punctuation + "\n«»“”„’。，、！？：；（）…—–"]
    kinds = (str.isdigit, str.isupper, str.isspace, str.isascii)
    return [*np.sqrt(marks), *(sum(map(kind, row.text)) / size for kind in kinds)]


def carrier_features(row: Row) -> list[float]:
    """What stands around the inserted text: hashed words, present or not."""
    start, end = row.span or (0, len(row.text))
    present = np.zeros(HASHED_WORDS)
    for word in _WORD.findall((row.text[:start] + " " + row.text[end:]).casefold()):
        present[stable_hash(word) % HASHED_WORDS] = 1.0
    return [float(value) for value in present]


def leak(train: Sequence[Row], judged: Sequence[Row], features: Callable[[Row], list[float]]) -> float:
    """AUC of a ridge logistic regression (by Newton's method) on these features alone."""
    x, y = np.asarray([features(row) for row in train]), np.asarray([row.label != BENIGN for row in train], float)
    z, truth = np.asarray([features(row) for row in judged]), np.asarray([row.label != BENIGN for row in judged])
    mean, spread = x.mean(0), x.std(0) + 1e-9
    x, z = (np.column_stack([(values - mean) / spread, np.ones(len(values))]) for values in (x, z))
    weights = np.zeros(x.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (p - y) / len(y) + RIDGE * weights
        curve = (x * (p * (1 - p))[:, None]).T @ x / len(y) + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    score = z @ weights
    return auc(score[truth], score[~truth])


def distinct_runs(rows: Sequence[Row], words: int = 4) -> float:
    """Distinct runs of so many words, as a share of all runs; texts written without spaces have few."""
    seen: set[int] = set()
    total = 0
    for row in rows:
        parts = normalise(row.text).split(" ")
        runs = [hash(tuple(parts[at : at + words])) for at in range(len(parts) - words + 1)]
        total += len(runs)
        seen.update(runs)
    return len(seen) / max(1, total)


def neighbour_cosine(rows: Sequence[Row], artifact: Path) -> float:
    """Mean cosine of a text's beginning to its nearest neighbour, another row of the sample."""
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    encoded = tokenizer.encode_batch([row.text[:800] for row in rows], add_special_tokens=False)
    windows = [np.asarray([0, *encoding.ids[:126], 2], np.int32) for encoding in encoded]
    _, vectors = OnnxWindows(artifact / "model.int8.onnx", pad_id=1).run(windows)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -1.0)
    return float(cosine.max(1).mean())


def examine(train: Sequence[Row], calib: Sequence[Row], artifact: Path | None) -> dict[str, Any]:
    """All figures."""
    splits = train, calib
    composed = tuple([row for row in rows if row.source == "composed" and row.span] for rows in splits)
    written = tuple([row for row in rows if row.source.startswith("written")] for rows in splits)
    found: dict[str, Any] = {"rows": {"train": len(train), "calib": len(calib)}, "leaks": {}, "diversity": {}}
    for name, (some, judged) in {"composed": composed, "written": written}.items():
        found["leaks"][f"{name}, length only"] = leak(some, judged, length_features)
        found["leaks"][f"{name}, punctuation only"] = leak(some, judged, punctuation_features)
    found["leaks"]["composed, carrier only"] = leak(composed[0], composed[1], carrier_features)
    rng = np.random.default_rng(1)
    for name, rows in {"composed": composed[0], "written": written[0]}.items():
        for label, some in {
            "attacks": [row for row in rows if row.label != BENIGN],
            "benign": [row for row in rows if row.label == BENIGN],
        }.items():
            sample = [some[i] for i in rng.permutation(len(some))[:SAMPLE]]
            entry = {"distinct four-word runs": distinct_runs(sample)}
            if artifact:
                entry["cosine to the nearest neighbour"] = neighbour_cosine(sample, artifact)
            found["diversity"][f"{name} {label}"] = entry
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        prog="training.examine", description="What the corpus gives away, how varied it is."
    )
    parser.add_argument("corpus", type=Path, help="folder that training.prepare wrote")
    parser.add_argument("--artifact", type=Path, help="model whose vectors measure nearness")
    options = parser.parse_args(arguments)
    train, calib = (read_rows(options.corpus / f"{split}.jsonl") for split in ("train", "calib"))
    print(msgspec.json.format(msgspec.json.encode(examine(train, calib, options.artifact)), indent=2).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
