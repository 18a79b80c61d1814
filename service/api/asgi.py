"""The HTTP side that all protocols share: bodies read under a cap, headers on every answer, who may call in open mode.

Handlers are plain ASGI below Litestar's router: the body is counted while it arrives, so that an over-large one is
refused without being kept, and the connection is watched, since a server does not cancel a handler whose caller left.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from service.api import strict_json
from service.api.caller_names import with_names, with_user
from service.api.sampling import without_probes
from service.errors import (
    Forbidden,
    MalformedRequest,
    PayloadTooLarge,
    RequestError,
    RequestTimeout,
    UnsupportedMedia,
    WireError,
    to_wire,
)
from service.interfaces import Call, CallerLeft, Headers, Wire
from service.settings import LOOPBACK, Server

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Handler = Callable[[Any, Any, Any], Awaitable[None]]

# No idempotency-key: the provider sees one account, and two tenants' equal keys would share one reply.
_FORWARDED = frozenset(
    {"accept-language", "anthropic-beta", "anthropic-version", "openai-beta", "traceparent", "tracestate", "user-agent"}
)
_MAX_POINTER = 200
_AUTHORITY = re.compile(r"(?:https?://)?(\[[0-9a-fA-F:.]+\]|[^:/\[\]@]+)(?::\d{1,5})?")


class MethodNotAllowed(RequestError):
    """The route exists, but not with this method."""

    status = 405
    code = "method_not_allowed"


def headers_of(scope: Scope) -> dict[str, str]:
    """The request's headers by lower-case name; of a repeated one, all values joined by a comma (RFC 9110)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def credential_of(headers: Mapping[str, str]) -> str:
    """The caller's key, from `Authorization: Bearer` or `x-api-key`; empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return headers.get("x-api-key", "").strip()


def new_request_id() -> str:
    """128 random bits."""
    return "req_" + secrets.token_hex(16)


def check_origin(headers: Mapping[str, str]) -> None:
    """No web page may call an open firewall: not across origins, and not by a name that it points at loopback.

    Raises Forbidden. (DNS rebinding: the browser then sends the page's own name as Host.)
    """
    if not _is_loopback(headers.get("host", "")):
        raise Forbidden("In open mode the Host must be a loopback address; use auth.mode = 'keys'.")
    if "origin" in headers and not _is_loopback(headers["origin"]):
        raise Forbidden("In open mode no web page may call this service.")


def check_media(headers: Mapping[str, str]) -> None:
    """Raises UnsupportedMedia unless the body is said to be JSON in UTF-8 as it stands."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Send the body without content encoding.")
    media, _, parameters = headers.get("content-type", "").partition(";")
    if media.strip().lower() != "application/json":
        raise UnsupportedMedia("The content type must be application/json.")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if charset not in {"", "utf-8", "utf8"}:
        raise UnsupportedMedia("The body must be UTF-8.")


def _is_loopback(authority: str) -> bool:
    match = _AUTHORITY.fullmatch(authority)
    return match is not None and match.group(1).strip("[]").lower() in LOOPBACK


