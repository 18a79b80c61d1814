import asyncio
import io
import json
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request

import pytest

from service import cli
from service.errors import ConfigError
from service.records.audit import AuditRow
from service.records.store import Store
from service.scoring import encoder
from service.serving import _listen, welcome
from service.settings import Auth, Settings
from tests.old_schema import VERSION_1
from tests.tiny_artifact import MarkedWordsEncoder, write_tiny_artifact


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.delenv("FIREWALL_SECRET_KEY", raising=False)
    monkeypatch.delenv("FIREWALL_CONFIG", raising=False)
    path = tmp_path / "firewall.toml"

    def write(text=""):
        path.write_text("[detection]\nenabled = false\n" + text)
        return str(path)

    write()
    return write


def failed(capsys, *arguments):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("semantic-firewall: ")
    assert len(err.splitlines()) == 1
    return err


UNPRICED = '[[providers]]\nname = "own"\nkind = "openai"\nmodels = ["llama-3"]\nbase_url = "http://127.0.0.1:1/v1"'

# -- check-config ----------------------------------------------------------------------------------------------------


def test_a_good_configuration_is_ok_and_nothing_is_made(config, tmp_path, capsys):
    assert cli.main(["check-config", config()]) == 0
    assert capsys.readouterr().out.startswith("ok\n")
    assert [path.name for path in tmp_path.iterdir()] == ["firewall.toml"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[server]\nport = -1", "$.server.port"),
        ("[server]\nprot = 80", "prot"),
        ('[storage]\nurl = "postgresql://db"', "storage.url"),
        ('[counters]\nurl = "valkey://localhost:port"', "counters.url"),
        ('[counters]\nurl = "valkey://:word@localhost"', "counters.password_env"),
        ('[counters]\nurl = "valkey://localhost"\npassword_env = "NOT_SET_2"', "counters.password_env"),
        ('[counters]\nurl = "memcached://localhost"', "$.counters.url"),
        ("[limits]\nbudget_usd_per_day = 5.0\n" + UNPRICED, "limits.budget_usd_per_day"),
        ("[limits]\nbudget_usd_per_day = nan", "$.limits.budget_usd_per_day"),
        ('[[models]]\nname = "m"\ninput_usd_per_mtok = nan', "$.models[0].input_usd_per_mtok"),
        ('[[models]]\nname = "m"\nas_of = "lately"', "$.models[0].as_of"),
        ("[limits]\nconcurrency = 0", "$.limits.concurrency"),
        ('[[protected]]\nname = "p"\nkind = "secret"\nfile = "empty.txt"', "protected[0]"),
        ('[[protected]]\nname = "p"\nkind = "secret"\nfile = "text.txt"\ntenant = "nobody"', "protected[0].tenant"),
        ('[[protected]]\nname = "p"\nkind = "secret"\nfile = "latin.txt"', "protected[0].file"),
        ('[extraction]\nexempt = ["default", "nobody"]', "extraction.exempt[1]"),
        ('[extraction]\nexempt = ["0123456789abcdef"]', "extraction.exempt[0]"),
    ],
)
def test_a_wrong_key_is_named(config, tmp_path, capsys, text, key):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "text.txt").write_text("a secret that is long enough")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    assert key in failed(capsys, "check-config", config(text))


ABOUT_TENANTS = """[auth]
mode = "keys"
[[tenants]]
name = "acme"
[[protected]]
name = "p"
kind = "secret"
file = "text.txt"
tenant = "TENANT"
[extraction]
exempt = ["0123456789abcdef", "TENANT"]
"""


@pytest.mark.parametrize(("tenant", "doubtful"), [("default", False), ("acme", False), ("acne", True)])
def test_a_tenant_that_may_stand_in_the_database_is_a_warning(config, tmp_path, capsys, tenant, doubtful):
    (tmp_path / "text.txt").write_text("a secret that is long enough")
    assert cli.main(["check-config", config(ABOUT_TENANTS.replace("TENANT", tenant))]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2] for line in warnings] == ["protected[0].tenant", "extraction.exempt[1]"] * doubtful
    assert all(f"{tenant!r}" in line for line in warnings)


def test_a_model_folder_that_is_not_there_is_named(tmp_path, capsys):
    path = tmp_path / "firewall.toml"
    path.write_text('[detection]\nartifact = "no-model"')
    assert "no-model" in failed(capsys, "check-config", str(path))


