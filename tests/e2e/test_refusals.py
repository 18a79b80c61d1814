"""Refused calls through the whole service: what is answered, and what is on record."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import service.app
from service import settings as config
from service.records.place import database_place
from service.records.store import Store
from service.tenancy.keys import Keys, load_root
from tests.servers import running

CONFIGURATION = """
[auth]
mode = "keys"
failures_per_minute = 3
[detection]
enabled = false
[leakage]
stream = "exact"
[storage]
url = "sqlite:///a.db"
"""
WRONG = "sf-0123456789abcdef-" + "x" * 43


class Firewall:
    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url

    def key(self) -> str:
        async def make() -> str:
            store = Store(database_place(config.load(self.folder / "firewall.toml")))
            await store.open()
            made = await Keys(store, load_root(self.folder)).create("default")
            await store.close()
            return made.key

        return asyncio.run(make())

    def ask(self, key: str, model: str = "sandbox-echo", path: str = "chat/completions") -> tuple[int, Any, Any]:
        """Status, body, headers."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self.url}/v1/{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers

    def rows(self) -> list[tuple[int, str]]:
        """Status and error of every row, in their order."""
        connection = sqlite3.connect(self.folder / "a.db")
        rows = connection.execute("SELECT status, error FROM audit ORDER BY id").fetchall()
        connection.close()
        return rows


@pytest.fixture
def firewall(tmp_path: Path) -> Iterator[Firewall]:
    (tmp_path / "firewall.toml").write_text(CONFIGURATION)
    with running(service.app.create_app(config.load(tmp_path / "firewall.toml"))) as url:
        yield Firewall(tmp_path, url)


def test_wrong_keys_are_soon_told_to_wait_without_a_row_and_a_right_one_passes(firewall: Firewall) -> None:
    """From one address: 401 with a row each, then 429 in the protocol's envelope with one row in all; the right key is
    served all the while.
    """
    right = firewall.key()
    answers = [firewall.ask(WRONG, path=path) for path in ["chat/completions"] * 6 + ["messages"]]
    assert [status for status, _, _ in answers] == [401, 401, 401, 429, 429, 429, 429]
    assert answers[-2][1]["error"]["code"] == "rate_limit_exceeded"
    assert answers[-1][1]["error"]["type"] == "rate_limit_error"
    assert int(answers[-1][2]["retry-after"]) >= 1
    assert firewall.rows() == [(401, "invalid_api_key")] * 3 + [(429, "rate_limit_exceeded")]
    assert firewall.ask(right)[0] == 200


def test_a_key_that_is_only_refused_is_told_to_wait_and_others_are_served(firewall: Firewall) -> None:
    """A model that does not exist costs no reservation: after as many as are allowed the key waits, for all it asks."""
    key, other = firewall.key(), firewall.key()
    assert [firewall.ask(key, model="nothing-1")[0] for _ in range(5)] == [404, 404, 404, 429, 429]
    status, body, headers = firewall.ask(key)
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(headers["retry-after"]) >= 1
    assert firewall.rows() == [(404, "not_found")] * 3 + [(429, "rate_limit_exceeded")]
    assert firewall.ask(other)[0] == 200


def test_a_key_that_is_also_served_is_not_kept_from_anything(firewall: Firewall) -> None:
    """As many served as refused calls: each is answered with its own status."""
    key = firewall.key()
    statuses = [firewall.ask(key, model=model)[0] for model in ["nothing-1", "sandbox-echo"] * 6]
    assert statuses == [404, 200] * 6
