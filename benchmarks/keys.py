"""How long it takes to tell whose a key is, among a million, through the same `Keys` that the gateway asks.

In SQLite and, where its server is installed, in a PostgreSQL on the same machine. The database is filled in bulk with
keys of random ids; those that are then looked up are made one by one in between, so that they lie all over its pages.
Look-ups are of one caller, warm: each key has been asked for once before. A worker believes what it has read for half a
second; its clock is moved on before each look-up, so that every one reads the database, but in the figure that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.intervals import spread
from benchmarks.results import Options
from benchmarks.servers import database_server
from service.errors import Unauthenticated
from service.records.place import Place, database_place
from service.records.schema import KEYS
from service.records.store import Store
from service.settings import Settings, Storage
from service.tenancy.keys import CACHE_S, Keys, SecretRoot

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
GOAL_MS = 1.0
"""At p99."""
_CHUNK = 10_000


class _Count(msgspec.Struct, frozen=True):
    """`keys` in the database, `asked` of them looked up, `look_ups` in all."""

    keys: int
    asked: int
    look_ups: int


_FULL, _QUICK = _Count(1_000_000, 5_000, 20_000), _Count(20_000, 200, 1_000)


class _Clock:
    """Stands still until it is moved."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def forget(self) -> None:
        """What was read is believed no longer."""
        self.now += 2 * CACHE_S


def measure(options: Options) -> dict[str, Any]:
    """Figures of each database. Without a server's programs only SQLite is measured."""
    count = _QUICK if options.quick else _FULL
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rows.append({"where": SQLITE, **asyncio.run(measure_place(Path(folder, "keys.db"), count))})
    with database_server() as url:
        if url is None:
            print("  PostgreSQL's server is not installed", file=sys.stderr)
        else:
            place = database_place(Settings(storage=Storage(url=url)))
            rows.append({"where": POSTGRESQL, **asyncio.run(measure_place(place, count))})
    return {"rows": rows, "goal_ms": GOAL_MS}


async def measure_place(place: Place, count: _Count) -> dict[str, Any]:
    """One database, empty before."""
    store, clock, rng = Store(place), _Clock(), random.Random(7)
    keys = Keys(store, SecretRoot(b"benchmarks" * 4), clock)
    await store.open()
    begun = perf_counter()
    made = await _fill(store, keys, count, rng)
    fill_s = perf_counter() - begun
    unknown = [f"sf-{rng.randbytes(8).hex()}-{'x' * 43}" for _ in range(count.asked)]
    for key in (*made, *unknown):
        await _verify(keys, key)
    ms = await _times(keys, clock, rng.choices(made, k=count.look_ups))
    figures = {
        "keys": count.keys,
        "fill_s": fill_s,
        "ms": ms,
        "met": ms["p99"] <= GOAL_MS,
        "unknown_ms": await _times(keys, clock, rng.choices(unknown, k=count.look_ups)),
        "believed_ms": await _times(keys, None, [made[0]] * count.look_ups),
    }
    await store.close()
    return figures


async def _fill(store: Store, keys: Keys, count: _Count, rng: random.Random) -> list[str]:
    """The keys whose secrets are known."""
    made: list[str] = []
    for start in range(0, count.keys - count.asked, _CHUNK):
        some = min(_CHUNK, count.keys - count.asked - start)
        async with store.begin(None) as connection:
            await connection.execute(KEYS.insert(), [_key(rng) for _ in range(some)])
        due = count.asked * (start + some) // (count.keys - count.asked)
        made += [(await keys.create("tenant")).key for _ in range(due - len(made))]
    return made


def _key(rng: random.Random) -> dict[str, Any]:
    return {
        "id": rng.randbytes(8).hex(),
        "tenant": f"tenant{rng.randrange(1_000)}",
        "digest": rng.randbytes(32).hex(),
        "roles": "user,tool,document,system",
        "created_at": 1.0,
        "models": "[]",
        "routes": "[]",
        "limits": "{}",
        "system_prompt": "",
    }


async def _times(keys: Keys, clock: _Clock | None, presented: Sequence[str]) -> dict[str, float]:
    """Milliseconds of each; without a clock to move on, of what is believed."""
    times: list[float] = []
    for key in presented:
        if clock is not None:
            clock.forget()
        begun = perf_counter()
        await _verify(keys, key)
        times.append((perf_counter() - begun) * 1e3)
    found: dict[str, float] = msgspec.structs.asdict(spread(times))
    return found


async def _verify(keys: Keys, key: str) -> None:
    with contextlib.suppress(Unauthenticated):
        await keys.verify(key)
