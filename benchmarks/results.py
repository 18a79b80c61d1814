"""results.json: the figures of each part with the circumstances they were measured in, so that one part can be
measured again alone; `tables.py` makes RESULTS.md of it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime

from service.scoring.artifact import load_artifact

PARTS = (
    *("recall", "peers", "evasion", "latency", "overhead", "hostile"),
    *("leakage", "retelling", "piecemeal", "protected", "credentials"),
    *("quota", "extraction", "keys"),
)
# What one word on the command line measures. Peers are strangers' packages, installed only where asked for.
GROUPS = {"all": tuple(part for part in PARTS if part != "peers"), "eval": ("recall", "peers"), "render": ()}
ROOT = Path(__file__).resolve().parents[1]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asked for. `corpus` is a folder that `training.prepare` wrote, None where there is none."""

    artifact: Path
    out: Path
    corpus: Path | None = None
    mirror: Path | None = None
    exclude: Path | None = None
    quick: bool = False
    # Names of the peers to measure; all of them where none is named.
    peers: tuple[str, ...] = ()


class Measured(msgspec.Struct, frozen=True):
    """One part's figures. `machine` says on what, `load` the one-minute load average before it began."""

    date: str
    commit: str
    machine: str
    load: float
    artifact: str
    command: str
    quick: bool
    figures: dict[str, Any]


class Results(msgspec.Struct, frozen=True):
    """All parts that were measured so far, by name."""

    parts: dict[str, Measured] = {}


def read(path: Path) -> Results:
    """What earlier runs left; empty where there is no file."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else Results()


def write(path: Path, results: Results) -> None:
    """Written aside and renamed."""
    aside = path.with_suffix(".json.new")
    aside.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    aside.replace(path)


def circumstances(options: Options, part: str) -> Measured:
    """Everything of `Measured` but the figures, as it is now."""
    artifact = load_artifact(options.artifact)
    manifest = artifact.manifest
    command = f"python -m benchmarks {part} --artifact {_shown(options.artifact)}"
    for name in ("corpus", "mirror", "exclude"):
        if getattr(options, name):
            command += f" --{name} {name.upper()}"
    command += "".join(f" --peer {name}" for name in options.peers if part == "peers")
    return Measured(
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        commit=commit(),
        machine=machine(),
        load=round(os.getloadavg()[0], 2),
        artifact=f"{manifest.name} {artifact.version[:12]} ({manifest.model.precision})",
        command=command + (" --quick" if options.quick else ""),
        quick=options.quick,
        figures={},
    )


def _shown(path: Path) -> str:
    """Paths of this machine stay out of the record."""
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError:
        return path.name


def commit() -> str:
    """The commit of the working tree, marked where files differ from it; empty outside of a repository."""
    try:
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> str:
    """Processor, cores this process may use, memory and the versions that decide speed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if "model name" in named:
            family, model = named.get("cpu family", "?"), named.get("model", "?")
            return f"{named['model name']} (family {family}, model {model})"
    return platform.processor() or platform.machine()
