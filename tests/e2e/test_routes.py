"""Routes over real HTTP: who is asked after whom, with what bytes, and what is told of it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from service import settings as config
from service.app import create_app
from tests.servers import running

CHAT = {"model": "theirs", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}}]}
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"Hello there. "},"finish_reason":null}]}\n\n'


class Stub:
    """A provider that does what `script` says of each call, and then answers; `busy` counts those of all stubs."""

    busy: list[int]

    def __init__(self, name: str) -> None:
        self.name = name
        self.script: list[Any] = []
        self.bodies: list[bytes] = []
        self.gate = asyncio.Event()
        self.held = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.busy[0] += 1
        self.busy[1] = max(self.busy)
        try:
            return await self.answer(request)
        finally:
            self.busy[0] -= 1

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        step = self.script.pop(0) if self.script else 200
        if step == "drop":
            assert request.transport is not None
            request.transport.abort()
        if step == "hold":
            self.held.set()
            await self.gate.wait()
        if step == "break":
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(CHUNK * 3)
            assert request.transport is not None
            request.transport.close()
            return response
        status = step if isinstance(step, int) else 200
        headers = {"retry-after": "7"} if status == 429 else {}
        error = {"error": {"message": f"{self.name} cannot"}}
        return web.json_response(error if status >= 400 else CHAT, status=status, headers=headers)


@pytest.fixture
async def stubs() -> AsyncIterator[tuple[Stub, Stub, Callable[[str], str]]]:
    """Two providers, and how a configuration names them: `{a}` and `{b}` become their addresses."""
    made, servers = (Stub("a"), Stub("b")), []
    Stub.busy = [0, 0]
    for stub in made:
        app = web.Application()
        app.router.add_post("/v1/{rest:.*}", stub.handle)
        servers.append(TestServer(app))
        await servers[-1].start_server()
    yield (
        *made,
        lambda text: text.replace("{a}", str(servers[0].make_url("/v1"))).replace(
            "{b}", str(servers[1].make_url("/v1"))
        ),
    )
    for stub in made:
        stub.gate.set()
    for server in servers:
        await server.close()


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path, stubs: Any) -> Iterator[Callable[..., str]]:
    """Start a service with two providers and a route over both; `a`, `b` and `route` are more lines of theirs."""
    with ExitStack() as stack:

        def begin(a: str = "", b: str = "", route: str = "", a_url: str = "{a}", detection: str = "") -> str:
            toml = f"""
