"""Strangers' detectors are measured through a worker, and whatever a worker does becomes a figure or a reason."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks import peer_runs, peer_tables, peers, plots, recall
from benchmarks.calibration import calibration
from benchmarks.peer_catalog import NOT_RUN, PEERS, PINS, Peer
from benchmarks.peer_runs import Judged, Limits, PeerFailed
from benchmarks.peer_worker import FACTORIES
from benchmarks.results import GROUPS, PARTS, Measured, Options, Results
from training.corpus import Row

PYTHON = Path(sys.executable)
TEXTS = [("attack now", "user"), ("hello", "user"), ("attack here too", "tool"), ("", "document")]
HANGS = """
import threading
def judge(text, role):
    if role == "tool":
        threading.Event().wait()
    return "allow", None
return judge
"""

_FAKE = """
import os, sys
sys.path.insert(0, {folder!r})
import peer_worker

def made():
{body}

peer_worker.FACTORIES["fake"] = made
peer_worker.main(["fake"])
"""


def _worker(tmp_path: Path, body: str) -> Path:
    """A worker script whose peer is made by `body`."""
    path = tmp_path / "worker.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(_FAKE.format(folder=str(peer_runs.WORKER.parent), body=lines))
    return path


def _run(tmp_path: Path, body: str, limits: Limits | None = None) -> Judged:
    return peer_runs.run("fake", PYTHON, TEXTS, limits=limits, worker=_worker(tmp_path, body))


# -- the worker ------------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_texts_whatever_the_peer_prints(tmp_path: Path) -> None:
    found = _run(
        tmp_path,
        """
print("welcome!")
def judge(text, role):
    print('{"action": "block"}')
    return ("block" if "attack" in text else "allow"), float(len(text))
return judge
""",
    )

    assert found.action.tolist() == ["block", "allow", "block", "allow"]
    assert found.score is not None and found.score.tolist() == [float(len(text)) for text, _ in TEXTS]
    assert len(found.ms) == 4 and (found.ms >= 0).all() and not found.errors


def test_a_peer_is_told_where_a_text_comes_from_and_need_not_give_a_score(tmp_path: Path) -> None:
    found = _run(tmp_path, "return lambda text, role: ('flag' if role == 'tool' else 'allow', None)")

    assert found.action.tolist() == ["allow", "allow", "flag", "allow"]
    assert found.score is None


def test_a_text_that_a_peer_fails_on_is_counted_and_let_through_with_the_lowest_score(tmp_path: Path) -> None:
    found = _run(tmp_path, "return lambda text, role: ('block', 1.0 / len(text))")

    assert found.errors == {"ZeroDivisionError": 1}
    assert found.action.tolist() == ["block", "block", "block", "allow"]
    assert found.score is not None and found.score[3] == min(found.score)


def test_a_peer_sees_none_of_the_callers_keys_and_not_the_callers_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    home = str(Path.home())

    found = _run(
        tmp_path,
        f"return lambda text, role: ('block' if 'OPENAI_API_KEY' in os.environ or os.environ['HOME'] == {home!r} "
        "or os.path.exists('pyproject.toml') else 'allow', None)",
    )

    assert set(found.action.tolist()) == {"allow"}


def test_a_peer_that_cannot_load_says_why_without_paths_or_addresses(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed) as failed:
        _run(tmp_path, "raise RuntimeError('no model at https://hub.example/a/model.onnx in /root/cache/model.onnx')")

    assert str(failed.value) == "did not start: RuntimeError: no model at … in model.onnx"


def test_a_peer_that_dies_among_the_texts_is_named_without_a_word_of_them(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match=r"^ended with code 3 after 2 of 4 texts$"):
        _run(
            tmp_path,
            """
def judge(text, role):
    if role == "tool":
        print(text, file=sys.stderr, flush=True)
        os._exit(3)
    return "allow", None
