"""A real server on an ephemeral port over stand-in guards, and a provider that misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import aiohttp
import pytest

from service.api.ext_proc.server import ExtProcServer
from service.app import Parts, assemble, lines_of
from service.errors import StorageFailed, Unauthenticated
from service.firewall.prompt import Prompt
from service.firewall.verdict import Finding, Verdict, decide
from service.gateway import Gateway
from service.records.audit import AuditRow
from service.settings import Auth, Envoy, Provider, Server, Settings
from service.tenancy.issued import IssuedIds
from service.upstream.client import HttpProvider, SharedSession
from service.upstream.router import Router
from service.upstream.sandbox import Sandbox
from tests.servers import running

SECRET = "hunter2-correct-horse"


class Who:
    tenant = "default"
    key_id = ""

    system_prompt = ""
    models: tuple[str, ...] = ()

    def authorise(self, sent: Any) -> None:
        list(sent)

    def permit_route(self, protocol: str) -> None:
        pass

    def permit_model(self, model: str, unknown_fields: Any = (), further: Any = ()) -> None:
        pass


class Held:
    prompt_tokens = 7
    max_output_tokens: int | None = None
    output_tokens = 0
    hidden_output = False
    headers = (("x-ratelimit-limit-requests", "9"),)


class Tenancy:
    """Everyone is `default`, unless `key` is set; counts words."""

    def __init__(self) -> None:
        self.key = ""
        self.held = Held()
        self.settled: list[tuple[int, int]] = []

    async def authenticate(self, credential: str) -> Who:
        if self.key and credential != self.key:
            raise Unauthenticated("The API key is missing or not valid.")
        return Who()

    async def reserve(self, *_: Any, **__: Any) -> Held:
        return self.held

    async def count(self, model: str, texts: Sequence[str], **_: Any) -> int:
        return sum(len(text.split()) for text in texts)

    def decode(self, model: str, ids: Sequence[int]) -> None:
        return None

    async def settle(self, reservation: Any, prompt_tokens: int, completion_tokens: int, *_: Any, **__: Any) -> None:
        self.settled.append((prompt_tokens, completion_tokens))


class Prompts:
    """Blocks a text with ATTACK, breaks at BREAK, waits for `gate` at WAIT."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def judge(self, prompt: Prompt, *, digest: Any, cache_scope: str) -> Verdict:
        found = []
        for segment in prompt.segments:
            if "BREAK" in segment.text:
                raise ZeroDivisionError("quotes the prompt")
            if "WAIT" in segment.text:
                await self.gate.wait()
            if "ATTACK" in segment.text:
                found.append(Finding("injection", "injection", 0.9, "block", segment.pointer))
        return decide(found)


class Judge:
    """Holds back what may become the secret; blocks or redacts it."""

    def __init__(self, action: str) -> None:
        self.action = action
        self.text: dict[str, str] = {}
        self.finished = False
        self.ended: set[str] = set()
        self.blocked = False

    async def called(self, parts: Any) -> None:
        pass

    async def feed(self, channel: str, text: str, *, last: bool = False) -> None:
        self.text[channel] = self.text.get(channel, "") + text
        self.blocked |= self.action == "block" and SECRET in self.text[channel]

    async def end(self, channel: str) -> None:
        self.ended.add(channel)

    async def finish(self) -> None:
        self.finished = True

    def clears(self, texts: Sequence[str]) -> bool:
        return False

    async def whole(self, channel: str, text: str) -> str:
        self.text[channel] = text
        self.blocked |= self.action == "block" and SECRET in text
        return text.replace(SECRET, "#") if self.action == "redact" else text

    def cleared(self, channel: str) -> int:
        text = self.text.get(channel, "")
        if self.finished or channel in self.ended:
            return len(text)
        return next(i for i in range(len(text) + 1) if SECRET.startswith(text[i:]) or i == len(text))

    def render(self, channel: str, start: int, end: int) -> str:
        text = self.text[channel]
        at = text.find(SECRET)
        if at < 0:
            return text[start:end]
        kept = [text[start : max(start, min(end, at))], text[max(start, at + len(SECRET)) : end]]
        return ("#" if start <= at < end else "").join(kept)

    @property
    def verdict(self) -> Verdict:
        action = self.action if any(SECRET in text for text in self.text.values()) else "allow"
        return decide([Finding("leakage", "leak.secret", 1.0, action)]) if action != "allow" else Verdict()


