"""A model server inside the service, for trying the firewall out and for tests. It is no model: it follows rules.

- `sandbox-echo` repeats the last user message.
- `sandbox-leaky` obeys: asked for its instructions, it recites its system prompt; anything else it repeats.
- `sandbox-words-N` writes N words.
- `sandbox-slow-MS` echoes with a pause of MS milliseconds before each chunk.

It speaks chat completions, legacy completions (as if the prompt were the last user message), Responses
(`sandbox_responses`), and Messages and their counting (`sandbox_messages`). Where tools are offered and the last user
message is `call <name> <json>`, any of them answers with that tool call; a tool's result is such a message as well.
`sandbox-embedding` makes vectors (`sandbox_embeddings`). Every reply says `sandbox` in its `system_fingerprint`,
`metadata`, `id` or model's name.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from service.upstream import sandbox_messages, sandbox_responses
from service.upstream.sandbox_embeddings import EMBEDDING_MODEL, embeddings_of, inputs_of, words_of
from service.upstream.sandbox_responses import KeptResponses

Count = Callable[[str, Sequence[str]], Awaitable[int]]
"""How many tokens these texts have for that model."""

MODELS = ("sandbox-echo", "sandbox-leaky", "sandbox-words-100", "sandbox-slow-100", EMBEDDING_MODEL)

_PATHS = frozenset({"/chat/completions", "/completions", "/embeddings", "/responses"})
_KINDS = frozenset({"echo", "leaky", "words", "slow"})
_FINGERPRINT = "sandbox: rules, not a model"
_ASKS_FOR_PROMPT = re.compile(
    r"\b(system|hidden|initial|developer)[ -]?(prompt|message|instructions?)\b|\byour (instructions|prompt|rules)\b"
    r"|\b(everything|text|words|lines) (above|before)\b",
    re.IGNORECASE,
)
_CALL = re.compile(r"call ([A-Za-z0-9_-]{1,64}) (\{.*\})\s*", re.DOTALL)
_CHUNK = re.compile(r"\s*\S{1,24}|\s+")
_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett")
_MAX_WORDS = 100_000
_MAX_PAUSE_MS = 60_000


class SandboxReply:
    """An answer of the sandbox (`interfaces.Reply`)."""

    def __init__(self, status: int, content_type: str, parts: Iterator[bytes], pause_s: float = 0.0) -> None:
        self.status = status
        self.content_type = content_type
        self.headers: tuple[tuple[str, str], ...] = ()
        self._parts = parts
        self._pause_s = pause_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, with the model's pause before each part."""
        for part in self._parts:
            # Even without a pause: a long reply must let others have the event loop.
            await asyncio.sleep(self._pause_s)
            yield part

    async def close(self) -> None:
        """Stop writing."""
        self._parts = iter(())


