"""An ASGI middleware: the JSON bodies that reach an application are judged before it sees them.

    app = FirewallMiddleware(app, AsyncFirewall("http://127.0.0.1:8080", api_key="sf-…"), paths=["/chat"])

`InProcess` judges without a second process: `parts = service.app.connect(settings)`, then `InProcess(parts.gateway)`;
the application runs `parts.start` and `parts.stop` itself. Both ways every request has its audit row there.

Every string of a body is judged, each by itself and all together, since an application may join what stands apart. What
it reads is what was judged, byte for byte. Bodies of another type are refused (415): there are applications that read
JSON whatever it is called. Not judged are addresses, headers and WebSocket messages.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from service.api import scan, strict_json
from service.api.asgi import headers_of, new_request_id, respond
from service.api.chat_reply import ChatWire
from service.api.texts import segments_of
from service.client import Judgement, read_answer, scan_body
from service.errors import (
    GuardFailed,
    LimitExceeded,
    MalformedRequest,
    PayloadTooLarge,
    RequestError,
    UnsupportedMedia,
    WireError,
    to_wire,
)
from service.firewall.prompt import Role, Segment
from service.gateway import Gateway
from service.interfaces import Call, Headers, Wire
from service.settings import Server

_ERRORS = ChatWire()
_SLASHES = re.compile("/{2,}")
_JSON = re.compile(r"\s*application/(?:[\w.-]+\+)?json\s*(?:;\s*charset=\"?utf-?8\"?\s*)?", re.IGNORECASE)


class Judges(Protocol):
    """`service.client.AsyncFirewall`, or `InProcess`."""

    async def scan(self, texts: Sequence[str], *, role: str) -> Judgement:
        """Raises RequestError, UnavailableError."""
        ...


class FirewallMiddleware:
    """Stands before an ASGI application. `paths` are the beginnings of the paths that it judges, `role` the trust that
    their texts deserve. Where there is no verdict the answer is 503 and the application is not asked.
    """

    def __init__(
        self,
        app: Any,
        firewall: Judges,
        *,
        paths: Sequence[str] = ("/",),
        role: Role = "user",
        max_body_bytes: int = Server().max_body_bytes,
    ) -> None:
        self._app = app
        self._firewall = firewall
        self._paths = tuple(paths)
        self._role: Role = role
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Judge a request's body, then hand it on as it came."""
        # There are routers to which `//chat` is `/chat`.
        if scope["type"] != "http" or not _SLASHES.sub("/", scope["path"]).startswith(self._paths):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(receive)
            if body is None:
                return
            judgement, segments = await self._judge(scope, body)
        except Exception as error:
            await _refuse(send, to_wire(error), "", "error")
            return
        if judgement is not None and judgement.blocked:
            await _refuse(send, _block(judgement, segments), judgement.request_id, "block")
            return
        await self._app(scope, _replay(body, receive), send)

    async def _body(self, receive: Any) -> bytes | None:
        """The whole body; None where the caller left before its end."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise PayloadTooLarge(f"The body is larger than {self._max_body_bytes} bytes.")
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _judge(self, scope: Any, body: bytes) -> tuple[Judgement | None, list[Segment]]:
        if not body:
            return None, []
        headers = headers_of(scope)
        if headers.get("content-encoding", "identity").lower() != "identity" or not _JSON.fullmatch(
            headers.get("content-type", "")
        ):
            raise UnsupportedMedia("Send JSON in UTF-8, without content encoding.")
        segments = await asyncio.to_thread(self._segments, body)
        if not segments:
            return None, []
        try:
            return await self._firewall.scan([segment.text for segment in segments], role=self._role), segments
        except (LimitExceeded, MalformedRequest, PayloadTooLarge):
            raise
        except RequestError:
            # A key that does not hold is this application's fault, not its caller's.
            raise GuardFailed("The firewall did not accept this application's request.") from None

    def _segments(self, body: bytes) -> list[Segment]:
        found = list(segments_of(strict_json.parse(body), (), self._role))
        if len(found) > 1:
            found.append(Segment("\n".join(segment.text for segment in found), self._role, ""))
        return found


class InProcess:
    """Judges by a gateway of this process, as the tenant of `credential`."""

    def __init__(self, gateway: Gateway, credential: str = "", server: Server | None = None) -> None:
        self._gateway = gateway
        self._credential = credential
        self._server = server or Server()

    async def scan(self, texts: Sequence[str], *, role: str) -> Judgement:
        """As `service.client.AsyncFirewall.scan`, on the same way through the gateway."""
        exchange = _Exchange(scan_body(texts, role), self._credential, self._server)
        await self._gateway.scan(exchange, lambda call, judged: scan.write_verdicts(exchange.request_id, call, judged))
        return read_answer(exchange.status, exchange.headers, bytes(exchange.body))


class _Exchange:
    """A scan without a connection (`interfaces.Exchange`): keeps the answer."""

    def __init__(self, request: bytes, credential: str, server: Server) -> None:
        self.request_id = new_request_id()
        self.credential = credential
        self.address = ""
        self.started = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self._request = request
        self._server = server
        self._wire = scan.ScanWire()

    @property
    def wire(self) -> Wire:
        return self._wire

    @property
    def forwarded_headers(self) -> dict[str, str]:
        return {}

    def without_probes(self, body: bytes) -> bytes:
        """Nothing is forwarded."""
        return body

    def name_model(self, body: bytes, model: str) -> bytes:
        return body  # nothing is forwarded

    def with_names(self, body: bytes, names: Mapping[str, str]) -> bytes:
        return body  # nothing is forwarded

    def with_user(self, body: bytes, name: str) -> bytes:
        return body  # nothing is forwarded

    async def receive(self) -> Call:
        return await self.parse(self._request)

    async def parse(self, body: bytes) -> Call:
        return await asyncio.to_thread(scan.parse_scan, body, self._server)

    async def gone(self) -> None:
        await asyncio.Event().wait()  # nobody leaves: whoever asks is cancelled instead

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.status, self.headers = True, status, dict(headers)

    async def send(self, data: bytes) -> None:
        self.body += data

    async def end(self, data: bytes = b"") -> None:
        self.body += data


def _replay(body: bytes, receive: Any) -> Any:
    sent = False

    async def again() -> Any:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _block(judgement: Judgement, segments: list[Segment]) -> WireError:
    worst = next((r.index for r in judgement.results if r.action == judgement.action), -1)
    place = segments[worst].pointer if 0 <= worst < len(segments) else None
    category = judgement.category or "policy"
    message = f"The prompt was blocked by the firewall: {category} (request {judgement.request_id})."
    return WireError(400, "invalid_request_error", "content_filter", message, place)


async def _refuse(send: Any, error: WireError, request_id: str, action: str) -> None:
    own = [("x-firewall-request-id", request_id or new_request_id()), ("x-firewall-action", action)]
    await respond(send, error.status, _ERRORS.error_body(error), headers=[*error.headers, *own])
