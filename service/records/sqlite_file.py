"""A database file of SQLite, by aiosqlite in WAL mode.

With `synchronous=NORMAL` a committed row survives a killed process; a loss of power may take the last commits, but
never the file's integrity (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from service.errors import ConfigError

BUSY_TIMEOUT_MS = 5_000
MAX_CHECKED_BYTES = 1_000_000_000
"""Larger files are not read from end to end before every start."""

_log = structlog.get_logger("records")


def engine_of(path: Path) -> AsyncEngine:
    """Connects when it is used."""
    engine = create_async_engine(sa.URL.create("sqlite+aiosqlite", database=str(path)), hide_parameters=True)
    sa.event.listen(engine.sync_engine, "connect", _prepare)
    return engine


def claim(path: Path, create: bool) -> None:
    """The file exists after this, readable by its owner alone where it is new. Raises ConfigError."""
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        elif not path.is_file():
            raise ConfigError(f"storage.url: {path} does not exist")
    except OSError as error:
        raise ConfigError(f"storage.url: {path}: {error.strerror}") from error


def refuse_damaged(path: Path) -> None:
    """Read the whole file and check its structure, where it is not too large for that. Raises ConfigError."""
    if path.stat().st_size > MAX_CHECKED_BYTES:
        _log.warning("large database not checked at start; semantic-firewall audit verify checks it", at=str(path))
        return
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=BUSY_TIMEOUT_MS / 1e3, uri=True)
        ) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return  # held by others, or not to be read at all: whoever opens it next is told
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise unreadable(path, " ".join(found.split()))


def unreadable(path: Path, why: str) -> ConfigError:
    """What is said of a file that is no sound database, and what to do."""
    return ConfigError(
        f"storage.url: {path} cannot be read as the firewall's database ({why}); `semantic-firewall audit verify` says "
        "more of the damage. Stop the service and put a backup in its place, or name another file"
    )


def reason(error: Exception) -> str:
    """SQLite's own words where there are any: they name tables and files, never values."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return str(error.orig)
    return type(error).__name__


def is_locked(error: SQLAlchemyError) -> bool:
    """Two who give a new file its journal at once are not made to wait for each other by SQLite."""
    return reason(error) == "database is locked"


class QuickReader:
    """Reads single rows by the shortest way: at once, on the event loop.

    For what stands on every request's way. Finding a row by its key takes a fraction of the time that a thread takes to
    wake and be waited for, and an async engine would hop between threads for each of its steps.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._words: dict[sa.Select[Any], str] = {}

    def row(self, query: sa.Select[Any], values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The one row by its columns' names. Raises sqlite3.Error where it cannot be read without waiting."""
        if query not in self._words:
            self._words[query] = str(query.compile(dialect=sqlite.dialect(paramstyle="named")))
        try:
            if self._connection is None:
                uri = f"{self._path.as_uri()}?mode=rw"
                self._connection = sqlite3.connect(uri, timeout=0.0, uri=True, check_same_thread=False)
            cursor = self._connection.execute(self._words[query], dict(values))
            found = cursor.fetchone()
            cursor.close()
        except sqlite3.Error:
            self.close()
            raise
        return (
            None
            if found is None
            else {column[0]: value for column, value in zip(cursor.description, found, strict=True)}
        )

    def close(self) -> None:
        """Until the next row."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _prepare(connection: Any, _record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