class Sandbox:
    """The provider (`interfaces.Provider`)."""

    def __init__(self, name: str = "sandbox", count: Count | None = None) -> None:
        self.name = name
        self.asks_usage = True
        self._count = count or _count_words
        self._kept = KeptResponses()

    async def open(
        self, path: str, body: bytes, *, stream: bool, headers: Mapping[str, str], method: str = "POST", model: str = ""
    ) -> SandboxReply:
        """Answer one call."""
        del headers, model
        if path.startswith("/responses/"):
            return self._about_kept(method, path, stream=stream)
        is_messages = path in sandbox_messages.PATHS
        if path not in _PATHS and not is_messages:
            return _failure(404, "The sandbox does not know this path.")
        request = json.loads(body)
        model = str(request.get("model"))
        if path == "/embeddings" and model == EMBEDDING_MODEL:
            return SandboxReply(200, "application/json", iter((_encode(embeddings_of(request)),)))
        kind, _, number = model.removeprefix("sandbox-").partition("-")
        numbered = kind in {"words", "slow"}
        if path == "/embeddings" or kind not in _KINDS or numbered != number.isdecimal():
            return _failure(404, "The sandbox has no such model.", is_messages=is_messages)
        pause_s = min(int(number), _MAX_PAUSE_MS) / 1e3 if kind == "slow" else 0.0
        if is_messages:
            return await self._message(path, request, (model, kind, int(number or 0)), pause_s, stream=stream)
        if path == "/responses":
            return self._response(request, kind, int(number or 0), pause_s, stream=stream)
        if path == "/completions":
            return _completions(request, kind, int(number or 0), pause_s, stream=stream)
        reply = _reply_to(request, kind, int(number or 0))
        usage = _usage(request, reply)
        base = {"id": "chatcmpl-sandbox", "created": int(time.time()), "model": model}
        if not stream:
            message = {"role": "assistant", "refusal": None, **reply}
            logprobs = _logprobs(reply) if request.get("logprobs") else None
            choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": _reason(reply)}
            document = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
            document["system_fingerprint"] = _FINGERPRINT
            return SandboxReply(200, "application/json", iter((_encode(document),)), pause_s)
        wants_usage = (request.get("stream_options") or {}).get("include_usage") is True
        base["object"] = "chat.completion.chunk"
        base["system_fingerprint"] = _FINGERPRINT
        return SandboxReply(200, "text/event-stream", _events(base, reply, usage if wants_usage else None), pause_s)

    async def _message(
        self, path: str, request: dict[str, Any], asked: tuple[str, str, int], pause_s: float, *, stream: bool
    ) -> SandboxReply:
        model, kind, number = asked
        if path != sandbox_messages.PATHS[0]:
            count = await self._count(model, sandbox_messages.counted_texts(request))
            return SandboxReply(200, "application/json", iter((_encode({"input_tokens": count}),)), pause_s)
        chat = sandbox_messages.as_chat(request)
        reply = _reply_to(chat, kind, number)
        words = _usage(chat, reply)
        usage = {"input_tokens": words["prompt_tokens"], "output_tokens": words["completion_tokens"]}
        if stream:
            events = sandbox_messages.events(model, reply, usage, _CHUNK.findall)
            return SandboxReply(200, "text/event-stream", events, pause_s)
        document = sandbox_messages.message(model, reply, usage)
        return SandboxReply(200, "application/json", iter((_encode(document),)), pause_s)

    def _response(
        self, request: dict[str, Any], kind: str, number: int, pause_s: float, *, stream: bool
    ) -> SandboxReply:
        messages = self._kept.messages_of(request)
        reply = _reply_to({**request, "messages": messages}, kind, number)
        response = sandbox_responses.response_to(request, reply, _usage({"messages": messages}, reply))
        self._kept.keep(request, response)
        if request.get("background"):
            response = {**response, "status": "queued", "output": [], "usage": None}
        return _whole_or_streamed(response, pause_s, stream=stream)

    def _about_kept(self, method: str, path: str, *, stream: bool) -> SandboxReply:
        response_id = path.removeprefix("/responses/").partition("?")[0].removesuffix("/cancel")
        response = self._kept.take(response_id) if method == "DELETE" else self._kept.find(response_id)
        if response is None:
            return _failure(404, "The sandbox keeps no such response.")
        if method == "DELETE":
            response = {"id": response_id, "object": "response", "deleted": True}
        return _whole_or_streamed(response, 0.0, stream=stream)


def _whole_or_streamed(response: dict[str, Any], pause_s: float, *, stream: bool) -> SandboxReply:
    if not stream:
        return SandboxReply(200, "application/json", iter((_encode(response),)), pause_s)
    events = (
        b"event: %s\ndata: %s\n\n" % (event["type"].encode(), _encode(event))
        for event in sandbox_responses.events_of(response, _CHUNK.findall)
    )
    return SandboxReply(200, "text/event-stream", events, pause_s)


async def _count_words(model: str, texts: Sequence[str]) -> int:
    """Where nobody counts tokens."""
    del model
    return sum(len(text.split()) for text in texts)


