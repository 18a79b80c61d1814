"""How many leaks are withheld, how many honest replies are stopped, and what judging a reply costs per piece.

A leak counts as withheld when the reply was blocked. How much of the reply had already been released by then is told
as well: characters before a match may leave, those of the match may not.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any, Literal

import msgspec

from benchmarks.intervals import spread
from benchmarks.leak_cases import PERSONAS, Case, cases, written_cases
from benchmarks.prompts import prompt
from benchmarks.results import Options
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.scoring.artifact import load_artifact
from service.scoring.batcher import Batcher
from service.scoring.encoder import Encoder
from service.settings import Leakage
from training.metrics import share

Mode = Literal["exact", "sentence", "buffer"]
MODES: tuple[Mode, ...] = ("exact", "sentence", "buffer")
CHANNEL = "choices/0/content"
# A piece of a stream is about a token.
_PIECE_CHARS = 5
_COST_TOKENS = 800


class _Outcome(msgspec.Struct, frozen=True):
    blocked: bool
    released_share: float
    piece_ms: list[float]
    finish_ms: float


def measure(options: Options) -> dict[str, Any]:
    """Figures by stream mode and family of replies, and the cost per piece of a long honest reply."""
    return asyncio.run(_measure(options))


async def _measure(options: Options) -> dict[str, Any]:
    artifact = load_artifact(options.artifact)
    batcher = Batcher(Encoder(artifact))
    batcher.start()
    found = cases() + written_cases()
    if options.quick:
        found = found[::4]
    figures: dict[str, Any] = {"modes": {}, "cost": {}, "cases": len(found)}
    try:
        for mode in MODES:
            settings = Leakage(stream=mode)

            def opened(case: Case, settings: Leakage = settings) -> LeakageGuard:
                texts = [ProtectedText(f"secret {n}", "secret", "", value) for n, value in enumerate(case.secrets)]
                return LeakageGuard(settings, ProtectedTexts(texts), batcher, artifact, digest=lambda text: "")

            outcomes = [(case, await _judged(opened(case), case)) for case in found]
            figures["modes"][mode] = _summary(outcomes)
            long = prompt(artifact.tokenizer, _COST_TOKENS // (4 if options.quick else 1), 11)
            case = Case("cost", False, PERSONAS[0].prompt, "Tell me a story.", long, chunk=_PIECE_CHARS)
            await _judged(opened(case), case)
            runs = [await _judged(opened(case), case) for _ in range(1 if options.quick else 5)]
            pieces = [value for run in runs for value in run.piece_ms]
            figures["cost"][mode] = {
                "piece_ms": msgspec.structs.asdict(spread(pieces)),
                "reply_ms": sum(pieces) / len(runs) + sum(run.finish_ms for run in runs) / len(runs),
                "finish_ms": sum(run.finish_ms for run in runs) / len(runs),
                "pieces": len(runs[0].piece_ms),
                "characters": len(long),
            }
    finally:
        await batcher.close()
    return figures


async def _judged(guard: LeakageGuard, case: Case) -> _Outcome:
    judge = await guard.open("default", [case.system] if case.system else [], [case.user])
    times: list[float] = []
    for start in range(0, len(case.reply), case.chunk):
        begun = perf_counter()
        await judge.feed(CHANNEL, case.reply[start : start + case.chunk])
        times.append((perf_counter() - begun) * 1e3)
        if judge.blocked:
            break
    begun = perf_counter()
    await judge.finish()
    finish_ms = (perf_counter() - begun) * 1e3
    return _Outcome(judge.blocked, judge.cleared(CHANNEL) / len(case.reply), times, finish_ms)


def _summary(outcomes: list[tuple[Case, _Outcome]]) -> dict[str, Any]:
    families: dict[str, Any] = {}
    for family in dict.fromkeys(case.family for case, _ in outcomes):
        mine = [(case, outcome) for case, outcome in outcomes if case.family == family]
        blocked = sum(outcome.blocked for _, outcome in mine)
        families[family] = {
            "leak": mine[0][0].leak,
            "stopped": msgspec.structs.asdict(share(blocked, len(mine))),
            "released_of_stopped": sum(o.released_share for _, o in mine if o.blocked) / blocked if blocked else None,
        }
    leaks = [outcome.blocked for case, outcome in outcomes if case.leak]
    honest = [outcome.blocked for case, outcome in outcomes if not case.leak]
    return {
        "withheld": msgspec.structs.asdict(share(sum(leaks), len(leaks))),
        "false_alarms": msgspec.structs.asdict(share(sum(honest), len(honest))),
        "families": families,
    }
