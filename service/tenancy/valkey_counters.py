"""Quotas counted in Valkey or Redis (`counters.Counters`), for several workers and hosts: one script for each step.

The server's own clock is used, so that workers whose clocks differ count in the same minutes. Steps of many callers go
over few connections, all that wait at once together: with a connection for each they would wait for connections. What
is slow or gone is given up on quickly, and then left alone for a moment.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import structlog
from valkey.asyncio import ConnectionPool, Valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import NoScriptError

from service.errors import CountersFailed
from service.tenancy.counters import LEASE_MS, LIMITS, Amount, Outcome, Scope, Standing

TIMEOUT_S = 0.5
PAUSE_S = 1.0
"""For so long after a failure nobody asks; then one request tries, and the others still do not wait."""
CONNECTIONS = 4
TOGETHER = 64
"""Steps that go over a connection at once: the server runs them in less than a few milliseconds."""
_RENEWED_AT_ONCE = 1_000
_MAX_UNSURE = 10_000
_SCRIPTS = Path(__file__).with_name("lua")

_SHARED = (_SCRIPTS / "window.lua").read_text(encoding="utf-8")
_TEXTS = {
    name: _SHARED + (_SCRIPTS / f"{name}.lua").read_text(encoding="utf-8") for name in ("reserve", "settle", "renew")
}
_HASHES = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in _TEXTS.items()}

_log = structlog.get_logger("counters")


class _Unanswered(CountersFailed):
    """It was sent, and may have been done."""


class _Step(msgspec.Struct, frozen=True, eq=False):
    """A command that waits to be sent, and who waits for its answer."""

    words: tuple[Any, ...]
    answer: asyncio.Future[Any]


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
        pool = ConnectionPool.from_url(
            url,
            password=password,
            max_connections=CONNECTIONS,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._client: Any = Valkey(connection_pool=pool)
        self._prefix = prefix
        self._lease_ms = lease_ms
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._clock = clock
        self._failed_until = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: deque[_Step] = deque()
        self._senders = 0
        self._unsure: dict[str, str] = {}

    async def reserve(self, reservation_id: str, tenant: str, scopes: Sequence[Scope], amount: Amount) -> Outcome:
        """See `counters.Counters`."""
        base = self._base(tenant)
        arguments: list[Any] = [base, self._now(), self._lease_ms, reservation_id, amount.tokens, amount.nanousd]
        for scope in scopes:
            arguments += [_scope_name(scope), *("" if bound is None else bound for bound in scope.bounds)]
        asked = self._start(self._run("reserve", [f"{base}:open", f"{base}:held"], arguments))
        try:
            answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            # It may be made all the same: nobody would settle it, and its lease would have to run out.
            self._start(self._undo(asked, reservation_id, tenant))
            raise
        except _Unanswered:
            self._doubt(reservation_id, tenant)
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
        asked = self._start(self._run("settle", [f"{base}:open", f"{base}:held"], arguments))
        return bool(await asyncio.shield(asked))

    async def renew(self, reservations: Sequence[tuple[str, str]]) -> None:
        """See `counters.Counters`."""
        by_tenant: dict[str, list[str]] = {}
        for reservation_id, tenant in reservations:
            by_tenant.setdefault(tenant, []).append(reservation_id)
        for tenant, ids in by_tenant.items():
            for at in range(0, len(ids), _RENEWED_AT_ONCE):
                arguments = [self._now(), self._lease_ms, *ids[at : at + _RENEWED_AT_ONCE]]
                await self._run("renew", [f"{self._base(tenant)}:open"], arguments)

    async def ping(self) -> None:
        """Raises CountersFailed."""
        await self._ask("PING")

    async def close(self) -> None:
        """Let what has begun come to its end, and close the connections."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
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
        if asked.cancelled():
            return
        if isinstance(asked.exception(), _Unanswered):
            self._doubt(reservation_id, tenant)
        elif asked.exception() is None and asked.result()[0] == 1:
            await self.settle(reservation_id, tenant, Amount(0))

    def _doubt(self, reservation_id: str, tenant: str) -> None:
        """The server may have made this reservation, whose caller is refused: undo it once there are answers again."""
        self._unsure[reservation_id] = tenant
        while len(self._unsure) > _MAX_UNSURE:
            self._unsure.pop(next(iter(self._unsure)))

    async def _undo_unsure(self) -> None:
        while self._unsure:
            reservation_id, tenant = self._unsure.popitem()
            try:
                await self.settle(reservation_id, tenant, Amount(0))
            except CountersFailed:
                self._doubt(reservation_id, tenant)
                return

    async def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        return await self._ask("EVALSHA", _HASHES[script], len(keys), *keys, *arguments)

    async def _ask(self, *words: Any) -> Any:
        if self._failed_until:
            now = monotonic()
            if now < self._failed_until:
                raise CountersFailed("The counters do not answer.")
            self._failed_until = now + self._pause_s
        step = _Step(words, asyncio.get_running_loop().create_future())
        self._waiting.append(step)
        if self._senders < CONNECTIONS:
            self._senders += 1
            self._start(self._send())
        return await step.answer

    async def _send(self) -> None:
        """Send what waits until nothing does. A failure is everyone's: nobody waits for the next one to fail."""
        steps: list[_Step] = []
        try:
            while self._waiting:
                steps = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
                async with asyncio.timeout(self._timeout_s):
                    answers = await self._together(steps)
                for step, answer in zip(steps, answers, strict=True):
                    if isinstance(answer, Exception):
                        self._failed(answer, [step])
                    elif not step.answer.done():
                        self._failed_until = 0.0
                        step.answer.set_result(answer)
                if self._unsure and not self._failed_until:
                    # Behind what was sent before them, which the server reads first.
                    self._start(self._undo_unsure())
        except Exception as error:  # whatever it is: somebody waits for every one of these
            self._failed(error, steps, _Unanswered)
            waiting = list(self._waiting)
            self._waiting.clear()
            self._failed(error, waiting)
        finally:
            self._senders -= 1

    async def _together(self, steps: Sequence[_Step]) -> list[Any]:
        """The answer of each, or the error that the server gave it."""
        answers = await self._pipe(steps)
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            for text in _TEXTS.values():
                await self._client.script_load(text)
            again = await self._pipe([steps[place] for place in unknown])
            for place, answer in zip(unknown, again, strict=True):
                answers[place] = answer
        return answers

    async def _pipe(self, steps: Sequence[_Step]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for step in steps:
            pipe.execute_command(*step.words)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers

    def _failed(self, error: Exception, steps: Sequence[_Step], kind: type[CountersFailed] = CountersFailed) -> None:
        self._failed_until = monotonic() + self._pause_s
        _log.error("counters failed", error=type(error).__name__)
        for step in steps:
            if not step.answer.done():
                step.answer.set_exception(kind("The counters do not answer."))


def _scope_name(scope: Scope) -> str:
    return f"k{scope.key_id}" if scope.key_id else "t"
