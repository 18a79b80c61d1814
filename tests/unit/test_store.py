import asyncio
import multiprocessing
import os
import signal
import sqlite3

import pytest
import structlog
from sqlalchemy.exc import OperationalError

from service.errors import ConfigError, StorageFailed, Unauthenticated
from service.records import database as database_module
from service.records import sqlite_file
from service.records.audit import AuditFinding, AuditRow
from service.records.audit_log import AuditLog
from service.records.place import database_place
from service.records.schema import AUDIT, SCHEMA_VERSION
from service.records.store import AuditReport, Store, verify
from service.settings import Settings, Storage
from service.tenancy.keys import MESSAGE_ROLES, Keys, SecretRoot, load_root
from tests.stored import everything

FINDING = AuditFinding("injection", "jailbreak", 0.1 + 0.2, "block", "/messages/0", 3, 9, "ab12", "rot13")


def row(request_id="r1", **changed):
    return AuditRow(time=1.5, request_id=request_id, **changed)


@pytest.fixture
async def store(place):
    made = Store(place)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def file(tmp_path):
    made = Store(tmp_path / "data" / "audit.db")
    await made.open()
    yield made
    await made.close()


async def change(store, statement):
    async with store.begin() as connection:
        await connection.exec_driver_sql(statement)


# -- rows ------------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_field_of_a_row_and_no_other():
    assert {column.name for column in AUDIT.columns} - {"id"} == set(AuditRow.__struct_fields__)


async def test_a_row_reads_back_as_it_was_written(store):
    written = row(findings=(FINDING,), unjudged=("leakage",), unscannable=("/messages/1 image",), stream=True)
    await AuditLog(store).write(written)
    assert await store.find_row("r1") == written


async def test_rows_that_come_together_share_transactions_and_all_are_kept(store):
    sizes = []
    add = store.add_rows

    class Watched:
        async def add_rows(self, rows):
            sizes.append(len(rows))
            await add(rows)

    log = AuditLog(Watched())
    await asyncio.gather(*(log.write(row(f"r{n}")) for n in range(200)))
    assert sum(sizes) == 200
    assert len(sizes) <= 3
    assert await store.find_row("r199") is not None


async def test_a_row_that_cannot_be_kept_does_not_take_its_neighbours_with_it(store):
    log = AuditLog(store)
    await log.write(row("twice"))
    done = await asyncio.gather(
        *(log.write(row(name)) for name in ("a", "twice", "b")),
        log.write(row("huge", prompt_tokens=2**70)),
        return_exceptions=True,
    )
    assert [isinstance(outcome, StorageFailed) for outcome in done] == [False, True, False, True]
    assert await store.find_row("a") and await store.find_row("b")


async def test_a_cancelled_writers_row_is_still_written(store):
    log = AuditLog(store)
    writing = asyncio.ensure_future(log.write(row("left")))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await log.close()
    assert await store.find_row("left") is not None


class Broken:
    async def add_rows(self, rows):
        raise StorageFailed("disk full")


async def test_a_failing_store_blocks_or_lets_pass_as_the_policy_says():
    with pytest.raises(StorageFailed):
        await AuditLog(Broken()).write(row())
    await AuditLog(Broken(), "allow").write(row())


async def test_a_store_that_falls_behind_fails_at_once_instead_of_piling_up(monkeypatch):
    monkeypatch.setattr("service.records.audit_log.MAX_PENDING", 3)
    release = asyncio.Event()

    class Slow:
        async def add_rows(self, rows):
            await release.wait()

    log = AuditLog(Slow())
    first = asyncio.ensure_future(log.write(row("0")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(log.write(row(str(n)))) for n in range(1, 4)]
    await asyncio.sleep(0)
    with pytest.raises(StorageFailed, match="behind"):
        await log.write(row("9"))
    release.set()
    await asyncio.gather(first, *others)


def _write_and_die(path):
    async def write():
        store = Store(path)
        await store.open()
        await AuditLog(store).write(row("durable"))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(write())


async def test_a_written_row_survives_a_killed_process(tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path / "a.db",))
    child.start()
    await asyncio.to_thread(child.join)
    assert child.exitcode == -signal.SIGKILL
    assert (await verify(tmp_path / "a.db")).rows == 1


