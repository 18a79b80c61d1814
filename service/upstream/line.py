"""The way to one provider: how many calls may be under way on it, and whether it is left alone for now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import structlog

from service.errors import UpstreamError, UpstreamUnavailable
from service.upstream.breaker import Breaker, State

OUT_OF_SERVICE = frozenset({502, 503, 504, 529})
"""Answers that say nothing of the call but that the provider cannot take it now; 529 is Anthropic's."""


_log = structlog.get_logger("upstream")


class Reply(Protocol):
    """A provider's answer whose head has arrived."""

    status: int
    content_type: str
    headers: tuple[tuple[str, str], ...]

    def chunks(self) -> AsyncIterator[bytes]: ...  # noqa: D102
    async def close(self) -> None: ...  # noqa: D102


class Provider(Protocol):
    """Who is at the other end (`interfaces.Provider`)."""

    asks_usage: bool

    async def open(  # noqa: D102
        self, path: str, body: bytes, *, stream: bool, headers: Mapping[str, str], method: str = "POST", model: str = ""
    ) -> Reply: ...


class Full(UpstreamUnavailable):
    """No place came free in time."""


class Resting(UpstreamUnavailable):
    """The breaker lets nothing pass."""


class LineReply:
    """An answer that holds its place on the line until it has been read or is closed (`interfaces.RoutedReply`)."""

    def __init__(self, reply: Reply, provider: str, line: Line) -> None:
        self.provider = provider
        self.translated = False
        self.status = reply.status
        self.content_type = reply.content_type
        self.headers = reply.headers
        self._reply = reply
        self._line: Line | None = line

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they come. With the last one the place is free: a caller who reads slowly does not hold it."""
        async for chunk in self._reply.chunks():
            yield chunk
        self.free()

    def free(self) -> None:
        """Give the place back, once: the provider has nothing more to do for this call."""
        line, self._line = self._line, None
        if line is not None:
            line.free()

    async def close(self) -> None:
        """Drop the connection unless everything was read, and give the place back."""
        self.free()
        await self._reply.close()


class Line:
    """One provider with at most `concurrency` calls under way (None: any number) and its breaker.

    A call waits up to `wait_s` for a place.
    """

    def __init__(
        self, name: str, provider: Provider, breaker: Breaker, *, concurrency: int | None = None, wait_s: float = 0.0
    ) -> None:
        self.name = name
        self.provider = provider
        self._breaker = breaker
        self._wait_s = wait_s
        self._places = asyncio.Semaphore(concurrency) if concurrency is not None else None
        self._under_way = 0

    @property
    def state(self) -> State:
        """The breaker's."""
        return self._breaker.state

    def under_way(self) -> int:
        """Calls that hold a place."""
        return self._under_way

    async def open(
        self, path: str, body: bytes, *, stream: bool, headers: Mapping[str, str], method: str, model: str
    ) -> LineReply:
        """Send a call and wait for the answer's head.

        Raises Full and Resting, and then nothing was sent; UpstreamError.
        """
        if not self._breaker.passes:
            raise self._resting()
        await self._take()
        entry = self._breaker.enter()  # again: it may have moved while a place was waited for
        if entry is None:
            self.free()
            raise self._resting()
        try:
            reply = await self.provider.open(path, body, stream=stream, headers=headers, method=method, model=model)
        except UpstreamError:
            self._told(entry, succeeded=False)
            self.free()
            raise
        except BaseException:
            self._breaker.left(entry)
            self.free()
            raise
        self._told(entry, succeeded=reply.status not in OUT_OF_SERVICE)
        return LineReply(reply, self.name, self)

    def free(self) -> None:
        """Give a place back."""
        self._under_way -= 1
        if self._places is not None:
            self._places.release()

    async def _take(self) -> None:
        if self._places is not None and self._places.locked() and self._wait_s <= 0:
            raise Full("The provider has no place for another call.")
        if self._places is not None:
            try:
                async with asyncio.timeout(self._wait_s or None):
                    await self._places.acquire()
            except TimeoutError:
                raise Full(f"The provider had no place for another call within {self._wait_s:g} s.") from None
        self._under_way += 1

    def _told(self, entry: int, *, succeeded: bool) -> None:
        """Tell the breaker how a call went, and the operator where that moves it."""
        before = self._breaker.state
        if succeeded:
            self._breaker.succeeded(entry)
        else:
            self._breaker.failed(entry)
        if self._breaker.state != before:
            _log.warning("provider answers again" if succeeded else "provider left alone", provider=self.name)

    def _resting(self) -> Resting:
        return Resting("The provider failed too often and is left alone for a while.", pause_s=self._breaker.pause_s)
