"""What the provider keeps of responses: `GET` and `DELETE /v1/responses/{id}`, `POST /v1/responses/{id}/cancel`.

Only ids that were issued to the caller's tenant are passed on, and what comes back is judged like any reply. Source:
OpenAI API reference, "Get a model response", "Delete a model response", "Cancel a response".
"""

from __future__ import annotations

import contextlib
import re
from typing import Any
from urllib.parse import parse_qsl, urlencode

from service.api.asgi import Handler, HttpExchange, MethodNotAllowed, malformed
from service.api.responses_reply import ResponsesWire
from service.errors import MalformedRequest, NotFound
from service.firewall.prompt import Prompt
from service.gateway import Gateway
from service.interfaces import Call, CallerLeft
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
        return call_of(self._scope["method"], self._scope["path"], self._scope["query_string"])


def call_of(method: str, path: str, query: bytes) -> Call:
    """The call that a request line stands for; `path` is what follows `PATH`.

    Raises NotFound, MethodNotAllowed, MalformedRequest.
    """
    match = _BELOW.fullmatch(path)
    if match is None:
        raise NotFound("There is no such route or id here.")
    response_id, cancel = match.groups()
    if method not in ({"POST"} if cancel else {"GET", "DELETE"}):
        raise MethodNotAllowed("Use POST." if cancel else "Use GET or DELETE.")
    fields = _fields(query)
    asked = f"?{urlencode(fields)}" if fields else ""
    return Call(
        model="",
        stream=method == "GET" and ("stream", "true") in fields,
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
