"""One HTTP request as Envoy tells it: a request and a reply, each a head, a body as it comes, and perhaps trailers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from service.api.ext_proc import frames
from service.api.ext_proc.frames import Way
from service.interfaces import CallerLeft, Headers

_KEPT_FRAMES = 64
"""Of one way; then no more is read until somebody takes them, and Envoy is told to wait by gRPC's flow control."""

Write = Callable[[Any], Awaitable[None]]


class Head(msgspec.Struct, frozen=True):
    """Headers by lower-case name, with HTTP/2's own (`:path`); `ended`: no body follows."""

    headers: dict[str, str]
    ended: bool


class Side:
    """One of the two ways. `trailers` are the names of its trailers, known once its body has ended."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.head: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self.trailers: tuple[str, ...] = ()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_KEPT_FRAMES)
        self._ended = self._broken = self._dropped = False

    @property
    def arrived(self) -> Head | None:
        """The head, if it has come."""
        return self.head.result() if self.head.done() and self.head.exception() is None else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises CallerLeft where Envoy gives up before its end."""
        while not (self._broken and self._chunks.empty()):
            chunk = await self._chunks.get()
            if chunk is not None:
                yield chunk
            elif self._ended:
                return
        raise CallerLeft

    async def take(self, kind: str, what: Any) -> None:
        """A message of this way. Raises ValueError for one that cannot come now."""
        if (kind == "headers") == self.head.done() or self._ended:
            raise ValueError(kind)
        if kind == "headers":
            self._ended = what.end_of_stream
            self.head.set_result(Head(frames.headers_of(what.headers), what.end_of_stream))
        elif kind == "body":
            self._ended = what.end_of_stream
            if what.body and not self._dropped:
                await self._chunks.put(what.body)
        else:
            self._ended = True
            self.trailers = tuple(frames.headers_of(what.trailers))
        if self._ended and not self._dropped:
            await self._chunks.put(None)

    def drop(self) -> None:
        """Nobody looks at the rest of it."""
        self._dropped = True
        while not self._chunks.empty():
            self._chunks.get_nowait()

    def break_off(self) -> None:
        """Nothing more will come."""
        if not self.head.done():
            self.head.set_exception(CallerLeft())
            self.head.exception()  # nobody may be waiting for it
        if not self._ended:
            self._broken = True
            with contextlib.suppress(asyncio.QueueFull):
                self._chunks.put_nowait(None)


class Stream:
    """Both ways of one gRPC stream. `closed` is set when Envoy has ended it, or has said what cannot be."""

    def __init__(self, messages: AsyncIterable[Any], write: Write, timeout_s: float) -> None:
        self.request = Side("request")
        self.response = Side("response")
        self.closed = asyncio.Event()
        self.full_duplex = False
        self._messages = messages
        self._write = write
        self._timeout_s = timeout_s
        self._begun = False
        self._passed = False

    async def follow(self) -> None:
        """Take in what Envoy tells until it ends; returns at its end."""
        try:
            async for message in self._messages:
                if not self._begun:
                    self._begun = True
                    self.full_duplex = frames.is_full_duplex(message)
                which = message.WhichOneof("request")
                if which is None:
                    raise ValueError("a message of a kind that is not known")
                way, _, kind = which.partition("_")
                side = self.request if way == "request" else self.response
                await side.take(kind, getattr(message, which))
        except Exception:  # noqa: S110 -- whatever it was, nothing more can be read, and all that waits is told so
            pass
        finally:
            self.closed.set()
            self.request.break_off()
            self.response.break_off()

    async def first(self) -> Side:
        """The way that is told of first. Raises CallerLeft, and TimeoutError where nothing comes."""
        async with asyncio.timeout(self._timeout_s):
            await asyncio.wait({self.request.head, self.response.head}, return_when=asyncio.FIRST_COMPLETED)
        return self.response if self.unasked else self.request

    @property
    def unasked(self) -> bool:
        """There is a reply, and the request never went on: Envoy itself answered."""
        return self.response.arrived is not None and not self._passed

    async def given_up(self) -> None:
        """Return when Envoy has ended the stream, or has answered the request itself."""
        closed = asyncio.ensure_future(self.closed.wait())
        either: set[asyncio.Future[Any]] = {closed, self.response.head}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self.unasked:
                await closed
        finally:
            closed.cancel()

    async def put(self, message: Any) -> None:
        """Send a message. Raises CallerLeft where Envoy does not take it."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._write(message)
        except Exception:
            raise CallerLeft from None  # gRPC has several kinds of error for a stream that is gone

    async def pass_head(self, side: Side, put: Headers, removed: tuple[str, ...] = ()) -> None:
        """Let the head of this way go on."""
        self._passed |= side is self.request
        await self.put(frames.head(side.way, put, removed))

    async def pass_body(self, side: Side, data: bytes, *, last: bool) -> None:
        """Send a part of this way's body on."""
        for message in frames.body(side.way, data, last=last and not side.trailers):
            await self.put(message)
        if last and side.trailers:
            await self.put(frames.trailers(side.way, side.trailers))
