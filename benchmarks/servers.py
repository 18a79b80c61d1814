"""Processes to measure against: the sandbox over HTTP as the upstream, and the gateway in front of it."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_START_S = 60.0
_STOP_S = 15.0
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")


class Server:
    """A running process. `base_url` ends in /v1."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def cpu_s(self) -> float:
        """Processor seconds that its present threads have used; 0 where the system does not tell."""
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@contextlib.contextmanager
def upstream() -> Iterator[Server]:
    """The sandbox provider as an HTTP server of its own."""
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", "service.upstream.sandbox:sandbox_app", "--port", str(port)]
    command += ["--log-level", "error", "--no-access-log", "--http", "httptools", "--lifespan", "off"]
    with _started(command, os.environ.copy()) as process:
        _wait_for(port, process)
        yield Server(process, port)


@contextlib.contextmanager
def gateway(upstream_url: str, artifact: Path, *, detection: bool, stream: str) -> Iterator[Server]:
    """The firewall, its record in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "firewall.toml")
        config.write_text(
            f"""[server]
port = 0
[[providers]]
name = "upstream"
kind = "openai"
base_url = "{upstream_url}"
models = ["*"]
[detection]
enabled = {str(detection).lower()}
artifact = "{artifact.resolve()}"
[leakage]
stream = "{stream}"
[storage]
url = "sqlite:///firewall.db"
[telemetry]
log_level = "error"
"""
        )
        environment = os.environ | {"FIREWALL_SECRET_KEY": "benchmarks-" * 4, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "service.cli", "serve", "--config", str(config)]
        with _started(command, environment) as process:
            assert process.stdout is not None
            port = _announced(process.stdout)
            _wait_for(port, process)
            yield Server(process, port)


@contextlib.contextmanager
def counters_server() -> Iterator[str | None]:
    """The address of a Valkey or Redis that keeps nothing; None where neither is installed."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with _started([*command, "--loglevel", "warning"], os.environ.copy()) as process:
            _wait_for(port, process)
            yield f"valkey://127.0.0.1:{port}/0"


@contextlib.contextmanager
def database_server() -> Iterator[str | None]:
    """The address of an empty database on a PostgreSQL of its own; None where that is not installed.

    Its programs refuse root, who then starts them as `postgres` or `nobody`.
    """
    programs = _postgres_programs()
    if programs is None:
        yield None
        return
    user = _unprivileged()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if user is not None:
            shutil.chown(folder, user)
        data, port = str(Path(folder, "data")), _free_port()
        made = [str(programs / "initdb"), "-D", data, "-U", "firewall", "--auth", "trust", "-E", "UTF8", "--no-locale"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, user=user, cwd="/")
        command = [str(programs / "postgres"), "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        command += ["-c", "unix_socket_directories=", "-c", "log_min_messages=panic"]
        with _started(command, os.environ.copy(), user) as process:
            _wait_for(port, process)
            asked = [
                str(programs / "pg_isready"),
                "-q",
                "-U",
                "firewall",
                "-h",
                "127.0.0.1",
                "-p",
                str(port),
                "-t",
                str(int(_START_S)),
            ]
            deadline = time.monotonic() + _START_S
            while subprocess.run(asked, check=False).returncode != 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            yield f"postgresql://firewall@127.0.0.1:{port}/postgres"


def _postgres_programs() -> Path | None:
    """The folder of the newest `initdb`: Debian's, else that of the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    found = shutil.which("initdb")
    places += [Path(found).resolve().parent] if found else []
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


def _unprivileged() -> str | None:
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


@contextlib.contextmanager
def _started(
    command: list[str], environment: dict[str, str], user: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, user=user)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _announced(output: IO[str]) -> int:
    for line in output:
        if found := _LISTENS.search(line):
            return int(found.group(1))
    raise RuntimeError("the gateway ended before it listened")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("a server did not start") from None
            time.sleep(0.05)
