"""Peers in environments of their own: `.venvs/NAME`, made of pinned packages, and a worker in each that judges texts.

A peer is a stranger's program: it sees a clean environment without the caller's keys, works in a scratch folder that is
thrown away, and is ended when it takes too long. What keeps it from being measured is a `PeerFailed` with the reason.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.peer_catalog import PINS, Peer
from benchmarks.results import ROOT

Floats = npt.NDArray[np.float64]

ENVIRONMENTS = ROOT / ".venvs"
WORKER = Path(__file__).with_name("peer_worker.py")
INSTALL_S = 1_800
# What a peer may need of the caller's environment to load and to reach a model; no keys.
_PASSED = re.compile(r"PATH|LD_LIBRARY_PATH|LANG|LC_\w+|SSL_CERT_\w+|(HTTPS?|NO|ALL)_PROXY|OPENBLAS_\w+", re.IGNORECASE)


class Limits(msgspec.Struct, frozen=True):
    """Seconds that a peer has to load, for one text, and for all."""

    load_s: float = 300
    text_s: float = 120
    whole_s: float = 3_600


class Judged(msgspec.Struct, frozen=True, eq=False):
    """What a detector said, per text: its action, its score (None where it gives none), the milliseconds it took.

    A text that it could not judge counts as let through, with the lowest score; `errors` counts these by class.
    """

    action: npt.NDArray[np.str_]
    score: Floats | None
    ms: Floats
    errors: dict[str, int] = {}


class PeerFailed(Exception):
    """A peer could not be measured; the message says why, without paths and addresses."""


class _Answer(msgspec.Struct, frozen=True):
    """A line of the worker."""

    ready: bool = False
    action: str = "allow"
    score: float | None = None
    ms: float = 0.0
    error: str = ""


def installed(peer: Peer, folder: Path = ENVIRONMENTS) -> Path:
    """The Python of the peer's environment, made now unless it has these very pins. Raises PeerFailed."""
    pins = PINS / f"{peer.name}.txt"
    place = folder / peer.name
    python, stamp = place / "bin" / "python", place / ".pins"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return python
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(place)],
        [*pip, "install", "--quiet", "--requirement", str(pins)],
    ):
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=INSTALL_S)
        except subprocess.CalledProcessError as error:
            raise PeerFailed(f"could not be installed: {_reason(error.stderr)}") from error
        except subprocess.TimeoutExpired as error:
            raise PeerFailed(f"could not be installed within {INSTALL_S} s") from error
    stamp.write_text(pins.read_text())
    return python


def run(
    name: str,
    python: Path,
    texts: Sequence[tuple[str, str]],
    *,
    limits: Limits | None = None,
    worker: Path = WORKER,
) -> Judged:
    """Let the peer judge (text, role) pairs, one after the other. Raises PeerFailed."""
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="peer-") as scratch:
        asked = Path(scratch) / "asked.jsonl"
        asked.write_bytes(b"".join(msgspec.json.encode({"text": t, "role": role}) + b"\n" for t, role in texts))
        # Not the caller's: a model that a peer fetches is kept with its environment.
        home = python.parent.parent / "home" if python.is_relative_to(ENVIRONMENTS) else Path(scratch)
        home.mkdir(exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if _PASSED.fullmatch(key)} | {"HOME": str(home)}
        with asked.open("rb") as stdin, (Path(scratch) / "stderr").open("w+b") as stderr:
            process = subprocess.Popen(
                [str(python), "-I", str(worker), name],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
            try:
                answers = _collect(process, len(texts), limits, stderr)
            finally:
                _end(process)
    return _judged(answers)


def _collect(process: subprocess.Popen[bytes], count: int, limits: Limits, stderr: IO[bytes]) -> list[_Answer]:
    """All answers; raises PeerFailed where one does not come."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stdout = process.stdout
    assert stdout is not None

    def read() -> None:
        with stdout:
            for line in stdout:
                lines.put(line)
        lines.put(b"")

    threading.Thread(target=read, daemon=True).start()
    whole = time.monotonic() + limits.whole_s
    answers: list[_Answer] = []
    ready = False
    while not ready or len(answers) < count:
        allowed = limits.text_s if ready else limits.load_s
        try:
            line = lines.get(timeout=max(0.0, min(allowed, whole - time.monotonic())))
        except queue.Empty:
            raise PeerFailed(_late(ready, len(answers), count, limits, time.monotonic() >= whole)) from None
        if not line:
            process.wait()
            stderr.seek(0)
            if not ready:
                raise PeerFailed(f"did not start: {_reason(stderr.read().decode(errors='replace'))}")
            # What it says after it has seen texts may quote them.
            raise PeerFailed(f"ended with code {process.returncode} after {len(answers)} of {count} texts")
        try:
            told = msgspec.json.decode(line, type=_Answer)
        except msgspec.DecodeError:
            raise PeerFailed(f"gave no readable answer to text {len(answers) + 1}") from None
        if ready:
            answers.append(told)
        ready = ready or told.ready
    return answers


def _late(ready: bool, done: int, count: int, limits: Limits, whole: bool) -> str:
    if whole:
        return f"judged {done} of {count} texts in {limits.whole_s:g} s"
    return f"took more than {limits.text_s:g} s for one text" if ready else f"did not load within {limits.load_s:g} s"


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _judged(answers: Sequence[_Answer]) -> Judged:
    told = [answer.score for answer in answers if answer.score is not None]
    lowest = min(told, default=0.0)
    return Judged(
        np.asarray([answer.action for answer in answers], np.str_),
        np.asarray([lowest if a.score is None else a.score for a in answers], np.float64) if told else None,
        np.asarray([answer.ms for answer in answers], np.float64),
        dict(Counter(answer.error for answer in answers if answer.error)),
    )


def _reason(stderr: str) -> str:
    """The last line of an error output: no addresses, of paths the last name alone."""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no reason given")
    last = re.sub(r"\w+://\S+", "…", last)
    last = re.sub(r"(?<![\w.])/(?:[^\s/'\":]+/)*([^\s/'\":]+)", r"\1", last)
    return last if len(last) <= 200 else last[:199] + "…"
