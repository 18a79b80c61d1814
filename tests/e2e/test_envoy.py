"""Through a real Envoy: what passes, what is refused in the protocol's own words, and that nothing unjudged leaves."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.api.ext_proc.server import ExtProcServer
from service.errors import Overloaded
from tests.envoy_server import configuration, envoy_server

SECRET = "hunter2-correct-horse"
LIMIT = 200_000  # of a body, in `processor`


def event(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@pytest.fixture
def envoy(world: Any, processor: ExtProcServer, tmp_path: Path) -> Iterator[str]:
    with envoy_server(tmp_path, configuration(processor.port, world.upstream.port)) as url:
        yield url


@pytest.fixture
async def through(envoy: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(envoy) as session:
        yield session


@pytest.fixture
def ask(through: aiohttp.ClientSession) -> Any:
    def ask(model: str, text: str = "hello", **fields: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return through.post("/v1/chat/completions", json={"model": model, "messages": messages, **fields})

    return ask


# -- what passes -----------------------------------------------------------------------------------------------------


async def test_a_benign_call_and_its_reply_pass_byte_for_byte(world: Any, through: aiohttp.ClientSession) -> None:
    body = b'{ "messages":[{"role":"user","content":"h\\u00e9llo"}] ,\n"model":"up-whole", "x":1.0e0}'
    headers = {"content-type": "application/json", "x-firewall-key": "callers-key", "authorization": "Bearer for-it"}
    async with through.post("/v1/chat/completions?a=b", data=body, headers=headers) as answer:
        assert answer.status == 200
        assert await answer.read() == (
            b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}]}'
        )
        assert answer.headers["x-firewall-action"] == "allow"
        assert answer.headers["x-ratelimit-limit-requests"] == "9"
    sent_headers, sent_body = world.upstream.requests[0]
    assert sent_body == body
    assert world.upstream.paths == ["/v1/chat/completions?a=b"]
    assert sent_headers["authorization"] == "Bearer for-it"
    assert sent_headers["accept-encoding"] == "identity"
    assert "callers-key" not in str(sent_headers)
    row = world.row()
    assert (row.status, row.action, row.model, row.provider, row.error) == (200, "allow", "up-whole", "envoy", "")
    assert (row.attempts, row.protocol, row.request_id) == (
        ("envoy 200",),
        "openai.chat",
        answer.headers["x-firewall-request-id"],
    )


async def test_long_bodies_pass_both_ways_in_many_frames(world: Any, ask: Any) -> None:
    message = {"role": "assistant", "content": "word " * 60_000}
    world.upstream.pieces = [json.dumps({"choices": [{"index": 0, "message": message}]}).encode()]
    async with ask("up-message", "word " * 30_000) as answer:
        assert answer.status == 200
        assert await answer.read() == world.upstream.pieces[0]
    assert json.loads(world.upstream.requests[0][1])["messages"][0]["content"] == "word " * 30_000


async def test_a_stream_passes_byte_for_byte(world: Any, ask: Any) -> None:
    world.upstream.pieces = [event("one "), event("two "), event("", "stop"), b"data: [DONE]\n\n"]
    async with ask("up-pieces", stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert await answer.read() == b"".join(world.upstream.pieces)
    assert world.row().stream
    assert world.tenancy.settled == [(7, 2)]


async def test_events_leave_as_soon_as_they_are_cleared_and_a_caller_who_leaves_is_on_record(
    world: Any, ask: Any
) -> None:
    async with ask("up-stall-within", stream=True) as answer:
        assert b"hello" in await asyncio.wait_for(answer.content.readany(), 10)
        answer.close()
    assert (await asyncio.to_thread(world.row)).error == "client_disconnected"


async def test_a_provider_s_own_error_passes_with_its_status_and_only_with_headers_that_callers_need(
    world: Any, ask: Any
) -> None:
    async with ask("up-429") as answer:
        assert answer.status == 429
        assert (await answer.json())["error"]["message"] == "slow down"
        assert answer.headers["retry-after"] == "3"
        assert not {"set-cookie", "x-custom", "openai-organization"} & {name.lower() for name in answer.headers}
    assert world.row().error == "upstream_error"


# -- the prompt ------------------------------------------------------------------------------------------------------

BAD = "an ATTACK"
CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": BAD}]}, "/messages/0/content"),
    ("/v1/responses", {"input": BAD}, "/input"),
    ("/v1/completions", {"prompt": BAD}, "/prompt"),
    ("/v1/embeddings", {"input": BAD}, "/input"),
]
ANTHROPIC = {"model": "claude-whole", "max_tokens": 9, "messages": [{"role": "user", "content": BAD}]}


@pytest.mark.parametrize(("path", "body", "pointer"), CALLS)
async def test_an_attack_is_refused_in_openai_s_envelope_and_reaches_nobody(
    world: Any, through: aiohttp.ClientSession, path: str, body: dict[str, Any], pointer: str
) -> None:
    async with through.post(path, json={"model": "up-whole", **body}) as answer:
        error = (await answer.json())["error"]
        assert answer.status == 400
        assert answer.headers["x-firewall-action"] == "block"
    assert (error["code"], error["type"], error["param"]) == ("content_filter", "invalid_request_error", pointer)
    assert answer.headers["x-firewall-request-id"] in error["message"]
    row = world.row()
    assert (row.action, row.category, row.status) == ("block", "injection", 400)
    assert world.upstream.requests == []


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_an_attack_is_refused_in_anthropic_s_envelope_and_reaches_nobody(
    world: Any, through: aiohttp.ClientSession, path: str
) -> None:
    sent = {name: value for name, value in ANTHROPIC.items() if name != "max_tokens" or path == "/v1/messages"}
    async with through.post(path, json=sent) as answer:
        said = await answer.json()
        assert answer.status == 400
    assert (said["type"], said["error"]["type"]) == ("error", "invalid_request_error")
    assert world.row().action == "block"
    assert world.upstream.requests == []


async def test_nothing_is_sent_ahead_of_its_verdict_in_overlap_mode_either(world: Any, ask: Any) -> None:
    world.gateway.overlap = True
    async with ask("up-whole", BAD) as answer:
        assert answer.status == 400
    assert world.upstream.requests == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_oversized_body_is_refused_as_too_large(
    world: Any, through: aiohttp.ClientSession, chunked: bool
) -> None:
    body = json.dumps({"model": "up-whole", "messages": [{"role": "user", "content": "x" * LIMIT}]}).encode()

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    headers = {"content-type": "application/json"}
    data: Any = parts() if chunked else body
    async with through.post("/v1/chat/completions", data=data, headers=headers) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "payload_too_large"
    assert world.row().status == 413
    assert world.upstream.requests == []


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'{"model":"up-whole","messages":[', "application/json", 400),
        (b'{"model":"up-whole","model":"x","messages":[]}', "application/json", 400),
        (b"", "application/json", 400),
        (b'{"model":"up-whole"}', "text/plain", 415),
    ],
)
async def test_what_no_reader_agrees_on_is_refused(
    world: Any, through: aiohttp.ClientSession, body: bytes, content_type: str, status: int
) -> None:
    async with through.post("/v1/chat/completions", data=body, headers={"content-type": content_type}) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["type"] == "invalid_request_error"
    assert world.row().action == "error"
    assert world.upstream.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models", 404),
        ("POST", "/v1/files", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/Chat/completions", 404),
    ],
)
async def test_a_path_that_is_not_judged_is_refused(
    world: Any, through: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    body = None if method == "GET" else {"model": "up-whole", "messages": [{"role": "user", "content": BAD}]}
    async with through.request(method, path, json=body) as answer:
        assert answer.status == status
        assert "error" in await answer.json()
    assert world.upstream.requests == []


@pytest.mark.parametrize("path", ["/v1//chat/completions", "/v1/x/../chat/completions", "/v1/chat%2fcompletions"])
async def test_no_other_spelling_of_a_path_goes_round_the_judge(
    world: Any, through: aiohttp.ClientSession, path: str
) -> None:
    from yarl import URL

    sent = {"model": "up-whole", "messages": [{"role": "user", "content": BAD}]}
    address = URL(str(through._base_url).rstrip("/") + path, encoded=True)
    async with aiohttp.ClientSession() as session, session.post(address, json=sent) as answer:
        assert answer.status in {400, 404}
    assert world.upstream.requests == []


# -- who asks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer k"}, 401),
        ({"x-firewall-key": "wrong"}, 401),
        ({"x-firewall-key": "k"}, 200),
        ({"x-firewall-key": "Bearer k"}, 200),
    ],
)
async def test_callers_are_known_by_the_key_in_the_firewall_s_own_header(
    world: Any, through: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    world.tenancy.key = "k"
    sent = {"model": "up-whole", "messages": [{"role": "user", "content": "hello"}]}
    async with through.post("/v1/chat/completions", json=sent, headers=headers) as answer:
        assert answer.status == status
    assert len(world.upstream.requests) == (status == 200)


async def test_a_limit_on_output_is_put_into_the_body(world: Any, ask: Any) -> None:
    world.tenancy.held.max_output_tokens = 5
    try:
        async with ask("up-whole") as answer:
            assert answer.status == 200
    finally:
        del world.tenancy.held.max_output_tokens
    headers, body = world.upstream.requests[0]
    assert json.loads(body)["max_tokens"] == 5
    assert int(headers["content-length"]) == len(body)


# -- the reply -------------------------------------------------------------------------------------------------------


def whole(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()


async def test_a_leak_in_a_whole_reply_is_withheld(world: Any, ask: Any) -> None:
    world.upstream.pieces = [whole(f"it is {SECRET}.")]
    async with ask("up-message") as answer:
        text = await answer.text()
        assert answer.status == 400
        assert answer.headers["x-firewall-action"] == "block"
    assert SECRET[:5] not in text
    assert json.loads(text)["error"]["code"] == "content_filter"
    row = world.row()
    assert (row.action, row.category) == ("block", "leak.secret")


async def test_a_redaction_in_a_whole_reply_changes_only_the_secret(world: Any, ask: Any) -> None:
    world.replies.action = "redact"
    world.upstream.pieces = [whole(f"it is {SECRET}.")]
    async with ask("up-message") as answer:
        assert answer.status == 200
        assert (await answer.json())["choices"][0]["message"]["content"] == "it is #."
    assert world.row().action == "redact"


async def test_a_leak_in_a_provider_s_error_is_withheld(world: Any, ask: Any) -> None:
    async with ask("up-error-leak") as answer:
        assert SECRET not in await answer.text()
        assert answer.status == 400


@pytest.mark.parametrize("cut", [1, 7, len(SECRET) - 1])
async def test_a_secret_split_over_a_stream_never_begins_to_leave(world: Any, ask: Any, cut: int) -> None:
    world.upstream.pieces = [event("it is "), event(SECRET[:cut]), event(SECRET[cut:]), b"data: [DONE]\n\n"]
    async with ask("up-pieces", stream=True) as answer:
        out = await answer.text()
    assert SECRET[:4] not in out
    assert "[DONE]" not in out
    events = [json.loads(line[6:]) for line in out.split("\n") if line.startswith("data: ")] or [json.loads(out)]
    assert events[-1]["error"]["code"] == "content_filter"
    assert world.row().category == "leak.secret"


async def test_a_redaction_in_a_stream_changes_only_the_secret(world: Any, ask: Any) -> None:
    world.replies.action = "redact"
    world.upstream.pieces = [event(f"it is {SECRET[:5]}"), event(f"{SECRET[5:]}, yes"), event("", "stop")]
    async with ask("up-pieces", stream=True) as answer:
        lines = [line for line in (await answer.text()).split("\n") if line.startswith("data: ")]
    assert [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines] == ["it is #", ", yes", ""]


async def test_a_leak_before_the_first_event_is_a_plain_400(world: Any, ask: Any) -> None:
    world.upstream.pieces = [event(SECRET), event("more", "stop"), b"data: [DONE]\n\n"]
    async with ask("up-pieces", stream=True) as answer:
        assert SECRET[:5] not in await answer.text()
        assert answer.status == 400
        assert answer.content_type == "application/json"


async def test_a_stream_that_is_cut_ends_there_and_its_provider_is_left_alone(world: Any, ask: Any) -> None:
    world.tenancy.held.output_tokens = 4
    try:
        async with ask("up-endless", stream=True) as answer:
            out = await asyncio.wait_for(answer.text(), 20)
    finally:
        del world.tenancy.held.output_tokens
    assert json.loads(out.strip().split("\n")[-1][6:])["error"]["code"] == "runaway_reply"
    assert await asyncio.to_thread(world.upstream.closed.wait, 10)


@pytest.mark.parametrize("model", ["up-garbage-whole", "up-gzip", "up-redirect"])
async def test_a_reply_that_cannot_be_read_is_withheld(world: Any, ask: Any, model: str) -> None:
    async with ask(model) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "upstream_invalid"


@pytest.mark.parametrize("model", ["up-garbage", "up-half", "up-no-end"])
async def test_a_stream_that_cannot_be_read_does_not_end_as_if_it_were_whole(world: Any, ask: Any, model: str) -> None:
    async with ask(model, stream=True) as answer:
        out = await answer.text()
    last = out.strip().split("\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "upstream_invalid"


# -- what fails ------------------------------------------------------------------------------------------------------


async def test_a_judge_that_breaks_fails_closed(world: Any, ask: Any) -> None:
    async with ask("up-whole", "BREAK") as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "guard_failed"
    assert world.row().action == "error"
    assert world.upstream.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_whose_row_cannot_be_written_does_not_end_well(world: Any, ask: Any, stream: bool) -> None:
    world.audit.broken = True
    world.upstream.pieces = [event("one", "stop"), b"data: [DONE]\n\n"]
    async with ask("up-pieces" if stream else "up-whole", stream=stream) as answer:
        out = await answer.text()
    assert "storage_failed" in out
    assert "[DONE]" not in out


async def test_a_status_that_envoy_has_no_name_for_reaches_the_caller(
    world: Any, through: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any, **__: Any) -> Any:
        raise Overloaded("The scoring queue is full.")

    monkeypatch.setattr(world.prompts, "judge", full)
    async with through.post("/v1/messages", json=ANTHROPIC) as answer:
        assert (await answer.json())["error"]["type"] == "overloaded_error"
        assert answer.status == 529
    assert world.upstream.requests == []


async def test_a_body_that_does_not_arrive_in_its_time_is_refused(world: Any, through: aiohttp.ClientSession) -> None:
    waiting = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b'{"model":'
        await waiting.wait()

    headers = {"content-type": "application/json"}
    async with through.post("/v1/chat/completions", data=parts(), headers=headers) as answer:
        assert answer.status == 408
    assert world.row().error == "request_timeout"


async def test_a_caller_who_leaves_before_the_verdict_is_on_record_and_nobody_is_called(
    world: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = threading.Event()

    async def judge(*_: Any, **__: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()

    async def read() -> None:
        async with ask("up-whole") as answer:
            await answer.read()

    monkeypatch.setattr(world.prompts, "judge", judge)
    asked = asyncio.ensure_future(read())
    assert await asyncio.to_thread(reached.wait, 10)
    asked.cancel()
    row = await asyncio.to_thread(world.row)
    assert (row.status, row.error) == (499, "client_disconnected")
    assert world.upstream.requests == []


async def test_without_the_firewall_nothing_passes(world: Any, tmp_path: Path) -> None:
    with envoy_server(tmp_path, configuration(1, world.upstream.port)) as url:
        sent = {"model": "up-whole", "messages": [{"role": "user", "content": "hello"}]}
        async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=sent) as answer:
            assert answer.status == 500
    assert world.upstream.requests == []


@pytest.mark.parametrize(
    ("mode", "instead"),
    [
        ("request_body_mode", "NONE"),
        ("request_body_mode", "BUFFERED"),
        ("response_body_mode", "NONE"),
        ("response_body_mode", "STREAMED"),
    ],
)
async def test_an_envoy_that_would_let_something_go_by_unseen_is_refused(
    world: Any, processor: ExtProcServer, tmp_path: Path, mode: str, instead: str
) -> None:
    config = configuration(processor.port, world.upstream.port)
    config = config.replace(f"{mode}: FULL_DUPLEX_STREAMED", f"{mode}: {instead}")
    # In these modes Envoy waits for 200 ms only, which a busy machine may need.
    config = config.replace(
        "failure_mode_allow: false", "failure_mode_allow: false\n                      message_timeout: 30s"
    )
    with envoy_server(tmp_path, config) as url:
        sent = {"model": "up-whole", "messages": [{"role": "user", "content": "hello"}]}
        async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=sent) as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "guard_failed"
    assert world.upstream.requests == []
