"""This firewall beside other local detectors of prompt injection, on the same dev rows as `recall`.

Every peer decides as it does by default and, where it gives a score, is also held to 1 % of false positives on the same
ordinary benign texts. Whoever reads the table should know that nobody is measured on neutral ground: our artifact was
never trained on these rows but chosen by them, and what the peers have seen of the public ones is mostly not known.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks import peer_runs, recall
from benchmarks.intervals import spread
from benchmarks.peer_catalog import NOT_RUN, PEERS, PUBLISHED, Peer
from benchmarks.peer_runs import Judged, PeerFailed
from benchmarks.results import Options
from service.firewall.policy import role_policies
from service.firewall.prompt import Role
from service.firewall.scan import scan
from service.firewall.text_score import TextScorer
from service.scoring.artifact import load_artifact
from service.scoring.attack_index import AttackIndex
from service.scoring.encoder import Encoder
from service.settings import Detection
from training.corpus import BENIGN, Row, stable_hash
from training.metrics import auc, recall_at, share

Mask = npt.NDArray[np.bool_]

FIREWALL = "this firewall"
# Times are taken of so many texts, the same for everyone.
TIMED = 300
# Groups of fewer texts on either side are left out of the tables by language.
MIN_GROUP = 10


def measure(options: Options) -> dict[str, Any]:
    """The figures of every detector that could be measured, and the reasons of those that could not."""
    found = recall.judged(options)
    rows = [row for benchmark in found.rows.values() for row in benchmark]
    texts = [(row.text, row.role) for row in rows]
    timed = sorted(range(len(rows)), key=lambda i: stable_hash("timed", rows[i].text))[:TIMED]
    judged: dict[str, Judged] = {}
    systems: list[dict[str, Any]] = []
    if rows:
        judged[FIREWALL] = _ours(options.artifact, found, [texts[i] for i in timed])
        systems.append({"name": FIREWALL, "failed": "", "errors": {}} | _times(judged[FIREWALL].ms))
    asked = [peer for peer in PEERS if not options.peers or peer.name in options.peers]
    for peer in asked if rows else ():
        print(f"  {peer.name} …", file=sys.stderr, flush=True)
        facts = msgspec.structs.asdict(peer)
        try:
            judged[peer.name] = peer_runs.run(peer.name, peer_runs.installed(peer), texts)
        except PeerFailed as failure:
            systems.append(facts | {"failed": str(failure)})
            continue
        told = judged[peer.name]
        systems.append(facts | {"failed": "", "errors": told.errors} | _times(told.ms[timed]))
    figures: dict[str, Any] = {}
    first = 0
    for name, part in found.rows.items():
        inside = slice(first, first + len(part))
        first += len(part)
        of_part = {system: _part(whole, inside) for system, whole in judged.items()}
        figures[name] = compare(part, of_part, found.scored[name].windows)
    return {
        "notes": [*found.notes, *_unasked(asked)],
        "timed": len(timed),
        "systems": systems,
        "benchmarks": figures,
        "not_run": NOT_RUN,
        "published": [msgspec.structs.asdict(entry) for entry in PUBLISHED],
    }


def _unasked(asked: Sequence[Peer]) -> list[str]:
    left = [peer.name for peer in PEERS if peer not in asked]
    return [f"Not asked for this time: {', '.join(left)}."] if left else []


def _ours(folder: Path, found: recall.Benchmarks, timed: Sequence[tuple[str, str]]) -> Judged:
    """The scores that `recall` has, and the times of some texts judged one by one. Its times are not per row."""
    artifact = load_artifact(folder)
    scorer, encoder = TextScorer(artifact, AttackIndex(artifact)), Encoder(artifact)
    policies = role_policies(Detection(), artifact.manifest)
    roles = get_args(Role)
    times = []
    for text, role in timed:
        began = time.perf_counter()
        list(scan([(text, cast(Role, role if role in roles else "user"))], scorer, encoder, policies))
        times.append(1e3 * (time.perf_counter() - began))
    parts = found.scored.values()
    return Judged(
        np.concatenate([part.action for part in parts]),
        np.concatenate([part.columns["fused"] for part in parts]),
        np.asarray(times, np.float64),
    )


def _times(ms: npt.NDArray[np.float64]) -> dict[str, Any]:
    return {"ms": msgspec.structs.asdict(spread(ms.tolist()))}


def _part(whole: Judged, inside: slice) -> Judged:
    return Judged(whole.action[inside], None if whole.score is None else whole.score[inside], whole.ms)


def compare(rows: Sequence[Row], judged: dict[str, Judged], windows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The figures of one benchmark: per detector as a whole, and by role, language, length and source."""
    attack: Mask = np.asarray([row.label != BENIGN for row in rows], np.bool_)
    ordinary = recall.ordinary_benign(rows)
    figures: dict[str, Any] = {
        "attacks": int(attack.sum()),
        "ordinary": int(ordinary.sum()),
        "triggered": int((~attack & ~ordinary).sum()),
        "systems": {name: _whole(told, attack, ordinary) for name, told in judged.items()},
        "curves": {
            name: [
                [float(rate), recall.recall_beyond(told.score[attack], told.score[ordinary], rate)]
                for rate in recall.CURVE
            ]
            for name, told in judged.items()
            if told.score is not None and attack.any() and ordinary.sum() >= recall.MIN_ORDINARY
        },
    }
    axes: dict[str, Callable[[int], str]] = {
        "roles": lambda i: rows[i].role,
        "languages": lambda i: rows[i].language or "unknown",
        "lengths": lambda i: recall.band(int(windows[i])),
        "sources": lambda i: rows[i].source,
    }
    for axis, name in axes.items():
        places = np.asarray([name(i) for i in range(len(rows))], np.str_)
        found = {}
        for value in dict.fromkeys(recall.BAND_NAMES if axis == "lengths" else sorted(set(places.tolist()))):
            inside = places == value
            if inside.sum() < (MIN_GROUP if axis == "languages" else 1):
                continue
            found[value] = {
                "attacks": int((inside & attack).sum()),
                "benign": int((inside & ~attack).sum()),
                "systems": {
                    name: {"recall": _flagged(told, inside & attack), "false_alarms": _flagged(told, inside & ~attack)}
                    for name, told in judged.items()
                },
            }
        figures[axis] = found
    return figures


def _whole(told: Judged, attack: Mask, ordinary: Mask) -> dict[str, Any]:
    triggered = ~attack & ~ordinary
    figures: dict[str, Any] = {
        "recall": _flagged(told, attack),
        "false_alarms": _flagged(told, ordinary),
        "over_defence": _share(told.action[triggered] == "allow"),
    }
    if (told.action == "flag").any():
        figures["blocked"] = _share(told.action[attack] == "block")
        figures["blocked_benign"] = _share(told.action[ordinary] == "block")
    if told.score is not None and attack.any() and ordinary.any():
        figures["auc"] = auc(told.score[attack], told.score[ordinary])
        if ordinary.sum() >= recall.MIN_ORDINARY:
            reached = recall_at(told.score[attack], told.score[ordinary], 0.01)
            figures["recall_at_1pct"] = msgspec.structs.asdict(reached)
    return figures


def _flagged(told: Judged, inside: Mask) -> dict[str, Any]:
    return _share(told.action[inside] != "allow")


def _share(hits: Mask) -> dict[str, Any]:
    return msgspec.structs.asdict(share(int(hits.sum()), len(hits)))
