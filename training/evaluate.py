"""Scores of rows through the very code that serves, and the figures that the manifest and the benchmarks report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.policy import role_policies
from service.firewall.scan import scan
from service.firewall.text_score import TextScorer
from service.scoring.artifact import load_artifact
from service.scoring.attack_index import AttackIndex
from service.scoring.encoder import Encoder
from service.settings import Detection
from training.corpus import BENIGN, Row
from training.metrics import auc, calibration_error, recall_at, share

Floats = npt.NDArray[np.float64]


class Scores(msgspec.Struct, frozen=True):
    """`score` float64 (n,), unrounded; `action` and `category` per text."""

    score: Floats
    action: list[str]
    category: list[str]


def score_rows(folder: Path, rows: Sequence[Row], threads: int = 0) -> Scores:
    """Score rows with an artifact exactly as `semantic-firewall scan` does."""
    artifact = load_artifact(folder)
    index = AttackIndex(artifact)
    scorer = TextScorer(artifact, index)
    policies = role_policies(Detection(), artifact.manifest)
    encoder = Encoder(artifact, threads)
    texts = ((row.text, row.role) for row in rows)
    score = np.zeros(len(rows))
    action: list[str] = []
    category: list[str] = []
    for number, found in enumerate(scan(texts, scorer, encoder, policies)):
        score[number] = found.score.score
        action.append(found.verdict.action)
        category.append(found.score.category)
        if number % 500 == 499:
            print(f"\rscored {number + 1}/{len(rows)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return Scores(score, action, category)


def report(rows: Sequence[Row], scores: Scores) -> dict[str, Any]:
    """Figures over labelled rows: overall, per kind of attack, and right answers on benign texts per kind.

    Attacks are held against ordinary benign texts; texts that merely use trigger words are reported on their own.
    """
    label = np.asarray([row.label for row in rows])
    kinds = np.asarray([f"{row.source}/{row.kind}" for row in rows])
    benign = label == BENIGN
    ordinary = benign & np.asarray(["over_defence" not in row.kind for row in rows])
    alarm = np.asarray([action != "allow" for action in scores.action])
    blocked = np.asarray([action == "block" for action in scores.action])
    out: dict[str, Any] = {
        "texts": len(rows),
        "auc": auc(scores.score[~benign], scores.score[benign]),
        "recall_at_1pct": _dict(recall_at(scores.score[~benign], scores.score[ordinary], 0.01)),
        "recall_at_0.1pct": _dict(recall_at(scores.score[~benign], scores.score[ordinary], 0.001)),
        "flagged_benign": _dict(share(int((alarm & benign).sum()), int(benign.sum()))),
        "blocked_benign": _dict(share(int((blocked & benign).sum()), int(benign.sum()))),
        "flagged_attacks": _dict(share(int((alarm & ~benign).sum()), int((~benign).sum()))),
        "ece": calibration_error(scores.score, ~benign),
        "kinds": {},
    }
    for kind in sorted(set(kinds)):
        inside = kinds == kind
        entry: dict[str, Any] = {"texts": int(inside.sum())}
        if (inside & ~benign).any():
            attacks = scores.score[inside & ~benign]
            entry["recall_at_1pct"] = _dict(recall_at(attacks, scores.score[ordinary], 0.01))
            entry["flagged"] = _dict(share(int((alarm & inside & ~benign).sum()), len(attacks)))
        if (inside & benign).any():
            entry["passed_benign"] = _dict(share(int((~alarm & inside & benign).sum()), int((inside & benign).sum())))
        out["kinds"][kind] = entry
    return out


def print_report(figures: dict[str, Any]) -> None:
    """A table for people."""
    line = f"{figures['texts']} texts, AUC {figures['auc']:.4f}"
    for name in ("recall_at_1pct", "recall_at_0.1pct", "flagged_benign", "blocked_benign", "flagged_attacks"):
        line += f" · {name} {figures[name]['value']:.3f}"
    print(line)
    for kind, entry in figures["kinds"].items():
        parts = [f"{name} {entry[name]['value']:.3f}" for name in ("recall_at_1pct", "flagged", "passed_benign")
                 if name in entry]  # fmt: skip
        print(f"  {kind:<62}{entry['texts']:>6}  " + " · ".join(parts))


def read_rows(path: Path) -> list[Row]:
    """The rows that `training.prepare` wrote."""
    return list(msgspec.json.Decoder(Row).decode_lines(path.read_bytes()))


def _dict(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.structs.asdict(value)
    return found
