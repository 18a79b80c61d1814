"""The Python client and the ASGI middleware against a real service, and what they do where there is no verdict."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from service import errors
from service.client import AsyncFirewall, Firewall, Judgement
from service.middleware import FirewallMiddleware, InProcess
from tests.servers import running

Scan = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
async def scan(request: pytest.FixtureRequest, world: Any) -> AsyncIterator[Scan]:
    """Scan over either transport; `url`, `key` and `timeout_s` make another firewall."""
    made: list[AsyncFirewall] = []

    async def scan(
        texts: Any = None, *, url: str = "", key: str = "", timeout_s: float = 10.0, **more: Any
    ) -> Judgement:
        if request.param == "sync":
            firewall = Firewall(url or world.url, key, timeout_s=timeout_s)
            return await asyncio.to_thread(firewall.scan, texts, **more)
        made.append(AsyncFirewall(url or world.url, key, timeout_s=timeout_s))
        return await made[-1].scan(texts, **more)

    yield scan
    for firewall in made:
        await firewall.close()


async def test_texts_are_judged_each_by_itself(world: Any, scan: Scan) -> None:
    judgement = await scan(["hello", "an ATTACK"], role="document")
    assert judgement.blocked
    assert (judgement.action, judgement.category) == ("block", "injection")
    assert [(r.pointer, r.action) for r in judgement.results] == [("/texts/0", "allow"), ("/texts/1", "block")]
    assert world.row().request_id == judgement.request_id


async def test_a_conversation_is_judged(world: Any, scan: Scan) -> None:
    assert not (await scan(messages=[{"role": "user", "content": "hello"}])).blocked
    assert world.row().protocol == "scan"


async def test_a_wrong_request_is_refused_by_its_place(scan: Scan) -> None:
    with pytest.raises(errors.MalformedRequest) as caught:
        await scan(["hello", 3])
    assert caught.value.pointer == "/texts/1"


async def test_a_wrong_key_is_told(world: Any, scan: Scan) -> None:
    world.tenancy.key = "sf-real"
    with pytest.raises(errors.Unauthenticated):
        await scan(["hello"], key="sf-other")
    assert not (await scan(["hello"], key="sf-real")).blocked


async def test_a_spent_limit_says_when_to_come_back(world: Any, scan: Scan) -> None:
    async def reserve(*_: Any, **__: Any) -> None:
        raise errors.LimitExceeded("Spent.", headers={"retry-after": "7"})

    world.tenancy.reserve = reserve
    with pytest.raises(errors.LimitExceeded) as caught:
        await scan(["hello"])
    assert caught.value.headers["retry-after"] == "7"


@pytest.mark.parametrize("text", ["BREAK"])
async def test_a_guard_that_breaks_is_no_verdict(scan: Scan, text: str) -> None:
    with pytest.raises(errors.UnavailableError):
        await scan([text])


async def test_nobody_there_is_no_verdict(scan: Scan) -> None:
    with pytest.raises(errors.UnavailableError):
        await scan(["hello"], url="http://127.0.0.1:1")


async def test_silence_is_no_verdict(scan: Scan) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await scan(["WAIT"], timeout_s=0.3)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnot json!",
        b"HTTP/1.1 307 Away\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0-nobody\r\n",
    ],
)
async def test_an_answer_of_somebody_else_is_no_verdict(scan: Scan, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with pytest.raises(errors.UnavailableError):
            await scan(["hello"], url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize("kind", [Firewall, AsyncFirewall])
@pytest.mark.parametrize(
    "wrong", [("localhost:8080",), ("ftp://x",), ("http://",), ("http://x:99999",), ("http://x", "a\nb")]
)
def test_a_wrong_address_or_key_is_told_before_any_call(kind: Any, wrong: tuple[str, ...]) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        kind(*wrong)
    assert "a\nb" not in str(caught.value)


# -- the middleware --------------------------------------------------------------------------------------------------


class Echo:
    """An application that repeats what it reads."""

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.asked = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.read.append(body)
        self.asked.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Guarded:
    def __init__(self, app: Echo, session: aiohttp.ClientSession) -> None:
        self.app = app
        self._session = session

    async def post(self, data: bytes, path: str = "/chat", **headers: str) -> tuple[int, bytes]:
        sent = {"content-type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()}
        async with self._session.post(path, data=data, headers=sent) as answer:
            return answer.status, await answer.read()


@pytest.fixture(params=["remote", "in process"])
async def guarded(request: pytest.FixtureRequest, world: Any) -> AsyncIterator[Guarded]:
    app = Echo()
    remote = AsyncFirewall(world.url)
    firewall = remote if request.param == "remote" else InProcess(world.gateway)
    wrapped = FirewallMiddleware(app, firewall, paths=["/chat"], max_body_bytes=10_000)
    with running(wrapped) as url:
        async with aiohttp.ClientSession(url) as session:
            yield Guarded(app, session)


async def test_a_benign_body_reaches_the_application_byte_for_byte(world: Any, guarded: Guarded) -> None:
    body = b'{ "text":"h\\u00e9llo",  "n":[1.0e0]}'
    assert await guarded.post(body) == (200, body)
    assert guarded.app.read == [body]
    assert world.row().protocol == "scan"


async def test_an_attack_does_not_reach_the_application(world: Any, guarded: Guarded) -> None:
    status, answer = await guarded.post(b'{"a":{"b":["hello you there","an ATTACK"]}}')
    error = json.loads(answer)["error"]
    assert (status, error["code"]) == (400, "content_filter")
    assert guarded.app.read == []
    assert world.row().request_id in error["message"]


async def test_a_body_without_any_text_is_not_judged(world: Any, guarded: Guarded) -> None:
    assert await guarded.post(b"[1, 2]") == (200, b"[1, 2]")
    assert await guarded.post(b"") == (200, b"")
    assert world.audit.rows == []


@pytest.mark.parametrize("path", ["/chat/7", "//chat", "/chat"])
async def test_a_path_in_other_spelling_is_judged_too(path: str) -> None:
    class Blocks:
        async def scan(self, texts: Any, *, role: str) -> Judgement:
            return Judgement("req_1", "block", "injection")

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"a":"x"}', "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    app = Echo()
    scope = {"type": "http", "path": path, "headers": [(b"content-type", b"application/json")]}
    await FirewallMiddleware(app, Blocks(), paths=["/chat"])(scope, receive, send)
    assert (sent[0]["status"], app.read) == (400, [])


async def test_other_paths_are_left_alone(guarded: Guarded) -> None:
    assert await guarded.post(b"an ATTACK", "/other", content_type="text/plain") == (200, b"an ATTACK")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"a":"x"}', {"content_type": "text/plain"}, 415),
        (b'{"a":"x"}', {"content_encoding": "gzip"}, 415),
        (b'{"a":"x"}', {"content_type": "application/json; charset=utf-16"}, 415),
        (b'{"a":"x","a":"y"}', {}, 400),
        (b"{nonsense", {}, 400),
        (b'"' + b"a" * 20_000 + b'"', {}, 413),
        (b'{"a":"BREAK"}', {}, 503),
    ],
)
async def test_what_cannot_be_judged_does_not_reach_the_application(
    guarded: Guarded, body: bytes, headers: dict[str, str], status: int
) -> None:
    got, answer = await guarded.post(body, **headers)
    assert got == status
    assert "error" in json.loads(answer)
    assert guarded.app.read == []


async def test_a_key_that_does_not_hold_is_not_the_caller_s_fault(world: Any, guarded: Guarded) -> None:
    world.tenancy.key = "sf-real"
    status, _ = await guarded.post(b'{"a":"hello"}')
    assert status == 503
    assert guarded.app.read == []
