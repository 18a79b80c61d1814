"""What the provider keeps of responses: `GET` and `DELETE /v1/responses/{id}`, `POST /v1/responses/{id}/cancel`.

Only ids that were issued to the caller's tenant are passed on, and what comes back is judged like any reply. A stream
is asked for whole, however much of it the caller has: a judge that began in its middle would see half a secret.
Source: OpenAI API reference, "Get a model response", "Delete a model response", "Cancel a response".
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec.structs import replace

from service.api import sse
from service.api.asgi import Handler, HttpExchange, MethodNotAllowed, malformed
from service.api.responses_reply import ResponsesStream, ResponsesWire
from service.errors import MalformedRequest, NotFound, WireError
from service.firewall.prompt import Prompt
from service.gateway import Gateway
from service.interfaces import Call, CallerLeft, Piece
from service.settings import Server

PATH = "/v1/responses"

_BELOW = re.compile(r"/([A-Za-z0-9_-]{1,256})(/cancel)?/?")
# What a provider may be asked beside the id, and how it is written.
_QUERY = {
    "stream": re.compile("true|false"),
    "starting_after": re.compile(r"\d{1,9}"),
    "include_obfuscation": re.compile("true|false"),
    "include": re.compile(r"[a-z_]{1,40}(?:\.[a-z_]{1,40}){1,3}"),
    "include[]": re.compile(r"[a-z_]{1,40}(?:\.[a-z_]{1,40}){1,3}"),
}
_MAX_QUERY_FIELDS = 20


def handler(gateway: Gateway, server: Server, create: Handler, *, open_mode: bool) -> Handler:
    """Everything at and below `PATH`, `create` at itself. To be mounted there: its paths are what follows."""

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            await create(scope, receive, send)
            return
        exchange = _Exchange(
            scope, receive, send, wire=ResponsesWire(), read=_no_body, server=server, open_mode=open_mode
        )
        with contextlib.suppress(CallerLeft):
            await gateway.serve(exchange)

    return handle


async def _no_body(_: bytes) -> Call:
    raise MalformedRequest("There is no body to read here.")


class _Exchange(HttpExchange):
    """A call whose meaning stands in its method, path and query; a body, if there is one, says nothing."""

    async def receive(self) -> Call:
        """Read the call. Raises RequestError, CallerLeft."""
        self.check_caller()
        if await self.body() not in {b"", b"{}"}:
            raise malformed("", "no body")
        query = self._scope["query_string"]
        call = call_of(self._scope["method"], self._scope["path"], query)
        after = dict(_fields(query)).get("starting_after")
        if call.stream and after is not None:
            self._wire = ResumedWire(int(after))
        return call


class ResumedWire(ResponsesWire):
    """A stream of which the caller has all events up to number `after`: they are judged with the rest, and not sent."""

    def __init__(self, after: int) -> None:
        self._after = after

    def open_stream(self, choices: int = 1) -> ResumedStream:
        """A reader for one streamed reply."""
        return ResumedStream(self._after)

    def rewrite(self, piece: Piece, texts: Sequence[str]) -> bytes | None:
        """The piece with these texts, nothing of one that the caller has; None where one cannot be changed."""
        written = super().rewrite(piece, texts)
        return b"" if written is not None and _is_known(piece, self._after) else written

    def error_event(self, error: WireError, after: int | None) -> bytes:
        """An `error` event, numbered behind what the caller has."""
        return super().error_event(error, self._after if after is None else max(after, self._after))


class ResumedStream(ResponsesStream):
    """Reads a whole stream (`interfaces.StreamReader`); events up to number `after` have no bytes to send."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def _piece(self, event: sse.Event, data: str) -> Piece:
        piece = super()._piece(event, data)
        return replace(piece, raw=b"") if _is_known(piece, self._after) else piece


def _is_known(piece: Piece, after: int) -> bool:
    return piece.number is not None and piece.number <= after


def call_of(method: str, path: str, query: bytes) -> Call:
    """The call that a request line stands for; `path` is what follows `PATH`. A stream's leaves out where the caller
    wants it to begin.

    Raises NotFound, MethodNotAllowed, MalformedRequest.
    """
    match = _BELOW.fullmatch(path)
    if match is None:
        raise NotFound("There is no such route or id here.")
    response_id, cancel = match.groups()
    if method not in ({"POST"} if cancel else {"GET", "DELETE"}):
        raise MethodNotAllowed("Use POST." if cancel else "Use GET or DELETE.")
    fields = _fields(query)
    stream = method == "GET" and ("stream", "true") in fields
    if stream:
        fields = [(name, value) for name, value in fields if name != "starting_after"]
    asked = f"?{urlencode(fields)}" if fields else ""
    return Call(
        model="",
        stream=stream,
        body=b"",
        prompt=Prompt("", ()),
        stored=response_id,
        method=method,
        path=f"/responses/{response_id}{cancel or ''}{asked}",
    )


def _fields(query: bytes) -> list[tuple[str, str]]:
    try:
        fields = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=_MAX_QUERY_FIELDS
        )
    except ValueError:
        raise MalformedRequest("The query cannot be read.") from None
    for name, value in fields:
        if name not in _QUERY or not _QUERY[name].fullmatch(value):
            raise MalformedRequest("The query holds a field that is not known here, or a value that it cannot have.")
    single = [name for name, _ in fields if name not in {"include", "include[]"}]
    if len(set(single)) < len(single):
        raise MalformedRequest("The query holds a field twice.")
    return fields
