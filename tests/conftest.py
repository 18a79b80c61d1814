"""The real service, as `make run` starts it, on an ephemeral port and in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import service.app
from service import settings as config
from service.records.place import Place, database_place
from service.scoring.encoder import Encoder
from tests.postgres_server import PostgresServer, postgres_server
from tests.servers import running
from tests.tiny_artifact import MarkedWordsEncoder, write_tiny_artifact
from tests.valkey_server import valkey_server

REGISTERED_SECRET = "NORTHWIND-7F3K9-VAULT-OPENS-AT-0442-Q8Z"  # longer than any chunk of the sandbox


@pytest.fixture(scope="session")
def shipped_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a firewall with the shipped model, the sandbox, and one registered secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.app, "Encoder", Encoder)  # also while a module has put a stand-in there
        yield from serve(tmp_path_factory, patch, "")


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Valkey or Redis, one for all tests: each counts below a prefix of its own."""
    with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL, one for all tests: each has a database of its own on it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest) -> str:
    """`storage.url` of an empty database, of each kind; a file is relative to the configuration."""
    if request.param == "sqlite":
        return "sqlite:///a.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url(server.make_database())


@pytest.fixture
def place(storage_url: str, tmp_path: Path) -> Place:
    """The same, as a `Store` takes it."""
    return database_place(config.Settings(storage=config.Storage(url=storage_url), folder=tmp_path))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An artifact whose encoder knows one word ("ignore"), for what does not depend on the model."""

    class StandIn(MarkedWordsEncoder):
        execution_provider = "none"

        def __init__(self, loaded: Any, threads: int) -> None:
            super().__init__(loaded.tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.app, "Encoder", StandIn)
        yield write_tiny_artifact(tmp_path_factory.mktemp("models") / "tiny")


def serve(folders: pytest.TempPathFactory, patch: pytest.MonkeyPatch, more: str) -> Iterator[str]:
    """Serve the default configuration with `more` TOML below it."""
    folder = folders.mktemp("service")
    patch.setenv("TEST_REGISTERED_SECRET", REGISTERED_SECRET)
    protected = '[[protected]]\nname = "vault"\nkind = "secret"\nvalue_env = "TEST_REGISTERED_SECRET"\n'
    (folder / "firewall.toml").write_text(protected + more, encoding="utf-8")
    with running(service.app.create_app(config.load(folder / "firewall.toml"))) as url:
        yield url


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--exchanges N`: how many made-up exchanges each protocol is tried with (`tests/e2e/test_fidelity.py`)."""
    parser.addoption("--exchanges", type=int, default=200, help="made-up exchanges for each protocol")