async def test_storage_errors_do_not_quote_what_was_to_be_stored(store):
    secret = row("same", model="SECRET")
    await store.add_rows([secret])
    with pytest.raises(StorageFailed) as caught:
        await store.add_rows([secret])
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__


# -- opening ---------------------------------------------------------------------------------------------------------


async def test_the_file_is_its_owners_alone(file):
    assert file.place.stat().st_mode & 0o077 == 0


async def test_many_processes_may_open_a_new_database_at_once(place):
    stores = [Store(place) for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.add_rows([row(str(n))]) for n, store in enumerate(stores)))
    for store in stores:
        await store.close()
    assert await verify(place) == AuditReport(6, ())


async def test_who_finds_a_new_file_locked_by_another_that_opens_it_tries_again(tmp_path, monkeypatch):
    refusals = iter([sqlite3.OperationalError("database is locked")] * 2)
    check = database_module.bring_up

    async def busy_at_first(*given):
        for refusal in refusals:
            raise OperationalError("PRAGMA journal_mode=WAL", None, refusal)
        await check(*given)

    monkeypatch.setattr(database_module, "bring_up", busy_at_first)
    store = Store(tmp_path / "a.db")
    await store.open()
    await store.ping()
    await store.close()


async def test_another_versions_schema_is_refused(store):
    await change(store, f"UPDATE schema_version SET version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match=f"schema {SCHEMA_VERSION + 1}"):
        await Store(store.place).open()


async def test_a_file_of_an_earlier_schema_is_brought_to_this_one_and_keeps_its_rows(file):
    await file.add_rows([row("old")])
    await file.close()
    with sqlite3.connect(file.place) as connection:
        connection.execute("ALTER TABLE audit DROP COLUMN attempts")
        connection.execute("ALTER TABLE issued_ids DROP COLUMN tokens")
        connection.execute("UPDATE schema_version SET version = 2")
    opened = [Store(file.place) for _ in range(4)]
    await asyncio.gather(*(each.open() for each in opened))
    await opened[0].add_rows([row("new", attempts=("a 503", "b 200"))])
    assert (await opened[0].find_row("old")).attempts == ()
    assert (await opened[0].find_row("new")).attempts == ("a 503", "b 200")
    for each in opened:
        await each.close()
    assert await verify(file.place) == AuditReport(2, ())


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("these are my notes, not a database" * 50)
    with pytest.raises(ConfigError, match=r"notes\.db"):
        await Store(path).open()
    assert path.read_text().startswith("these are my notes")


async def test_verify_counts_rows_and_names_those_that_do_not_read(store):
    await store.add_rows([row("a"), row("b")])
    assert (await verify(store.place)).problems == ()
    await change(store, "UPDATE audit SET findings = '[{' WHERE request_id = 'b'")
    report = await verify(store.place)
    assert report.rows == 2
    assert report.problems == ("audit row 2 cannot be read",)


async def test_verify_makes_no_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        await verify(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite://", "sqlite:///", "sqlite:///:memory:", "x"])
def test_storage_that_is_not_known_or_would_be_lost_is_refused(url):
    with pytest.raises(ConfigError, match=r"storage\.url"):
        database_place(Settings(storage=Storage(url=url)))


def test_the_files_path_is_relative_to_the_configuration(tmp_path):
    settings = Settings(storage=Storage(url="sqlite:///data/a.db"), folder=tmp_path)
    assert database_place(settings) == tmp_path / "data" / "a.db"
    absolute = Settings(storage=Storage(url=f"sqlite:///{tmp_path}/b.db"))
    assert database_place(absolute) == tmp_path / "b.db"


# -- keys ------------------------------------------------------------------------------------------------------------


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(store, clock):
    return Keys(store, SecretRoot(b"r" * 32), clock)


async def test_a_key_is_known_again_with_its_tenant_and_roles(keys):
    made = await keys.create("acme", ["user", "tool"])
    stored = await keys.verify(made.key)
    assert (stored.id, stored.tenant, stored.roles) == (made.id, "acme", ("user", "tool"))
    assert (await keys.verify((await keys.create("acme")).key)).roles == MESSAGE_ROLES


async def test_neither_key_nor_secret_is_stored(keys, store):
    made = await keys.create("acme")
    secret = made.key.split("-", 2)[2]
    content = await everything(store)
    assert made.id in content
    assert secret not in content


async def test_all_bad_keys_are_refused_in_the_same_words(keys, clock):
    good = await keys.create("acme")
    expired = await keys.create("acme", expires_at=clock.now + 5)
    revoked = await keys.create("acme")
    await keys.revoke(revoked.id)
    clock.now += 10
    wrong = good.key[:-1] + ("a" if good.key[-1] != "a" else "b")
    unknown = "sf-00000000-" + "x" * 43
    words = set()
    for presented in (wrong, unknown, expired.key, revoked.key, "", "sf-", "sk-abc", good.key + "\n", "é" * 50):
        with pytest.raises(Unauthenticated) as caught:
            await keys.verify(presented)
        words.add(str(caught.value))
    assert len(words) == 1
    assert (await keys.verify(good.key)).id == good.id


async def test_another_processs_revocation_holds_within_a_second(keys, store, clock):
    made = await keys.create("acme")
    await keys.verify(made.key)
    await store.revoke_key(made.id, clock.now)
    clock.now += 1.0
    with pytest.raises(Unauthenticated):
        await keys.verify(made.key)


async def test_a_key_of_another_root_is_worthless(keys, store):
    made = await keys.create("acme")
    with pytest.raises(Unauthenticated):
        await Keys(store, SecretRoot(b"s" * 32)).verify(made.key)


async def test_unknown_roles_and_past_expiries_make_no_key(keys, store, clock):
    with pytest.raises(ConfigError, match="admin"):
        await keys.create("acme", ["admin"])
    with pytest.raises(ConfigError, match="past"):
        await keys.create("acme", expires_at=clock.now)
    assert await store.list_keys() == []


async def test_a_key_is_revoked_once(keys):
    made = await keys.create("acme")
    assert await keys.revoke(made.id)
    assert not await keys.revoke(made.id)
    assert not await keys.revoke("nothing")


def test_the_root_is_made_once_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("FIREWALL_SECRET_KEY", raising=False)
    first = load_root(tmp_path)
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    assert load_root(tmp_path).key("x") == first.key("x")
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]


def test_a_root_that_others_may_read_or_that_is_short_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("FIREWALL_SECRET_KEY", raising=False)
    path = tmp_path / "secret.key"
    path.write_text("k" * 40)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_root(tmp_path)
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="shorter"):
        load_root(tmp_path)
    monkeypatch.setenv("FIREWALL_SECRET_KEY", "too short")
    with pytest.raises(ConfigError, match="FIREWALL_SECRET_KEY"):
        load_root(tmp_path)