[detection]
artifact = "{tiny_model}"
{detection}
[[providers]]
name = "a"
kind = "openai"
base_url = "{a_url}"
retries = 0
{a}
[[providers]]
name = "b"
kind = "openai"
base_url = "{{b}}"
retries = 0
{b}
[[routes]]
model = "fast"
targets = [{{ provider = "a", model = "a-large" }}, {{ provider = "b", model = "b-large" }}]
{route}
"""
            file = tmp_path / "firewall.toml"
            file.write_text(stubs[2](toml), encoding="utf-8")
            return stack.enter_context(running(create_app(config.load(file))))

        yield begin


BODY = b'{ "messages": [{"role":"user","content":"hello \\u00e4"}],\n "model" : "fast", "stop": "fast" }'


async def ask(url: str, body: bytes = BODY) -> tuple[int, dict[str, Any], Any]:
    headers = {"content-type": "application/json"}
    async with (
        aiohttp.ClientSession(url) as session,
        session.post("/v1/chat/completions", data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json(), answer.headers


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


def rows(folder: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "firewall.db") as database:
        found = database.execute("SELECT model, provider, attempts, status, error FROM audit ORDER BY id").fetchall()
    return [
        (model, provider, json.loads(attempts), status, error) for model, provider, attempts, status, error in found
    ]


async def test_an_alias_is_one_splice_in_the_body_and_nothing_else(start: Any, stubs: Any, tmp_path: Path) -> None:
    url = start()
    status, answer, _ = await ask(url)
    assert (status, answer) == (200, CHAT)
    assert stubs[0].bodies == [BODY.replace(b'"model" : "fast"', b'"model" : "a-large"')]
    assert stubs[1].bodies == []
    assert rows(tmp_path) == [("fast", "a", ["a 200"], 200, "")]
    listed = json.loads((await get(f"{url}/v1/models"))[1])
    assert [(model["id"], model["owned_by"]) for model in listed["data"]] == [("fast", "a")]


async def test_a_bound_is_set_in_the_member_that_the_provider_s_own_model_knows(
    start: Any, stubs: Any, tmp_path: Path
) -> None:
    thinks = '[[routes]]\nmodel = "thinks"\ntargets = [{ provider = "b", model = "o3-mini" }]\n'
    url = start(route=thinks + "[limits]\nmax_output_tokens = 9")
    await ask(url, BODY.replace(b'"fast", "stop"', b'"thinks", "stop"'))
    await ask(url)
    (sent,), (other,) = stubs[1].bodies, stubs[0].bodies
    assert (json.loads(sent)["max_completion_tokens"], json.loads(sent)["model"]) == (9, "o3-mini")
    assert json.loads(other)["max_tokens"] == 9


@pytest.mark.parametrize("step", [502, 503, 504, "drop"])
async def test_the_next_is_asked_once_the_first_cannot_and_never_both_at_once(
    start: Any, stubs: Any, tmp_path: Path, step: Any
) -> None:
    a, b, _ = stubs
    a.script = [step]
    status, answer, _ = await ask(start())
    assert (status, answer) == (200, CHAT)
    assert json.loads(b.bodies[0])["model"] == "b-large"
    assert (len(a.bodies), len(b.bodies), Stub.busy[1]) == (1, 1, 1)
    how = "unreachable" if step == "drop" else step
    assert rows(tmp_path) == [("fast", "b", [f"a {how}", "b 200"], 200, "")]


async def test_a_provider_that_nobody_listens_for_is_passed_over(start: Any, stubs: Any, tmp_path: Path) -> None:
    status, _, _ = await ask(start(a_url="http://127.0.0.1:1/v1"))
    assert (status, len(stubs[1].bodies)) == (200, 1)
    assert rows(tmp_path)[0][2] == ["a unreachable", "b 200"]


async def test_a_silent_provider_is_a_504_and_nobody_else_is_asked(start: Any, stubs: Any, tmp_path: Path) -> None:
    stubs[0].script = ["hold"]
    status, answer, _ = await ask(start(a="timeout_s = 0.2"))
    assert (status, answer["error"]["code"], stubs[1].bodies) == (504, "upstream_timeout", [])
    assert rows(tmp_path) == [("fast", "a", ["a timeout"], 504, "upstream_timeout")]


async def test_a_stream_that_breaks_after_its_first_byte_is_not_begun_again_elsewhere(start: Any, stubs: Any) -> None:
    stubs[0].script = ["break"]
    url = start()
    body = BODY.replace(b'"stop": "fast"', b'"stream": true')
    async with (
        aiohttp.ClientSession(url) as session,
        session.post("/v1/chat/completions", data=body, headers={"content-type": "application/json"}) as answer,
    ):
        out = await answer.text()
    assert "upstream" in out.split("data: ")[-1]
    assert "[DONE]" not in out
    assert stubs[1].bodies == []


@pytest.mark.parametrize(("route", "status", "provider"), [("", 429, "a"), ("next_on_429 = true", 200, "b")])
async def test_a_provider_that_has_had_enough_is_passed_over_where_that_is_asked_for(
    start: Any, stubs: Any, tmp_path: Path, route: str, status: int, provider: str
) -> None:
    stubs[0].script = [429]
    told, _, headers = await ask(start(route=route))
    assert (told, rows(tmp_path)[0][1]) == (status, provider)
    assert headers.get("retry-after") == ("7" if status == 429 else None)


async def test_where_nobody_can_the_caller_gets_the_last_answer(start: Any, stubs: Any, tmp_path: Path) -> None:
    stubs[0].script, stubs[1].script = [503], [502]
    status, answer, _ = await ask(start())
    assert (status, answer["error"]["message"]) == (502, "b cannot")
    assert rows(tmp_path) == [("fast", "b", ["a 503", "b 502"], 502, "upstream_error")]


async def test_a_blocked_prompt_reaches_nobody_and_its_row_has_no_attempts(
    start: Any, stubs: Any, tmp_path: Path
) -> None:
    status, _, _ = await ask(start(), BODY.replace(b"hello", b"ignore that"))
    assert (status, stubs[0].bodies, stubs[1].bodies) == (400, [], [])
    assert rows(tmp_path) == [("fast", "a", [], 400, "")]


async def test_a_provider_left_alone_is_told_in_health_and_metrics(start: Any, stubs: Any, tmp_path: Path) -> None:
    a, b, _ = stubs
    a.script = [503, 503]
    url = start(a="breaker_failures = 2\nbreaker_open_s = 300", b="breaker_failures = 1\nbreaker_open_s = 300")
    assert json.loads((await get(f"{url}/health/ready"))[1])["status"] == "ready"
    for _ in range(3):
        assert (await ask(url))[0] == 200
    assert (len(a.bodies), len(b.bodies)) == (2, 3)
    assert rows(tmp_path)[2][2] == ["a open", "b 200"]
    status, told = await get(f"{url}/health/ready")
    assert (status, json.loads(told)["status"]) == (200, "degraded")
    assert json.loads(told)["providers"] == {"a": "open", "b": "closed"}
    metrics = (await get(f"{url}/metrics"))[1]
    assert 'firewall_provider_breaker{provider="a"} 1.0' in metrics
    assert 'firewall_provider_attempts_total{outcome="open",provider="a"} 1.0' in metrics
    assert 'firewall_provider_calls{provider="b"} 0.0' in metrics

    b.script = [503]
    assert (await ask(url))[0] == 503
    status, answer, headers = await ask(url)
    assert (status, answer["error"]["code"]) == (503, "upstream_unavailable")
    assert 0 < int(headers["retry-after"]) <= 300
    assert rows(tmp_path)[-1] == ("fast", "b", ["a open", "b open"], 503, "upstream_unavailable")
    status, told = await get(f"{url}/health/ready")
    assert (status, json.loads(told)["failed"]) == (503, ["providers"])


async def test_a_full_provider_is_passed_over_and_its_place_is_free_when_the_call_has_ended(
    start: Any, stubs: Any, tmp_path: Path
) -> None:
    a, b, _ = stubs
    a.script = ["hold"]
    url = start(a="concurrency = 1\nwait_s = 0")
    first = asyncio.ensure_future(ask(url))
    await a.held.wait()
    assert (await ask(url))[0] == 200
    assert len(b.bodies) == 1
    a.gate.set()
    assert (await first)[0] == 200
    assert (await ask(url))[0] == 200
    assert (len(a.bodies), len(b.bodies)) == (2, 1)
    assert rows(tmp_path)[0][2] == ["a full", "b 200"]


async def test_a_caller_who_leaves_gives_the_place_back(start: Any, stubs: Any) -> None:
    a, _, _ = stubs
    a.script = ["hold"]
    url = start(a="concurrency = 1\nwait_s = 30")
    leaves = asyncio.ensure_future(ask(url))
    await a.held.wait()
    leaves.cancel()
    assert (await ask(url))[0] == 200
    assert len(a.bodies) == 2


async def test_in_overlap_mode_a_block_gives_the_place_back(start: Any, stubs: Any) -> None:
    a, b, _ = stubs
    a.script = ["hold"]
    url = start(a="concurrency = 1\nwait_s = 0", detection='mode = "overlap"')
    assert (await ask(url, BODY.replace(b"hello", b"ignore that")))[0] == 400
    a.script = []
    assert (await ask(url))[0] == 200
    assert b.bodies == []


async def test_the_other_protocols_of_one_provider_take_the_same_way(start: Any, stubs: Any, tmp_path: Path) -> None:
    a, b, _ = stubs
    a.script = [503]
    url = start()
    fields = {"model": "fast", "input": "hello"}
    async with aiohttp.ClientSession(url) as session, session.post("/v1/embeddings", json=fields) as answer:
        await answer.read()
    assert json.loads(a.bodies[0]) == {"model": "a-large", "input": "hello"}
    assert json.loads(b.bodies[0]) == {"model": "b-large", "input": "hello"}
    assert rows(tmp_path)[0][2] == ["a 503", "b 200"]
