"""Credentials of every known format found in made-up replies, false alarms on own texts, and what it costs.

No model runs. False alarms are counted on the replies of datasets/leakage.jsonl, the texts of datasets/dev, and strings
that look like credentials and are none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from time import process_time
from typing import Any

import msgspec

from benchmarks.credential_cases import harmless, samples
from benchmarks.intervals import spread
from benchmarks.results import ROOT, Options
from service.firewall.credentials import CredentialScanner
from service.firewall.exfiltration import ACTS, REPORTED, Conversation, ExfiltrationScanner, Hosts, weigh
from training.metrics import share

_CHUNK = 200
_SEED = 20


def measure(options: Options) -> dict[str, Any]:
    """Recall by format, false alarms by kind of text, microseconds of processor time for 200 characters."""
    rng = random.Random(_SEED)
    found: dict[str, list[bool]] = {}
    for _ in range(4 if options.quick else 40):
        for name, before, credential, behind in samples(rng):
            whole = any(
                start <= len(before) and end >= len(before) + len(credential)
                for start, end in _spans(before + credential + behind)
            )
            found.setdefault(name, []).append(whole)
    hits = [hit for each in found.values() for hit in each]
    alarms: dict[str, list[bool]] = {}
    addresses: dict[str, list[float]] = {}
    for kind, text in _benign(rng, 4 if options.quick else 100):
        alarms.setdefault(kind, []).append(bool(_spans(text)))
        addresses.setdefault(kind, []).append(_address_score(text))
    return {
        "formats": {name: msgspec.structs.asdict(share(sum(each), len(each))) for name, each in found.items()},
        "found": msgspec.structs.asdict(share(sum(hits), len(hits))),
        "false_alarms": {kind: msgspec.structs.asdict(share(sum(each), len(each))) for kind, each in alarms.items()},
        "addresses": {
            kind: {
                "reported": msgspec.structs.asdict(share(sum(score >= REPORTED for score in each), len(each))),
                "acted_on": msgspec.structs.asdict(share(sum(score >= ACTS for score in each), len(each))),
            }
            for kind, each in addresses.items()
        },
        "chunk_us": msgspec.structs.asdict(spread(_costs())),
        "chunk_chars": _CHUNK,
    }


def _spans(text: str) -> list[tuple[int, int]]:
    scanner = CredentialScanner()
    return [(sight.start, sight.end) for sight in scanner.feed(text, 0) + scanner.finish()]


def _address_score(text: str) -> float:
    """The highest score of an address in the text, no host being on the list and no conversation known."""
    scanner, conversation = ExfiltrationScanner(Hosts(())), Conversation((), ())
    seen = scanner.feed(text, 0) + scanner.finish()
    return max((weigh(each, conversation)[0] for each in seen if each.text or each.kind == "hidden"), default=0.0)


def _benign(rng: random.Random, rounds: int) -> Iterator[tuple[str, str]]:
    for line in (ROOT / "datasets/leakage.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for reply in row["benign"] + row["leaks"]:
            yield "replies of datasets/leakage.jsonl", reply["text"]
    for path in sorted((ROOT / "datasets/dev").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield f"datasets/dev/{path.name}", json.loads(line)["text"]
    for _ in range(rounds):
        for kind, text in harmless(rng):
            yield f"look-alikes: {kind}", text


def _costs() -> list[float]:
    text = " ".join(
        reply["text"]
        for line in (ROOT / "datasets/leakage.jsonl").read_text(encoding="utf-8").splitlines()
        for reply in json.loads(line)["benign"]
    )
    scanner, costs = CredentialScanner(), list[float]()
    for start in range(0, len(text), _CHUNK):
        chunk = text[start : start + _CHUNK]
        begun = process_time()
        scanner.feed(chunk, start)
        costs.append((process_time() - begun) * 1e6)
    return costs
