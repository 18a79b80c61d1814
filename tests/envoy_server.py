"""A real Envoy of the tests' own, configured as `examples/envoy.yaml` shows: on a free port, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "envoy.yaml"


def find_envoy() -> str:
    """The program; skips where there is none, and fails under CI where there is one to install."""
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if found is None:
        if os.environ.get("CI") and sys.platform == "linux" and platform.machine() == "x86_64":
            pytest.fail("envoy is not installed")
        pytest.skip("envoy is not installed")
    return found


def configuration(firewall_port: int, provider_port: int) -> str:
    """The example with these ports, and its own listener on a free one."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for old, new in (("10000", "0"), ("9002", str(firewall_port)), ("8000", str(provider_port))):
        text, count = re.subn(rf"port_value: {old}\b", f"port_value: {new}", text)
        assert count == 1
    return text


@contextlib.contextmanager
def envoy_server(folder: Path, config: str) -> Iterator[str]:
    """A running Envoy; gives the address of its listener."""
    file, places = folder / "envoy.yaml", folder / "admin"
    file.write_text(
        config + "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }\n", encoding="utf-8"
    )
    log = folder / "envoy.log"
    command = [find_envoy(), "-c", str(file), "--concurrency", "1", "--log-level", "info", "--log-path", str(log)]
    command += ["--admin-address-path", str(places), "--use-dynamic-base-id"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{_listener(process, places)}"
    finally:
        process.kill()
        process.wait()


def _listener(process: subprocess.Popen[bytes], places: Path) -> str:
    waiting = threading.Event()
    for _ in range(1_500):
        assert process.poll() is None, "Envoy did not start"
        with contextlib.suppress(OSError):
            admin = places.read_text(encoding="utf-8")
            with urllib.request.urlopen(f"http://{admin}/listeners?format=text", timeout=5) as answer:
                if match := re.search(r"^llm::(\S+)$", answer.read().decode(), re.MULTILINE):
                    return match.group(1)
        waiting.wait(0.01)
    raise AssertionError("Envoy did not start")
