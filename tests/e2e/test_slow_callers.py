"""A caller who sends or reads slowly, or never, holds nothing for longer than its time."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from service import serving
from tests.servers import running

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def connect(url: str, receive_bytes: int = 0) -> socket.socket:
    made = socket.socket()
    made.settimeout(10)
    if receive_bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    return made


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize("begun", [b"", b'{"model":'])
def test_a_body_that_does_not_come_is_a_408_and_a_row(world: Any, begun: bytes) -> None:
    with connect(world.url) as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n" + begun)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    row = world.row()
    assert (row.status, row.error, row.action) == (408, "request_timeout", "error")


def test_a_body_sent_byte_by_byte_gets_no_more_time(world: Any) -> None:
    begun = time.monotonic()
    with connect(world.url) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        connection.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - begun < 8:
            try:
                connection.sendall(b"1\r\n \r\n")
                answer = connection.recv(65_536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_who_does_not_read_its_stream_is_let_go_with_one_row_and_one_settlement(world: Any) -> None:
    filler = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": None}], "x": [0] * 100_000})
    world.upstream.pieces = [b"data: " + filler.encode() + b"\n\n"] * 60
    body = json.dumps({"model": "up-pieces", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    with connect(world.url, receive_bytes=4_096) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert world.audit.written.acquire(timeout=120), "the call is still held"
    assert [row.error for row in world.audit.rows] == ["client_disconnected"]
    assert len(world.tenancy.settled) == 1


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    while scope["path"] != "/early" and (await receive()).get("more_body"):
        pass
    named = b",".join(name for name, _ in scope["headers"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(named))]})
    await send({"type": "http.response.body", "body": named})


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server over the connections that `serve` uses, with less patience."""
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", 0.5)
    with running(hello, http=serving.Connection) as url:
        yield url


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: "])
def test_a_head_that_does_not_come_closes_the_connection(bounded: str, begun: bytes) -> None:
    with connect(bounded) as connection:
        connection.sendall(begun)
        assert rest(connection) == b""


def test_a_second_head_has_no_more_time_than_the_first(bounded: str) -> None:
    with connect(bounded) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\nhost: ")
        assert rest(connection).count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("line", [b"x: aaaaaaaaaaaaaaaa\r\n", b"a" * 1_000])
def test_a_head_without_end_closes_the_connection(bounded: str, line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", 60.0)
    with connect(bounded) as connection, pytest.raises(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(200_000):
            connection.sendall(line)


def test_what_was_answered_before_its_end_may_not_go_on_for_ever(bounded: str) -> None:
    with connect(bounded) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_a_trailer_is_no_header(bounded: str) -> None:
    with connect(bounded) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        connection.sendall(b"1\r\na\r\n0\r\nauthorization: Bearer x\r\n\r\n")
        answer = rest(connection)
    assert b"transfer-encoding" in answer
    assert b"authorization" not in answer


async def test_a_slow_body_is_not_a_slow_head(bounded: str) -> None:
    async def time_of_a_head() -> None:
        """Over once a connection is closed that was opened after ours and had no head."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(bounded.rpartition(":")[2]))
        assert await reader.read() == b""
        writer.close()

    async def body() -> Any:
        for _ in range(2):
            yield b"a"
            await time_of_a_head()

    async with aiohttp.ClientSession(bounded) as client:
        async with client.post("/", data=body()) as answer:
            assert answer.status == 200
        async with client.get("/") as answer:
            assert answer.status == 200
