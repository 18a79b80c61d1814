"""A peer's side of `peer_runs.py`: runs in the peer's own environment, on the standard library and the peer alone.

stdin: lines of {"text": …, "role": …}. stdout gets {"ready": true} once the peer has loaded, then a line for each:
{"action": "allow" | "flag" | "block", "score": number or null, "ms": milliseconds}, or {"error": class name, "ms": …}
where the peer could not judge that text. What a peer prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import IO, Any

Answer = tuple[str, float | None]
Judge = Callable[[str, str], Answer]


def _blocks(attack: object) -> str:
    return "block" if attack else "allow"


def jailguard() -> Judge:
    """Embeddings of a model that it fetches at the first use, and a small network on top."""
    package = import_module("jailguard")
    package.download_model()

    def judge(text: str, role: str) -> Answer:
        found = package.detect(text)
        return _blocks(found.is_injection), float(found.score)

    return judge


def inferwall() -> Judge:
    """Its default policy: an anomaly score out of signatures, flagged from 4, blocked from 10."""
    package = import_module("inferwall")

    def judge(text: str, role: str) -> Answer:
        found = package.scan_input(text)
        return str(found.decision), float(found.score)

    return judge


def agentbastion() -> Judge:
    """Its inbound guard as `Firewall()` has it; the score is the highest severity of what matched, 0 to 5."""
    guard = import_module("agentbastion.inbound").InboundGuard()

    def judge(text: str, role: str) -> Answer:
        found = guard.scan(text)
        return _blocks(guard.is_blocked(found)), float(found.max_severity)

    return judge


def prompt_guardrail() -> Judge:
    """Its `score` is the probability of whichever label it gives."""
    package = import_module("guardify")

    def judge(text: str, role: str) -> Answer:
        found = package.detect(text)
        attack = found["label"] == "injection"
        return _blocks(attack), float(found["score"] if attack else 1.0 - found["score"])

    return judge


def toolwall() -> Judge:
    """Its default detector against the threshold of its default policy."""
    detector = import_module("toolwall.detect").default_detector
    threshold = float(import_module("toolwall").Policy().response_ipi_threshold)

    def judge(text: str, role: str) -> Answer:
        score = float(detector.score(text)[0])
        return _blocks(score >= threshold), score

    return judge


def aicordon() -> Judge:
    """Picket, its local rules, in the mode that its documentation names for where a text comes from; no score."""
    picket = import_module("aicordon.picket")
    typed, fetched = picket.load(mode="dpi"), picket.load(mode="ipi")

    def judge(text: str, role: str) -> Answer:
        return _blocks((typed if role == "user" else fetched).check(text).flagged), None

    return judge


def nanoguard() -> Judge:
    """A small transformer that lies in the package."""
    guard = import_module("nanoguard.scanner").NanoGuard(device="cpu")

    def judge(text: str, role: str) -> Answer:
        found = guard.scan(text)
        return _blocks(found.is_injection), float(found.injection_score)

    return judge


FACTORIES: dict[str, Callable[[], Judge]] = {
    "jailguard": jailguard,
    "inferwall": inferwall,
    "agentbastion": agentbastion,
    "prompt-guardrail": prompt_guardrail,
    "toolwall-guard": toolwall,
    "aicordon": aicordon,
    "metatronnanoguard": nanoguard,
}


def serve(judge: Judge, asked: IO[bytes], answers: IO[str]) -> None:
    """Answer every line of `asked` in order."""
    # What loads at the first text belongs to loading.
    judge("What is the capital of France?", "user")
    _tell(answers, {"ready": True})
    for line in asked:
        row = json.loads(line)
        began = time.perf_counter()
        try:
            action, score = judge(row["text"], row["role"])
            told: dict[str, Any] = {"action": action, "score": score}
        except Exception as error:  # a peer may raise anything; the others' texts are still to be judged
            told = {"error": type(error).__name__}
        _tell(answers, told | {"ms": 1e3 * (time.perf_counter() - began)})


def _tell(answers: IO[str], value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def main(arguments: list[str]) -> None:
    """`peer_worker.py NAME`."""
    # Peers greet, warn and log: that must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(FACTORIES[arguments[0]](), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
