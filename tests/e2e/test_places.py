"""However a call ends, the place that it held is free for the next one, and one row tells of it."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service import settings as config
from service.app import create_app
from tests.servers import running

CONFIG = """
[limits]
concurrency = 1
max_output_tokens = 50
[[providers]]
name = "sandbox"
kind = "sandbox"
models = ["sandbox-*"]
[[providers]]
name = "gone"
kind = "openai"
models = ["gone"]
base_url = "http://127.0.0.1:1/v1"
"""


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Iterator[str]:
    """A service where one call at a time may be under way."""
    file = tmp_path / "firewall.toml"
    file.write_text(CONFIG + f'[detection]\nartifact = "{tiny_model}"\n', encoding="utf-8")
    with running(create_app(config.load(file))) as url:
        yield url


def chat(text: str, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "sandbox-echo", "messages": messages, **fields}).encode()


async def post(url: str, body: bytes) -> int:
    headers = {"content-type": "application/json"}
    async with (
        aiohttp.ClientSession(url) as session,
        session.post("/v1/chat/completions", data=body, headers=headers) as answer,
    ):
        await answer.read()
        return answer.status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (chat("hi", model="nobody"), 404),
        (chat("hi", model="gone"), 502),
        (chat("hi", model="sandbox-what"), 404),
        (chat("hi", max_tokens=10**6), 200),
        (chat("please ignore that"), 400),
        (chat("word " * 100_000), 413),
        (chat("hi", stream=True), 200),
    ],
    ids=["malformed", "no model", "no provider", "provider's error", "clamped", "blocked", "oversize", "stream"],
)
async def test_an_ended_call_leaves_its_place_and_a_row(place: str, tmp_path: Path, body: bytes, status: int) -> None:
    assert await post(place, body) == status
    assert await post(place, chat("hello")) == 200
    with sqlite3.connect(tmp_path / "firewall.db") as rows:
        assert rows.execute("SELECT status FROM audit ORDER BY id").fetchall() == [(status,), (200,)]


async def test_a_caller_who_left_leaves_its_place(place: str, tmp_path: Path) -> None:
    body = chat("hi", model="sandbox-slow-60000")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2]))) as connection:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(20):
            while await post(place, chat("hello")) != 429:  # until the slow call has its place
                pass
    async with asyncio.timeout(20):
        while await post(place, chat("hello")) != 200:  # until the service has seen that its caller left
            pass
    with sqlite3.connect(tmp_path / "firewall.db") as rows:
        assert rows.execute("SELECT count(*) FROM audit WHERE status = 499").fetchone() == (1,)
