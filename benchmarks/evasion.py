"""What disguises do to detection: the own dev set's English rows, plain and in every disguise of `disguise.py`.

The threshold is the one that 1 % of the plain ordinary benign texts exceed. *Recovered* is the share of a text's words
that stand in at least one of its views; what is not recovered, only the model can see through. *Cost* is how many
windows the disguised text is judged in, against the plain one.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

import numpy as np

from benchmarks.disguise import DISGUISES
from benchmarks.recall import is_triggered, own_rows, score
from benchmarks.results import Options
from service.firewall.normalize import views
from training.corpus import BENIGN, Row, stable_hash
from training.metrics import share, threshold_at

PLAIN = "plain"
_ATTACKS, _BENIGN = 120, 120
_QUICK = 12
_MOST_CHARS = 900
_WORD = re.compile(r"\w+")


def measure(options: Options) -> dict[str, Any]:
    """Recall, flagged benign texts, recovered words and cost of each disguise, beside the plain texts."""
    attacks, benign = chosen(_QUICK if options.quick else 0)
    plain = [*attacks, *benign]
    written: dict[str, list[str]] = {PLAIN: [row.text for row in plain]}
    for name, transform in DISGUISES.items():
        written[name] = [transform(row.text, random.Random(stable_hash(name, row.text))) for row in plain]
    rows = [
        Row(text, row.label, row.role, row.kind, row.source, row.language)
        for texts in written.values()
        for text, row in zip(texts, plain, strict=True)
    ]
    scored = score(options.artifact, rows)
    logits = scored.columns["fused"].reshape(len(written), len(plain))
    action = scored.action.reshape(len(written), len(plain))
    split = len(attacks)
    ordinary = np.asarray([not is_triggered(row.kind) for row in benign])
    threshold = threshold_at(logits[0, split:][ordinary], 0.01)
    figures: dict[str, Any] = {"attacks": len(attacks), "benign": len(benign), "disguises": {}}
    for number, (name, texts) in enumerate(written.items()):
        found = logits[number] > threshold
        judged = [sum(len(view.text) for view in views(text)) for text in texts]
        figures["disguises"][name] = {
            "recall": _plain(found[:split]),
            "flagged": _plain(action[number, :split] != "allow"),
            "false_alarms": _plain(found[split:]),
            "flagged_benign": _plain(action[number, split:] != "allow"),
            "recovered": float(np.mean([recovered(row.text, text) for row, text in zip(plain, texts, strict=True)])),
            "cost": float(np.sum(judged) / max(1, sum(len(row.text) for row in plain))),
        }
    return figures


def chosen(most: int = 0) -> tuple[list[Row], list[Row]]:
    """Attacks and benign texts of the own dev set to disguise: English and not long, the same ones each time."""
    rows = [row for row in own_rows() if row.language == "en" and 30 <= len(row.text) <= _MOST_CHARS]
    rows.sort(key=lambda row: stable_hash("evasion", row.text))
    attacks = [row for row in rows if row.label != BENIGN][: most or _ATTACKS]
    return attacks, [row for row in rows if row.label == BENIGN][: most or _BENIGN]


def recovered(text: str, disguised: str) -> float:
    """The share of the text's words that one view of the disguised text holds, the best view counting."""
    words = Counter(_WORD.findall(text.lower()))
    best = max(sum((words & Counter(_WORD.findall(view.text.lower()))).values()) for view in views(disguised))
    return best / max(1, sum(words.values()))


def _plain(hits: Any) -> dict[str, Any]:
    found = share(int(hits.sum()), len(hits))
    return {"value": found.value, "low": found.low, "high": found.high, "hits": int(hits.sum()), "total": len(hits)}
