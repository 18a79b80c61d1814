"""Copying a model as its caller and its operator meet it: through the whole service, with OpenAI's own SDK."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import time
from typing import Any

import anthropic
import numpy as np
import openai
import pytest

import service.app
from service import settings as config
from service.records.audit import AuditRow
from service.records.place import database_place
from service.records.store import Store
from service.scoring.cells import CELLS, CoarseCells
from service.tenancy.keys import Keys, load_root
from tests.servers import running

SWEEP = 60

Serve = Callable[[str], str]


@pytest.fixture
def serve(tmp_path: Path, tiny_model: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(more: str) -> str:
            base = f'[detection]\nartifact = "{tiny_model}"\n[storage]\nurl = "sqlite:///a.db"\n'
            (tmp_path / "firewall.toml").write_text(base + more)
            return stack.enter_context(running(service.app.create_app(config.load(tmp_path / "firewall.toml"))))

        yield start


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    def read() -> list[dict[str, Any]]:
        with sqlite3.connect(tmp_path / "a.db") as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM audit ORDER BY id")]

    return read


def client_of(url: str, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def probe(client: openai.OpenAI, token: int, **more: Any) -> Any:
    """One call of a sweep over the vocabulary (Carlini et al. 2024)."""
    return client.chat.completions.create(
        model="sandbox-echo",
        messages=[{"role": "user", "content": "Say one word."}],
        logit_bias={str(token): 100},
        temperature=0,
        max_tokens=1,
        **({"logprobs": True, "top_logprobs": 5} | more),
    )


def swept(client: openai.OpenAI, calls: int = SWEEP) -> openai.APIStatusError | None:
    """Sweep until refused."""
    for token in range(calls):
        try:
            probe(client, token)
        except openai.APIStatusError as error:
            return error
    return None


def ask(client: openai.OpenAI, text: str) -> Any:
    return client.chat.completions.create(model="sandbox-echo", messages=[{"role": "user", "content": text}])


def metrics_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def found_in(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in json.loads(row["findings"]) if finding["guard"] == "extraction"]


def test_a_sweep_is_told_in_record_metrics_and_log_and_not_to_the_caller(
    serve: Serve, rows: Callable[[], list[dict[str, Any]]], capfd: pytest.CaptureFixture[str]
) -> None:
    url = serve("")
    with client_of(url) as client:
        assert swept(client) is None
        last = client.chat.completions.with_raw_response.create(
            model="sandbox-echo", messages=[{"role": "user", "content": "Say one word."}], logit_bias={"77": 5}
        )
    assert last.headers["x-firewall-action"] == "allow"
    kept = rows()
    assert found_in(kept[0]) == []
    assert (kept[-1]["action"], kept[-1]["category"]) == ("flag", "model_extraction")
    (finding,) = found_in(kept[-1])
    assert finding["detail"].startswith("tenant: sweep") and finding["score"] >= 0.9
    assert 'firewall_extraction_alarms_total{action="alert",scope="tenant"} 1.0' in metrics_of(url)
    assert "Say one word" not in json.dumps(kept) + "".join(capfd.readouterr())


def test_a_benign_chat_is_no_suspicion(serve: Serve, rows: Callable[[], list[dict[str, Any]]]) -> None:
    with client_of(serve('[extraction]\naction = "block"\n')) as client:
        said: list[Any] = []
        for number in range(SWEEP):
            said = [*said[-8:], {"role": "user", "content": f"And what would you cook on day {number}?"}]
            answer = client.chat.completions.create(model="sandbox-echo", messages=said)
            said.append({"role": "assistant", "content": answer.choices[0].message.content})
    assert [found_in(row) for row in rows()] == [[]] * SWEEP


def test_stripped_calls_get_an_answer_without_probabilities(
    serve: Serve, rows: Callable[[], list[dict[str, Any]]]
) -> None:
    with client_of(serve('[extraction]\naction = "strip"\n')) as client:
        assert probe(client, 1).choices[0].logprobs is not None
        assert swept(client) is None
        answer = probe(client, 1)
        assert answer.choices[0].logprobs is None
        assert answer.choices[0].message.content == "Say one word."
    assert any(found["detail"] == "tenant: log-probabilities and biases taken out" for found in found_in(rows()[-1]))


def test_a_throttled_caller_is_told_when_to_come_back(serve: Serve) -> None:
    with client_of(serve('[extraction]\naction = "throttle"\nthrottle_s = 300.0\n')) as client:
        error = swept(client)
        assert isinstance(error, openai.RateLimitError)
        assert 0 < int(error.response.headers["retry-after"]) <= 300
        assert error.code == "rate_limit_exceeded"


def test_a_blocked_caller_gets_403_in_the_envelope_of_its_protocol(
    serve: Serve, rows: Callable[[], list[dict[str, Any]]]
) -> None:
    url = serve('[extraction]\naction = "block"\n')
    with client_of(url) as client:
        error = swept(client)
        assert isinstance(error, openai.PermissionDeniedError)
        assert (error.code, error.type) == ("model_extraction", "permission_error")
        assert error.response.headers["x-firewall-action"] == "block"
        assert "sweep" not in str(error.body)
        with pytest.raises(openai.PermissionDeniedError):
            client.responses.create(model="sandbox-echo", input="hello")
    other = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)
    with other, pytest.raises(anthropic.PermissionDeniedError) as caught:
        other.messages.create(model="sandbox-echo", max_tokens=9, messages=[{"role": "user", "content": "hello"}])
    assert caught.value.body["error"]["type"] == "permission_error"  # type: ignore[index]
    last = rows()[-1]
    assert (last["status"], last["action"], last["category"]) == (403, "block", "model_extraction")
    assert last["provider"] in {"", "sandbox"} and json.loads(last["attempts"]) == []


def test_one_tenants_sweep_is_nothing_to_another(serve: Serve, tmp_path: Path) -> None:
    tenants = '[[tenants]]\nname = "north"\n[[tenants]]\nname = "south"\n'
    url = serve('[auth]\nmode = "keys"\n[extraction]\naction = "block"\n' + tenants)

    async def make() -> list[Any]:
        store = Store(database_place(config.load(tmp_path / "firewall.toml")))
        await store.open()
        made = [await Keys(store, load_root(tmp_path)).create(tenant) for tenant in ("north", "north", "south")]
        await store.close()
        return made

    first, second, other = asyncio.run(make())
    with client_of(url, first.key) as client:
        assert isinstance(swept(client), openai.PermissionDeniedError)
    with client_of(url, second.key) as client:
        assert ask(client, "hello").choices[0].message.content == "hello"
    with client_of(url, other.key) as client:
        assert ask(client, "hello").choices[0].message.content == "hello"
        assert probe(client, 5).choices[0].logprobs is not None


def test_without_it_nobody_is_watched(serve: Serve, rows: Callable[[], list[dict[str, Any]]]) -> None:
    with client_of(serve('[extraction]\nenabled = false\naction = "block"\n')) as client:
        assert swept(client) is None
    assert all(found_in(row) == [] for row in rows())


def ask_much(url: str, calls: int = 260) -> bool:
    """Whether single unlike texts, so many at once, are suspected."""
    chooser = random.Random(5)
    with client_of(url) as client:
        for _ in range(calls):
            ask(client, " ".join("".join(chooser.choices("abcdefghijklmnop", k=7)) for _ in range(8)))
    return "firewall_extraction_alarms_total{" in metrics_of(url)


def test_who_was_busy_before_a_restart_is_no_suspect_after_it(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chooser = np.random.default_rng(3)  # the stand-in's vectors all lie in one cell
    monkeypatch.setattr(CoarseCells, "of", lambda _, vectors: chooser.integers(0, CELLS, len(vectors)))
    assert ask_much(serve(""))
    before = time() - 3 * 86_400
    written = [
        AuditRow(
            time=before - before % 3_600 + number, request_id=f"old-{number}", tenant="default", provider="sandbox"
        )
        for number in range(400)
    ]

    async def write() -> None:
        store = Store(database_place(config.load(tmp_path / "firewall.toml")))
        await store.open()
        await store.add_rows(written)
        await store.close()

    asyncio.run(write())
    assert not ask_much(serve(""))