def test_purposes_do_not_share_a_key():
    root = SecretRoot(b"r" * 32)
    assert root.key("audit") != root.key("api-key")
    assert root.digest("audit")("text") == root.digest("audit")("text")
    assert root.digest("audit")("text") != root.digest("cache")("text")
    assert len(root.digest("audit")("\ud800")) == 32


def _damage(path):
    """Overwrite the last pages, in which rows stand."""
    with path.open("r+b") as stream:
        stream.seek(-4 * 4096, os.SEEK_END)
        stream.write(b"\xa5" * (4 * 4096))


async def test_a_damaged_file_is_refused_at_open_with_what_to_do(tmp_path):
    """What has a good schema and broken pages is found before anything is written; `verify` still looks into it."""
    path = tmp_path / "audit.db"
    store = Store(path)
    await store.open()
    await store.add_rows([row(f"r{number}") for number in range(200)])
    await store.close()
    _damage(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"audit\.db.*semantic-firewall audit verify.*backup"):
        await Store(path).open()
    assert path.read_bytes() == before
    assert (await verify(path)).problems


async def test_a_file_that_is_too_large_is_not_checked_at_open_and_the_log_says_so(tmp_path, monkeypatch):
    """A start does not wait for gigabytes to be read."""
    path = tmp_path / "audit.db"
    store = Store(path)
    await store.open()
    await store.add_rows([row(f"r{number}") for number in range(200)])
    await store.close()
    _damage(path)
    monkeypatch.setattr(sqlite_file, "MAX_CHECKED_BYTES", 4096)
    store = Store(path)
    with structlog.testing.capture_logs() as told:
        await store.open()
    await store.close()
    assert [line["log_level"] for line in told if "audit verify" in line["event"]] == ["warning"]
