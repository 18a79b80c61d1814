"""A Valkey or Redis server of the tests' own: on a free port, in a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.missing import skip_or_fail

BINARIES = ("valkey-server", "redis-server")


def find_server() -> str:
    """The program; skips where there is none, and fails under CI, where it must not be forgotten."""
    found = next(filter(None, map(shutil.which, BINARIES)), None)
    if found is None:
        skip_or_fail(f"none of {', '.join(BINARIES)} is installed")
    return found


class ValkeyServer:
    """One server that can be stopped, frozen and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._program = find_server()
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self.process = subprocess.Popen([self._program, *options], stdout=subprocess.DEVNULL)
        waiting = threading.Event()
        for _ in range(1_000):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(16).startswith(b"+PONG"):
                    return
            waiting.wait(0.01)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def valkey_server(folder: Path) -> Iterator[ValkeyServer]:
    """A running server."""
    server = ValkeyServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
