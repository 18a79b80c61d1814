"""Providers that speak OpenAI's protocols, each where it has them: addresses, keys, and what else stands in replies."""

from __future__ import annotations

import json
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

KEY = "a-key-of-the-provider"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
SAFE = {"hate": {"filtered": False, "severity": "safe"}, "jailbreak": {"filtered": False, "detected": False}}


def whole(message: dict[str, Any], choice: dict[str, Any], **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", **choice}]
    return {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, **more}


REPLIES = {
    "azure": whole(
        {"content": "Hello.", "refusal": None},
        {"content_filter_results": SAFE, "logprobs": None},
        prompt_filter_results=[{"prompt_index": 0, "content_filter_results": SAFE}],
        usage=USAGE,
    ),
    "vllm": whole(
        {"content": "Hello.", "reasoning_content": None, "tool_calls": [], "function_call": None},
        {"stop_reason": None, "token_ids": None},
        service_tier=None,
        prompt_logprobs=None,
        kv_transfer_params=None,
        usage=USAGE | {"prompt_tokens_details": None},
    ),
    "ollama": whole({"content": "Hello."}, {}, system_fingerprint="fp_ollama", usage=USAGE),
    "llama.cpp": whole(
        {"content": "Hello."}, {}, timings={"prompt_n": 5, "predicted_ms": 12.5}, usage=USAGE, system_fingerprint="b4"
    ),
    "bedrock": whole({"content": "Hello.", "refusal": None}, {"logprobs": None}, usage=USAGE, service_tier="default"),
    "vertex": whole({"content": "Hello."}, {"logprobs": None}, usage=USAGE | {"extra_properties": {"google": {}}}),
}


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
    return event(
        {"id": "c-1", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}
    )


STREAMS = {
    "azure": [
        event({"choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}]}),
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({"content": "Hello."}),
        chunk({}, "stop"),
        event({"choices": [], "usage": USAGE}),
    ],
    "vllm": [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "A greeting."}),
        chunk({"content": "Hello."}, usage=None),
        chunk({"content": ""}, "stop"),
        event({"id": "c-1", "choices": [], "usage": USAGE}),
    ],
    "ollama": [chunk({"role": "assistant", "content": "Hello."}), chunk({"content": ""}, "stop"),
               event({"choices": [], "usage": USAGE})],
    "llama.cpp": [chunk({"role": "assistant", "content": None}), chunk({"content": "Hello."}), chunk({}, "stop"),
                  event({"choices": [], "usage": USAGE, "timings": {"predicted_n": 2}})],
}  # fmt: skip

DATED = 'kind = "azure"\napi_version = "2024-10-21"'
# lines of the provider, where its API begins, the path that is to be asked
LAYOUTS = {
    "azure": (DATED, "", "/openai/deployments/m-1/chat/completions?api-version=2024-10-21"),
    "azure v1": ('kind = "azure"', "", "/openai/v1/chat/completions"),
    "azure v1 preview": (
        'kind = "azure"\napi_version = "preview"', "", "/openai/v1/chat/completions?api-version=preview"
    ),
    "vllm": ('kind = "openai"', "/v1", "/v1/chat/completions"),
    "ollama": ('kind = "openai"', "/v1/", "/v1/chat/completions"),
    "llama.cpp": ('kind = "openai"', "/v1", "/v1/chat/completions"),
    "bedrock": ('kind = "openai"', "/openai/v1", "/openai/v1/chat/completions"),
    "vertex": (
        'kind = "openai"',
        "/v1/projects/p-1/locations/europe-west4/endpoints/openapi",
        "/v1/projects/p-1/locations/europe-west4/endpoints/openapi/chat/completions",
    ),
}  # fmt: skip
BELOW, TEXT = "/openai/deployments/m-1", {"input": "hello"}


class Stand:
    """Keeps what it is asked, and answers with `reply`: a document, or the events of a stream."""

    def __init__(self) -> None:
        self.reply: Any = {}
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((request.raw_path, headers, json.loads(await request.read())))
        if isinstance(self.reply, dict):
            return web.json_response(self.reply)
        return web.Response(body=b"".join([*self.reply, b"data: [DONE]\n\n"]), content_type="text/event-stream")


@pytest.fixture
async def stand() -> AsyncIterator[tuple[Stand, str]]:
    made, app = Stand(), web.Application()
    app.router.add_route("*", "/{rest:.*}", made.handle)
    server = TestServer(app)
    await server.start_server()
    yield made, str(server.make_url("")).rstrip("/")
    await server.close()


@pytest.fixture
def start(
    tmp_path: Path, tiny_model: Path, stand: tuple[Stand, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Start a service before a provider with these lines at this place of the stand-in; gives its address."""
    monkeypatch.setenv("STAND_KEY", KEY)
    with ExitStack() as stack:

        def begin(lines: str, place: str, more: str = "") -> str:
            file = tmp_path / "firewall.toml"
            file.write_text(
                f'[detection]\nartifact = "{tiny_model}"\n[[providers]]\nname = "p"\nmodels = ["*"]\n'
                f'api_key_env = "STAND_KEY"\nbase_url = "{stand[1]}{place}"\n{lines}\n{more}',
                encoding="utf-8",
            )
            return stack.enter_context(running(create_app(config.load(file))))

        yield begin


async def post(url: str, path: str = "/v1/chat/completions", **fields: Any) -> tuple[int, bytes]:
    body = {"model": "m-1", **fields}
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "user", "content": "hello"}]
    async with aiohttp.ClientSession(url) as session, session.post(path, json=body) as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_each_is_asked_where_it_answers_and_told_its_key_as_it_wants_it(
    start: Any, stand: tuple[Stand, str], layout: str
) -> None:
    lines, place, path = LAYOUTS[layout]
    stand[0].reply = REPLIES[layout.partition(" ")[0]]
    status, out = await post(start(lines, place))
    assert (status, json.loads(out)) == (200, stand[0].reply)
    ((asked, headers, body),) = stand[0].asked
    assert (asked, body["model"]) == (path, "m-1")
    keys = {name: headers[name] for name in ("authorization", "api-key", "x-api-key") if name in headers}
    assert keys == ({"api-key": KEY} if layout.startswith("azure") else {"authorization": f"Bearer {KEY}"})


@pytest.mark.parametrize("server", STREAMS)
async def test_the_events_of_each_pass_as_they_are_once_they_are_judged(
    start: Any, stand: tuple[Stand, str], server: str
) -> None:
    stand[0].reply = STREAMS[server]
    lines, place, _ = LAYOUTS[server]
    status, out = await post(start(lines, place), stream=True, stream_options={"include_usage": True})
    assert (status, out) == (200, b"".join([*STREAMS[server], b"data: [DONE]\n\n"]))


@pytest.mark.parametrize(
    ("version", "path", "fields", "asked"),
    [
        ("2024-10-21", "/v1/embeddings", TEXT, f"{BELOW}/embeddings?api-version=2024-10-21"),
        ("2024-10-21", "/v1/completions", {"prompt": "hello"}, f"{BELOW}/completions?api-version=2024-10-21"),
        ("2025-03-01-preview", "/v1/responses", TEXT, "/openai/responses?api-version=2025-03-01-preview"),
        ("", "/v1/responses", TEXT, "/openai/v1/responses"),
    ],
)  # fmt: skip
async def test_azure_has_its_other_operations_below_the_deployment_or_beside_it(
    start: Any, stand: tuple[Stand, str], version: str, path: str, fields: dict[str, Any], asked: str
) -> None:
    await post(start(f'kind = "azure"\napi_version = "{version}"', ""), path, **fields)
    assert [place for place, _, _ in stand[0].asked] == [asked]


async def test_a_route_names_the_deployment(start: Any, stand: tuple[Stand, str]) -> None:
    stand[0].reply = REPLIES["azure"]
    route = '[[routes]]\nmodel = "gpt-4o"\ntargets = [{ provider = "p", model = "eu.large_2" }]'
    await post(start(DATED, "", route), model="gpt-4o")
    ((asked, _, body),) = stand[0].asked
    assert asked.startswith("/openai/deployments/eu.large_2/chat/completions?")
    assert body["model"] == "eu.large_2"


@pytest.mark.parametrize("model", ["..", "a/../../keys", "a?api-version=1", "a%2f..", "a#b", "é"])
async def test_a_model_s_name_leads_nowhere_else(start: Any, stand: tuple[Stand, str], model: str) -> None:
    status, out = await post(start(DATED, ""), model=model)
    assert (status, json.loads(out)["error"]["param"]) == (400, "/model")
    assert stand[0].asked == []


async def test_a_provider_s_key_in_its_reply_does_not_leave(start: Any, stand: tuple[Stand, str]) -> None:
    stand[0].reply = whole({"content": f"The key is {KEY}."}, {})
    status, out = await post(start('kind = "azure"', ""))
    assert (status, KEY.encode() in out) == (400, False)