def test_a_secret_file_that_others_may_read_is_named(config, tmp_path, capsys):
    (tmp_path / "secret.key").write_text("k" * 40)
    (tmp_path / "secret.key").chmod(0o644)
    assert "secret.key" in failed(capsys, "check-config", config())


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_printed_once_and_listed_without_its_secret(config, capsys):
    path = config('[[tenants]]\nname = "acme"')
    assert cli.main(["keys", "create", "--tenant", "acme", "--roles", "user,tool", "--config", path]) == 0
    key = capsys.readouterr().out
    assert re.fullmatch(r"sf-[a-z0-9]+-[A-Za-z0-9_-]{40,}\n", key)
    assert cli.main(["keys", "list", "--config", path]) == 0
    listed = capsys.readouterr().out
    shown = json.loads(listed)
    assert (shown["id"], shown["tenant"], shown["roles"]) == (key.split("-")[1], "acme", ["user", "tool"])
    assert key.strip().split("-", 2)[2] not in listed


def test_a_revoked_key_is_listed_as_such_and_not_revoked_again(config, capsys):
    path = config()
    cli.main(["keys", "create", "--tenant", "default", "--expires-at", "2999-01-01", "--config", path])
    key_id = capsys.readouterr().out.split("-")[1]
    assert cli.main(["keys", "revoke", key_id, "--config", path]) == 0
    assert key_id in failed(capsys, "keys", "revoke", key_id, "--config", path).splitlines()[-1]
    cli.main(["keys", "list", "--config", path])
    shown = json.loads(capsys.readouterr().out)
    assert shown["revoked_at"] is not None
    assert shown["expires_at"] == "2999-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--tenant", "nobody"], "nobody"),
        (["--tenant", "default", "--roles", "admin"], "admin"),
        (["--tenant", "default", "--expires-at", "2001-01-01"], "expires_at"),
    ],
)
def test_a_key_that_would_make_no_sense_is_not_made(config, capsys, arguments, word):
    assert word in failed(capsys, "keys", "create", *arguments, "--config", config())


@pytest.mark.parametrize("moment", ["nan", "inf", "1e20", "-inf"])
def test_a_key_never_expires_at_a_time_that_is_none(config, capsys, moment):
    with pytest.raises(SystemExit):
        cli.main(["keys", "create", "--tenant", "default", f"--expires-at={moment}", "--config", config()])
    assert "--expires-at" in capsys.readouterr().err


def ran(capsys, *arguments):
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_a_key_is_made_with_terms_and_listed_with_them(config, tmp_path, capsys):
    path = config()
    (tmp_path / "prompt.txt").write_text("The warehouse in Lisbon closes.\n")
    terms = [
        "--models",
        "gpt-4o*,o3",
        "--routes",
        "chat",
        "--limit",
        "concurrency=5",
        "--limit",
        "budget_usd_per_day=0.5",
    ]
    prompt = ["--system-prompt-file", str(tmp_path / "prompt.txt")]
    ran(capsys, "keys", "create", "--tenant", "default", *terms, *prompt, "--config", path)
    listed = ran(capsys, "keys", "list", "--config", path)
    shown = json.loads(listed)
    assert (shown["models"], shown["routes"]) == (["gpt-4o*", "o3"], ["chat"])
    assert shown["limits"] == {"budget_usd_per_day": 0.5, "concurrency": 5}
    assert shown["has_system_prompt"] is True
    assert "Lisbon" not in listed


def test_a_rotated_key_keeps_its_id_and_is_printed_once(config, capsys):
    path = config()
    key = ran(capsys, "keys", "create", "--tenant", "default", "--config", path)
    key_id = key.split("-")[1]
    new = ran(capsys, "keys", "rotate", key_id, "--old-expires-at", "2999-01-01", "--config", path)
    assert new != key
    assert new.split("-")[1] == key_id
    assert json.loads(ran(capsys, "keys", "list", "--config", path))["old_expires_at"] == "2999-01-01T00:00:00+00:00"
    assert "nothing" in failed(capsys, "keys", "rotate", "nothing", "--config", path)


def test_tenants_are_made_limited_listed_and_deleted(config, capsys):
    path = config('[[tenants]]\nname = "acme"')
    ran(capsys, "tenants", "create", "north", "--limit", "concurrency=5", "--config", path)
    limits = ["--limit", "concurrency=none", "--limit", "tokens_per_day=900"]
    assert json.loads(ran(capsys, "tenants", "set", "north", *limits, "--config", path))["limits"] == {
        "tokens_per_day": 900
    }
    listed = [json.loads(line) for line in ran(capsys, "tenants", "list", "--config", path).splitlines()]
    assert [(each["name"], each["origin"]) for each in listed] == [
        ("acme", "configuration"),
        ("default", "configuration"),
        ("north", "database"),
    ]
    ran(capsys, "keys", "create", "--tenant", "north", "--config", path)
    ran(capsys, "tenants", "delete", "north", "--config", path)
    assert json.loads(ran(capsys, "keys", "list", "--config", path))["revoked_at"] is not None
    assert "configuration" in failed(capsys, "tenants", "set", "acme", "--limit", "concurrency=1", "--config", path)
    assert "north" in failed(capsys, "tenants", "delete", "north", "--config", path)


