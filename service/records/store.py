"""The database: audit rows and keys, through SQLAlchemy's async Core; SQLite by aiosqlite in WAL mode.

With `synchronous=NORMAL` a committed row survives a killed process; a loss of power may take the last commits, but
never the file's integrity (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.schema import CreateIndex, CreateTable

from service.errors import ConfigError, StorageFailed
from service.records.audit import AuditFinding, AuditRow
from service.settings import Settings

SCHEMA_VERSION = 2
BUSY_TIMEOUT_MS = 5_000
_LOCKED, _LOCKED_PAUSE_S = "database is locked", 0.02

METADATA = sa.MetaData()

SCHEMA = sa.Table(
    "schema_version",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time", sa.Double, nullable=False, index=True),
    sa.Column("request_id", sa.Text, nullable=False, unique=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("protocol", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("attempts", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("findings", sa.Text, nullable=False),  # JSON, as are all of the record's lists
    sa.Column("unjudged", sa.Text, nullable=False),
    sa.Column("unscannable", sa.Text, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("judge_ms", sa.Double, nullable=False),
    sa.Column("upstream_ms", sa.Double, nullable=False),
    sa.Column("reply_judge_ms", sa.Double, nullable=False),
    sa.Column("total_ms", sa.Double, nullable=False),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("unknown_fields", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)
_JSON_COLUMNS = ("findings", "attempts", "unjudged", "unscannable", "unknown_fields")

_UPGRADES = {1: "ALTER TABLE audit ADD COLUMN attempts TEXT NOT NULL DEFAULT '[]'"}
"""What makes of a schema the next one."""

KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("roles", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
)

ISSUED = sa.Table(
    "issued_ids",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("issued_at", sa.Double, nullable=False),
)


class KeyRow(msgspec.Struct, frozen=True):
    """A key as it is kept; `digest` is the keyed hash of its secret. Times are seconds since the epoch (UTC)."""

    id: str
    tenant: str
    digest: str
    roles: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


def database_path(settings: Settings) -> Path:
    """The SQLite file of `storage.url`. Raises ConfigError for what this version cannot store in."""
    scheme, separator, rest = settings.storage.url.partition("://")
    if scheme.startswith("postgres"):
        raise ConfigError("storage.url: postgresql:// is not built yet; use sqlite:///firewall.db")
    if scheme != "sqlite" or not separator:
        raise ConfigError("storage.url: sqlite:///<file> is needed")
    name = rest.removeprefix("/")
    if not rest.startswith("/") or not name or name == ":memory:" or "?" in name:
        raise ConfigError("storage.url: sqlite:///<file> is needed; a record in memory would be lost with the process")
    return (settings.folder / name).resolve()


class Store:
    """A database file. It is used after `open`; other methods raise StorageFailed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = create_async_engine(sa.URL.create("sqlite+aiosqlite", database=str(path)), hide_parameters=True)
        sa.event.listen(self._engine.sync_engine, "connect", _prepare)

    async def open(self, *, create: bool = True) -> None:
        """Check the file, and make it and its tables where it is new and `create` allows.

        Raises ConfigError where it is missing, is no database, or was made by another version.
        """
        _claim(self.path, create)
        until = monotonic() + BUSY_TIMEOUT_MS / 1e3
        while True:
            try:
                async with self._engine.begin() as connection:
                    await _check_schema(connection, self.path, create)
            except SQLAlchemyError as error:
                # Two who give a new file its journal at once are not made to wait for each other by SQLite.
                if _reason(error) == _LOCKED and monotonic() < until:
                    await asyncio.sleep(_LOCKED_PAUSE_S)
                    continue
                raise ConfigError(
                    f"storage.url: {self.path} cannot be read as the firewall's database ({_reason(error)})"
                ) from None
            return

    async def ping(self) -> None:
        """Raises StorageFailed where the database does not answer."""
        async with self._begin() as connection:
            await connection.execute(sa.select(SCHEMA.c.version))

    async def add_rows(self, rows: Sequence[AuditRow]) -> None:
        """Write audit rows in one transaction; durable on return."""
        async with self._begin() as connection:
            await connection.execute(_INSERT_AUDIT, [columns(row) for row in rows])

    async def find_row(self, request_id: str) -> AuditRow | None:
        """The audit row of a request."""
        async with self._begin() as connection:
            found = await connection.execute(sa.select(AUDIT).where(AUDIT.c.request_id == request_id))
            row = found.mappings().one_or_none()
        return _audit_row(row) if row else None

    async def find_key(self, key_id: str) -> KeyRow | None:
        """The key with this id, revoked and expired ones included."""
        async with self._begin() as connection:
            found = await connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id))
            row = found.mappings().one_or_none()
        return _key_row(row) if row else None

    async def add_key(
        self,
        *,
        key_id: str,
        tenant: str,
        digest: str,
        roles: tuple[str, ...],
        created_at: float,
        expires_at: float | None,
    ) -> None:
        """Keep a new key."""
        row = {"id": key_id, "tenant": tenant, "digest": digest, "roles": ",".join(roles)}
        async with self._begin() as connection:
            await connection.execute(KEYS.insert(), [row | {"created_at": created_at, "expires_at": expires_at}])

    async def revoke_key(self, key_id: str, at: float) -> bool:
        """False where there is no such key that was still good."""
        good = sa.and_(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None))
        async with self._begin() as connection:
            done = await connection.execute(KEYS.update().where(good).values(revoked_at=at))
        return bool(done.rowcount)

    async def list_keys(self, tenant: str | None = None) -> list[KeyRow]:
        """Keys of one tenant, or of all, oldest first."""
        query = sa.select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id)
        async with self._begin() as connection:
            found = await connection.execute(query if tenant is None else query.where(KEYS.c.tenant == tenant))
            return [_key_row(row) for row in found.mappings()]

    async def add_issued(self, tenant: str, provider: str, digests: Sequence[str], at: float) -> None:
        """Keep ids that a provider issued to a tenant, by their hashes; durable on return."""
        row = {"tenant": tenant, "provider": provider, "issued_at": at}
        async with self._begin() as connection:
            await connection.execute(_INSERT_ISSUED, [row | {"digest": digest} for digest in digests])

    async def find_issued(self, digest: str) -> str | None:
        """The provider that issued the id with this hash."""
        async with self._begin() as connection:
            found = await connection.execute(sa.select(ISSUED.c.provider).where(ISSUED.c.digest == digest))
            return found.scalar_one_or_none()

    async def forget_issued(self, tenant: str, keep: int) -> None:
        """Delete all but a tenant's newest ids."""
        own = ISSUED.c.tenant == tenant
        newest = sa.select(ISSUED.c.id).where(own).order_by(ISSUED.c.id.desc()).offset(keep).limit(1).scalar_subquery()
        async with self._begin() as connection:
            await connection.execute(ISSUED.delete().where(own, ISSUED.c.id <= newest))

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            # Without the statement's parameters: the message of a DBAPIError quotes them.
            raise StorageFailed(f"The database did not answer ({_reason(error)}).") from None


