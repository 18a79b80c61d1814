"""A database: opened, its tables made or brought up to date, its transactions, and its errors.

Through SQLAlchemy's async Core, over a file (`sqlite_file`) or a server (`postgres`). Nothing waits without an end: a
file is waited for as long as SQLite's own timeout says, a server as long as the operation's `timeout_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import ConfigError, StorageAway, StorageFailed
from service.records import postgres, sqlite_file
from service.records.place import Place
from service.records.schema import SCHEMA, bring_up, take_turn

TIMEOUT_S = 5.0
"""For what stands on a request's way."""
LONG_S = 60.0
"""For what an operator waits for: whole tables are read or changed."""
MIGRATION_S = 3_600.0
_LOCKED_PAUSE_S = 0.02
_ERRORS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class Database:
    """A database file, or one on a server. It is used after `open`; other methods raise StorageFailed."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._server: postgres.Server | None = None
        if isinstance(place, Path):
            self._engine = sqlite_file.engine_of(place)
            self._quick = sqlite_file.QuickReader(place)
        else:
            self._server = postgres.Server(place)
            self._engine = self._server.engine
            self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    async def open(self, *, create: bool = True) -> None:
        """Check the database; where `create`, make its tables (and the file), or bring older ones up to date.

        Raises ConfigError where it is missing or cannot be reached, is no database or a damaged one, or is of another
        version.
        """
        if isinstance(self.place, Path):
            sqlite_file.claim(self.place, create)
            if create:  # who only looks, as `audit verify` does, may look at what is damaged too
                await asyncio.to_thread(sqlite_file.refuse_damaged, self.place)
            await self._open_file(self.place, create)
        else:
            await self._open_server(create)

    async def ping(self) -> None:
        """Raises StorageFailed where the database does not answer."""
        async with self.read() as connection:
            await connection.execute(sa.select(SCHEMA.c.version))

    async def close(self) -> None:
        """Close every connection."""
        if self._server is None:
            self._quick.close()
        await self._engine.dispose()

    @asynccontextmanager
    async def begin(self, timeout_s: float | None = TIMEOUT_S) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end, undone where something is raised. Raises StorageFailed, and where
        that has nothing to do with what was to be stored, StorageAway.
        """
        async with self._bounded(timeout_s), self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def begin_alone(self, turn: int, timeout_s: float | None = TIMEOUT_S) -> AsyncIterator[AsyncConnection]:
        """A transaction that waits until no other of the same `turn` is under way, from its start to its end."""
        async with self.begin(timeout_s) as connection:
            await take_turn(connection, turn)
            yield connection

    @asynccontextmanager
    async def read(self, timeout_s: float | None = TIMEOUT_S) -> AsyncIterator[AsyncConnection]:
        """For one statement that only reads: on a server in one round trip. Raises as `begin` does."""
        if self._server is None:
            async with self.begin(timeout_s) as connection:
                yield connection
        else:
            async with self._bounded(timeout_s), self._reading.connect() as connection:
                yield connection

    async def read_row(self, query: sa.Select[Any], values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The one row of a query that is made once and asked often, by its columns' names. Raises as `begin` does."""
        if self._server is None:
            with contextlib.suppress(sqlite3.Error):  # where it has to be waited for, the engine waits
                return self._quick.row(query, values)
        async with self.read() as connection:
            row = (await connection.execute(query, values)).mappings().one_or_none()
        return dict(row) if row is not None else None

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An insertion that can be told what to do about a row that is there already."""
        return sqlite.insert(table) if self._server is None else postgresql.insert(table)

    @property
    def on_server(self) -> bool:
        """Whether it is PostgreSQL, where the two do not speak alike."""
        return self._server is not None

    @asynccontextmanager
    async def _bounded(self, timeout_s: float | None) -> AsyncIterator[None]:
        if self._server is None:
            try:
                yield
            except SQLAlchemyError as error:
                # Without the statement's parameters: the message of a DBAPIError quotes them.
                raise StorageFailed(f"The database did not answer ({sqlite_file.reason(error)}).") from None
            return
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            self._server.distrust()
            raise StorageAway("The database did not answer in time.") from None
        except _ERRORS as error:
            failure = StorageFailed if postgres.is_of_values(error) else StorageAway
            raise failure(f"The database did not answer ({postgres.reason(error)}).") from None

    async def _open_file(self, path: Path, create: bool) -> None:
        until = monotonic() + sqlite_file.BUSY_TIMEOUT_MS / 1e3
        while True:
            try:
                async with self._engine.begin() as connection:
                    await bring_up(connection, str(path), create)
            except SQLAlchemyError as error:
                if sqlite_file.is_locked(error) and monotonic() < until:
                    await asyncio.sleep(_LOCKED_PAUSE_S)
                    continue
                if sqlite_file.is_locked(error):
                    raise ConfigError(f"storage.url: {path} is held by others (database is locked)") from None
                raise sqlite_file.unreadable(path, sqlite_file.reason(error)) from None
            return

    async def _open_server(self, create: bool) -> None:
        try:
            # Whether it answers is known soon; only what changes tables, or waits for who does, may take long.
            async with asyncio.timeout(TIMEOUT_S), self._reading.connect() as connection:
                await connection.execute(sa.select(1))
            async with asyncio.timeout(MIGRATION_S), self._engine.begin() as connection:
                await bring_up(connection, str(self.place), create)
        except (TimeoutError, *_ERRORS) as error:
            raise ConfigError(
                f"storage.url: {self.place} cannot be used ({postgres.opening_reason(error)}); start the server, or "
                "check host, port, database, user and password: `psql` with the same address has to work"
            ) from None
