"""What hostile bodies get, how soon, and whether the service still answers others meanwhile.

Each body is sent while `/health/live` is polled from another connection. The poll's time is what a stranger waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from time import perf_counter
from typing import Any

import aiohttp
import msgspec

from benchmarks.intervals import spread
from benchmarks.results import Options
from benchmarks.servers import Server, gateway, upstream

GOAL_MS = 50.0
_POLL_EVERY_S = 0.003
_HEADERS = {"content-type": "application/json"}


def bodies() -> dict[str, bytes]:
    """Hostile bodies by name."""

    def chat(content: Any) -> bytes:
        return json.dumps({"model": "sandbox-echo", "messages": [{"role": "user", "content": content}]}).encode()

    many = [{"role": "user", "content": f"message {number}"} for number in range(10_000)]
    return {
        "400,000 letters in a run": chat("a" * 400_000),
        "400,000 letters of base64": chat("QUJD" * 100_000),
        "1 MB of ordinary text": chat("The ferry leaves at nine and comes back at noon. " * 20_000),
        "1 MB of small JSON values": b'{"model": "sandbox-echo", "messages": [' + b'{"a": 1},' * 110_000 + b"{}]}",
        "10,000 messages": json.dumps({"model": "sandbox-echo", "messages": many}).encode(),
        "nesting 100,000 deep": b'{"model": "sandbox-echo", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "400,000 zero-width characters": chat("\u200b" * 400_000),
        "malformed JSON": b'{"model": "sandbox-echo", "messages": [' + b'"' * 400_001,
    }


def measure(options: Options) -> dict[str, Any]:
    """Status and seconds of each body, and the milliseconds of the polls meanwhile."""
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(upstream())
        server = stack.enter_context(gateway(behind.base_url, options.artifact, detection=True, stream="sentence"))
        return asyncio.run(_measure(server, 1 if options.quick else 5))


async def _measure(server: Server, rounds: int) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=120)
    figures: dict[str, Any] = {}
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for name, body in {"nothing": b"", **bodies()}.items():
            polls: list[float] = []
            seconds: list[float] = []
            status = 0
            for _ in range(rounds):
                ended = asyncio.Event()
                polling = asyncio.create_task(_poll(session, server, ended, polls))
                begun = perf_counter()
                if body:
                    url = f"{server.base_url}/chat/completions"
                    async with session.post(url, data=body, headers=_HEADERS) as answer:
                        await answer.read()
                        status = answer.status
                else:
                    await asyncio.sleep(1.0)
                seconds.append(perf_counter() - begun)
                ended.set()
                await polling
            found = spread(polls)
            figures[name] = {
                "status": status,
                "seconds": max(seconds),
                "polls": len(polls),
                "poll_ms": msgspec.structs.asdict(found) | {"highest": max(polls)},
            }
    worst = max(entry["poll_ms"]["highest"] for name, entry in figures.items() if name != "nothing")
    return {"bodies": figures, "goal": {"ms": GOAL_MS, "highest_ms": worst, "met": worst <= GOAL_MS}}


async def _poll(session: aiohttp.ClientSession, server: Server, ended: asyncio.Event, polls: list[float]) -> None:
    url = server.base_url.removesuffix("/v1") + "/health/live"
    while not ended.is_set():
        begun = perf_counter()
        async with session.get(url) as answer:
            await answer.read()
        polls.append((perf_counter() - begun) * 1e3)
        await asyncio.sleep(_POLL_EVERY_S)
