"""Personal data with the vendors' own SDKs through a running service: what the provider is sent, what the caller gets.

Needs the extra `pii`; without it these are skipped.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.conftest import serve
from tests.scripted import Agent, providers
from tests.servers import running

pytest.importorskip("presidio_analyzer", reason='the extra "pii" is not installed')

MAIL, PHONE, IBAN = "ann.lee@example.com", "+44 20 7946 0958", "DE89 3704 0044 0532 0130 00"
ASKED = f"Write to {MAIL} that {IBAN} was charged, or call {PHONE}."
OTHER = "ben.o@example.org"
every_way = pytest.mark.parametrize(
    ("protocol", "stream"), [(name, stream) for name in ("chat", "responses", "messages") for stream in (False, True)]
)


class Witness(Agent):
    """Keeps what it was sent, to the byte."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.sent.append("")

        async def heard() -> Any:
            message = await receive()
            if scope["type"] == "http":
                self.sent[-1] += message.get("body", b"").decode()
            return message

        await super().__call__(scope, heard, send)


@pytest.fixture(scope="module")
def agent() -> Witness:
    return Witness()


def _serve(folders: Any, tiny_model: Path, agent: Witness, more: str) -> Iterator[str]:
    with running(agent) as upstream, pytest.MonkeyPatch.context() as patch:
        yield from serve(folders, patch, f'[detection]\nartifact = "{tiny_model}"\n{providers(upstream)}{more}')


@pytest.fixture(scope="module")
def restoring(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, agent: Witness) -> Iterator[str]:
    yield from _serve(tmp_path_factory, tiny_model, agent, '[pii]\nenabled = true\nreplies = "redact"\n')


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, agent: Witness) -> Iterator[str]:
    yield from _serve(tmp_path_factory, tiny_model, agent, "[pii]\nenabled = true\nrestore = false\n")


@pytest.fixture(scope="module")
def blocking(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, agent: Witness) -> Iterator[str]:
    more = '[pii]\nenabled = true\naction = "block"\nreplies = "block"\n'
    yield from _serve(tmp_path_factory, tiny_model, agent, more)


TOOL = {"type": "object", "properties": {"to": {"type": "string"}}}


def ask(url: str, protocol: str, stream: bool, text: str) -> tuple[str, Any]:
    """What the SDK hands on as the reply's text, and the arguments of its call."""
    said: list[Any] = [{"role": "user", "content": text}]
    function: Any = {"name": "send_email", "parameters": TOOL}
    if protocol == "messages":
        tools: Any = [{"name": "send_email", "input_schema": TOOL}]
        more: Any = {"model": "claude-1", "max_tokens": 99, "messages": said, "tools": tools}
        with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
            if not stream:
                message: Any = client.messages.create(**more)
            else:
                with client.messages.stream(**more) as events:
                    message = events.get_final_message()
        texts = [block.text for block in message.content if block.type == "text"]
        calls = [block.input for block in message.content if block.type == "tool_use"]
        return "".join(texts), calls[0] if calls else None
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        if protocol == "responses":
            more = {"model": "agent-1", "input": said, "tools": [{"type": "function", **function}]}
            if not stream:
                answer: Any = client.responses.create(**more)
            else:
                with client.responses.stream(**more) as parts:
                    answer = parts.get_final_response()
            calls = [json.loads(item.arguments) for item in answer.output if item.type == "function_call"]
            return answer.output_text, calls[0] if calls else None
        more = {"model": "agent-1", "messages": said, "tools": [{"type": "function", "function": function}]}
        if not stream:
            completion: Any = client.chat.completions.create(**more)
        else:
            with client.chat.completions.stream(**more) as chunks:
                completion = chunks.get_final_completion()
        reply = completion.choices[0].message
        return reply.content or "", json.loads(reply.tool_calls[0].function.arguments) if reply.tool_calls else None


def placeholders(url: str, agent: Witness) -> dict[str, str]:
    """Those of `ASKED`, in their order, as the provider was sent them."""
    agent.text = "Good."
    ask(url, "chat", False, ASKED)
    found = dict.fromkeys(re.findall(r"<[A-Z_]+_[A-Z]{7,}>", agent.sent[-1]))
    return dict(zip((MAIL, IBAN, PHONE), found, strict=True))


@every_way
def test_the_provider_never_sees_the_data_and_the_caller_gets_them_back(
    restoring: str, agent: Witness, protocol: str, stream: bool
) -> None:
    known = placeholders(restoring, agent)
    agent.text = f"I wrote to {known[MAIL]} of {known[IBAN]}; <b>not</b> to {known[PHONE]}."
    text, _ = ask(restoring, protocol, stream, ASKED)
    assert text == f"I wrote to {MAIL} of {IBAN}; <b>not</b> to {PHONE}."
    seen = agent.sent[-1]
    assert not any(value in seen for value in known)
    assert all(placeholder in seen for placeholder in known.values())


@every_way
def test_arguments_of_calls_get_the_data_back_as_json(
    restoring: str, agent: Witness, protocol: str, stream: bool
) -> None:
    known = placeholders(restoring, agent)
    agent.text, agent.call = "", ("send_email", {"to": known[MAIL], "text": f'"{known[IBAN]}"\n'})
    _, arguments = ask(restoring, protocol, stream, ASKED)
    assert arguments == {"to": MAIL, "text": f'"{IBAN}"\n'}


@every_way
def test_data_that_the_model_utters_are_redacted_and_the_callers_own_are_not(
    restoring: str, agent: Witness, protocol: str, stream: bool
) -> None:
    known = placeholders(restoring, agent)
    agent.text = f"Ask {OTHER} or {known[MAIL]}, today."
    assert ask(restoring, protocol, stream, ASKED)[0] == f"Ask [redacted] or {MAIL}, today."


@every_way
def test_without_restoring_the_placeholders_stay(keeping: str, agent: Witness, protocol: str, stream: bool) -> None:
    known = placeholders(keeping, agent)
    agent.text = f"I wrote to {known[MAIL]}."
    assert ask(keeping, protocol, stream, ASKED)[0] == f"I wrote to {known[MAIL]}."


@every_way
def test_with_block_neither_a_request_nor_a_reply_with_data_passes(
    blocking: str, agent: Witness, protocol: str, stream: bool
) -> None:
    errors = (openai.APIError, anthropic.APIError)
    agent.text, before = "Fine.", len(agent.sent)
    with pytest.raises(errors, match="pii"):
        ask(blocking, protocol, stream, ASKED)
    assert len(agent.sent) == before
    agent.text = f"Ask {OTHER}."
    with pytest.raises(errors, match="pii"):
        ask(blocking, protocol, stream, "Whom do I ask?")


def test_the_record_says_what_was_found_and_holds_none_of_it(
    restoring: str, agent: Witness, tmp_path_factory: pytest.TempPathFactory
) -> None:
    known = placeholders(restoring, agent)
    agent.text = f"Ask {OTHER} or {known[MAIL]}."
    ask(restoring, "chat", False, ASKED)
    found = list(tmp_path_factory.getbasetemp().rglob("firewall.db"))
    rows = ""
    for path in found:
        with sqlite3.connect(path) as database:
            rows += "\n".join(database.iterdump())
    assert all(kind in rows for kind in ("EMAIL_ADDRESS", "IBAN_CODE", "PHONE_NUMBER"))
    assert not any(value in rows for value in (MAIL, IBAN, PHONE, OTHER))
