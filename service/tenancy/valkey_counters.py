"""Quotas counted in Valkey or Redis (`counters.Counters`), for several workers and hosts: one script for each step.

The server's own clock is used, so that workers whose clocks differ count in the same minutes. Whatever is slow or gone
is given up on quickly, and then left alone for a moment: a request waits for an answer or a refusal, never for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import structlog
from valkey.asyncio import BlockingConnectionPool, Valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import ValkeyError

from service.errors import CountersFailed
from service.tenancy.counters import LEASE_MS, LIMITS, Amount, Outcome, Scope, Standing

TIMEOUT_S = 0.5
PAUSE_S = 1.0
"""For so long after a failure nobody asks; then one request tries, and the others still do not wait."""
CONNECTIONS = 64
_RENEWED_AT_ONCE = 1_000
_SCRIPTS = Path(__file__).with_name("lua")

_log = structlog.get_logger("counters")


class ValkeyCounters:
    """`clock` replaces the server's, for tests. `prefix` begins the name of every key."""

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        prefix: str = "firewall",
        lease_ms: int = LEASE_MS,
        timeout_s: float = TIMEOUT_S,
        pause_s: float = PAUSE_S,
        clock: Callable[[], int] | None = None,
    ) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            password=password,
            max_connections=CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._client: Any = Valkey(connection_pool=pool)
        shared = (_SCRIPTS / "window.lua").read_text(encoding="utf-8")
        self._reserve, self._settle, self._renew = (
            self._client.register_script(shared + (_SCRIPTS / f"{name}.lua").read_text(encoding="utf-8"))
            for name in ("reserve", "settle", "renew")
        )
        self._prefix = prefix
        self._lease_ms = lease_ms
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._clock = clock
        self._failed_until = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def reserve(self, reservation_id: str, tenant: str, scopes: Sequence[Scope], amount: Amount) -> Outcome:
        """See `counters.Counters`."""
        base = self._base(tenant)
        arguments: list[Any] = [base, self._now(), self._lease_ms, reservation_id, amount.tokens, amount.nanousd]
        for scope in scopes:
            arguments += [_scope_name(scope), *("" if bound is None else bound for bound in scope.bounds)]
        asked = self._start(self._ask(self._reserve, [f"{base}:open", f"{base}:held"], arguments))
        try:
            answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            # It may be made all the same: nobody would settle it, and its lease would have to run out.
            self._start(self._undo(asked, reservation_id, tenant))
            raise
        if answer[0] < 0:
            raise ValueError("a reservation is made once")
        granted, now, refused, place, wait_ms, *counts = answer
        standings = tuple(Standing(*counts[at : at + 6]) for at in range(0, len(counts), 6))
        return Outcome(now, standings, None if granted else LIMITS[place], refused, wait_ms)

    async def settle(self, reservation_id: str, tenant: str, used: Amount) -> bool:
        """See `counters.Counters`."""
        base = self._base(tenant)
        arguments = [base, reservation_id, used.tokens, used.nanousd]
        asked = self._start(self._ask(self._settle, [f"{base}:open", f"{base}:held"], arguments))
        return bool(await asyncio.shield(asked))

    async def renew(self, reservations: Sequence[tuple[str, str]]) -> None:
        """See `counters.Counters`."""
        by_tenant: dict[str, list[str]] = {}
        for reservation_id, tenant in reservations:
            by_tenant.setdefault(tenant, []).append(reservation_id)
        for tenant, ids in by_tenant.items():
            for at in range(0, len(ids), _RENEWED_AT_ONCE):
                arguments = [self._now(), self._lease_ms, *ids[at : at + _RENEWED_AT_ONCE]]
                await self._ask(self._renew, [f"{self._base(tenant)}:open"], arguments)

    async def ping(self) -> None:
        """Raises CountersFailed."""
        await self._ask(lambda **_: self._client.ping(), [], [])

    async def close(self) -> None:
        """Let what has begun come to its end, and close the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    def _base(self, tenant: str) -> str:
        return f"{self._prefix}:{{{tenant}}}"

    def _now(self) -> int | str:
        return "" if self._clock is None else self._clock()

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of its own: a caller that leaves must not break a connection off in the middle of an answer."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone: it was seen

    async def _undo(self, asked: asyncio.Task[Any], reservation_id: str, tenant: str) -> None:
        await asyncio.wait({asked})
        if not asked.cancelled() and asked.exception() is None and asked.result()[0] == 1:
            await self.settle(reservation_id, tenant, Amount(0))

    async def _ask(self, ask: Callable[..., Any], keys: list[str], arguments: list[Any]) -> Any:
        if self._failed_until:
            now = monotonic()
            if now < self._failed_until:
                raise CountersFailed("The counters do not answer.")
            self._failed_until = now + self._pause_s
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await ask(keys=keys, args=arguments)
        except (ValkeyError, OSError, TimeoutError) as error:
            self._failed_until = monotonic() + self._pause_s
            _log.error("counters failed", error=type(error).__name__)
            raise CountersFailed("The counters do not answer.") from None
        self._failed_until = 0.0
        return answer


def _scope_name(scope: Scope) -> str:
    return f"k{scope.key_id}" if scope.key_id else "t"