def _claim(path: Path, create: bool) -> None:
    """The file exists after this, readable by its owner alone where it is new."""
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        elif not path.is_file():
            raise ConfigError(f"storage.url: {path} does not exist")
    except OSError as error:
        raise ConfigError(f"storage.url: {path}: {error.strerror}") from error


async def _check_schema(connection: AsyncConnection, path: Path, create: bool) -> None:
    if create:
        for table in METADATA.sorted_tables:
            await connection.execute(CreateTable(table, if_not_exists=True))
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                await connection.execute(CreateIndex(index, if_not_exists=True))
        await connection.execute(SCHEMA.insert().prefix_with("OR IGNORE"), [{"id": 1, "version": SCHEMA_VERSION}])
    version = (await connection.execute(sa.select(SCHEMA.c.version))).scalar()
    # The insert above has taken the file's one place to write: two who open it do not do this twice.
    while create and version in _UPGRADES:
        await connection.execute(sa.text(_UPGRADES[version]))
        version += 1
        await connection.execute(SCHEMA.update().values(version=version))
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"storage.url: {path} has schema {version}, this version reads {SCHEMA_VERSION}; "
            "run the version that made it, or name another file"
        )


class AuditReport(msgspec.Struct, frozen=True):
    """Of `verify`: how many rows could be visited and what is wrong; nothing wrong is no problems."""

    rows: int
    problems: tuple[str, ...]


async def verify(path: Path) -> AuditReport:
    """Check a database file in place, the service running or not: schema, integrity, and that every row reads.

    Raises ConfigError where it cannot be opened at all.
    """
    store = Store(path)
    problems: list[str] = []
    rows = 0
    try:
        await store.open(create=False)
        async with store._begin() as connection:
            checked = await connection.execute(sa.text("PRAGMA integrity_check(20)"))
            problems += [line for (line,) in checked if line != "ok"]
            stream = await connection.stream(sa.select(AUDIT).order_by(AUDIT.c.id))
            async for row in stream.mappings():
                rows += 1
                try:
                    _audit_row(row)
                except msgspec.DecodeError:
                    problems.append(f"audit row {row['id']} cannot be read")
    except StorageFailed as error:
        problems.append(str(error))
    finally:
        await store.close()
    return AuditReport(rows, tuple(problems))


_INSERT_AUDIT = AUDIT.insert()
# An id that comes again is new again.
_INSERT_ISSUED = ISSUED.insert().prefix_with("OR REPLACE")


def columns(row: AuditRow) -> dict[str, Any]:
    """The row as the table holds it: lists as JSON."""
    values = {name: getattr(row, name) for name in row.__struct_fields__}
    for name in _JSON_COLUMNS:
        values[name] = msgspec.json.encode(values[name]).decode()
    return values


def _audit_row(row: sa.RowMapping) -> AuditRow:
    values = {name: row[name] for name in AuditRow.__struct_fields__}
    values["findings"] = msgspec.json.decode(values["findings"], type=tuple[AuditFinding, ...])
    for name in _JSON_COLUMNS[1:]:
        values[name] = msgspec.json.decode(values[name], type=tuple[str, ...])
    return AuditRow(**values)


def _key_row(row: sa.RowMapping) -> KeyRow:
    values = dict(row)
    values["roles"] = tuple(values["roles"].split(","))
    return KeyRow(**values)


def _prepare(connection: Any, _record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _reason(error: SQLAlchemyError) -> str:
    """SQLite's own words where there are any: they name tables and files, never values."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return str(error.orig)
    return type(error).__name__
