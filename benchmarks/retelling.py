"""A prompt told in other words: what weak signs, weighed together, find that the judge of one reply does not.

On the half of the prompts in `datasets/leakage.jsonl` that neither the signs' weights nor their phrases were made on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.leak_cases import Case, written_cases
from benchmarks.results import Options
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedTexts
from service.firewall.retelling import PairReader, RetellingGuard
from service.firewall.watched import Opening, Watch
from service.scoring.artifact import load_artifact
from service.scoring.batcher import Batcher
from service.scoring.encoder import Encoder
from service.settings import Leakage
from training.leak import read
from training.metrics import share
from training.retelling import unrelated

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

    told = read()[1::2]
    try:
        watch = RetellingGuard(settings, PairReader.of(batcher, artifact, deadline_s=60.0)).watch
        before = [await _found(guard(), case) for case in found]
        after = [await _found(guard(watch), case) for case in found]
        alone = [await _alone(watch, case) for case in found]
        chooser = random.Random(2)
        apart = [Case("", False, chooser.choice(told).prompt, "", text) for text in unrelated(1)]
        alarms = [await _alone(watch, case) for case in apart[:: 4 if options.quick else 1]]
        cost_ms = await _cost_ms(watch, found)
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
    return {"prompts": len(told), "kinds": kinds, "unrelated": _share(alarms), "passage_ms": cost_ms}


async def _found(guard: LeakageGuard, case: Case) -> bool:
    judge = await guard.open("t", [case.system], [case.user], Asked())
    for start in range(0, len(case.reply), case.chunk):
        await judge.feed(CHANNEL, case.reply[start : start + case.chunk])
    await judge.finish()
    return any(finding.category == "leak.prompt" for finding in judge.verdict.findings)


async def _alone(watch: Watch, case: Case) -> bool:
    opening = Opening("t", Asked(), (case.system,), (case.user,), (case.system,))
    watcher = watch(opening)
    assert watcher is not None
    await watcher.feed(CHANNEL, case.reply)
    return bool(await watcher.finish())


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    return dict(msgspec.structs.asdict(share(sum(hits), len(hits))))


async def _cost_ms(watch: Watch, found: Sequence[Case]) -> float:
    begun = perf_counter()
    for case in found:
        await _alone(watch, case)
    return (perf_counter() - begun) * 1e3 / len(found)
