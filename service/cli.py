"""The console script `semantic-firewall`. Exit status: 0 done, 1 found something wrong, 2 could not be done."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from service import operators, operators_protected
from service import settings as config
from service.errors import ConfigError, FirewallError
from service.firewall.prompt import Role
from service.settings import Settings
from service.tenancy.tenants import DEFAULT_TENANT

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Longest line that `scan` reads: its memory is bounded by what it holds of the input."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors go to standard error in one line."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except FirewallError as error:
        print(f"semantic-firewall: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain at exit while flushing what it cannot write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="semantic-firewall", description="A firewall for LLM traffic.")
    commands = parser.add_subparsers(required=True, metavar="command")
    default = os.environ.get("FIREWALL_CONFIG") or None
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--config", type=Path, default=default, metavar="F", help="firewall.toml")

    serve = commands.add_parser("serve", parents=[configured], help="start the gateway")
    serve.add_argument("--host")
    serve.add_argument("--port", type=_port)
    serve.add_argument("--workers", type=_positive)
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check-config", help="check a configuration and what it names")
    check.add_argument("config", type=Path, nargs="?" if default else None, default=default, metavar="F")
    check.set_defaults(run=_check_config)

    scan = commands.add_parser("scan", parents=[configured], help="score JSONL texts from standard input")
    scan.set_defaults(run=_scan)

    operators.add_commands(commands, configured)
    operators_protected.add_commands(commands, configured)

    audit = commands.add_parser("audit", help="the record").add_subparsers(required=True, metavar="action")
    verify = audit.add_parser("verify", parents=[configured], help="check the database, running or stopped")
    verify.set_defaults(run=_audit_verify)

    migrate = commands.add_parser("migrate", parents=[configured], help="bring an older database up to date")
    migrate.set_defaults(run=_migrate)

    artifact = commands.add_parser("artifact", help="the model").add_subparsers(required=True, metavar="action")
    expand = artifact.add_parser("expand", parents=[configured], help="make another precision's model file")
    expand.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    expand.set_defaults(run=_artifact_expand)
    return parser


# -- serve -----------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    given = {"host": options.host, "port": options.port, "workers": options.workers}
    settings = config.load(options.config)
    server = msgspec.structs.replace(settings.server, **{k: v for k, v in given.items() if v is not None})
    settings = msgspec.structs.replace(settings, server=server)
    config.check(settings)
    _check_parts(settings)
    # Imported here: the other commands start without the web framework.
    from service.serving import serve

    return serve(settings)


# -- check-config ----------------------------------------------------------------------------------------------------


def _check_config(options: argparse.Namespace) -> int:
    from service.firewall.registration import false_alarms, registered, warning_of

    settings = config.load(options.config)
    doubts = _check_parts(settings)
    lines = [
        f"listens on  {settings.server.host}:{settings.server.port}, auth {settings.auth.mode}",
        *([f"for Envoy   {settings.envoy.host}:{settings.envoy.port}"] if settings.envoy.port is not None else []),
        *(f"provider    {p.name} ({p.kind}): {', '.join(p.models) or 'by routes only'}" for p in settings.providers),
        *(
            f"route       {r.model}: {', '.join(' as '.join(filter(None, (t.provider, t.model))) for t in r.targets)}"
            for r in settings.routes
        ),
        _check_model(settings),
        *_check_pii(settings),
        f"leakage     {settings.leakage.stream}, {settings.leakage.action}; protected texts: {len(settings.protected)}",
        f"tenants     {', '.join([DEFAULT_TENANT, *(t.name for t in settings.tenants)])}",
        f"storage     {_shown_storage(settings)}; counters {settings.counters.url}",
    ]
    print("ok", *lines, sep="\n  ")
    for doubt in doubts:
        print(f"semantic-firewall: warning: {doubt} in this file; is there in the database?", file=sys.stderr)
    for text in registered(settings):
        if warning := warning_of(false_alarms(text)):
            print(f"semantic-firewall: warning: protected {text.name!r}: {warning}", file=sys.stderr)
    return 0


def _check_pii(settings: Settings) -> list[str]:
    from service.firewall.recognisers import ENTITIES, Recognisers

    pii = settings.pii
    if not pii.enabled:
        return []
    Recognisers(pii.entities, pii.score)
    restored = ", restored" if pii.restore and pii.action == "redact" else ""
    return [
        f"pii         {len(pii.entities or ENTITIES)} kinds; requests {pii.action}{restored}; replies {pii.replies}"
    ]


def _shown_storage(settings: Settings) -> str:
    from service.records.place import database_place

    place = database_place(settings)
    return settings.storage.url if isinstance(place, Path) else str(place)  # without its password


def _check_parts(settings: Settings) -> list[str]:
    """What only the parts themselves know to be wrong; the answer is what may be. Nothing is made or written. Raises
    ConfigError.
    """
    from service.api import ext_proc
    from service.firewall.registration import registered
    from service.records.place import database_place
    from service.tenancy import directory, keys, quota

    if settings.envoy.port is not None:
        ext_proc.require()
    database_place(settings)
    quota.check(settings)
    if os.environ.get(keys.SECRET_VARIABLE) or (settings.folder / "secret.key").exists():
        keys.load_root(settings.folder)
    registered(settings)
    return [str(named) for named in directory.check(settings)]


def _check_model(settings: Settings) -> str:
    if not settings.detection.enabled:
        return "detection   off"
    from service.firewall.policy import role_policies
    from service.scoring.artifact import load_artifact

    artifact = load_artifact(settings.artifact_path)
    role_policies(settings.detection, artifact.manifest)
    model = artifact.manifest.model
    rates = f"flags at {settings.detection.flag_fpr:g}, blocks at {settings.detection.block_fpr:g} false positives"
    return f"model       {artifact.manifest.name} {artifact.version[:12]} ({model.precision}), {rates}"


# -- scan ------------------------------------------------------------------------------------------------------------


class _Line(msgspec.Struct, frozen=True):
    """One line of `scan`'s input. Other members of the object are not looked at."""

    id: str | int | float | None
    text: str
    role: Role = "user"