class HttpExchange:
    """One HTTP request and its answer (`interfaces.Exchange`). `read` parses the body of one protocol."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        wire: Wire,
        read: Callable[[bytes], Awaitable[Call]],
        server: Server,
        open_mode: bool,
    ) -> None:
        self.request_id = new_request_id()
        self.started = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._wire = wire
        self._read = read
        self._max_body_bytes = server.max_body_bytes
        self._timeout_s = server.caller_timeout_s
        self._open_mode = open_mode
        self._headers = headers_of(scope)
        self._body_read = asyncio.Event()
        self.credential = credential_of(self._headers)
        self.address: str = (scope.get("client") or ("",))[0]

    @property
    def wire(self) -> Wire:
        """The protocol spoken."""
        return self._wire

    @property
    def forwarded_headers(self) -> Mapping[str, str]:
        """An allow-list: credentials, cookies and hop-by-hop headers cannot slip through a name nobody thought of."""
        return {name: value for name, value in self._headers.items() if name in _FORWARDED}

    def name_model(self, body: bytes, model: str) -> bytes:
        """The body asking for this model, every other byte as it is: all protocols name it at the top."""
        return strict_json.splice_member(body, "model", model)

    def without_probes(self, body: bytes) -> bytes:
        """The body without what shows or bends the distribution of tokens, every other byte as it is."""
        return without_probes(body)

    def with_names(self, body: bytes, names: Mapping[str, str]) -> bytes:
        """The body with these names at their pointers, every other byte as it is."""
        return with_names(body, names)

    def with_user(self, body: bytes, name: str) -> bytes:
        """The body that says for whom it asks, as it is where it does already."""
        return with_user(body, name)

    async def receive(self) -> Call:
        """Check the headers, read the body under its cap and in its time, parse it. Raises RequestError, CallerLeft."""
        if self._scope["method"] != "POST":
            raise MethodNotAllowed("Use POST.")
        self.check_caller()
        self.check_media()
        return await self._read(await self.body())

    async def parse(self, body: bytes) -> Call:
        """Parse a body that stands for the request's. Raises RequestError."""
        return await self._read(body)

    def check_caller(self) -> None:
        """Raises Forbidden for who may not call."""
        if self._open_mode:
            check_origin(self._headers)

    def check_media(self) -> None:
        """Raises UnsupportedMedia unless the body is said to be JSON in UTF-8 as it stands."""
        check_media(self._headers)

    async def body(self) -> bytes:
        """The body, read under its cap and in its time. Raises PayloadTooLarge, RequestTimeout, CallerLeft."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._body()
        except TimeoutError:
            raise RequestTimeout(f"The body did not arrive within {self._timeout_s:g} s.") from None

    async def _body(self) -> bytes:
        length = self._headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise PayloadTooLarge(f"The body is larger than {self._max_body_bytes} bytes.")
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerLeft
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise PayloadTooLarge(f"The body is larger than {self._max_body_bytes} bytes.")
            chunks.append(chunk)
            if not message.get("more_body", False):
                self._body_read.set()
                return b"".join(chunks)

    async def gone(self) -> None:
        """Return when the caller has left; waits for the request to be read first."""
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Headers) -> None:
        """Begin the answer. This and the two below raise CallerLeft where the caller does not read."""
        self.started = True
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
        await self._put({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes) -> None:
        """Send a part of the answer's body."""
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last part and end the answer."""
        await self._put({"type": "http.response.body", "body": data, "more_body": False})

    async def _put(self, message: Any) -> None:
        # Who neither reads nor leaves would hold the provider's connection and a place of its tenant for ever.
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            raise CallerLeft from None


def reader(parse: Callable[[bytes, Server], Call], server: Server) -> Callable[[bytes], Awaitable[Call]]:
    """Reads bodies of one protocol, long ones in a thread."""

    async def read(body: bytes) -> Call:
        if len(body) <= strict_json.INLINE_BYTES:
            return parse(body, server)
        return await asyncio.to_thread(parse, body, server)

    return read


def endpoint(
    wire: Wire,
    parse: Callable[[bytes, Server], Call],
    serve: Callable[[HttpExchange], Awaitable[None]],
    server: Server,
    *,
    open_mode: bool,
) -> Handler:
    """A handler for calls of one protocol: `parse` reads a body, `serve` answers."""
    read = reader(parse, server)

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        exchange = HttpExchange(scope, receive, send, wire=wire, read=read, server=server, open_mode=open_mode)
        with contextlib.suppress(CallerLeft):
            await serve(exchange)

    return handle


async def respond(
    send: Send, status: int, body: bytes, *, content_type: str = "application/json", headers: Headers = ()
) -> None:
    """Send a whole answer."""
    raw = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    raw += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def page(
    render: Callable[[str], Awaitable[tuple[int, str, bytes]]],
    *,
    error_body: Callable[[WireError], bytes],
    allow: Callable[[Mapping[str, str]], Awaitable[None]] | None = None,
) -> Handler:
    """A handler for something to GET.

    `render(path)` gives status, content type and body; `allow` raises for who may not see it.
    """

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        try:
            if scope["method"] not in {"GET", "HEAD"}:
                raise MethodNotAllowed("Use GET.")
            if allow is not None:
                await allow(headers_of(scope))
            status, content_type, body = await render(scope["path"])
        except Exception as error:
            wire = to_wire(error)
            await respond(send, wire.status, error_body(wire), headers=wire.headers)
            return
        await respond(send, status, b"" if scope["method"] == "HEAD" else body, content_type=content_type)

    return handle


def sign_answer(message: MutableMapping[str, Any], scope: Any) -> None:
    """Put the firewall's headers on an answer that does not have them yet."""
    if message["type"] != "http.response.start":
        return
    headers = list(message.get("headers", ()))
    names = {name.lower() for name, _ in headers}
    if b"x-firewall-request-id" not in names:
        headers.append((b"x-firewall-request-id", new_request_id().encode()))
    if b"x-firewall-action" not in names:
        headers.append((b"x-firewall-action", b"allow" if message["status"] < 400 else b"error"))
    if b"x-content-type-options" not in names:
        headers.append((b"x-content-type-options", b"nosniff"))
    message["headers"] = headers


def malformed(pointer: str, wanted: str) -> MalformedRequest:
    """A value of the wrong type."""
    return MalformedRequest(f"Expected {wanted}.", pointer=pointer[:_MAX_POINTER])
