"""A prompt told in other words: what weak signs, weighed together, find that the judge of one reply does not.

On the half of the prompts in `datasets/leakage.jsonl` that neither the signs' weights nor their phrases were made on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.leak_cases import Case, written_cases
from benchmarks.results import Options
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedTexts
from service.firewall.retelling import LIMIT, RetellingGuard, signals, telling, weigh
from service.firewall.watched import Watch
from service.scoring.artifact import load_artifact
from service.scoring.batcher import Batcher
from service.scoring.encoder import Encoder
from service.settings import Leakage
from training.leak import read
from training.metrics import share
from training.retelling import report, unrelated

CHANNEL = "choices/0/content"


def measure(options: Options) -> dict[str, Any]:
    """Found with and without, by kind of reply."""
    return asyncio.run(_measure(options))


async def _measure(options: Options) -> dict[str, Any]:
    artifact = load_artifact(options.artifact)
    batcher = Batcher(Encoder(artifact))
    batcher.start()
    found = written_cases()[:: 4 if options.quick else 1]
    settings = Leakage(stream="sentence", retelling="flag")

    def guard(*watches: Watch) -> LeakageGuard:
        return LeakageGuard(settings, ProtectedTexts(), batcher, artifact, digest=lambda text: "", watches=watches)

    try:
        watch = RetellingGuard(settings).watch
        before = [await _found(guard(), case) for case in found]
        after = [await _found(guard(watch), case) for case in found]
        alone = [_alone(case) for case in found]
    finally:
        await batcher.close()
    kinds: dict[str, Any] = {}
    for kind in dict.fromkeys(case.family for case in found):
        mine = [number for number, case in enumerate(found) if case.family == kind]
        kinds[kind.removeprefix("written: ")] = {
            "leak": found[mine[0]].leak,
            "before": _share([before[number] for number in mine]),
            "alone": _share([alone[number] for number in mine]),
            "after": _share([after[number] for number in mine]),
        }
    told = read()[1::2]
    apart = report(told, unrelated(1), lambda row: weigh(row) >= LIMIT)["false_alarms_unrelated"]
    return {"prompts": len(told), "kinds": kinds, "unrelated": apart, "passage_ms": _cost(found)}


async def _found(guard: LeakageGuard, case: Case) -> bool:
    judge = await guard.open("t", [case.system], [case.user], Asked())
    for start in range(0, len(case.reply), case.chunk):
        await judge.feed(CHANNEL, case.reply[start : start + case.chunk])
    await judge.finish()
    return any(finding.category == "leak.prompt" for finding in judge.verdict.findings)


def _alone(case: Case) -> bool:
    return weigh(signals(telling(case.system), telling(case.user), case.reply)) >= LIMIT


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    return dict(msgspec.structs.asdict(share(sum(hits), len(hits))))


def _cost(found: Sequence[Case]) -> float:
    prompt = telling(found[0].system)
    begun = perf_counter()
    for case in found:
        signals(prompt, {}, case.reply)
    return (perf_counter() - begun) * 1e3 / len(found)