return judge
""",
        )


@pytest.mark.parametrize(
    ("limits", "body", "reason"),
    [
        (Limits(load_s=0.05), "import threading; threading.Event().wait()", "did not load within 0.05 s"),
        (
            Limits(text_s=0.05),
            HANGS,
            "took more than 0.05 s for one text",
        ),
        (Limits(whole_s=0.0), "return lambda text, role: ('allow', None)", "judged 0 of 4 texts in 0 s"),
    ],
)
def test_a_peer_that_takes_too_long_is_ended(tmp_path: Path, limits: Limits, body: str, reason: str) -> None:
    with pytest.raises(PeerFailed) as failed:
        _run(tmp_path, body, limits)

    assert str(failed.value) == reason


def test_an_answer_that_cannot_be_read_ends_the_peer(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("print('{\"ready\": true}')\nprint('nonsense')\n")

    with pytest.raises(PeerFailed, match="no readable answer to text 1"):
        peer_runs.run("fake", PYTHON, TEXTS, worker=worker)


# -- environments ----------------------------------------------------------------------------------------------------


def test_every_peer_has_a_worker_pins_a_licence_and_only_exact_versions() -> None:
    assert {peer.name for peer in PEERS} == set(FACTORIES) == {path.stem for path in PINS.glob("*.txt")}
    for peer in PEERS:
        pins = (PINS / f"{peer.name}.txt").read_text().split()
        assert f"{peer.name}=={peer.version}" in pins
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", pin) for pin in pins)
        assert peer.licence and peer.decision
    assert not set(NOT_RUN) & set(FACTORIES)


def test_an_environment_is_made_once_for_its_pins_and_a_failure_names_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def made(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(peer_runs.subprocess, "run", made)
    peer = PEERS[0]
    python = peer_runs.installed(peer, tmp_path)
    assert peer_runs.installed(peer, tmp_path) == python == tmp_path / peer.name / "bin" / "python"
    assert len(commands) == 2 and commands[1][-1] == str(PINS / f"{peer.name}.txt")

    def refused(command: list[str], **options: Any) -> None:
        raise subprocess.CalledProcessError(1, command, "", "WARNING: slow\nERROR: No matching distribution\n")

    monkeypatch.setattr(peer_runs.subprocess, "run", refused)
    with pytest.raises(PeerFailed, match=r"^could not be installed: ERROR: No matching distribution$"):
        peer_runs.installed(PEERS[1], tmp_path)


# -- figures, tables, plots ------------------------------------------------------------------------------------------


def _rows() -> list[Row]:
    rows = [Row(f"a{i}", 1, "tool" if i % 2 else "user", "direct", "one", "en") for i in range(20)]
    rows += [Row(f"b{i}", 0, "user", "ordinary", "two", "de" if i < 15 else "fr") for i in range(120)]
    return rows + [Row(f"c{i}", 0, "user", "over_defence_benign", "two", "en") for i in range(10)]


def _judged() -> dict[str, Judged]:
    """One that scores well and flags by its score, one that flags every text with an even number."""
    score = np.concatenate([np.linspace(0.5, 1.0, 20), np.linspace(0.0, 0.6, 120), np.full(10, 0.99)])
    action = np.where(score > 0.9, "block", np.where(score > 0.58, "flag", "allow"))
    even = np.asarray(["block" if i % 2 == 0 else "allow" for i in range(150)])
    ms = np.ones(150)
    return {peers.FIREWALL: Judged(action, score, ms), "even": Judged(even, None, ms)}


def test_each_detector_is_held_to_its_own_decision_and_to_one_percent_where_it_has_a_score() -> None:
    found = peers.compare(_rows(), _judged(), np.ones(150, np.int64))

    ours, even = found["systems"][peers.FIREWALL], found["systems"]["even"]
    assert (found["attacks"], found["ordinary"], found["triggered"]) == (20, 120, 10)
    assert (even["recall"]["hits"], even["false_alarms"]["hits"], even["over_defence"]["hits"]) == (10, 60, 5)
    assert "auc" not in even and "blocked" not in even and "even" not in found["curves"]
    assert (ours["over_defence"]["hits"], ours["over_defence"]["total"]) == (0, 10)
    # 1 % of 120 texts: one may lie above, so the threshold is the second highest, 0.595.
    assert ours["recall_at_1pct"]["hits"] == sum(score > 0.6 * 118 / 119 for score in np.linspace(0.5, 1.0, 20))
    assert ours["blocked"]["hits"] < ours["recall"]["hits"]
    assert found["roles"]["tool"]["systems"]["even"]["recall"]["hits"] == 0
    assert set(found["languages"]) == {"de", "en", "fr"} and set(found["lengths"]) == {"1 window"}


def test_a_peer_that_fails_is_reported_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, judged = _rows(), _judged()
    ours = judged[peers.FIREWALL]
    columns = {"fused": np.asarray(ours.score)}
    scored = recall.Scored(columns, ours.action, np.ones(len(rows), np.int64))
    found = recall.Benchmarks({recall.PUBLIC: rows}, {recall.PUBLIC: scored}, ("A note.",))
    seen: list[tuple[str, str]] = []

    def run(name: str, python: Path, texts: list[tuple[str, str]]) -> Judged:
        seen.extend(texts)
        if name == "inferwall":
            raise PeerFailed("ended with code 3 after 0 of 150 texts")
        return judged["even"]

    monkeypatch.setattr(recall, "judged", lambda options: found)
    monkeypatch.setattr(peers, "_ours", lambda folder, found, timed: ours)
    monkeypatch.setattr(peer_runs, "installed", lambda peer: PYTHON)
    monkeypatch.setattr(peer_runs, "run", run)

    figures = peers.measure(Options(artifact=Path("a"), out=Path("b"), peers=("inferwall", "aicordon")))

    assert seen == [(row.text, row.role) for row in rows] * 2
    assert {s["name"]: s["failed"] for s in figures["systems"]} == {
        **{peers.FIREWALL: "", "inferwall": "ended with code 3 after 0 of 150 texts", "aicordon": ""}
    }
    assert set(figures["benchmarks"][recall.PUBLIC]["systems"]) == {peers.FIREWALL, "aicordon"}
    assert "A note." in figures["notes"] and any("jailguard" in note for note in figures["notes"])
    # What a row says is nowhere in the figures.
    assert not any(f'"{row.text}"' in msgspec.json.encode(figures).decode() for row in rows)


def _figures() -> dict[str, Any]:
    """What `peers.measure` gives, with a fake peer that worked and one that did not."""
    ms = {"p50": 1.0, "p95": 2.0, "p99": 3.0, "mean": 1.2, "count": 9}
    facts = {"version": "1.0", "licence": "MIT", "how": "odd", "decision": "even", "seen": "all | of them"}
    systems = [
        {"name": peers.FIREWALL, "failed": "", "errors": {}, "ms": ms},
        {"name": "even", "failed": "", "errors": {"KeyError": 2}, "ms": ms} | facts,
        {"name": "away", "failed": "did not start: no model"} | facts,
    ]
    return {
        **{"notes": ["A note."], "timed": 9, "systems": systems, "not_run": NOT_RUN},
        "benchmarks": {"public dev sources": peers.compare(_rows(), _judged(), np.ones(150, np.int64))},
        "published": [{"model": "m", "figure": "AUC", "value": "0.9", "rows": "theirs", "source": "a card"}],
    }


def test_the_tables_name_who_failed_and_keep_published_figures_apart() -> None:
    text = "\n\n".join(peer_tables.sections(_figures()))

    assert "| away 1.0 | did not start: no model |" in text
    assert "| llm-guard |" in text and "2 KeyError" in text
    assert (
        text.index("| even | 50.0%") < text.index("### Published figures, not measured here") < text.index("| m | AUC")
    )
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1, block


def test_decisions_and_curves_are_drawn(tmp_path: Path) -> None:
    facts = {"date": "", "commit": "", "machine": "", "load": 0.0, "artifact": "", "command": "", "quick": False}

    assert plots.draw(Results({"peers": Measured(**facts, figures=_figures())}), tmp_path / "plots") == [
        "plots/peers_decisions.png"
    ]


def test_strangers_packages_are_installed_only_where_they_are_asked_for() -> None:
    assert "peers" not in GROUPS["all"] and GROUPS["eval"] == ("recall", "peers")
    assert {*GROUPS["all"], "peers"} == set(PARTS)
    assert all(isinstance(peer, Peer) for peer in PEERS)


# -- calibration -----------------------------------------------------------------------------------------------------


def test_scores_that_are_probabilities_have_no_calibration_error_and_boasting_ones_have() -> None:
    random = np.random.default_rng(5)
    probability = random.uniform(0.02, 0.98, 20_000)
    attack = random.uniform(size=20_000) < probability
    logit = np.log(probability / (1 - probability))

    honest, boasting = calibration(logit, attack), calibration(4 * logit, attack)

    assert honest["ece"] < 0.02 < 0.1 < boasting["ece"]
    assert sum(point["attacks"]["total"] for point in honest["points"]) == 20_000
    assert all(
        point["attacks"]["low"] - 0.02 <= point["score"] <= point["attacks"]["high"] + 0.02
        for point in honest["points"]
    )


def test_a_text_without_windows_is_a_score_of_nothing_and_empty_bins_are_left_out() -> None:
    found = calibration(np.asarray([-np.inf, -np.inf, 50.0]), np.asarray([False, False, True]))

    assert [point["score"] for point in found["points"]] == pytest.approx([0.0, 1.0])
    assert found["ece"] == pytest.approx(0.0)
