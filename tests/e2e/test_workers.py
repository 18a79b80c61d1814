"""The command with two workers: they count in one Valkey, and what happens to one does not end the other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, valkey_url: str) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(more: str) -> subprocess.Popen[str]:
        text = '[detection]\nenabled = false\n[leakage]\nstream = "exact"\n[storage]\nurl = "sqlite:///a.db"\n'
        text += f'[counters]\nurl = "{valkey_url[:-1]}5"\n[server]\nworkers = 2\n' + more
        (tmp_path / "firewall.toml").write_text(text)
        command = [
            sys.executable,
            "-m",
            "service.cli",
            "serve",
            "--port",
            "0",
            "--config",
            str(tmp_path / "firewall.toml"),
        ]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return next(found.group() for line in process.stdout if (found := re.search(r"http://[0-9.:]+", line)))


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Their process ids, as soon as both serve."""
    assert process.stderr is not None
    ids: list[int] = []
    complete = 0
    while complete < 2:
        line = process.stderr.readline()
        ids += [int(found) for found in re.findall(r"Started server process \[(\d+)\]", line)]
        complete += "startup complete" in line
    return ids


def ask(url: str, text: str = "hello") -> int:
    body = json.dumps({"model": "sandbox-echo", "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_two_workers_together_let_no_more_through_than_the_limit(start: Start) -> None:
    process = start("[limits]\nrequests_per_minute = 7\n")
    url = address(process)
    workers(process)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, [url] * 24))
    assert sorted(statuses) == [200] * 7 + [429] * 17


def test_the_death_of_one_worker_does_not_end_the_service_and_the_end_of_their_parent_ends_both(start: Start) -> None:
    process = start("")
    url = address(process)
    first, _ = workers(process)
    os.kill(first, signal.SIGKILL)
    assert ask(url) == 200
    process.kill()
    # Both ends of what they write to are closed once they are gone.
    process.communicate(timeout=60)
    with pytest.raises(urllib.error.URLError):
        ask(url)


def test_a_protected_text_reaches_both_workers_from_another_process_and_leaves_both(
    start: Start, tmp_path: Path
) -> None:
    process = start("")
    url = address(process)
    workers(process)
    secret = "hello-7F3K9-opens-at-0442"

    def protected(*arguments: str) -> str:
        command = [sys.executable, "-m", "service.cli", "protected", *arguments]
        command += ["--config", str(tmp_path / "firewall.toml")]
        return subprocess.run(command, input=secret, capture_output=True, text=True, check=True).stdout

    def until_all(status: int) -> bool:
        """Whether within ten seconds many calls in a row, on connections of their own, end so."""
        deadline, row = time.monotonic() + 10, 0
        while row < 20 and time.monotonic() < deadline:
            row = row + 1 if ask(url, secret) == status else 0
        return row == 20

    assert until_all(200)
    made = json.loads(protected("add", "--kind", "secret", "--name", "vault"))
    assert until_all(400)
    protected("remove", made["id"])
    assert until_all(200)


def test_workers_that_cannot_start_end_the_command_with_the_reason(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database" * 500)
    process = start("")
    _, logged = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "semantic-firewall: storage.url: " in logged
    assert "Traceback" not in logged