class Replies:
    def __init__(self) -> None:
        self.action = "block"

    async def open(self, *_: Any) -> Judge:
        return Judge(self.action)


class Audit:
    """Keeps rows in memory; `gate` holds the writing up, `broken` makes it fail."""

    def __init__(self) -> None:
        self.rows: list[AuditRow] = []
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.written = threading.Semaphore(0)

    async def write(self, row: AuditRow) -> None:
        await asyncio.to_thread(self.gate.wait)
        if self.broken:
            raise StorageFailed("The audit store did not take the row.")
        self.rows.append(row)
        self.written.release()


class Ids:
    """Keeps issued ids in memory (`tenancy.issued.IssuedStore`)."""

    def __init__(self) -> None:
        self.providers: dict[str, tuple[str, int | None]] = {}

    async def add_issued(
        self, tenant: str, provider: str, digests: Sequence[str], at: float, tokens: int | None = None
    ) -> None:
        self.providers.update(dict.fromkeys(digests, (provider, tokens)))

    async def find_issued(self, digest: str) -> tuple[str, int | None] | None:
        return self.providers.get(digest)

    async def forget_issued(self, tenant: str, keep: int) -> None:
        pass


class Upstream:
    """A provider on a raw socket: the model's name says how it answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []
        self.arrived = threading.Semaphore(0)
        self.closed = threading.Event()
        self.pieces: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append((headers, body))
        self.arrived.release()
        self.paths.append(head[0].split(" ")[1])
        kind = json.loads(body)["model"].removeprefix("up-").removeprefix("claude-") if body else "pieces"
        json_head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        sse_head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        chunk = b'data: {"choices":[{"index":0,"delta":{"content":"hello "},"finish_reason":null}]}\n\n'
        whole = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}]}'
        sized = b"content-length: %d\r\n\r\n"
        if kind == "503-once" and len(self.requests) == 1:
            writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
            return True
        if kind == "drop-once" and len(self.requests) == 1:
            return False
        if kind in {"503-once", "drop-once", "whole"}:
            writer.write(json_head + sized % len(whole) + whole)
            return True
        if kind == "drop":
            return False
        if kind == "stall":
            await reader.read()
        elif kind == "stall-within":
            writer.write(sse_head + chunk)
            await reader.read()
        elif kind == "endless":
            writer.write(sse_head)
            while not reader.at_eof():
                writer.write(chunk)
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.01)
            self.closed.set()
        elif kind == "message":
            writer.write(json_head + sized % len(self.pieces[0]) + self.pieces[0])
        elif kind == "half":
            writer.write(sse_head + chunk + chunk[:40])
        elif kind == "no-end":
            writer.write(sse_head + chunk)
        elif kind == "garbage":
            writer.write(sse_head + chunk + b"data: {nonsense}\n\n")
        elif kind == "garbage-whole":
            writer.write(json_head + sized % 7 + b"{oh no}")
        elif kind == "short":
            writer.write(json_head + sized % 500 + whole)
        elif kind == "not-http":
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        elif kind == "stream":
            writer.write(sse_head + chunk + b"data: [DONE]\n\n")
        elif kind == "redirect":
            writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
        elif kind == "gzip":
            packed = gzip.compress(whole)
            writer.write(json_head + b"content-encoding: gzip\r\n" + sized % len(packed) + packed)
        elif kind == "429":
            error = b'{"error":{"message":"slow down","type":"x","param":null,"code":"y"}}'
            writer.write(b"HTTP/1.1 429 No\r\ncontent-type: application/json\r\nretry-after: 3\r\n")
            writer.write(b"set-cookie: a=b\r\nx-custom: z\r\nopenai-organization: o\r\n" + sized % len(error) + error)
        elif kind == "error-leak":
            error = f'{{"error":{{"message":"bad key {SECRET}"}}}}'.encode()
            writer.write(b"HTTP/1.1 401 No\r\ncontent-type: application/json\r\n" + sized % len(error) + error)
        elif kind == "pieces":
            writer.write(sse_head)
            for piece in self.pieces:
                writer.write(piece)
                await writer.drain()
        else:
            raise AssertionError(kind)
        await writer.drain()
        return False


class World:
    """Everything a test may set or look at."""

    def __init__(self) -> None:
        self.tenancy, self.prompts, self.replies, self.audit = Tenancy(), Prompts(), Replies(), Audit()
        self.upstream, self.issued = Upstream(), Ids()
        self.observed: list[AuditRow] = []
        self.url = ""
        self.gateway: Any = None
        self.loop: Any = None

    def row(self) -> AuditRow:
        """The one row; waits for it."""
        assert self.audit.written.acquire(timeout=5), "no audit row was written"
        assert len(self.audit.rows) == 1
        return self.audit.rows[0]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    loop = asyncio.new_event_loop()
    made.loop = loop
    ready = threading.Event()

    async def provide() -> None:
        server = await asyncio.start_server(made.upstream.serve, "127.0.0.1", 0)
        made.upstream.port = server.sockets[0].getsockname()[1]
        ready.set()

    def run() -> None:
        loop.run_until_complete(provide())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(5)
    settings = Settings(
        server=Server(max_body_bytes=1_000_000, max_messages=100, caller_timeout_s=1.0),
        auth=Auth(),
        providers=(
            Provider(name="up", kind="openai", models=("up-*",), base_url=f"http://127.0.0.1:{made.upstream.port}/v1"),
            Provider(
                name="claude",
                kind="anthropic",
                models=("claude-*",),
                base_url=f"http://127.0.0.1:{made.upstream.port}",
            ),
            Provider(name="gone", kind="openai", models=("gone-*",), base_url="http://127.0.0.1:1/v1"),
            Provider(name="sandbox", kind="sandbox", models=("sandbox-*",)),
        ),
    )
    session = SharedSession()
    http = {
        p.name: HttpProvider(
            p.name,
            session,
            base_url=p.base_url,
            api_key="provider-key",
            connect_timeout_s=1,
            timeout_s=0.5,
            retries=1,
            kind=p.kind,
        )
        for p in settings.providers
        if p.kind != "sandbox"
    }
    made.gateway = Gateway(
        tenancy=made.tenancy,
        prompts=made.prompts,
        replies=made.replies,
        providers=Router(settings.providers, lines_of(settings, {**http, "sandbox": Sandbox()})),
        issued=IssuedIds(made.issued, lambda text: text),
        audit=made.audit,
        observe=made.observed.append,
        digest=lambda text: "digest",
    )
    parts = Parts(
        gateway=made.gateway,
        exposition=lambda: ("text/plain", b"metric 1\n"),
        facts={"artifact": "a"},
        stop=[session.close],
    )
    with running(assemble(settings, parts)) as url:
        made.url = url
        yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.fixture
def processor(world: World) -> Iterator[ExtProcServer]:
    """What answers an Envoy, over the world's gateway, in an event loop of its own."""
    loop = asyncio.new_event_loop()
    server = Server(max_body_bytes=200_000, max_messages=100, caller_timeout_s=2.0)
    made = ExtProcServer(world.gateway, Envoy(port=0), server, shared=False)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(made.start(), loop).result(5)
    yield made
    asyncio.run_coroutine_threadsafe(made.stop(0), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.fixture
async def client(world: World) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(world.url) as session:
        yield session


@pytest.fixture
def ask(client: aiohttp.ClientSession) -> Callable[..., Any]:
    """Ask a model something: `async with ask("model", "text") as answer`."""

    def ask(model: str, text: str = "hello", **fields: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return client.post("/v1/chat/completions", json={"model": model, "messages": messages, **fields})

    return ask
