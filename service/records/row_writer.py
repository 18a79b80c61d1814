"""Audit rows into SQLite by the shortest way: at once where nothing holds the file, else through a thread that waits.

Every answer waits for its row, so this stands on every request's path. Waking a thread and being woken by it takes
longer than the insert does; an async engine would hop five times. Where a write would have to wait for another
process, and where the journal is moved into the file with its calls to fsync, the thread does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.errors import StorageFailed
from service.records.audit import AuditRow
from service.records.schema import AUDIT
from service.records.sqlite_file import BUSY_TIMEOUT_MS
from service.records.store import columns

_NAMES = AuditRow.__struct_fields__
_INSERT = f"INSERT INTO {AUDIT.name} ({', '.join(_NAMES)}) VALUES ({', '.join(f':{name}' for name in _NAMES)})"  # noqa: S608

CHECKPOINT_ROWS = 1_000


class RowWriter:
    """Appends audit rows to a database that `Store.open` has made (`audit_log.RowStore`)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._connection: sqlite3.Connection | None = None
        self._quick: sqlite3.Connection | None = None
        self._since_checkpoint = 0

    def add_at_once(self, row: AuditRow) -> bool:
        """Write a row without waiting for anything; False where that cannot be done, and then it is not kept."""
        try:
            if self._quick is None:
                self._quick = self._connect(timeout_s=0.0)
                self._quick.execute("PRAGMA wal_autocheckpoint=0")
            with self._quick:
                self._quick.execute(_INSERT, columns(row))
        except (sqlite3.Error, OverflowError):
            self._drop_quick()
            return False
        self._since_checkpoint += 1
        if self._since_checkpoint >= CHECKPOINT_ROWS:
            self._since_checkpoint = 0
            self._thread.submit(self._checkpoint)
        return True

    async def add_rows(self, rows: Sequence[AuditRow]) -> None:
        """Write rows in one transaction; durable on return. Raises StorageFailed, and then none is kept."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._add, tuple(rows))

    async def close(self) -> None:
        """Close the connections and end the thread."""
        self._drop_quick()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    def _add(self, rows: Sequence[AuditRow]) -> None:
        try:
            connection = self._connected()
            with connection:
                connection.executemany(_INSERT, [columns(row) for row in rows])
        except sqlite3.Error as error:
            # SQLite's own words name tables and files, never values. The next row finds a fresh connection.
            self._disconnect()
            raise StorageFailed(f"The database did not answer ({error}).") from None

    def _checkpoint(self) -> None:
        # Failing is no loss: the rows are in the journal, and the next one tries again.
        with contextlib.suppress(sqlite3.Error):
            self._connected().execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect(timeout_s=BUSY_TIMEOUT_MS / 1e3)
        return self._connection

    def _connect(self, timeout_s: float) -> sqlite3.Connection:
        uri = f"{self._path.as_uri()}?mode=rw"  # a file that was taken away is not made anew without its tables
        connection = sqlite3.connect(uri, timeout=timeout_s, uri=True, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def _drop_quick(self) -> None:
        connection, self._quick = self._quick, None
        if connection is not None:
            connection.close()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
