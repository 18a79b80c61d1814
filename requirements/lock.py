"""Write the locks of the images: `python requirements/lock.py`.

    serve.lock      what pyproject.toml's dependencies resolve to, for x86-64 and 64-bit Arm (Dockerfile)
    serve-gpu.lock  the same with ONNX Runtime's CUDA build and the CUDA libraries it asks for, x86-64 (Dockerfile.gpu)
    expand.lock     what `semantic-firewall artifact expand` needs besides serve.lock, at image build only
    build.lock      what makes the wheel of this project

pip resolves (`--dry-run --report`), so a lock is what pip would install today; every file is named by its sha256 and
nothing else: where it comes from is pip's configuration. The images run Python 3.11.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The CUDA build is published after the CPU build and may be behind it.
ONNXRUNTIME_GPU = "onnxruntime-gpu[cuda,cudnn]==1.31.1"
_GLIBC = ("2_28", "2_27", "2_26", "2_24", "2_17")
_HEADER = "# Written by requirements/lock.py. Install with: pip install --require-hashes -r {name}\n"


def main() -> int:
    """Resolve and write all of them."""
    pyproject = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    project = pyproject["project"]
    serving: list[str] = project["dependencies"]
    onnx = next(r for r in project["optional-dependencies"]["train"] if r.startswith("onnx=="))
    gpu = [ONNXRUNTIME_GPU if requirement.startswith("onnxruntime==") else requirement for requirement in serving]
    served = resolve(serving, "x86_64")
    write("serve.lock", served, resolve(serving, "aarch64"))
    write("serve-gpu.lock", resolve(gpu, "x86_64"))
    both = resolve([*serving, onnx], "x86_64")
    write("expand.lock", {key: value for key, value in both.items() if key not in served})
    write("build.lock", resolve(pyproject["build-system"]["requires"], "x86_64"))
    return 0


def resolve(requirements: list[str], machine: str) -> dict[tuple[str, str], str]:
    """(name, version) → sha256 of the wheel that pip would take on this kind of Linux machine."""
    platforms = [f"manylinux_{glibc}_{machine}" for glibc in _GLIBC] + [f"manylinux2014_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp", "--target", folder]
        command += [part for platform in platforms for part in ("--platform", platform)]
        subprocess.run([*command, "--report", str(report), *requirements], check=True)
        found: list[dict[str, Any]] = json.loads(report.read_bytes())["install"]
    return {
        (re.sub(r"[-_.]+", "-", entry["metadata"]["name"]).lower(), entry["metadata"]["version"]): entry[
            "download_info"
        ]["archive_info"]["hashes"]["sha256"]
        for entry in found
    }


def write(name: str, *resolved: dict[tuple[str, str], str]) -> None:
    """One lock; a package has the hash of each machine's wheel."""
    keys = sorted({key for table in resolved for key in table})
    names = [package for package, _ in keys]
    if len(set(names)) != len(names):
        raise SystemExit(f"{name}: the machines resolve to different versions")
    lines = [_HEADER.format(name=name)]
    for key in keys:
        hashes = sorted({table[key] for table in resolved if key in table})
        lines.append(f"{key[0]}=={key[1]}" + "".join(f" \\\n    --hash=sha256:{digest}" for digest in hashes) + "\n")
    (HERE / name).write_text("".join(lines))


if __name__ == "__main__":
    raise SystemExit(main())
