"""What the gateway adds to a call, against going straight to the same upstream on the same machine.

`direct` takes turns, request by request, with one gateway at a time, so that the machine's noise reaches both: first
with `gateway`, whose detection is off and whose leakage check is `exact` (parsing, tenancy, forwarding, the search for
secrets, the durable audit row), then with `gateway, scoring`, as it is by default. Between the three, scoring would
leave cold caches to whoever comes next. Every prompt is different, so nothing comes out of a cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections import Counter
from time import perf_counter
from typing import Any

import aiohttp
import msgspec
import numpy as np

from benchmarks.intervals import Floats, difference, ratio, spread
from benchmarks.prompts import prompt
from benchmarks.results import Options
from benchmarks.servers import Server, gateway, upstream
from service.scoring.artifact import load_artifact

DIRECT, PLAIN, SCORING = "direct", "gateway", "gateway, scoring"
GOAL_MS = 1.5
CLIENTS = 8
_PROMPT_TOKENS = 64
_SYSTEM = "You are the assistant of a small bookshop. Answer in two sentences and be friendly."
_STREAMED = "sandbox-words-100"
_ECHO = "sandbox-echo"
_WARM_UP = 20


class _Count(msgspec.Struct, frozen=True):
    plain: int
    streams: int
    batch: int
    blocks: int


_FULL, _QUICK = _Count(1_000, 200, 400, 5), _Count(40, 10, 24, 2)


class _Sample(msgspec.Struct):
    """Milliseconds of one way: whole answers, and first bytes of streams; statuses that were not 200."""

    total: list[float] = []
    first: list[float] = []
    refused: Counter[int] = msgspec.field(default_factory=Counter)


class _Prompts:
    """An endless supply of prompts, no two alike."""

    def __init__(self, options: Options) -> None:
        self._tokenizer = load_artifact(options.artifact).tokenizer
        self._seed = 0

    def body(self, model: str, *, stream: bool) -> bytes:
        self._seed += 1
        text = prompt(self._tokenizer, _PROMPT_TOKENS, self._seed)
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]
        return msgspec.json.encode({"model": model, "messages": messages, "stream": stream})


def measure(options: Options) -> dict[str, Any]:
    """Sequential answers and streams of one client, then requests a second of eight."""
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(upstream())
        ways = {
            DIRECT: behind,
            PLAIN: stack.enter_context(gateway(behind.base_url, options.artifact, detection=False, stream="exact")),
            SCORING: stack.enter_context(gateway(behind.base_url, options.artifact, detection=True, stream="sentence")),
        }
        return asyncio.run(_measure(ways, _Prompts(options), _QUICK if options.quick else _FULL))


async def _measure(ways: dict[str, Server], prompts: _Prompts, count: _Count) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0, force_close=False)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        answers = await _pairs(session, ways, prompts, count.plain, _ECHO, stream=False)
        streams = await _pairs(session, ways, prompts, count.streams, _STREAMED, stream=True)
        rates = await _throughput(session, ways, prompts, count)
    figures: dict[str, Any] = {"answers": answers, "streams": streams, "throughput": rates}
    added = answers["against_direct"][PLAIN]["added_ms"]
    figures["goal"] = {"ms": GOAL_MS, "added_p50_ms": added["value"], "met": added["value"] <= GOAL_MS}
    return figures


async def _pairs(
    session: aiohttp.ClientSession, ways: dict[str, Server], prompts: _Prompts, count: int, model: str, *, stream: bool
) -> dict[str, Any]:
    """Each gateway with `direct`, whose own figures are those beside the first."""
    found: dict[str, Any] = {"ways": {}, "against_direct": {}}
    for name in (PLAIN, SCORING):
        pair = {DIRECT: ways[DIRECT], name: ways[name]}
        figures = await _alternate(session, pair, prompts, count, model, stream=stream)
        for way, spent in figures["ways"].items():
            found["ways"].setdefault(way, spent)
        found["against_direct"] |= figures["against_direct"]
    return {**found, "model": model}


async def _alternate(
    session: aiohttp.ClientSession, ways: dict[str, Server], prompts: _Prompts, count: int, model: str, *, stream: bool
) -> dict[str, Any]:
    samples = {name: _Sample() for name in ways}
    spent = dict.fromkeys(ways, 0.0)
    order = list(ways)
    shuffler = random.Random(1)
    for number in range(count + _WARM_UP):
        body = prompts.body(model, stream=stream)
        if number == _WARM_UP:
            spent = {name: server.cpu_s() for name, server in ways.items()}
        shuffler.shuffle(order)
        for name in order:
            first, total, status = await _call(session, ways[name], body)
            if number < _WARM_UP:
                continue
            samples[name].first.append(first)
            samples[name].total.append(total)
            if status != 200:
                samples[name].refused[status] += 1
        if number % 50 == 49:
            print(f"\r  {model} {number + 1}/{count + _WARM_UP}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found: dict[str, Any] = {"ways": {}, "against_direct": {}, "model": model}
    for name, sample in samples.items():
        found["ways"][name] = {
            "ms": msgspec.structs.asdict(spread(sample.total)),
            "first_byte_ms": msgspec.structs.asdict(spread(sample.first)),
            "cpu_ms": (ways[name].cpu_s() - spent[name]) * 1e3 / count,
            "not_200": sum(sample.refused.values()),
            "curve": np.percentile(sample.total, np.arange(0, 100)).round(4).tolist(),
        }
    direct = samples[DIRECT]
    for name, sample in samples.items():
        if name == DIRECT:
            continue
        found["against_direct"][name] = {
            "added_ms": msgspec.structs.asdict(difference(direct.total, sample.total)),
            "added_p95_ms": msgspec.structs.asdict(difference(direct.total, sample.total, statistic=_p95)),
            "added_first_byte_ms": msgspec.structs.asdict(difference(direct.first, sample.first)),
            "ratio": msgspec.structs.asdict(ratio(direct.total, sample.total)),
        }
    return found


def _p95(rows: Floats) -> Floats:
    return np.asarray(np.percentile(rows, 95, axis=1), np.float64)


async def _call(session: aiohttp.ClientSession, server: Server, body: bytes) -> tuple[float, float, int]:
    """(milliseconds to the first byte of the body, to its end, status)."""
    headers = {"content-type": "application/json"}
    begun = perf_counter()
    first = 0.0
    async with session.post(f"{server.base_url}/chat/completions", data=body, headers=headers) as answer:
        async for _ in answer.content.iter_any():
            first = first or perf_counter()
        ended = perf_counter()
        return ((first or ended) - begun) * 1e3, (ended - begun) * 1e3, answer.status


async def _throughput(
    session: aiohttp.ClientSession, ways: dict[str, Server], prompts: _Prompts, count: _Count
) -> dict[str, Any]:
    """Requests a second of eight clients at once, in blocks that take turns."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    times: dict[str, list[float]] = {name: [] for name in ways}
    refused = dict.fromkeys(ways, 0)
    for _ in range(count.blocks):
        for name, server in ways.items():
            # Made beforehand: making prompts takes longer than answering them.
            bodies = [prompts.body(_ECHO, stream=False) for _ in range(count.batch)]

            async def work(waiting: list[bytes], server: Server = server, name: str = name) -> None:
                while waiting:
                    _, total, status = await _call(session, server, waiting.pop())
                    times[name].append(total)
                    refused[name] += status != 200

            begun = perf_counter()
            await asyncio.gather(*(work(bodies) for _ in range(CLIENTS)))
            rates[name].append(count.batch / (perf_counter() - begun))
    return {
        "clients": CLIENTS,
        "ways": {
            name: {
                "per_second": float(np.median(values)),
                "lowest": min(values),
                "highest": max(values),
                "ms": msgspec.structs.asdict(spread(times[name])),
                "not_200": refused[name],
            }
            for name, values in rates.items()
        },
    }
