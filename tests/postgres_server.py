"""A PostgreSQL server of the tests' own: on a free port, in a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.missing import skip_or_fail

PASSWORD = "p@ss:w/rd?"
"""Of everyone on it: whoever quotes addresses wrongly is found out."""
QUOTED_PASSWORD = "p%40ss%3Aw%2Frd%3F"


def find_programs() -> Path:
    """The folder with `initdb` and `postgres`; skips where there is none, and fails under CI."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    if (found := shutil.which("initdb")) is not None:
        places.append(Path(found).resolve().parent)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    skip_or_fail("PostgreSQL's server is not installed")


class PostgresServer:
    """One server that can be stopped, frozen and started again on the same port. It does not run as root."""

    def __init__(self) -> None:
        self._programs = find_programs()
        self._user: str | None = None
        if os.getuid() == 0:
            self._user = next(name for name in ("postgres", "nobody") if _exists(name))
        self._folder = Path(tempfile.mkdtemp(prefix="firewall-pg-"))
        self._numbers = itertools.count()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        word = self._folder / "password"
        word.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            shutil.chown(word, self._user)
        self._run(
            *("initdb", "--no-sync", "-D", self._data, "-U", "firewall", "--pwfile", str(word)),
            *("--auth", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8"),
        )

    def url(self, database: str = "postgres", password: str = f":{QUOTED_PASSWORD}") -> str:
        return f"postgresql://firewall{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        command = [str(self._programs / "postgres"), "-D", self._data, "-p", str(self.port), "-c", "fsync=off"]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        waiting = threading.Event()
        for _ in range(3_000):
            # After a crash the last process may not be gone yet, and then the new server gives up at once.
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=self._user, cwd="/"
                )
            asked = self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), check=False)
            if asked.returncode == 0:
                return
            waiting.wait(0.01)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        """As by a crash."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """It is there, and says nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """To the server and each of its processes, which are in groups of their own."""
        assert self.process is not None
        of = self.process.pid
        children = Path(f"/proc/{of}/task/{of}/children")
        if number == signal.SIGSTOP:
            os.kill(of, number)  # it starts no more of them
        for process in map(int, children.read_text().split() if children.exists() else ()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        os.kill(of, number)

    def sql(self, statements: str, database: str = "postgres") -> str:
        """What the server prints for it, unadorned."""
        asked = self._run("psql", "-AtqX", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statements)
        return asked.stdout.strip()

    def make_database(self) -> str:
        """The name of a new, empty one."""
        name = f"d{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return name

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, user=self._user, cwd="/", check=False)
        assert not check or done.returncode == 0, done.stderr
        return done


def _exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()
