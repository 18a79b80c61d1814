"""A PostgreSQL server as the database: its address, its going away, who opens it first, and what others do at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from service.errors import ConfigError, StorageAway, StorageFailed
from service.records import database as database_module
from service.records import schema
from service.records.audit import AuditRow
from service.records.audit_log import AuditLog
from service.records.place import ServerPlace, database_place
from service.records.protected_table import ProtectedRow
from service.records.schema import SCHEMA_VERSION
from service.records.store import Store, verify
from service.settings import Limits, Settings, Storage
from tests.postgres_server import PASSWORD, QUOTED_PASSWORD, PostgresServer


def place_of(url: str, password_env: str = "") -> ServerPlace:
    place = database_place(Settings(storage=Storage(url=url, password_env=password_env)))
    assert isinstance(place, ServerPlace)
    return place


@pytest.fixture
def place(postgres: PostgresServer) -> ServerPlace:
    return place_of(postgres.url(postgres.make_database()))


@pytest.fixture
async def store(place: ServerPlace) -> AsyncIterator[Store]:
    made = Store(place)
    await made.open()
    yield made
    await made.close()


def row(request_id: str, **changed: object) -> AuditRow:
    return AuditRow(time=1.5, request_id=request_id, **changed)  # type: ignore[arg-type]


def protected(number: int) -> ProtectedRow:
    return ProtectedRow(
        id=f"{number:04}",
        tenant="",
        kind="secret",
        name=str(number),
        length=9,
        digest="d",
        sealed="s",
        root="r",
        created_at=1.0,
    )


# -- the address -----------------------------------------------------------------------------------------------------


def test_an_address_is_shown_without_its_password() -> None:
    place = place_of(f"postgresql://firewall:{QUOTED_PASSWORD}@db.internal:6432/records?sslmode=verify-full")
    assert str(place) == repr(place) == f"{place}" == "postgresql://firewall@db.internal:6432/records"
    assert place.dsn == "postgresql://firewall@db.internal:6432/records?sslmode=verify-full"
    assert place.password == PASSWORD


def test_the_password_may_come_from_the_environment_and_from_one_place_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "word")
    assert place_of("postgresql://u@h/d", "DB_PASSWORD").password == "word"
    assert place_of("postgresql://u@h/d").password is None
    with pytest.raises(ConfigError, match="one of them"):
        place_of("postgresql://u:other@h/d", "DB_PASSWORD")
    monkeypatch.delenv("DB_PASSWORD")
    with pytest.raises(ConfigError, match=r"storage\.password_env: .* DB_PASSWORD is not set"):
        place_of("postgresql://u@h/d", "DB_PASSWORD")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:SECRET@h",
        "postgresql://u:SECRET@/d",
        "postgresql://u:SECRET@h:port/d",
        "postgresql://u:SECRET@h/d?sslmod=require",
        "postgresql+psycopg://u:SECRET@h/d",
        "postgresql:/u:SECRET@h/d",
        "postgresql://u:SECRET@[::1/d",
    ],
)
def test_an_address_that_is_none_is_refused_by_its_key_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^storage\.url: ") as caught:
        place_of(url)
    assert "SECRET" not in str(caught.value)


def test_a_file_has_no_password() -> None:
    with pytest.raises(ConfigError, match=r"storage\.password_env"):
        database_place(Settings(storage=Storage(url="sqlite:///a.db", password_env="HOME")))


# -- opening ---------------------------------------------------------------------------------------------------------


async def refusal(url: str) -> str:
    store = Store(place_of(url))
    with pytest.raises(ConfigError) as caught:
        await store.open()
    await store.close()
    said = str(caught.value)
    assert said.startswith("storage.url: postgresql://")
    assert PASSWORD not in said and QUOTED_PASSWORD not in said
    return said


async def test_what_cannot_be_opened_is_refused_with_the_reason_and_what_to_do(postgres: PostgresServer) -> None:
    assert "WRONG" not in await refusal(postgres.url("postgres", ":WRONG"))
    assert "password authentication failed" in await refusal(postgres.url("postgres", ":WRONG"))
    assert '"nowhere" does not exist' in await refusal(postgres.url("nowhere"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # it does not listen
        port = taken.getsockname()[1]
        said = await refusal(f"postgresql://u:{QUOTED_PASSWORD}@127.0.0.1:{port}/d")
    assert "Connect call failed" in said
    assert "start the server" in said
    assert "rejected SSL" in await refusal(postgres.url() + "?sslmode=require")


async def test_a_server_that_accepts_and_says_nothing_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        said = await refusal(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d?sslmode=disable")
    assert "no answer in time" in said


async def test_who_may_make_no_tables_is_told_so(postgres: PostgresServer) -> None:
    name = postgres.make_database()
    postgres.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'x'; REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)
    assert "permission denied" in await refusal(f"postgresql://{name}:x@127.0.0.1:{postgres.port}/{name}")


async def test_a_database_without_our_tables_is_only_made_ours_by_who_may(place: ServerPlace) -> None:
    with pytest.raises(ConfigError, match="is not the firewall's database"):
        await verify(place)


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> int:
    """A version to come, whose step has other words for each database."""
    step = ("ALTER TABLE nowhere ADD COLUMN x TEXT", "ALTER TABLE audit ADD COLUMN extra TEXT NOT NULL DEFAULT '-'")
    monkeypatch.setitem(schema._STEPS, SCHEMA_VERSION, (step,))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    return SCHEMA_VERSION + 1


async def test_workers_that_start_at_once_bring_an_older_database_up_to_date_once(
    store: Store, next_version: int, postgres: PostgresServer
) -> None:
    await store.add_rows([row("old")])
    with pytest.raises(ConfigError, match="semantic-firewall migrate"):
        await verify(store.place)
    stores = [Store(store.place) for _ in range(6)]
    await asyncio.gather(*(each.open() for each in stores))
    async with store.read() as connection:
        found = await connection.exec_driver_sql("SELECT request_id, extra, version FROM audit, schema_version")
        assert [tuple(line) for line in found] == [("old", "-", next_version)]
    for each in stores:
        await each.close()


async def test_a_migration_that_breaks_leaves_the_older_database_whole(
    store: Store, next_version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = schema._STEPS[SCHEMA_VERSION]
    monkeypatch.setitem(schema._STEPS, SCHEMA_VERSION, (*good, "ALTER TABLE nowhere ADD COLUMN x TEXT"))
    again = Store(store.place)
    with pytest.raises(ConfigError, match="nowhere"):
        await again.open()
    await again.close()
    async with store.read() as connection:
        columns = await connection.exec_driver_sql(
            "SELECT count(*) FROM information_schema.columns WHERE table_name = 'audit' AND column_name = 'extra'"
        )
        assert columns.scalar() == 0
        assert (await connection.exec_driver_sql("SELECT version FROM schema_version")).scalar() == SCHEMA_VERSION


async def test_a_version_that_was_never_on_a_server_is_refused(store: Store, postgres: PostgresServer) -> None:
    async with store.begin() as connection:
        await connection.exec_driver_sql("UPDATE schema_version SET version = 2")
    with pytest.raises(ConfigError, match="schema 2"):
        await Store(store.place).open()


# -- what others do at once ------------------------------------------------------------------------------------------


async def test_changes_of_protected_texts_are_read_in_the_order_in_which_they_are_seen(store: Store) -> None:
    """Who reads those after the last number that it knows must never miss one that comes to light later."""
    others = [Store(store.place) for _ in range(4)]
    seen: list[str] = []
    place = (0, "")

    async def read() -> None:
        nonlocal place
        for changed in await store.changed_protected(place, 1_000):
            seen.append(changed.id)
            place = (changed.change, changed.id)

    writing = asyncio.gather(*(others[n % 4].add_protected(protected(n)) for n in range(60)))
    while not writing.done():
        await read()
    await read()
    assert sorted(seen) == [f"{n:04}" for n in range(60)]
    for other in others:
        await other.close()


async def test_one_name_is_given_once_by_however_many_at_once(store: Store) -> None:
    assert sum(await asyncio.gather(*(store.add_tenant("acme", Limits(), 1.0) for _ in range(8)))) == 1
    same = [protected(n) for n in range(8)]
    same = [
        type(each)(**{name: getattr(each, name) for name in each.__struct_fields__} | {"name": "n"}) for each in same
    ]
    assert sum(await asyncio.gather(*map(store.add_protected, same))) == 1


async def test_texts_are_ordered_by_their_bytes_whatever_the_servers_language(store: Store) -> None:
    for name in ("b", "_a", "a.b", "ab", "a1"):
        await store.add_tenant(name, Limits(), 1.0)
    assert [tenant.name for tenant in await store.list_tenants()] == ["_a", "a.b", "a1", "ab", "b"]


async def test_a_day_ends_at_midnight_and_not_at_noon(store: Store) -> None:
    times = (0.0, 43_199.0, 43_201.0, 86_399.9, 86_400.0)
    await store.add_rows([AuditRow(time=time, request_id=str(time), tenant="a", prompt_tokens=2) for time in times])
    found = await store.usage(None, 0.0, 1e9)
    assert [(usage.day, usage.requests, usage.prompt_tokens) for usage in found] == [(0, 4, 8), (1, 1, 2)]
    assert all(type(value) is int for usage in found for value in (usage.requests, usage.prompt_tokens, usage.blocked))
    assert await store.usage("a", 0.0, 1e9, after=(0, "a", "")) == found[1:]


# -- away ------------------------------------------------------------------------------------------------------------


async def test_a_server_that_crashed_is_away_and_then_used_again_without_a_failure(
    store: Store, postgres: PostgresServer
) -> None:
    await asyncio.gather(*(store.ping() for _ in range(6)))
    postgres.stop()
    for _ in range(2):
        with pytest.raises(StorageAway):
            await store.ping()
    postgres.start()
    await asyncio.gather(*(store.ping() for _ in range(8)))
    await store.add_rows([row("after")])
    assert await store.find_row("after") is not None


async def test_connections_that_broke_while_nobody_used_them_are_not_used(
    store: Store, postgres: PostgresServer
) -> None:
    await asyncio.gather(*(store.ping() for _ in range(6)))
    # In a thread, so that the event loop learns meanwhile what was closed.
    await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start)
    await asyncio.gather(*(store.add_rows([row(str(n))]) for n in range(6)))
    assert (await verify(store.place)).rows == 6


async def test_a_server_that_falls_silent_is_away_in_time_and_back_as_soon_as_it_speaks(
    store: Store, postgres: PostgresServer
) -> None:
    await asyncio.gather(*(store.ping() for _ in range(4)))
    postgres.freeze()
    try:
        with pytest.raises(StorageAway, match="in time"):
            async with store.read(0.2) as connection:
                await connection.exec_driver_sql("SELECT 1")
    finally:
        postgres.thaw()
    await store.ping()


async def test_rows_wait_together_for_a_server_that_is_away_and_not_one_after_the_other() -> None:
    tried: list[int] = []

    class Away:
        async def add_rows(self, rows: list[AuditRow]) -> None:
            tried.append(len(rows))
            raise StorageAway("no answer")

    log = AuditLog(Away())
    done = await asyncio.gather(*(log.write(row(str(n))) for n in range(50)), return_exceptions=True)
    assert all(isinstance(outcome, StorageFailed) for outcome in done)
    assert sum(tried) == 50


async def test_a_row_that_is_there_already_is_no_sign_of_a_server_that_is_away(store: Store) -> None:
    await store.add_rows([row("same", model="SECRET")])
    for bad in (row("same", model="SECRET"), row("x", prompt_tokens=2**70, model="SECRET")):
        with pytest.raises(StorageFailed) as caught:
            await store.add_rows([row("good"), bad])
        assert type(caught.value) is StorageFailed
        assert "SECRET" not in str(caught.value)
    assert await store.find_row("good") is None
