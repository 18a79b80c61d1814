"""A database file: opened, its tables made or brought up to date, its connections, and its errors.

Through SQLAlchemy's async Core; SQLite by aiosqlite in WAL mode. With `synchronous=NORMAL` a committed row survives a
killed process; a loss of power may take the last commits, but never the file's integrity
(https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from service.errors import ConfigError, StorageFailed
from service.records.schema import SCHEMA, bring_up
from service.settings import Settings

BUSY_TIMEOUT_MS = 5_000
_LOCKED, _LOCKED_PAUSE_S = "database is locked", 0.02


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


class Database:
    """A database file. It is used after `open`; other methods raise StorageFailed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = create_async_engine(sa.URL.create("sqlite+aiosqlite", database=str(path)), hide_parameters=True)
        sa.event.listen(self._engine.sync_engine, "connect", _prepare)

    async def open(self, *, create: bool = True) -> None:
        """Check the file; where `create`, make it and its tables, or bring those of an older version up to date.

        Raises ConfigError where it is missing, is no database, or is of another version.
        """
        _claim(self.path, create)
        until = monotonic() + BUSY_TIMEOUT_MS / 1e3
        while True:
            try:
                async with self._engine.begin() as connection:
                    await bring_up(connection, self.path, create)
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
        async with self.begin() as connection:
            await connection.execute(sa.select(SCHEMA.c.version))

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end, undone where something is raised. Raises StorageFailed."""
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