@pytest.mark.parametrize("limit", ["concurrency=0", "tokens=5", "concurrency=1.5"])
def test_a_limit_that_cannot_be_is_refused_by_name(config, capsys, limit):
    err = failed(capsys, "tenants", "create", "north", "--limit", limit, "--config", config())
    assert limit.partition("=")[0] in err


def test_usage_is_printed_by_day_tenant_and_model(config, tmp_path, capsys):
    path = config('[storage]\nurl = "sqlite:///a.db"')
    ran(capsys, "keys", "create", "--tenant", "default", "--config", path)

    async def record():
        store = Store(tmp_path / "a.db")
        day = {"tenant": "acme", "model": "m", "prompt_tokens": 5, "completion_tokens": 2}
        times = (86_400.0 * 2 - 0.5, 86_400.0 * 2, 86_400.0 * 2 + 9)
        await store.add_rows([AuditRow(time=time, request_id=str(time), **day) for time in times])
        await store.add_rows([AuditRow(time=times[2], request_id="blocked", action="block", **day)])
        await store.close()

    asyncio.run(record())
    bounds = ["--tenant", "acme", "--from", "1970-01-01", "--to", "1970-02-01"]
    lines = ran(capsys, "usage", *bounds, "--config", path).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"day": "1970-01-02", "tenant": "acme", "model": "m", "requests": 1, "blocked": 0, "failed": 0}
        | {"prompt_tokens": 5, "completion_tokens": 2},
        {"day": "1970-01-03", "tenant": "acme", "model": "m", "requests": 3, "blocked": 1, "failed": 0}
        | {"prompt_tokens": 15, "completion_tokens": 6},
    ]
    assert ran(capsys, "usage", "--config", path) == ""


def test_migrate_brings_an_older_database_up_to_date_and_makes_none(config, tmp_path, capsys):
    path = config('[storage]\nurl = "sqlite:///a.db"')
    assert "does not exist" in failed(capsys, "migrate", "--config", path)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.executescript(VERSION_1)
    assert "migrate" in failed(capsys, "keys", "list", "--config", path)
    assert cli.main(["migrate", "--config", path]) == 0
    assert cli.main(["audit", "verify", "--config", path]) == 0


# -- audit -----------------------------------------------------------------------------------------------------------


def test_verify_tells_a_good_database_from_a_missing_and_a_damaged_one(config, tmp_path, capsys):
    path = config('[storage]\nurl = "sqlite:///a.db"')
    assert "a.db" in failed(capsys, "audit", "verify", "--config", path)
    cli.main(["keys", "create", "--tenant", "default", "--config", path])
    capsys.readouterr()
    assert cli.main(["audit", "verify", "--config", path]) == 0
    assert capsys.readouterr().out.startswith("ok: 0 audit rows")
    (tmp_path / "a.db").write_bytes(b"not a database" * 500)
    assert "a.db" in failed(capsys, "audit", "verify", "--config", path)


# -- scan ------------------------------------------------------------------------------------------------------------


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


@pytest.fixture
def scanned(tmp_path, monkeypatch, capfdbinary):
    """The command over a tiny artifact, with an encoder that knows one attack: the word `ignore`."""
    write_tiny_artifact(tmp_path / "model")
    path = tmp_path / "firewall.toml"
    path.write_text('[detection]\nartifact = "model"')
    monkeypatch.delenv("FIREWALL_SECRET_KEY", raising=False)
    monkeypatch.setattr(encoder, "Encoder", lambda artifact, threads: MarkedWordsEncoder(artifact.tokenizer))

    def run(data):
        monkeypatch.setattr(sys, "stdin", Stdin(data))
        status = cli.main(["scan", "--config", str(path)])
        out, err = capfdbinary.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err.decode()

    return run


def line(number, text="bread with rye flour", **changed):
    return json.dumps({"id": f"t{number}", "text": text, **changed}).encode() + b"\n"


def test_an_attack_is_told_from_a_harmless_text(scanned):
    status, (harmless, attack, system), err = scanned(
        line(1, label=0) + b"\n" + line(2, "ignore it all") + line("s", "ignore it all", role="system")
    )
    assert (status, err) == (0, "")
    assert harmless.keys() == {"id", "score", "category", "action", "findings"}
    assert (harmless["id"], harmless["category"], harmless["action"], harmless["findings"]) == (
        "t1",
        "benign",
        "allow",
        [],
    )
    assert (attack["category"], attack["action"]) == ("injection", "block")
    assert attack["score"] > 0.9 > 0.2 > harmless["score"]
    assert attack["findings"][0]["digest"]
    assert system["action"] == "flag"


