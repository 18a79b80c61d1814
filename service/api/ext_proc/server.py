"""The gRPC server that Envoy's filter `envoy.filters.http.ext_proc` asks.

Every call goes the gateway's own way (`Gateway.serve`): admitted, judged, let go on, its reply judged as it comes,
settled, recorded. A stream that breaks here ends with an error, never as if there were nothing more to say: Envoy takes
the latter for leave to let the rest pass.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import grpc
import structlog

from service.api import chat, completions, embeddings, messages, responses
from service.api.asgi import reader
from service.api.chat_reply import ChatWire
from service.api.ext_proc import external_processor_pb2 as pb
from service.api.ext_proc.exchange import EnvoyExchange, ThroughEnvoy
from service.api.ext_proc.stream import Stream
from service.api.messages_reply import CountWire, MessagesWire
from service.api.responses_reply import ResponsesWire
from service.errors import ConfigError, GuardFailed, NotFound, WireError, to_wire
from service.gateway import Gateway
from service.interfaces import Call, CallerLeft, Wire
from service.ledger import log_unexpected
from service.settings import Envoy, Server

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
STOP_S = 25.0
"""For the calls that are under way when the service stops."""

Parse = Callable[[bytes, Server], Call]

_log = structlog.get_logger("ext_proc")


class ExtProcServer:
    """Listens where `[envoy]` says. With `shared` other processes may listen there too; the kernel shares them out."""

    def __init__(self, gateway: Gateway, settings: Envoy, server: Server, *, shared: bool) -> None:
        self._gateway = gateway
        self._settings = settings
        self._server = server
        self._shared = shared
        self._protocols = protocols_of(gateway)
        self._grpc: Any = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises ConfigError where the address is taken."""
        self._grpc = grpc.aio.server(options=[("grpc.so_reuseport", int(self._shared))])
        method = grpc.stream_stream_rpc_method_handler(
            self._process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        self._grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Process": method})])
        host, port = self._settings.host, self._settings.port
        try:
            self.port = self._grpc.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            raise ConfigError(f"envoy.port: {host}:{port} cannot be listened on") from None
        await self._grpc.start()
        _log.info("ext_proc listens", host=host, port=self.port)

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Take no more calls, and let those under way end within this time."""
        if self._grpc is not None:
            await self._grpc.stop(grace_s)

    async def _process(self, messages_in: Any, context: Any) -> None:
        """One HTTP request."""
        stream = Stream(messages_in, context.write, self._server.caller_timeout_s)
        following = asyncio.create_task(stream.follow())
        try:
            with contextlib.suppress(CallerLeft, TimeoutError):
                if await self._answer(stream):
                    # However long its caller takes to read: an end by us, good or bad, would say something else.
                    await stream.closed.wait()
                    return
        except Exception as error:
            log_unexpected("", error)  # gRPC would tell Envoy what it says
        finally:
            following.cancel()
        await context.abort(grpc.StatusCode.ABORTED, "the request was not answered")

    async def _answer(self, stream: Stream) -> bool:
        """Answer the request; false where it was not answered to its end. Raises CallerLeft, TimeoutError."""
        if await stream.first() is stream.response:
            return await self._answer_unasked(stream, ChatWire())
        head = await stream.request.head
        path = head.headers.get(":path", "").partition("?")[0]
        known = self._protocols.get(path)
        wire, parse = known or _elsewhere(path)
        credential = self._credential(head.headers)
        exchange = EnvoyExchange(stream, head, credential, wire, reader(parse, self._server), self._server)
        if not stream.full_duplex:
            _log.error("ext_proc does not see both bodies", request_id=exchange.request_id)
            await _refuse(exchange, to_wire(GuardFailed("Envoy does not show the firewall both bodies.")))
        elif known is None:
            await _refuse(exchange, to_wire(NotFound("There is no such route here.")))
        else:
            route = ThroughEnvoy(stream, (self._settings.key_header,))
            with contextlib.suppress(CallerLeft):
                await self._gateway.towards(route).serve(exchange)
            if stream.unasked and not exchange.started:
                return await self._answer_unasked(stream, wire)
        return exchange.ended

    async def _answer_unasked(self, stream: Stream, wire: Wire) -> bool:
        """Envoy itself, or a filter of it, has refused the request: its status goes on. Its text does not, for it could
        as well be a provider's, asked by an Envoy that is configured to show no requests.
        """
        head = await stream.response.head
        status = head.headers.get(":status", "")
        failure = to_wire(GuardFailed("Envoy does not show the firewall its requests."))
        if status.isdecimal() and 400 <= int(status) < 600:
            kind = "server_error" if int(status) >= 500 else "invalid_request_error"
            failure = WireError(int(status), kind, "refused_by_proxy", "The proxy refused the request.")
        exchange = EnvoyExchange(stream, head, "", wire, reader(chat.parse_request, self._server), self._server)
        await _refuse(exchange, failure)
        return exchange.ended

    def _credential(self, headers: Mapping[str, str]) -> str:
        value = headers.get(self._settings.key_header, "").strip()
        scheme, _, token = value.partition(" ")
        return token.strip() if scheme.lower() == "bearer" else value


def protocols_of(gateway: Gateway) -> dict[str, tuple[Wire, Parse]]:
    """How calls are read and answered, by their path."""
    decode = gateway.tenancy.decode
    return {
        "/v1/chat/completions": (ChatWire(), chat.parse_request),
        "/v1/responses": (ResponsesWire(), responses.parse_request),
        "/v1/messages": (MessagesWire(), messages.parse_request),
        "/v1/messages/count_tokens": (CountWire(), messages.parse_count),
        "/v1/completions": (completions.CompletionsWire(), partial(completions.parse_request, decode=decode)),
        "/v1/embeddings": (embeddings.EmbeddingsWire(), partial(embeddings.parse_request, decode=decode)),
    }


def _elsewhere(path: str) -> tuple[Wire, Parse]:
    """For a refusal only."""
    wire: Wire = MessagesWire() if path.startswith(MessagesWire.path) else ChatWire()
    return wire, chat.parse_request


async def _refuse(exchange: EnvoyExchange, error: WireError) -> None:
    """Answer what never was a call: no row, as for unknown routes of the gateway."""
    failure = exchange.wire.phrase(error)
    body = exchange.wire.error_body(failure)
    own = [("x-firewall-request-id", exchange.request_id), ("x-firewall-action", "error")]
    described = [("content-type", "application/json"), ("content-length", str(len(body)))]
    await exchange.start(failure.status, [*described, *failure.headers, *own])
    await exchange.end(body)
