"""The service over a PostgreSQL server: one that dies under calls and comes back, workers at once, commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import service.app
from service import cli
from service import settings as config
from tests.e2e.test_admin import TOKEN, Service
from tests.postgres_server import PASSWORD, QUOTED_PASSWORD, PostgresServer
from tests.servers import running

BASE = '[detection]\nenabled = false\n[leakage]\nstream = "exact"\n'
LONGEST_S = 60.0
"""Whoever is not answered by then hangs."""

Write = Callable[[str], Path]
Start = Callable[[str], Service]


@pytest.fixture
def write(tmp_path: Path, postgres: PostgresServer) -> Write:
    """A configuration over an empty database; `more` may go on in the table [storage]."""
    url = postgres.url(postgres.make_database())

    def write(more: str = "") -> Path:
        file = tmp_path / "firewall.toml"
        file.write_text(f'{BASE}[storage]\nurl = "{url}"\n{more}')
        return file

    return write


@pytest.fixture
def start(write: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("FIREWALL_ADMIN_TOKEN", TOKEN)
    with ExitStack() as stack:

        def start(more: str) -> Service:
            file = write(more)
            url = stack.enter_context(running(service.app.create_app(config.load(file))))
            return Service(file.parent, url)

        yield start


def ask(url: str, key: str = "", stream: bool = False) -> tuple[int, str]:
    """Status, and id of the request where it was answered whole."""
    body = {"model": "sandbox-echo", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=LONGEST_S) as answer:
            whole = answer.read().rstrip().endswith(b"data: [DONE]") if stream else bool(json.load(answer)["choices"])
            status, request_id = answer.status, answer.headers["x-firewall-request-id"] if whole else ""
    except urllib.error.HTTPError as error:
        status, request_id = error.code, ""
    return status, request_id


def until(done: Callable[[], bool]) -> bool:
    """Whether it comes about within a minute."""
    deadline, pause = time.monotonic() + 60, threading.Event()
    while not done():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True


def test_a_server_that_dies_under_calls_fails_them_closed_loses_no_row_and_is_used_again(
    start: Start, postgres: PostgresServer
) -> None:
    firewall = start('[auth]\nmode = "keys"\n[[tenants]]\nname = "acme"\n')
    key = firewall.made()["key"]
    stopped = threading.Event()
    answers: list[tuple[int, str]] = []

    def keep_asking(stream: bool) -> None:
        while not stopped.is_set():
            answers.append(ask(firewall.url, key, stream))

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(keep_asking, number % 2 == 0) for number in range(8)]
        try:
            assert until(lambda: len(answers) >= 40)
            postgres.stop()
            seen = len(answers)
            assert until(lambda: sum(status == 503 for status, _ in answers[seen:]) >= 20)
            assert firewall.call("GET", "/health/ready")[0] == 503
            assert firewall.chat(key)[1]["error"]["code"] == "storage_failed"
            assert firewall.admin("GET", "/keys")[0] == 503
            postgres.start()
            assert until(lambda: firewall.call("GET", "/health/ready")[0] == 200)
            seen = len(answers)
            assert until(lambda: len(answers) >= seen + 40)
        finally:
            stopped.set()
        for each in asking:
            each.result()
    assert {status for status, _ in answers} == {200, 503}
    assert {status for status, _ in answers[-20:]} == {200}
    kept = {request_id for (request_id,) in firewall.sql("SELECT request_id FROM audit")}
    assert {request_id for _, request_id in answers if request_id} <= kept


def test_a_server_that_falls_silent_holds_nobody_up_for_long(start: Start, postgres: PostgresServer) -> None:
    firewall = start("")
    assert ask(firewall.url)[0] == 200
    postgres.freeze()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: ask(firewall.url), range(4)))
    finally:
        postgres.thaw()
    assert {status for status, _ in answers} == {503}
    assert until(lambda: ask(firewall.url)[0] == 200)


def test_answers_pass_without_their_rows_where_the_policy_says_so(start: Start, postgres: PostgresServer) -> None:
    firewall = start('on_error = "allow"\n')
    postgres.stop()
    try:
        status, lost = ask(firewall.url)
    finally:
        postgres.start()
    assert status == 200
    assert until(lambda: firewall.call("GET", "/health/ready")[0] == 200)
    status, kept = ask(firewall.url)
    assert status == 200
    assert [request_id for (request_id,) in firewall.sql("SELECT request_id FROM audit")] == [kept] != [lost]


# -- commands --------------------------------------------------------------------------------------------------------


def command(file: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "service.cli", *arguments, "--config", str(file)]
    return subprocess.run(whole, input=text, capture_output=True, text=True, check=False, timeout=300)


def test_workers_that_start_at_once_on_an_empty_database_serve_and_hear_of_a_revocation_elsewhere(
    write: Write, valkey_url: str
) -> None:
    file = write(f'[counters]\nurl = "{valkey_url[:-1]}6"\n[server]\nworkers = 3\n[auth]\nmode = "keys"\n')
    served = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--config", str(file)]
    process = subprocess.Popen(served, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logged: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    reading = threading.Thread(target=lambda: logged.extend(process.stderr or ()))
    reading.start()
    try:
        url = next(found.group() for line in process.stdout if (found := re.search(r"http://[0-9.:]+", line)))
        made = command(file, "keys", "create", "--tenant", "default")
        key = made.stdout.strip()
        assert until(lambda: sum("startup complete" in line for line in logged) == 3)
        assert {ask(url, key)[0] for _ in range(12)} == {200}
        assert command(file, "keys", "revoke", key.split("-")[1]).returncode == 0
        time_of_revocation = time.monotonic()
        in_a_row = 0
        while in_a_row < 12 and time.monotonic() < time_of_revocation + 30:
            in_a_row = in_a_row + 1 if ask(url, key)[0] == 401 else 0
        assert in_a_row == 12
        checked = command(file, "audit", "verify")
        assert re.match(r"ok: \d\d+ audit rows in postgresql://firewall@127", checked.stdout), checked.stderr
    finally:
        process.terminate()
        process.wait(60)
        reading.join(60)
        process.stdout.close()
    assert not [line for line in logged if PASSWORD in line or QUOTED_PASSWORD in line]


def test_commands_make_check_and_read_the_database_and_never_show_its_password(write: Write, capsys: Any) -> None:
    file = str(write())
    told = []
    for arguments in (
        ("check-config",),
        ("audit", "verify"),
        ("migrate",),
        ("keys", "create", "--tenant", "default"),
        ("keys", "list"),
        ("tenants", "create", "north"),
        ("tenants", "list"),
        ("usage",),
        ("audit", "verify"),
    ):
        whole = [*arguments, file] if arguments == ("check-config",) else [*arguments, "--config", file]
        told.append((cli.main(whole), *capsys.readouterr()))
    assert [status for status, _, _ in told] == [0, 2, 0, 0, 0, 0, 0, 0, 0]
    assert "is not the firewall's database; `semantic-firewall migrate`" in told[1][2]
    assert "has schema" in told[2][1]
    assert '"north"' in told[6][1]
    assert told[8][1].startswith("ok: 0 audit rows in postgresql://")
    assert not [line for line in told if PASSWORD in str(line) or QUOTED_PASSWORD in str(line)]


def test_without_its_server_the_service_does_not_start_and_says_what_to_do(
    write: Write, postgres: PostgresServer
) -> None:
    file = write()
    postgres.stop()
    try:
        refused = command(file, "serve", "--port", "0")
    finally:
        postgres.start()
    assert refused.returncode == 2
    assert re.search(r"semantic-firewall: storage\.url: postgresql://firewall@127\S+ cannot be used", refused.stderr)
    assert "start the server" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert PASSWORD not in refused.stderr and QUOTED_PASSWORD not in refused.stderr


def test_the_password_of_the_server_may_come_from_the_environment(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(postgres.make_database(), password="")
    file = tmp_path / "firewall.toml"
    file.write_text(f'{BASE}[storage]\nurl = "{url}"\npassword_env = "DB_PASSWORD"\n')
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    with running(service.app.create_app(config.load(file))) as address:
        assert ask(address)[0] == 200
