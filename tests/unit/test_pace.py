"""How busy callers usually are, as the record tells it, and how a process that starts gets to know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import StorageFailed
from service.records.audit import AuditRow
from service.records.pace import Pace
from service.records.pace_recall import PaceRecall
from service.records.store import Store

HOUR_S, DAY_S = 3_600, 86_400
NOW = 100 * DAY_S + 0.5 * HOUR_S


@pytest.fixture
async def store(place: Path) -> AsyncIterator[Store]:
    made = Store(place)
    await made.open()
    yield made
    await made.close()


def rows(
    hour: float, calls: int, tenant: str = "north", key_id: str = "k1", action: str = "allow", **more: str
) -> list[AuditRow]:
    """Calls of one hour, counted from the epoch."""
    given = {"tenant": tenant, "key_id": key_id, "action": action, "provider": "sandbox"} | more
    return [
        AuditRow(time=hour * HOUR_S + number, request_id=f"{hour}/{number}/{given}", **given)  # type: ignore[arg-type]
        for number in range(calls)
    ]


async def paces_of(store: Store, *written: list[AuditRow], limit: int = 100) -> set[tuple[str, str, int]]:
    for some in written:
        await store.add_rows(some)
    return {(pace.tenant, pace.key_id, pace.calls) for pace in await store.paces(0.0, NOW, limit=limit)}


async def test_a_pace_is_that_of_the_busiest_hour_of_each_key_and_of_each_tenant_over_its_keys(store: Store) -> None:
    found = await paces_of(
        store,
        rows(10, 3),
        rows(11, 7),
        rows(11, 2, key_id="k2"),
        rows(12, 4, key_id="k2"),
        rows(11, 5, "south", ""),
    )
    assert found == {("north", "", 9), ("north", "k1", 7), ("north", "k2", 4), ("south", "", 5)}


async def test_an_hour_begins_and_ends_at_its_own_bounds(store: Store) -> None:
    assert await paces_of(store, rows(9.999, 3), rows(10.001, 3), rows(10.999, 3)) == {
        ("north", "", 6),
        ("north", "k1", 6),
    }


@pytest.mark.parametrize(
    "left_out",
    [{"action": "block"}, {"action": "error"}, {"provider": ""}, {"action": "flag", "category": "model_extraction"}],
)
async def test_what_was_refused_failed_or_suspected_makes_nothing_usual(store: Store, left_out: dict[str, str]) -> None:
    assert await paces_of(store, rows(10, 9, **left_out), rows(10, 2)) == {("north", "", 2), ("north", "k1", 2)}


async def test_the_busiest_are_known_where_there_are_more_than_may_be(store: Store) -> None:
    found = await paces_of(store, *(rows(10, number + 1, f"t{number}", f"k{number}") for number in range(5)), limit=2)
    assert found == {("t4", "", 5), ("t3", "", 4), ("t4", "k4", 5), ("t3", "k3", 4)}


async def test_the_last_day_and_what_is_older_than_a_week_is_not_recalled(store: Store) -> None:
    hour = NOW // HOUR_S
    for some in (rows(hour - 2, 50), rows(hour - 30, 6), rows(hour - 24 * 7, 3), rows(hour - 24 * 9, 70)):
        await store.add_rows(some)
    told: list[tuple[str, str, float]] = []
    recall = PaceRecall(store, lambda *pace: told.append(pace), 100, lambda: NOW)
    await recall.start()
    await recall.stop()
    assert sorted(told) == [("north", "", 6), ("north", "k1", 6)]


class _Failing(Store):
    async def paces(self, begin: float, end: float, *, limit: int) -> list[Pace]:
        raise StorageFailed("away")


class _Endless(Store):
    async def paces(self, begin: float, end: float, *, limit: int) -> list[Pace]:
        await asyncio.Event().wait()
        return []


async def test_a_record_that_cannot_be_read_keeps_nobody_from_starting(tmp_path: Path) -> None:
    told: list[tuple[str, str, float]] = []
    recall = PaceRecall(_Failing(tmp_path / "a.db"), lambda *pace: told.append(pace), 100)
    await recall.start()
    await recall.stop()
    assert told == []


async def test_a_record_that_takes_long_is_read_while_calls_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.records.pace_recall._WAIT_S", 0.01)
    recall = PaceRecall(_Endless(tmp_path / "a.db"), lambda *pace: None, 100)
    await recall.start()
    await recall.stop()


async def test_who_never_started_can_be_stopped(tmp_path: Path) -> None:
    await PaceRecall(_Endless(tmp_path / "a.db"), lambda *pace: None, 100).stop()
