"""What many protected texts cost: building, memory, each piece of a stream, and a change while the service runs.

Each size is measured in a process of its own, so that its memory is its own. Secrets look like keys that share a
prefix, prompts are made of the words of the shipped ordinary texts.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import random
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import msgspec

from benchmarks.intervals import spread
from benchmarks.results import Options
from service.firewall import registration
from service.firewall.patterns import DISGUISES
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.serving import SWITCH_INTERVAL_S
from service.settings import Leakage
from training.metrics import share

Kind = Literal["secret", "prompt"]
SIZES: dict[Kind, tuple[int, ...]] = {"secret": (0, 1_000, 10_000, 100_000), "prompt": (1_000, 10_000, 100_000)}
QUICK: dict[Kind, tuple[int, ...]] = {"secret": (0, 1_500), "prompt": (1_500,)}
PROMPT_WORDS = 60
_PIECE_CHARS = 5
_LEAKS = 300
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def measure(options: Options) -> dict[str, Any]:
    """Figures for each kind and number of texts."""
    sizes = QUICK if options.quick else SIZES
    rows = []
    for kind, counts in sizes.items():
        for count in counts:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure_size, (kind, count)))
    return {"rows": rows, "prompt_words": PROMPT_WORDS, "piece_chars": _PIECE_CHARS}


def measure_size(kind: Kind, count: int) -> dict[str, Any]:
    """One size, in this process."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    rng = random.Random(5)
    ordinary = Path(registration.__file__).with_name("ordinary.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = sorted({word for line in ordinary for word in line.split() if word.isascii() and word.isalpha()})
    made = [_text(kind, number, rng, vocabulary) for number in range(count)]
    gc.collect()
    before = _resident_mb()
    texts = ProtectedTexts()
    begun = perf_counter()
    texts.merge(made)
    if texts.needs_compacting:
        texts.compact()
    build_s = perf_counter() - begun
    gc.collect()
    built_mb = _resident_mb() - before
    pieces = asyncio.run(_stream(texts, " ".join(ordinary[:60])))
    return {
        "kind": kind,
        "count": count,
        "build_s": build_s,
        "memory_mb": built_mb,
        "piece_ms": msgspec.structs.asdict(spread(pieces)),
        "withheld": asyncio.run(_leaks(texts, made, rng)) if made else None,
        **(_changed(texts, kind, count, rng, vocabulary) if made else {"add_ms": None, "pause_ms": None}),
    }


def _text(kind: Kind, number: int, rng: random.Random, vocabulary: list[str]) -> ProtectedText:
    if kind == "secret":
        value = "sk-live-" + "".join(rng.choices(_ALPHABET, k=32))
    else:
        value = " ".join(rng.choices(vocabulary, k=PROMPT_WORDS))
    return ProtectedText(f"text {number}", kind, f"tenant{number % 4}", value, f"id{number}")


async def _stream(texts: ProtectedTexts, reply: str) -> list[float]:
    """Milliseconds of each piece of an honest reply."""
    judge = ReplyJudge(texts.for_request("tenant0"), Leakage(stream="exact"), lambda text: "")
    times: list[float] = []
    for start in range(0, len(reply), _PIECE_CHARS):
        begun = perf_counter()
        await judge.feed("c", reply[start : start + _PIECE_CHARS])
        times.append((perf_counter() - begun) * 1e3)
    return times


async def _leaks(texts: ProtectedTexts, made: list[ProtectedText], rng: random.Random) -> dict[str, Any]:
    """How many of some replies that tell a text, in a disguise of chance, are stopped before its first character."""
    stopped = 0
    for text in rng.choices(made, k=_LEAKS):
        written = rng.choice(DISGUISES)[1](text.value) if text.kind == "secret" else text.value
        judge = ReplyJudge(texts.for_request(text.tenant), Leakage(stream="exact"), lambda text: "")
        reply = f"Well: {written} and so on."
        for start in range(0, len(reply), _PIECE_CHARS):
            await judge.feed("c", reply[start : start + _PIECE_CHARS])
        await judge.finish()
        stopped += judge.blocked and judge.cleared("c") <= len("Well: ")
    return msgspec.structs.asdict(share(stopped, _LEAKS))


def _changed(
    texts: ProtectedTexts, kind: Kind, count: int, rng: random.Random, vocabulary: list[str]
) -> dict[str, float]:
    """How long until one more text is looked for, and how long the event loop stands still at the most while all is
    built anew beside it.
    """
    begun = perf_counter()
    texts.merge([_text(kind, count, rng, vocabulary)])
    add_ms = (perf_counter() - begun) * 1e3

    async def longest_pause() -> float:
        building = threading.Thread(target=texts.compact)
        building.start()
        longest = 0.0
        while building.is_alive():
            last = perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, perf_counter() - last)
        building.join()
        return longest * 1e3

    return {"add_ms": add_ms, "pause_ms": asyncio.run(longest_pause())}


def _resident_mb() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1_024
