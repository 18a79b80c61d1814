"""Databases of other versions: brought up to date whole, or refused and left alone."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from service.errors import ConfigError
from service.records import schema
from service.records.audit import AuditRow
from service.records.schema import SCHEMA_VERSION
from service.records.store import Store, verify
from service.settings import Limits
from service.tenancy.keys import Keys, SecretRoot
from tests.old_schema import VERSION_1

ROOT = SecretRoot(b"r" * 32)


def columns(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with sqlite3.connect(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        # Name, type, not null, part of the primary key.
        return {
            name: sorted((row[1], row[2], row[3], row[5]) for row in connection.execute(f"PRAGMA table_info({name})"))
            for name in names
        }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    digest = Keys(Store(tmp_path / "none.db"), ROOT)._hash("abcd1234", "s" * 43)
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1)
        connection.execute(
            "INSERT INTO api_keys VALUES ('abcd1234', 'acme', ?, 'user,tool', 5.0, NULL, NULL)", (digest,)
        )
    return path


async def test_a_key_of_the_first_version_still_opens_and_may_do_what_it_might(old: Path) -> None:
    store = Store(old)
    await store.open()
    await store.add_rows([AuditRow(time=1.0, request_id="r")])
    key = await Keys(store, ROOT).verify("sf-abcd1234-" + "s" * 43)
    await store.close()
    assert (key.tenant, key.roles, key.models, key.routes, key.limits) == ("acme", ("user", "tool"), (), (), Limits())
    assert (await verify(old)).rows == 1


async def test_an_old_database_becomes_what_a_new_one_is(old: Path, tmp_path: Path) -> None:
    for path in (old, tmp_path / "new.db"):
        store = Store(path)
        await store.open()
        await store.close()
    assert columns(old) == columns(tmp_path / "new.db")


async def test_workers_that_start_at_once_bring_it_up_to_date_once(old: Path) -> None:
    stores = [Store(old) for _ in range(5)]
    await asyncio.gather(*(store.open() for store in stores))
    assert all([await store.find_key("abcd1234") for store in stores])
    for store in stores:
        await store.close()


async def test_a_migration_that_breaks_leaves_the_old_database_whole(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = columns(old)
    monkeypatch.setitem(schema._STEPS, 1, (*schema._STEPS[1], "ALTER TABLE nowhere ADD COLUMN x TEXT"))
    with pytest.raises(ConfigError, match="nowhere"):
        await Store(old).open()
    assert columns(old) == before


async def test_who_may_not_change_an_old_database_is_told_what_to_run(old: Path) -> None:
    before = columns(old)
    with pytest.raises(ConfigError, match="semantic-firewall migrate"):
        await verify(old)
    assert columns(old) == before


async def test_a_newer_database_is_refused_and_left_as_it_is(old: Path) -> None:
    with sqlite3.connect(old) as connection:
        connection.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION + 1,))
    before = columns(old)
    with pytest.raises(ConfigError, match="run the version that made it"):
        await Store(old).open()
    assert columns(old) == before


def test_every_version_has_a_step_to_the_next() -> None:
    assert sorted(schema._STEPS) == list(range(1, SCHEMA_VERSION))