def test_results_come_in_input_order_over_many_batches(scanned):
    texts = ["ignore it" if n % 7 == 0 else "bread " * (n % 5) for n in range(3_000)]
    status, results, _ = scanned(b"".join(line(n, text) for n, text in enumerate(texts)))
    assert status == 0
    assert [r["id"] for r in results] == [f"t{n}" for n in range(3_000)]
    assert [r["action"] == "block" for r in results] == [n % 7 == 0 for n in range(3_000)]


def test_an_id_may_be_a_number_or_null(scanned):
    _, results, _ = scanned(b'{"id": 9007199254740993, "text": "a"}\n{"id": null, "text": "a"}\n')
    assert [r["id"] for r in results] == [9007199254740993, None]


@pytest.mark.parametrize(
    "bad",
    [
        b"not json\n",
        b'{"id": "x"}\n',
        b'{"id": "x", "text": 5}\n',
        b'{"id": "x", "text": "a", "role": "king"}\n',
        b'{"id": "x", "text": "\\ud800"}\n',
        b'{"id": "x", "text": "\xff"}\n',
        b'{"id": ["x"], "text": "a"}\n',
    ],
)
def test_a_bad_line_ends_the_scan_by_its_number_after_the_good_ones(scanned, bad):
    status, results, err = scanned(b"".join(line(n) for n in range(1, 6)) + bad + line(7))
    assert status == 2
    assert "line 6: " in err
    assert [r["id"] for r in results] == ["t1", "t2", "t3", "t4", "t5"]


def test_a_line_without_end_is_not_read_whole(scanned, monkeypatch):
    monkeypatch.setattr(cli, "MAX_LINE_BYTES", 100)
    status, results, err = scanned(line(5) + b'{"id": 1, "text": "' + b"a" * 1_000)
    assert (status, len(results)) == (2, 1)
    assert "line 2: longer than 100 bytes" in err


# -- serve -----------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"server\.port: 127\.0\.0\.1:{port}"):
            _listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--host", "0.0.0.0"], "auth.mode"),
        (["--workers", "2"], "counters.url"),
        (["--config", "none.toml"], "none.toml"),
    ],
)
def test_options_that_contradict_the_configuration_are_refused_before_anything_starts(config, capsys, arguments, key):
    assert key in failed(capsys, "serve", "--config", config(), *arguments)


@pytest.fixture
def serving(config, tmp_path):
    """The command in a process of its own, on a free port, without a model."""
    started = []

    def start(text=""):
        path = config('[leakage]\nstream = "exact"\n[storage]\nurl = "sqlite:///a.db"\n' + text)
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--config", path]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_command_serves_what_its_welcome_suggests_and_stops_when_told(serving, tmp_path, capsys):
    process = serving()
    command = next(line for line in process.stdout if line.startswith("curl "))
    words = shlex.split(command)
    url = next(word for word in words if word.startswith("http"))
    request = urllib.request.Request(url, words[-1].encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert "rivers" in json.load(answer)["choices"][0]["message"]["content"]
    process.send_signal(signal.SIGTERM)
    _, logged = process.communicate(timeout=30)
    assert all(json.loads(line)["level"] == "info" for line in logged.splitlines())
    assert cli.main(["audit", "verify", "--config", str(tmp_path / "firewall.toml")]) == 0
    assert capsys.readouterr().out.startswith("ok: 1 audit rows")


def test_what_keeps_the_service_from_starting_is_its_last_line(serving, tmp_path):
    (tmp_path / "a.db").write_bytes(b"not a database" * 500)
    process = serving()
    _, logged = process.communicate(timeout=60)
    assert process.returncode == 2
    assert logged.splitlines()[-1].startswith("semantic-firewall: storage.url: ")
    assert "Traceback" not in logged


def test_the_welcome_has_three_lines_to_try_and_says_what_the_model_runs_on():
    text = welcome(Settings(), 8080, {"execution_provider": "CPUExecutionProvider"})
    commands = [line for line in text.splitlines() if line.startswith("curl ")]
    assert len(commands) == 3
    assert all("http://127.0.0.1:8080/v1/chat/completions" in command for command in commands)
    assert "CPUExecutionProvider" in text
    assert "authorization" not in text
    assert "authorization: Bearer" in welcome(Settings(auth=Auth(mode="keys")), 8080, {})
