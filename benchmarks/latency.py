"""How long a prompt is judged, stage by stage, on one core and on all of them.

Each setting runs in a process of its own that may only use the cores in question: the affinity is set before the
process starts, so every thread of every library has it. Prompts are all different and nothing is cached.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.intervals import spread
from benchmarks.prompts import prompt
from benchmarks.results import Options
from service.firewall.injection import InjectionGuard, attack_finding
from service.firewall.normalize import views
from service.firewall.policy import role_policies
from service.firewall.prompt import Prompt, Segment
from service.firewall.text_score import TextScorer, WindowRows
from service.firewall.verdict import decide
from service.scoring.artifact import load_artifact
from service.scoring.attack_index import AttackIndex
from service.scoring.batcher import Batcher
from service.scoring.encoder import Encoder
from service.settings import Detection

STAGES = ("views", "tokenise", "encode", "index", "decide")
LENGTHS = (64, 256, 1_024)
GOAL_TOKENS, GOAL_MS = 64, 25.0
_ROUNDS = {64: 300, 256: 150, 1_024: 60}
_QUICK_ROUNDS = 12
_WARM_UP = 5


def measure(options: Options) -> dict[str, Any]:
    """Milliseconds by setting, length and stage; `guard` is the guard as it serves, with batcher and threads."""
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    settings = {"one core": available[-1:], f"all {len(available) or os.cpu_count()} cores": available}
    rounds = {length: _QUICK_ROUNDS if options.quick else _ROUNDS[length] for length in LENGTHS}
    figures: dict[str, Any] = {"settings": {}, "goal": {"tokens": GOAL_TOKENS, "ms": GOAL_MS}}
    for name, cores in settings.items():
        threads = 1 if name == "one core" else 0
        with _confined(cores), _fresh_process() as pool:
            figures["settings"][name] = pool.submit(measure_here, options.artifact, threads, rounds).result()
    headline = figures["settings"]["one core"]["lengths"][str(GOAL_TOKENS)]["total"]
    figures["goal"] |= {"p50_ms": headline["p50"], "met": headline["p50"] <= GOAL_MS}
    return figures


@contextlib.contextmanager
def _confined(cores: Sequence[int]) -> Iterator[None]:
    """Processes started inside may use these cores only. Without effect where the system cannot do it."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _fresh_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def measure_here(folder: Path, threads: int, rounds: dict[int, int]) -> dict[str, Any]:
    """Measure in this process. The lengths take turns, so that noise of the machine reaches all of them."""
    artifact = load_artifact(folder)
    index = AttackIndex(artifact)
    encoder = Encoder(artifact, threads)
    scorer = TextScorer(artifact, index)
    policy = role_policies(Detection(), artifact.manifest)["user"]
    times: dict[int, dict[str, list[float]]] = {n: {s: [] for s in (*STAGES, "total", "guard")} for n in rounds}
    windows: dict[int, int] = {}

    def judge(text: str) -> tuple[list[float], int]:
        marks = [perf_counter()]
        readings = views(text)
        marks.append(perf_counter())
        cut = scorer.cut(readings)
        marks.append(perf_counter())
        encoded = encoder.encode([part.ids for part in cut])
        marks.append(perf_counter())
        similarity, _ = index.search(encoded.vectors)
        marks.append(perf_counter())
        score = scorer.score_rows(cut, WindowRows(encoded.logits, similarity))
        finding = attack_finding(Segment(text, "user", ""), score, policy, lambda value: "")
        decide([finding] if finding else [])
        marks.append(perf_counter())
        return marks, len(cut)

    async def guarded() -> None:
        batcher = Batcher(encoder)
        batcher.start()
        guard = InjectionGuard(Detection(threads=threads), artifact, batcher, index)
        seed = 0
        for number in range(max(rounds.values()) + _WARM_UP):
            for length, wanted in rounds.items():
                if number >= wanted + _WARM_UP:
                    continue
                seed += 1
                marks, windows[length] = judge(prompt(artifact.tokenizer, length, seed))
                # Another text of the same length: the guard must not find its windows in a warm processor cache only.
                text = prompt(artifact.tokenizer, length, -seed)
                begun = perf_counter()
                segment = Segment(text, "user", "/messages/0/content", 0)
                await guard.judge(Prompt("benchmark", (segment,)), digest=lambda value: "", cache_scope=str(seed))
                ended = perf_counter()
                if number < _WARM_UP:
                    continue
                for stage, start, end in zip(STAGES, marks, marks[1:], strict=False):
                    times[length][stage].append((end - start) * 1e3)
                times[length]["total"].append((marks[-1] - marks[0]) * 1e3)
                times[length]["guard"].append((ended - begun) * 1e3)
        guard.close()
        await batcher.close()

    asyncio.run(guarded())
    lengths = {
        str(length): {
            "windows": windows[length],
            **{stage: msgspec.structs.asdict(spread(values)) for stage, values in stages.items()},
        }
        for length, stages in times.items()
    }
    return {"lengths": lengths, "execution_provider": encoder.execution_provider, "threads": threads}
