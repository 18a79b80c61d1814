"""A call that passes through Envoy, as the gateway knows calls: its caller on one side, its provider on the other.

Both are the same gRPC stream. The call is sent to the provider by letting the request go on, and answered by letting
the reply go on; until then Envoy holds either. What the gateway refuses is answered in the provider's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from service.api import strict_json
from service.api.asgi import MethodNotAllowed, check_media, new_request_id
from service.api.caller_names import with_names, with_user
from service.api.ext_proc import frames
from service.api.ext_proc.stream import Head, Stream
from service.api.sampling import without_probes
from service.errors import NotFound, PayloadTooLarge, RequestTimeout, UpstreamInvalid
from service.interfaces import Call, Headers, Target, Wire
from service.settings import Server
from service.upstream.client import MAX_ERROR_BYTES, MAX_REPLY_BYTES, PASSED_HEADERS

PROVIDER = "envoy"
"""In the audit row, and for ids that a provider issues: whom Envoy's routes lead to is not known here."""


class EnvoyExchange:
    """One request and its answer (`interfaces.Exchange`)."""

    def __init__(
        self,
        stream: Stream,
        head: Head,
        credential: str,
        wire: Wire,
        read: Callable[[bytes], Awaitable[Call]],
        server: Server,
    ) -> None:
        self.request_id = new_request_id()
        self.credential = credential
        self.address = ""  # Envoy's would be that of all its callers
        self.started = False
        self.ended = False
        self._stream = stream
        self._head = head
        self._wire = wire
        self._read = read
        self._server = server
        self._instead: tuple[int, Headers] | None = None
        self._data = bytearray()

    @property
    def wire(self) -> Wire:
        """The protocol spoken."""
        return self._wire

    @property
    def forwarded_headers(self) -> Mapping[str, str]:
        """Envoy has the caller's headers already, and its configuration says which of them go on."""
        return {}

    def name_model(self, body: bytes, model: str) -> bytes:
        """The body asking for this model, every other byte as it is."""
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
        """Check the head, read the body under its cap and in its time, parse it. Raises RequestError, CallerLeft."""
        if self._head.headers.get(":method") != "POST":
            raise MethodNotAllowed("Use POST.")
        check_media(self._head.headers)
        try:
            async with asyncio.timeout(self._server.caller_timeout_s):
                body = await self._body()
        except TimeoutError:
            raise RequestTimeout(f"The body did not arrive within {self._server.caller_timeout_s:g} s.") from None
        return await self._read(body)

    async def parse(self, body: bytes) -> Call:
        """Parse a body that stands for the request's. Raises RequestError."""
        return await self._read(body)

    async def _body(self) -> bytes:
        limit = self._server.max_body_bytes
        length = self._head.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise PayloadTooLarge(f"The body is larger than {limit} bytes.")
        body = bytearray()
        async for chunk in self._stream.request.chunks():
            body += chunk
            if len(body) > limit:
                raise PayloadTooLarge(f"The body is larger than {limit} bytes.")
        return bytes(body)

    async def gone(self) -> None:
        """Return when Envoy has given the request up: its caller left, its provider broke off, or a timer ran out."""
        await self._stream.given_up()

    async def start(self, status: int, headers: Headers) -> None:
        """Begin the answer: the provider's head goes on as far as it is in `headers`, or another takes its place."""
        self.started = True
        given = list(headers)
        head = self._stream.response.arrived
        if head is None or head.headers.get(":status") != str(status):
            self._instead = (status, given)
            return
        if head.ended and dict(given).get("content-length", "0") != "0":
            self._instead = (status, given)  # a head that ended can get no body
            return
        names = {name for name, _ in given}
        removed = tuple(name for name in head.headers if name not in names and not name.startswith(":"))
        await self._stream.pass_head(self._stream.response, given, removed)

    async def send(self, data: bytes) -> None:
        """Send a part of the answer's body."""
        if self._instead is not None:
            self._data += data
            return
        await self._stream.pass_body(self._stream.response, data, last=False)

    async def end(self, data: bytes = b"") -> None:
        """Send the last part and end the answer. What the provider says after it is dropped."""
        side = self._stream.response
        if self._instead is not None:
            status, headers = self._instead
            # Envoy counts the bytes itself.
            put = [(name, value) for name, value in headers if name != "content-length"]
            await self._stream.put(frames.immediate(status, put, bytes(self._data) + data))
        elif side.arrived is not None and not side.arrived.ended:
            await self._stream.pass_body(side, data, last=True)
        self.ended = True
        self._stream.request.drop()
        side.drop()


class EnvoyReply:
    """A provider's answer whose head Envoy has told (`interfaces.RoutedReply`)."""

    provider = PROVIDER
    translated = False

    def __init__(self, stream: Stream, head: Head) -> None:
        self._stream = stream
        status, headers = head.headers.get(":status", ""), head.headers
        if not status.isdecimal() or headers.get("content-encoding", "identity").lower() != "identity":
            raise UpstreamInvalid("The provider's reply is encoded, and cannot be read.")
        self.status = int(status)
        self.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self.headers = tuple((name, value) for name, value in headers.items() if name in PASSED_HEADERS)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they come. Raises UpstreamInvalid, CallerLeft."""
        limit = MAX_REPLY_BYTES if self.status < 400 else MAX_ERROR_BYTES
        size = 0
        async for chunk in self._stream.response.chunks():
            size += len(chunk)
            if size > limit:
                raise UpstreamInvalid(f"The provider's reply is larger than {limit} bytes.")
            yield chunk

    async def close(self) -> None:
        """Envoy drops the provider's connection when the answer ends."""


class ThroughEnvoy:
    """Whom Envoy asks, for one request (`interfaces.Router`, and its only `Route` and `Target`).

    Nobody is asked for the usage of a stream: what the provider does not report is counted here.
    """

    name = PROVIDER
    model = ""
    models = ()
    asks_usage = False
    translated = False

    def __init__(self, stream: Stream, secret_headers: tuple[str, ...]) -> None:
        self._stream = stream
        self._secret_headers = secret_headers

    def choose(self, model: str, protocol: str | None) -> ThroughEnvoy:
        """Envoy's routes choose."""
        return self

    def named(self, name: str) -> ThroughEnvoy:
        """Raises NotFound for a provider of the gateway's own."""
        if name != self.name:
            raise NotFound("There is nothing with this id here.")
        return self

    def only(self, name: str) -> ThroughEnvoy | None:
        """What others keep is not reached through Envoy."""
        return self if name == self.name else None

    async def open(
        self,
        ask_of: Callable[[Target], tuple[str, bytes]],
        *,
        stream: bool,
        headers: Mapping[str, str],
        method: str,
        note: Callable[[str, str], None],
    ) -> EnvoyReply:
        """Let the request go on and wait for the reply's head. Raises UpstreamInvalid, CallerLeft."""
        how = "left"
        try:
            _, body = ask_of(self)
            request = self._stream.request
            # A reply that is compressed could not be read. The firewall's key is nobody else's business.
            put = [("accept-encoding", "identity"), ("content-length", str(len(body)))]
            await self._stream.pass_head(request, put, self._secret_headers)
            await self._stream.pass_body(request, body, last=True)
            head = await asyncio.shield(self._stream.response.head)
            how = head.headers.get(":status", "invalid")
            return EnvoyReply(self._stream, head)
        finally:
            note(self.name, how)