class _Lines:
    """Reads `scan`'s input lazily, up to its end or its first bad line, which `fault` then describes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = msgspec.json.Decoder(_Line)
        self.ids: deque[str | int | float | None] = deque()
        self.fault: str | None = None

    def __iter__(self) -> Iterator[tuple[str, Role]]:
        number = 0
        while raw := self._stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if not raw.strip():
                continue
            if len(raw) > MAX_LINE_BYTES:
                self.fault = f"line {number}: longer than {MAX_LINE_BYTES} bytes"
                return
            try:
                line = self._decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                reason = error if isinstance(error, msgspec.DecodeError) else "not UTF-8"
                self.fault = f"line {number}: {reason}"
                return
            self.ids.append(line.id)
            yield line.text, line.role


def _scan(options: argparse.Namespace) -> int:
    from service.firewall.policy import role_policies
    from service.firewall.scan import scan
    from service.firewall.text_score import TextScorer
    from service.scoring.artifact import load_artifact
    from service.scoring.attack_index import AttackIndex
    from service.scoring.encoder import Encoder
    from service.tenancy.keys import SecretRoot, load_root

    settings = config.load(options.config)
    # Without a configuration there is no place for a secret: hashes are then only comparable within this output.
    root = load_root(settings.folder) if options.config else SecretRoot(secrets.token_bytes(32))
    artifact = load_artifact(settings.artifact_path)
    policies = role_policies(settings.detection, artifact.manifest)
    scorer = TextScorer(artifact, AttackIndex(artifact))
    encoder = Encoder(artifact, settings.detection.threads)
    lines = _Lines(sys.stdin.buffer)
    encode = msgspec.json.Encoder().encode
    out = sys.stdout.buffer
    for scanned in scan(lines, scorer, encoder, policies, digest=root.digest("audit")):
        decisive, action = scanned.verdict.decisive, scanned.verdict.action
        category = decisive.category if decisive and action != "allow" else "benign"
        result = {"id": lines.ids.popleft(), "score": scanned.score.score, "category": category, "action": action}
        out.write(encode(result | {"findings": scanned.verdict.findings}) + b"\n")
    out.flush()
    if lines.fault is not None:
        print(f"semantic-firewall: {lines.fault}", file=sys.stderr)
        return 2
    return 0


# -- the database and the model ---------------------------------------------------------------------------------------


def _audit_verify(options: argparse.Namespace) -> int:
    from service.records.place import database_place
    from service.records.store import verify

    place = database_place(config.load(options.config))
    report = asyncio.run(verify(place))
    for problem in report.problems:
        print(f"{place}: {problem}", file=sys.stderr)
    print(f"{'damaged' if report.problems else 'ok'}: {report.rows} audit rows in {place}")
    return 1 if report.problems else 0


def _migrate(options: argparse.Namespace) -> int:
    from service.records.place import database_place
    from service.records.schema import SCHEMA_VERSION
    from service.records.store import Store

    store = Store(database_place(config.load(options.config)))
    if isinstance(store.place, Path) and not store.place.is_file():
        raise ConfigError(f"storage.url: {store.place} does not exist")

    async def migrate() -> None:
        try:
            await store.open()
        finally:
            await store.close()

    asyncio.run(migrate())
    print(f"ok: {store.place} has schema {SCHEMA_VERSION}")
    return 0


def _artifact_expand(options: argparse.Namespace) -> int:
    folder = config.load(options.config).artifact_path
    importlib.import_module("service.scoring.expand").expand(folder, options.precision)
    return 0


# -- values ----------------------------------------------------------------------------------------------------------


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port is 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
