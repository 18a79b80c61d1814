"""OpenAI's own SDK before a provider that speaks Messages only: a second service, whose sandbox answers them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from service import settings as config
from service.app import create_app
from tests.servers import running

SECRET = "hunter2-correct-horse-battery"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def toml(tiny_model: Path, more: str = "") -> str:
    return f'[detection]\nartifact = "{tiny_model}"\n{more}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Path, str]]:
    """The front's folder and address. What the provider behind it is sent is judged there by its own name for it."""
    behind, front = tmp_path_factory.mktemp("behind"), tmp_path_factory.mktemp("front")
    (behind / "firewall.toml").write_text(toml(tiny_model), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_SECRET", SECRET)
        with running(create_app(config.load(behind / "firewall.toml"))) as url:
            (front / "firewall.toml").write_text(
                toml(
                    tiny_model,
                    f"""
[[protected]]
name = "vault"
kind = "secret"
value_env = "TEST_SECRET"
[[providers]]
name = "claude"
kind = "anthropic"
models = ["sandbox-*"]
base_url = "{url}"
translate_chat = true
[[providers]]
name = "gone"
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
retries = 0
[[routes]]
model = "either"
targets = [{{ provider = "gone" }}, {{ provider = "claude", model = "sandbox-echo" }}]
""",
                ),
                encoding="utf-8",
            )
            with running(create_app(config.load(front / "firewall.toml"))) as address:
                yield front, address


@pytest.fixture
def client(folder: tuple[Path, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{folder[1]}/v1", api_key="any", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, text: str, model: str = "sandbox-echo", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)


def last_row(folder: Path) -> dict[str, Any]:
    with sqlite3.connect(folder / "firewall.db") as database:
        database.row_factory = sqlite3.Row
        return dict(database.execute("SELECT * FROM audit ORDER BY id DESC LIMIT 1").fetchone())


def test_a_chat_is_answered_and_settled_to_what_the_message_used(
    client: openai.OpenAI, folder: tuple[Path, str]
) -> None:
    answer = ask(client, "Name three rivers in Spain.", max_tokens=50)
    assert answer.choices[0].message.content == "Name three rivers in Spain."
    assert (answer.object, answer.choices[0].finish_reason, answer.id) == ("chat.completion", "stop", "msg_sandbox")
    row = last_row(folder[0])
    assert (row["protocol"], row["provider"], json.loads(row["attempts"])) == ("openai.chat", "claude", ["claude 200"])
    used = answer.usage
    assert (row["prompt_tokens"], row["completion_tokens"]) == (used.prompt_tokens, used.completion_tokens)


@pytest.mark.parametrize("asked", [False, True])
def test_a_stream_is_told_and_its_usage_where_it_is_asked_for(
    client: openai.OpenAI, folder: tuple[Path, str], asked: bool
) -> None:
    text = "Name three rivers in Spain. Then tell me which of them is the longest."
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(ask(client, text, stream=True, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert [c.usage is not None for c in chunks if not c.choices] == [True] * asked
    assert last_row(folder[0])["completion_tokens"] > 10  # settled to what was used, told or not


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"role": "user", "content": 'call get_weather {"city": "Lisbon"}'}
    fields: Any = {"model": "sandbox-echo", "tools": [TOOL], "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(messages=[asked], **fields) as events:
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(messages=[asked], **fields).choices[0]
    call = choice.message.tool_calls[0]
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Lisbon"}
    function = {"name": call.function.name, "arguments": call.function.arguments}
    history: Any = [
        {"role": "system", "content": "Be brief."},
        asked,
        {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"},
        {"role": "user", "content": "Is it warm there?"},
    ]
    answer = client.chat.completions.create(messages=history, **fields)
    assert answer.choices[0].message.content == "21 degrees\nIs it warm there?"


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_is_judged_as_the_caller_would_read_it(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.APIError) as caught:
        list(ask(client, f"Say {SECRET} to me.", stream=stream))
    assert "leak" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_secret_in_a_tool_call_does_not_leave(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError) as caught:
        ask(client, f'call get_weather {{"city": "{SECRET}"}}', tools=[TOOL])
    assert "leak" in str(caught.value)


def test_what_messages_cannot_say_is_a_400_that_names_it_and_costs_nothing(
    client: openai.OpenAI, folder: tuple[Path, str]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "hello", seed=7)
    assert caught.value.param == "/seed"
    row = last_row(folder[0])
    assert (row["status"], json.loads(row["attempts"]), row["completion_tokens"]) == (400, ["claude refused"], 0)


def test_an_error_of_the_provider_has_the_caller_s_envelope(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "hello", "sandbox-nobody")
    assert caught.value.type == "not_found_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_route_goes_over_from_one_protocol_to_the_other(
    client: openai.OpenAI, folder: tuple[Path, str], stream: bool
) -> None:
    answer = ask(client, "hello there", "either", stream=stream)
    text = "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
    assert text == "hello there"
    row = last_row(folder[0])
    assert (row["model"], row["provider"]) == ("either", "claude")
    assert json.loads(row["attempts"]) == ["gone unreachable", "claude 200"]
