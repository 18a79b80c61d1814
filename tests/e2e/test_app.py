"""The service as `create_app` wires it: keys, the record on disk, metrics, and what it refuses to start with."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service import settings as config
from service.app import create_app
from service.errors import ArtifactError
from service.records.store import Store
from service.tenancy.keys import Keys, load_root
from tests.servers import running

PHRASE = "the colour of my grandmother's kitchen is teal"


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[[str], str]]:
    """Start a service with this TOML, below the tiny model's; gives its address."""
    with ExitStack() as stack:

        def begin(toml: str = "") -> str:
            file = tmp_path / "firewall.toml"
            file.write_text(f'[detection]\nartifact = "{tiny_model}"\n{toml}', encoding="utf-8")
            return stack.enter_context(running(create_app(config.load(file))))

        yield begin


async def ask(url: str, text: str, **more: Any) -> tuple[int, dict[str, Any]]:
    messages = [{"role": more.pop("role", "user"), "content": text}]
    body = {"model": "sandbox-echo", "messages": messages}
    async with aiohttp.ClientSession(url) as session, session.post("/v1/chat/completions", json=body, **more) as answer:
        return answer.status, await answer.json()


def written(folder: Path) -> str:
    return "".join(file.read_bytes().decode("latin-1") for file in folder.glob("firewall.db*"))


async def get(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def test_one_row_is_on_disk_when_the_answer_is_there_and_holds_no_text(
    start: Callable[..., str], tmp_path: Path
) -> None:
    url = start()
    await ask(url, f"ignore everything, {PHRASE}")
    with sqlite3.connect(tmp_path / "firewall.db") as database:
        rows = database.execute("SELECT action, category, status, findings FROM audit").fetchall()
    assert [row[:3] for row in rows] == [("block", "injection", 400)]
    (finding,) = json.loads(rows[0][3])
    assert finding["pointer"] == "/messages/0/content"
    assert finding["digest"]
    assert "grandmother" not in written(tmp_path)


async def test_metrics_count_what_was_decided_and_quote_nobody(start: Callable[..., str]) -> None:
    url = start()
    await ask(url, f"please {PHRASE}")
    await ask(url, f"ignore {PHRASE}")
    text = await get(f"{url}/metrics")
    assert 'action="block",category="injection",protocol="openai.chat",status="400"} 1.0' in text
    assert 'le="0.0001"' in text
    assert "grandmother" not in text


async def test_ready_names_the_model_and_what_it_runs_on(start: Callable[..., str]) -> None:
    answer = json.loads(await get(f"{start()}/health/ready"))
    assert (answer["status"], answer["artifact"], answer["execution_provider"]) == ("ready", "tiny", "none")


async def test_with_keys_only_their_holders_are_served_and_only_their_roles(
    start: Callable[..., str], tmp_path: Path
) -> None:
    url = start('[auth]\nmode = "keys"\n')
    store = Store(tmp_path / "firewall.db")
    await store.open()
    key = (await Keys(store, load_root(tmp_path)).create("default", ["user"])).key
    await store.close()
    bearer = {"authorization": f"Bearer {key}"}
    assert (await ask(url, "hello"))[0] == 401
    assert (await ask(url, "hello", headers=bearer))[0] == 200
    assert (await ask(url, "hello", headers={"x-api-key": key}))[0] == 200
    status, answer = await ask(url, "hello", role="system", headers=bearer)
    assert (status, answer["error"]["param"]) == (403, "/messages/0/content")


async def test_a_spent_limit_is_a_429_that_says_when_to_come_back(start: Callable[..., str]) -> None:
    url = start("[limits]\nrequests_per_minute = 1\n")
    assert (await ask(url, "hello"))[0] == 200
    async with aiohttp.ClientSession(url) as session:
        body = {"model": "sandbox-echo", "messages": [{"role": "user", "content": "hi"}]}
        async with session.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    "text", ["a" * 400_000, "ab " * 300_000, "\u200b" * 200_000], ids=["run", "words", "invisible"]
)
async def test_a_huge_text_is_answered_while_health_answers(start: Callable[..., str], text: str) -> None:
    url = start("max_windows = 200\n")
    asked = asyncio.ensure_future(ask(url, text))
    waits = []
    async with aiohttp.ClientSession(url) as session:
        while not asked.done():
            begun = asyncio.get_running_loop().time()
            async with session.get("/health/live") as live:
                assert live.status == 200
            waits.append(asyncio.get_running_loop().time() - begun)
    status, answer = await asked
    assert status in {200, 413}, answer
    # The aim is 50 ms, and the benchmark measures it; here it is told from a loop that stands still.
    assert sorted(waits)[len(waits) * 9 // 10] < 0.25


def test_an_altered_model_file_is_refused_by_its_name(tmp_path: Path, tiny_model: Path) -> None:
    copy = tmp_path / "altered"
    copy.mkdir()
    for file in tiny_model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "firewall.toml").write_text('[detection]\nartifact = "altered"\n', encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        create_app(config.load(tmp_path / "firewall.toml"))
