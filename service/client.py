"""Asks a firewall for its verdict on texts, without sending anything to a model.

    from service.client import Firewall

    judgement = Firewall("http://127.0.0.1:8080", api_key="sf-…").scan(["some text"], role="document")
    if judgement.blocked: …

`Firewall` speaks over the standard library's `http.client`, one connection for each call: it is safe in every thread,
and no kept connection can go stale. `AsyncFirewall` speaks over aiohttp, which the service itself uses, and keeps its
connections. Neither follows redirects or tries again. Whatever is not a verdict is an exception, so that nobody takes
silence for consent: errors of the request are the firewall's own, everything else is UnavailableError.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, urlsplit

import aiohttp
import msgspec

from service.errors import (
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    GuardFailed,
    LimitExceeded,
    MalformedRequest,
    NotFound,
    PayloadTooLarge,
    RequestError,
    RequestTimeout,
    Unauthenticated,
    UnsupportedMedia,
)

MAX_ANSWER_BYTES = 16_777_216

_REFUSALS: dict[int, type[RequestError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    408: RequestTimeout,
    413: PayloadTooLarge,
    415: UnsupportedMedia,
}


class Result(msgspec.Struct, frozen=True):
    """One text or message: its JSON pointer in the request, the action, and the category where it is not allowed."""

    index: int
    pointer: str
    action: str
    category: str | None = None


class Judgement(msgspec.Struct, frozen=True):
    """The severest action over all (`allow`, `flag`, `block`), its category, and a result for each text or message.

    `unjudged` names guards that could not judge and that policy lets pass; `request_id` is that of the audit row.
    """

    request_id: str
    action: str
    category: str | None = None
    unjudged: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()

    @property
    def blocked(self) -> bool:
        """Whether the texts must not reach a model."""
        return self.action not in {"allow", "flag"}


class Firewall:
    """A firewall at `base_url` (without `/v1`). `timeout_s` bounds each wait for the connection. Raises ConfigError."""

    def __init__(self, base_url: str, api_key: str = "", *, timeout_s: float = 60.0) -> None:
        self._address = _address(base_url)
        self._headers = _headers(api_key)
        self._timeout_s = timeout_s

    def scan(
        self,
        texts: Sequence[str] | None = None,
        *,
        role: str = "user",
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Judgement:
        """Judge texts of one role, each by itself, or the messages of a conversation. Raises RequestError (the request
        is wrong, the key does not hold, a limit is spent) and UnavailableError (there is no verdict).
        """
        address = self._address
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=self._timeout_s)
        try:
            connection.request("POST", address.path, scan_body(texts, role, messages, tools), self._headers)
            answer = connection.getresponse()
            body = answer.read(MAX_ANSWER_BYTES + 1)
            return read_answer(answer.status, dict(answer.headers.items()), body)
        except TimeoutError:
            raise DeadlineExceeded(f"The firewall was silent for {self._timeout_s:g} s.") from None
        except (OSError, http.client.HTTPException):
            raise GuardFailed("The firewall could not be asked.") from None
        finally:
            connection.close()


class AsyncFirewall:
    """The same for an event loop. `timeout_s` bounds the whole call. `close` it, or use it as a context."""

    def __init__(self, base_url: str, api_key: str = "", *, timeout_s: float = 60.0) -> None:
        self._url = _address(base_url).geturl()
        self._headers = _headers(api_key)
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def scan(
        self,
        texts: Sequence[str] | None = None,
        *,
        role: str = "user",
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Judgement:
        """As `Firewall.scan`."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        data = scan_body(texts, role, messages, tools)
        try:
            async with self._session.post(self._url, data=data, headers=self._headers, allow_redirects=False) as answer:
                body = await _read(answer)
                return read_answer(answer.status, dict(answer.headers), body)
        except TimeoutError:
            raise DeadlineExceeded(f"The firewall was silent for {self._timeout_s:g} s.") from None
        except (OSError, aiohttp.ClientError):
            raise GuardFailed("The firewall could not be asked.") from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> AsyncFirewall:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            break
    return body


def scan_body(
    texts: Sequence[str] | None,
    role: str = "user",
    messages: Sequence[Mapping[str, Any]] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> bytes:
    """The body of `POST /v1/scan`."""
    request: dict[str, Any] = {"texts": list(texts), "role": role} if texts is not None else {}
    if messages is not None:
        request["messages"] = list(messages)
    if tools is not None:
        request["tools"] = list(tools)
    return json.dumps(request).encode()


def read_answer(status: int, headers: Mapping[str, str], body: bytes) -> Judgement:
    """The verdict in an answer. Raises RequestError for a refusal, GuardFailed for everything else."""
    if len(body) > MAX_ANSWER_BYTES:
        raise GuardFailed("The firewall's answer is too large.")
    if status == 200:
        try:
            return msgspec.json.decode(body, type=Judgement)
        except msgspec.DecodeError:
            raise GuardFailed("The firewall's answer cannot be read.") from None
    if not 400 <= status < 500:
        raise GuardFailed(f"The firewall answered with status {status}.")
    message, pointer = _error(body)
    if status == LimitExceeded.status:
        named = {name.lower(): value for name, value in headers.items()}
        kept = {n: v for n, v in named.items() if n == "retry-after" or n.startswith("x-ratelimit-")}
        raise LimitExceeded(message, headers=kept)
    raise _REFUSALS.get(status, MalformedRequest)(message, pointer=pointer)


class _Error(msgspec.Struct):
    message: str
    param: str | None = None


class _Envelope(msgspec.Struct):
    error: _Error


def _error(body: bytes) -> tuple[str, str | None]:
    try:
        error = msgspec.json.decode(body, type=_Envelope).error
    except msgspec.DecodeError:
        return "The request was refused.", None
    return error.message, error.param


def _address(base_url: str) -> SplitResult:
    address = urlsplit(base_url)
    if address.scheme not in {"http", "https"} or not address.hostname or address.query or address.fragment:
        raise ConfigError("base_url: expected http:// or https://, a host and perhaps a port")
    try:
        address.port  # noqa: B018 -- reading it checks it
    except ValueError:
        raise ConfigError("base_url: the port is not a number from 0 to 65535") from None
    return address._replace(path=address.path.rstrip("/") + "/v1/scan")


def _headers(api_key: str) -> dict[str, str]:
    if not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("api_key: expected printable ASCII characters")  # http.client's own error would quote it
    headers = {"content-type": "application/json", "accept": "application/json"}
    return {**headers, "authorization": f"Bearer {api_key}"} if api_key else headers
