"""Writes audit rows durably and together: rows that arrive while a transaction is under way share the next one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import structlog

from service.errors import StorageAway, StorageFailed
from service.records.audit import AuditRow

MAX_PENDING = 10_000
WRITE_TIMEOUT_S = 10.0
"""Above SQLite's own busy timeout and a server's: an answer never waits longer than this for its row."""

_log = structlog.get_logger("records")
_Waiting = tuple[AuditRow, "asyncio.Future[None]"]


class RowStore(Protocol):
    """Takes rows in one transaction."""

    async def add_rows(self, rows: Sequence[AuditRow]) -> None:
        """Durable on return; raises StorageFailed, and then none is kept."""


class AuditLog:
    """The audit sink. `on_error` "allow" lets an answer pass whose row was not taken, and logs that.

    `at_once` writes a row where nothing waits before it, or says that it cannot.
    """

    def __init__(
        self,
        store: RowStore,
        on_error: Literal["block", "allow"] = "block",
        at_once: Callable[[AuditRow], bool] | None = None,
    ) -> None:
        self._store = store
        self._on_error = on_error
        self._at_once = at_once
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, row: AuditRow) -> None:
        """Return when the row is durable. Raises StorageFailed where it is not and the policy is to fail closed.

        A caller that is cancelled while it waits leaves its row to be written.
        """
        idle = self._writer is None or self._writer.done()
        if idle and self._at_once is not None and self._at_once(row):
            return
        try:
            if len(self._waiting) >= MAX_PENDING:
                raise StorageFailed("The audit store is behind.")
            taken = asyncio.get_running_loop().create_future()
            self._waiting.append((row, taken))
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write_waiting())
            try:
                await asyncio.wait_for(taken, WRITE_TIMEOUT_S)
            except TimeoutError:
                raise StorageFailed("The audit store did not take the row in time.") from None
        except StorageFailed:
            _log.error("audit row lost", request_id=row.request_id, code=StorageFailed.code)
            if self._on_error == "block":
                raise

    async def close(self) -> None:
        """Wait for the rows that were handed in."""
        while self._writer is not None and not self._writer.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._writer)

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._store.add_rows([row for row, _ in batch])
            except StorageAway as error:
                for _, taken in batch:
                    if not taken.done():
                        taken.set_exception(StorageAway(*error.args))
            except Exception:  # the writer must outlive whatever one row can do to a driver
                await self._write_singly(batch)
            else:
                for _, taken in batch:
                    if not taken.done():
                        taken.set_result(None)

    async def _write_singly(self, batch: list[_Waiting]) -> None:
        """One row that cannot be written must not take its neighbours with it."""
        for row, taken in batch:
            try:
                await self._store.add_rows([row])
            except Exception as error:
                if not taken.done():
                    taken.set_exception(_as_storage_failure(error))
            else:
                if not taken.done():
                    taken.set_result(None)


def _as_storage_failure(error: Exception) -> StorageFailed:
    if isinstance(error, StorageFailed):
        return error
    return StorageFailed(f"The audit store cannot hold the row ({type(error).__name__}).")
