"""What was judged is what is sent: made-up exchanges of every protocol pass byte for byte, streamed and not.

The values are drawn from the vendors' SDKs' types, with members that no type knows; the JSON is written in many ways.
`pytest --exchanges 1000` tries more of them.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from anthropic.types import Message, RawContentBlockDeltaEvent, RawContentBlockStartEvent, RawMessageDeltaEvent
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from service.interfaces import Call
from service.settings import Server
from tests.conftest import serve
from tests.contract.test_every_field_asked import REQUESTS
from tests.sdk_types import drawn, said_before

SIGNS = ["\\", "/", '"', "\t", "&"]
# A reply shares no word with its request: of so few, some would tell the system text by chance, and rightly be stopped.
ASKED = [*SIGNS, "river", "stone", "café", "Łódź", "naïve", "東京", "😀", "and", "7", "quiet", "<b>", "é"]
ANSWERED = [*SIGNS, "meadow", "cloud", "forêt", "Kraków", "señor", "大阪", "🙂", "or", "5", "loud", "<i>", "ü"]
# Ids of what a provider keeps must have been issued before, and the caller's own names are for nobody else; the rest
# says how the call goes on.
LEFT_OUT = (
    *("previous_response_id", "conversation", "prompt", "background", "stream", "stream_options", "n", "best_of"),
    *("user", "safety_identifier", "prompt_cache_key"),
)


class Made:
    """Draws exchanges of one protocol."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.chance = Random(f"{name} {number}")
        self.words = ASKED
        self.stream = number % 2 == 1 and name not in {"embeddings", "messages/count_tokens"}

    def text(self) -> str:
        return " ".join(self.chance.choices(self.words, k=self.chance.randrange(1, 9)))

    def drawn(self, kind: Any) -> Any:
        return drawn(kind, self.chance, self.text)

    def written(self, value: Any) -> bytes:
        """JSON in one of its many spellings."""
        how: dict[str, Any] = self.chance.choice(
            [{}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 1, "ensure_ascii": False}]
        )
        return json.dumps(value, **how).replace("/", self.chance.choice(["/", "\\/"])).encode()

    def request(self) -> dict[str, Any]:
        """One that refers to nothing that had to be there before."""
        self.words = ASKED
        parse, kind = REQUESTS[self.name]
        model = "claude-x" if self.name.startswith("messages") else "up-x"
        while True:
            made: dict[str, Any] = {"model": model, **(self.drawn(kind) or {})}
            made = {name: value for name, value in made.items() if name not in LEFT_OUT} | {"model": model}
            made = said_before(made)
            if self.stream:
                made["stream"] = True
            if self.stream and self.name in {"chat/completions", "completions"}:
                made["stream_options"] = {"include_usage": True, "include_obfuscation": False}
            call: Call = parse(json.dumps(made).encode(), Server())
            if not call.references and not call.names:
                return made

    def reply(self) -> bytes:
        self.words = ANSWERED
        if not self.stream:
            return self.written(WHOLE[self.name](self))
        return b"".join(self.events(STREAMED[self.name](self)))

    def events(self, documents: list[Any]) -> Iterator[bytes]:
        named = self.name in {"responses", "messages"}
        for document in documents:
            data = json.dumps(document, ensure_ascii=self.chance.random() < 0.5).encode()
            yield (f"event: {document['type']}\n".encode() if named else b"") + b"data: " + data + b"\n\n"
        if not named:
            yield b"data: [DONE]\n\n"


def response(made: Made) -> dict[str, Any]:
    return {**made.drawn(Response), "object": "response", "error": None}


def response_events(made: Made) -> list[Any]:
    events = [made.drawn(ResponseStreamEvent) for _ in range(made.chance.randrange(1, 6))]
    terminal = {"response.completed", "response.incomplete", "response.failed", "error"}
    kept = [{**event, "output_index": at} for at, event in enumerate(events) if event["type"] not in terminal]
    for event in kept:
        if "response" in event:
            event["response"] = response(made)
    return [*kept, {"type": "response.completed", "sequence_number": 99, "response": response(made)}]


def message_events(made: Made) -> list[Any]:
    events: list[Any] = [{"type": "message_start", "message": {**made.drawn(Message), "content": []}}]
    for index in range(made.chance.randrange(1, 4)):
        events.append({**made.drawn(RawContentBlockStartEvent), "index": index})
        events += [{**made.drawn(RawContentBlockDeltaEvent), "index": index} for _ in range(made.chance.randrange(4))]
        events.append({"type": "content_block_stop", "index": index})
    return [*events, made.drawn(RawMessageDeltaEvent), {"type": "message_stop"}]


WHOLE: dict[str, Callable[[Made], Any]] = {
    "chat/completions": lambda made: made.drawn(ChatCompletion),
    "responses": response,
    "embeddings": lambda made: made.drawn(CreateEmbeddingResponse),
    "completions": lambda made: made.drawn(Completion),
    "messages": lambda made: made.drawn(Message),
    "messages/count_tokens": lambda made: {"input_tokens": 7, "x_unknown": made.text()},
}
STREAMED: dict[str, Callable[[Made], list[Any]]] = {
    "chat/completions": lambda made: [made.drawn(ChatCompletionChunk) for _ in range(made.chance.randrange(1, 6))],
    "completions": lambda made: [made.drawn(Completion) for _ in range(made.chance.randrange(1, 6))],
    "responses": response_events,
    "messages": message_events,
}


class Provider:
    """Answers what it is told to and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked = b""
        self.answer = b""
        self.stream = False
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked = await request.read()
        if not self.stream:
            return web.Response(body=self.answer, content_type="application/json")
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for start in range(0, len(self.answer), 700):
            await response.write(self.answer[start : start + 700])
        await response.write_eof()
        return response


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    made, loop, ready = Provider(), asyncio.new_event_loop(), threading.Event()

    async def provide() -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/{path:.*}", made.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    def run() -> None:
        loop.run_until_complete(provide())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, provider: Provider) -> Iterator[str]:
    """The whole service around a model that knows one word, in front of the provider."""
    more = f"""
[tools] # the made-up replies call tools that the made-up requests do not offer
unoffered = "allow"
arguments = "allow"
hijack = "allow"
[detection]
artifact = "{tiny_model}"
on_unscannable = "allow"
[[providers]]
name = "up"
kind = "openai"
base_url = "{provider.url}/v1"
models = ["up-*"]
[[providers]]
name = "claude"
kind = "anthropic"
base_url = "{provider.url}"
models = ["claude-*"]
"""
    with pytest.MonkeyPatch.context() as patch:
        yield from serve(tmp_path_factory, patch, more)


@pytest.mark.parametrize("name", WHOLE)
async def test_made_up_exchanges_pass_byte_for_byte(
    name: str, url: str, provider: Provider, request: pytest.FixtureRequest
) -> None:
    async with aiohttp.ClientSession() as session:
        for number in range(request.config.getoption("--exchanges")):
            made = Made(name, number)
            body, provider.answer, provider.stream = made.written(made.request()), made.reply(), made.stream
            headers = {"content-type": "application/json"}
            async with session.post(f"{url}/v1/{name}", data=body, headers=headers) as answer:
                told = await answer.read()
            assert answer.status == 200, (number, told, body)
            assert provider.asked == body, number
            assert told == provider.answer, number
            assert answer.headers["x-firewall-action"] == "allow", number