def _reply_to(request: dict[str, Any], kind: str, number: int) -> dict[str, Any]:
    messages = [message for message in request.get("messages") or () if isinstance(message, dict)]
    asked = next((_text(m.get("content")) for m in reversed(messages) if m.get("role") in {"user", "tool"}), "")
    call = _CALL.fullmatch(asked)
    if call and request.get("tools"):
        function = {"name": call.group(1), "arguments": call.group(2)}
        return {"content": None, "tool_calls": [{"id": "call_sandbox", "type": "function", "function": function}]}
    if kind == "words":
        count = min(number, _MAX_WORDS)
        return {"content": " ".join(_WORDS[index % len(_WORDS)] for index in range(count))}
    if kind == "leaky" and _ASKS_FOR_PROMPT.search(asked):
        system = [_text(m.get("content")) for m in messages if m.get("role") in {"system", "developer"}]
        return {"content": "\n".join(system) or "I have no system prompt."}
    return {"content": asked}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _events(base: dict[str, Any], reply: dict[str, Any], usage: dict[str, int] | None) -> Iterator[bytes]:
    def event(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        document = {**base, "choices": [choice]}
        if usage is not None:
            document["usage"] = None
        return b"data: " + _encode(document) + b"\n\n"

    yield event({"role": "assistant", "content": None if reply.get("tool_calls") else ""})
    for index, call in enumerate(reply.get("tool_calls") or ()):
        function = call["function"]
        head = {"index": index, "id": call["id"], "type": "function"}
        yield event({"tool_calls": [{**head, "function": {"name": function["name"], "arguments": ""}}]})
        for piece in _CHUNK.findall(function["arguments"]):
            yield event({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    for piece in _CHUNK.findall(reply.get("content") or ""):
        yield event({"content": piece})
    yield event({}, _reason(reply))
    if usage is not None:
        yield b"data: " + _encode({**base, "choices": [], "usage": usage}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _completions(request: dict[str, Any], kind: str, number: int, pause_s: float, *, stream: bool) -> SandboxReply:
    """A choice for each prompt and each of its `n` samples; with `echo` the prompt stands before its answer."""
    prompts = [words_of(prompt) for prompt in inputs_of(request.get("prompt"))]
    texts: list[str] = []
    for prompt in prompts:
        reply = _reply_to({"messages": [{"role": "user", "content": prompt}]}, kind, number)
        written = (prompt if request.get("echo") else "") + str(reply["content"])
        texts += [written] * (request.get("n") or 1)
    asked, told = (sum(len(text.split()) for text in group) for group in (prompts, texts))
    usage = {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}
    base = {"id": "cmpl-sandbox", "object": "text_completion", "created": int(time.time())}
    base |= {"model": str(request.get("model")), "system_fingerprint": _FINGERPRINT}

    def choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}

    if not stream:
        choices = [choice(index, text, "stop") for index, text in enumerate(texts)]
        return SandboxReply(200, "application/json", iter((_encode({**base, "choices": choices, "usage": usage}),)))

    def events() -> Iterator[bytes]:
        for index, text in enumerate(texts):
            for piece in (*_CHUNK.findall(text), None):
                one = choice(index, piece or "", "stop" if piece is None else None)
                yield b"data: " + _encode({**base, "choices": [one]}) + b"\n\n"
        if (request.get("stream_options") or {}).get("include_usage") is True:
            yield b"data: " + _encode({**base, "choices": [], "usage": usage}) + b"\n\n"
        yield b"data: [DONE]\n\n"

    return SandboxReply(200, "text/event-stream", events(), pause_s)


def _reason(reply: dict[str, Any]) -> str:
    return "tool_calls" if reply.get("tool_calls") else "stop"


def _logprobs(reply: dict[str, Any]) -> dict[str, Any]:
    """Certainty about every piece: rules have no distribution."""
    pieces = _CHUNK.findall(reply.get("content") or "")
    certain = [{"token": piece, "logprob": 0.0, "bytes": list(piece.encode()), "top_logprobs": []} for piece in pieces]
    return {"content": certain, "refusal": None}


def _usage(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, int]:
    """Words, not tokens: enough to be added up."""
    messages = request.get("messages") or ()
    prompt = sum(len(_text(m.get("content")).split()) for m in messages if isinstance(m, dict))
    calls = " ".join(call["function"]["arguments"] for call in reply.get("tool_calls") or ())
    completion = len(f"{reply.get('content') or ''} {calls}".split())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _failure(status: int, message: str, *, is_messages: bool = False) -> SandboxReply:
    error = {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    document: dict[str, Any] = sandbox_messages.failure(message) if is_messages else {"error": error}
    return SandboxReply(status, "application/json", iter((_encode(document),)))


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def sandbox_app(scope: Any, receive: Any, send: Any) -> None:
    """The sandbox as an ASGI application of its own, for benchmarks and tests over a real socket: POST /v1/…"""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    stream = bool(json.loads(body or b"{}").get("stream"))
    path = scope["path"]
    if path not in sandbox_messages.PATHS:
        path = path.removeprefix("/v1")
    reply = await Sandbox().open(path, body, stream=stream, headers={})
    headers = [(b"content-type", reply.content_type.encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    async for part in reply.chunks():
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
