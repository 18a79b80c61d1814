"""Recalls at start how busy callers usually are, so that a busy one is not taken for a new one after every restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time

import structlog

from service.errors import StorageFailed
from service.records.pace import PaceReport

_DAY_S = 86_400
_DAYS = 8  # a weekly batch is usual
_WAIT_S = 2.0

_log = structlog.get_logger("records")


class PaceRecall:
    """Tells `tell` tenant, key and calls of each `records.pace.Pace`, those of `limit` tenants and as many keys.

    The last day is left out: a copy that is under way is not made usual by a restart.
    """

    def __init__(
        self,
        report: PaceReport,
        tell: Callable[[str, str, float], None],
        limit: int,
        clock: Callable[[], float] = time,
    ) -> None:
        self._report, self._tell, self._limit, self._clock = report, tell, limit, clock
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read, for `_WAIT_S` seconds before the first call is served; the rest of a large table is read meanwhile."""
        self._reading = asyncio.create_task(self._read())
        await asyncio.wait({self._reading}, timeout=_WAIT_S)

    async def stop(self) -> None:
        """Read no further."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    async def _read(self) -> None:
        """Without the record everybody is new, as on the first day."""
        now = self._clock()
        try:
            found = await self._report.paces(now - _DAYS * _DAY_S, now - _DAY_S, limit=self._limit)
        except StorageFailed as error:
            _log.warning("usual paces are not known", error=type(error).__name__)
            return
        for pace in found:
            self._tell(pace.tenant, pace.key_id, pace.calls)
