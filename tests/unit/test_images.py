"""The images: who they run as, how they are watched, and that their locks are what pyproject.toml asks for."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest

from service.settings import load

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]
LOCKS = ["serve.lock", "serve-gpu.lock", "expand.lock", "build.lock"]
_PIN = re.compile(r"^([a-z0-9][a-z0-9-]*)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def _stages(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return re.split(r"^(?=FROM )", joined, flags=re.MULTILINE)[1:]


def _pins(name: str) -> dict[str, str]:
    return {package: version for package, version, _ in _PIN.findall((ROOT / "requirements" / name).read_text())}


def _asked() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {}
    for requirement in project["dependencies"]:
        name, _, version = requirement.partition(";")[0].strip().partition("==")
        asked[re.sub(r"\[.*\]", "", name).lower().replace("_", "-")] = version
    return asked


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_last_stage_runs_as_a_fixed_user_who_is_not_root(name: str) -> None:
    final = _stages(name)[-1]
    users = re.findall(r"^USER (.+)$", final, re.MULTILINE)

    assert users == ["10001:10001"]
    assert "--uid 10001" in final
    # Nothing that writes as root comes after it.
    assert not re.search(r"^(RUN|COPY|ADD) ", final.partition("USER ")[2], re.MULTILINE)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_health_check_asks_the_live_route_on_the_configured_port_without_curl(name: str) -> None:
    final = _stages(name)[-1]
    check = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", final, re.MULTILINE)
    assert check is not None
    command = json.loads(check.group(1))
    ast.parse(command[2])
    config = re.search(r"^COPY (docker/\S+) /etc/firewall/firewall.toml$", final, re.MULTILINE)
    assert config is not None

    port = load(ROOT / config.group(1)).server.port
    assert command[:2] == ["python", "-c"]
    assert f"http://127.0.0.1:{port}/health/live" in command[2]
    assert f"EXPOSE {port}\n" in final


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_built_in_stages_and_install_only_what_is_locked(name: str) -> None:
    stages = _stages(name)

    assert len(stages) >= 2
    assert "pip install" not in stages[-1]
    for line in re.findall(r"pip install [^&\n]*", "\n".join(stages)):
        assert "--require-hashes" in line or "--no-deps /wheel/" in line, line


@pytest.mark.parametrize("name", DOCKERFILES)
def test_onnxruntime_reports_to_nobody(name: str) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in _stages(name)[-1]


def test_the_gpu_image_expands_the_model_where_onnx_is_and_serves_it() -> None:
    expanding = [stage for stage in _stages("Dockerfile.gpu") if "artifact expand --precision fp16" in stage]

    assert len(expanding) == 1
    assert "expand.lock" in expanding[0]
    assert load(ROOT / "docker" / "firewall.gpu.toml").detection.artifact == "/opt/model"
    assert "COPY --from=expand /opt/model /opt/model" in _stages("Dockerfile.gpu")[-1]
    assert "onnx" not in _pins("serve-gpu.lock")


@pytest.mark.parametrize("name", ["firewall.toml", "firewall.gpu.toml"])
def test_the_shipped_configuration_asks_for_keys_on_every_interface(name: str) -> None:
    settings = load(ROOT / "docker" / name)

    assert settings.server.host == "0.0.0.0"
    assert settings.auth.mode == "keys"
    assert settings.storage.url == "sqlite:////var/lib/firewall/firewall.db"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_versions_and_hashes_and_no_place(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    pinned = {line.split("==")[0] for line in text.splitlines() if "==" in line}

    assert pinned == set(_pins(name))
    assert not re.search(r"://|--index-url|--find-links|@", text)


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_holds_training_packages(name: str) -> None:
    assert not {"torch", "transformers", "sentence-transformers", "accelerate"} & set(_pins(name))


def test_the_cpu_lock_pins_what_pyproject_asks_for() -> None:
    pins = _pins("serve.lock")

    assert {name: pins.get(name) for name in _asked()} == _asked()
    assert "onnxruntime-gpu" not in pins


def test_the_gpu_lock_differs_from_the_cpu_lock_by_onnxruntime_and_cuda_only() -> None:
    cpu, gpu = _pins("serve.lock"), _pins("serve-gpu.lock")
    added = {name for name in gpu if gpu[name] != cpu.get(name)}

    assert set(cpu) - set(gpu) == {"onnxruntime"}
    assert "onnxruntime-gpu" in added
    assert all(name == "onnxruntime-gpu" or name.startswith("nvidia-") for name in added)
    assert {"nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-runtime"} <= added


def test_the_build_context_holds_no_training_outputs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]

    assert lines[[bool(line) and not line.startswith("#") for line in lines].index(True)] == "*"
    assert {"service", "models", "pyproject.toml", "requirements", "docker", "README.md", "LICENSE", "NOTICE"} == set(
        kept
    )
    assert {"models/*/model.onnx", "models/*/fp16", "models/*/fp32"} <= set(lines)
