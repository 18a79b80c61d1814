"""Audit rows written by the short way are the rows that the store reads, or an error says that they are not kept."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from service.errors import StorageFailed
from service.records import row_writer
from service.records.audit import AuditFinding, AuditRow
from service.records.row_writer import RowWriter
from service.records.store import Store

ROW = AuditRow(
    time=1.5,
    request_id="req_1",
    tenant="t",
    action="block",
    category="injection",
    status=400,
    findings=(AuditFinding("injection", "injection", 0.99, "block", "/messages/0/content", 3, 9, "d"),),
    unscannable=("/a b",),
    stream=True,
)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "audit.db"
    store = Store(path)
    await store.open()
    await store.close()
    return path


@pytest.fixture
async def writer(path: Path) -> AsyncIterator[RowWriter]:
    writer = RowWriter(path)
    yield writer
    await writer.close()


async def test_a_written_row_is_read_back_by_the_store(path: Path, writer: RowWriter) -> None:
    await writer.add_rows([ROW])
    store = Store(path)
    assert await store.find_row("req_1") == ROW
    await store.close()


async def test_of_a_batch_with_a_bad_row_none_is_kept(path: Path, writer: RowWriter) -> None:
    with pytest.raises(StorageFailed):
        await writer.add_rows([ROW, ROW])
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)


async def test_a_locked_database_is_an_error_and_then_written_to_again(
    path: Path, writer: RowWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_writer, "BUSY_TIMEOUT_MS", 1)
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageFailed):
        await writer.add_rows([ROW])
    holder.rollback()
    holder.close()
    await writer.add_rows([ROW])


async def test_a_file_that_is_not_there_is_an_error_and_not_made(path: Path) -> None:
    writer = RowWriter(path.with_name("taken-away.db"))
    with pytest.raises(StorageFailed):
        await writer.add_rows([ROW])
    await writer.close()


async def test_a_row_written_at_once_is_read_back_by_the_store(path: Path, writer: RowWriter) -> None:
    assert writer.add_at_once(ROW)
    store = Store(path)
    assert await store.find_row("req_1") == ROW
    await store.close()


async def test_what_cannot_be_written_at_once_is_not_kept_and_the_next_row_is(path: Path, writer: RowWriter) -> None:
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    assert not writer.add_at_once(ROW)
    holder.rollback()
    assert writer.add_at_once(ROW)
    assert not writer.add_at_once(ROW)  # the same request twice
    holder.close()


async def test_rows_written_at_once_are_moved_into_the_file_by_the_thread(
    path: Path, writer: RowWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_writer, "CHECKPOINT_ROWS", 20)
    before = path.stat().st_size  # noqa: ASYNC240
    for number in range(20):
        assert writer.add_at_once(msgspec.structs.replace(ROW, request_id=f"req_{number}", error="x" * 2_000))
    await writer.add_rows([msgspec.structs.replace(ROW, request_id="after")])  # behind the checkpoint, in one thread
    assert path.stat().st_size > before  # noqa: ASYNC240


async def test_a_key_is_found_by_whoever_must_wait_for_another_as_by_whoever_must_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(path)
    await store.open()
    terms = {"digest": "d", "roles": ("user",), "created_at": 1.0, "expires_at": None}
    await store.add_key(key_id="k1", tenant="acme", **terms)  # type: ignore[arg-type]
    at_once = await store.find_key("k1")
    assert at_once is not None
    assert await store.find_key("k2") is None
    asked: list[object] = []

    def locked(*given: object) -> None:
        asked.append(given)
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(store._quick, "row", locked)
    assert await store.find_key("k1") == at_once
    assert asked
    await store.close()
