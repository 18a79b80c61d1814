"""A caller who speaks HTTP/1.0, as some proxies do, gets bodies that end with the connection: it knows no chunks."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from service import serving
from service import settings as config
from service.app import create_app
from tests.servers import running

CONFIG = '[detection]\nenabled = false\n[leakage]\nstream = "exact"\n[storage]\nurl = "sqlite:///a.db"\n'


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    file = tmp_path_factory.mktemp("old") / "firewall.toml"
    file.write_text(CONFIG)
    with running(create_app(config.load(file)), http=serving.Connection) as url:
        yield int(url.rpartition(":")[2])


def answer(port: int, version: str, line: str = "POST /v1/chat/completions", body: bytes = b"") -> tuple[str, bytes]:
    """Head and body as they stand on the wire; all that comes until the other side closes."""
    head = f"{line} HTTP/{version}\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\nconnection: {'keep-alive' if version == '1.0' else 'close'}\r\n\r\n"
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        while chunk := connection.recv(65_536):
            received += chunk
    told, _, rest = received.partition(b"\r\n\r\n")
    return told.decode().lower(), rest


def chat(**more: object) -> bytes:
    asked = {"model": "sandbox-words-40", "messages": [{"role": "user", "content": "go on"}]}
    return json.dumps({**asked, **more}).encode()


def test_a_stream_over_http_1_0_has_no_frames_and_ends_with_the_connection(port: int) -> None:
    head, body = answer(port, "1.0", body=chat(stream=True))
    assert " 200 " in head and "transfer-encoding" not in head and "connection: close" in head
    events = body.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert all(event.startswith(b"data: {") for event in events[:-2]) and len(events) > 10


@pytest.mark.parametrize("line", ["POST /v1/chat/completions", "GET /metrics", "GET /v1/models", "GET /nowhere"])
def test_a_whole_answer_over_http_1_0_has_no_frames_and_all_its_bytes(port: int, line: str) -> None:
    head, body = answer(port, "1.0", line, chat() if line.startswith("POST") else b"")
    assert "transfer-encoding" not in head and "connection: close" in head
    length = [row.partition(": ")[2] for row in head.split("\r\n") if row.startswith("content-length")]
    assert length in ([], [str(len(body))]) and len(body) > 10
    if "json" in head:
        json.loads(body)


def test_a_stream_over_http_1_1_is_still_framed(port: int) -> None:
    head, body = answer(port, "1.1", body=chat(stream=True))
    assert "transfer-encoding: chunked" in head and body.endswith(b"\r\n0\r\n\r\n")
