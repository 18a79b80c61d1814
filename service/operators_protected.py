"""`semantic-firewall protected`: what the admin API does for protected texts, on the database's host.

A text is read from a file or from standard input, never from the command line, which others can see.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import settings as config
from service.errors import ConfigError, NotFound
from service.operators import print_lines, with_store
from service.settings import Settings
from service.tenancy.directory import Directory

if TYPE_CHECKING:
    from service.protection import Registry
    from service.records.store import Store

_MAX_BYTES = 1_048_576


def add_commands(commands: Any, configured: argparse.ArgumentParser) -> None:
    """Add `protected`; `configured` has the option `--config`."""
    protected = commands.add_parser("protected", help="texts that no reply may contain")
    actions = protected.add_subparsers(required=True, metavar="action")
    add = actions.add_parser("add", parents=[configured], help="protect a text, from a file or standard input")
    add.add_argument("--name", required=True, help="in the record")
    add.add_argument("--kind", choices=("secret", "prompt"), required=True)
    add.add_argument("--tenant", default="", metavar="T", help="whose it is (default: every tenant's)")
    add.add_argument("--file", type=Path, metavar="F", help="UTF-8; one newline at its end is not part of it")
    add.set_defaults(run=_add)
    listing = actions.add_parser("list", parents=[configured], help="list them, without the texts")
    listing.add_argument("--tenant")
    listing.set_defaults(run=_list)
    remove = actions.add_parser("remove", parents=[configured], help="forget a text")
    remove.add_argument("id")
    remove.set_defaults(run=_remove)
    rotate = actions.add_parser("rotate", parents=[configured], help="seal all of them under the present root")
    rotate.add_argument(
        "--old-key-file", type=Path, metavar="F", help="the root of before (default: FIREWALL_SECRET_KEY_OLD)"
    )
    rotate.set_defaults(run=_rotate)


def _add(options: argparse.Namespace) -> int:
    from service.api.admin_shapes import text_shown
    from service.firewall.registration import warning_of

    settings, text = config.load(options.config), _text(options.file)

    async def add(store: Store) -> tuple[Any, str]:
        if options.tenant:
            try:
                await Directory(settings, store).find(options.tenant)
            except NotFound:
                raise ConfigError(f"--tenant: there is no tenant {options.tenant!r}") from None
        made = await _registry(settings, store).add(options.kind, options.name, text, options.tenant)
        warning = warning_of(made.alarms)
        return text_shown(made.row, warning or None, made.alarms.rate), warning

    shown, warning = with_store(settings, add, make=True)
    if warning:
        print(f"semantic-firewall: warning: {warning}", file=sys.stderr)
    return print_lines([shown])


def _list(options: argparse.Namespace) -> int:
    from service.api.admin_shapes import text_shown

    rows = with_store(config.load(options.config), lambda store: store.list_protected(options.tenant))
    return print_lines(text_shown(row) for row in rows)


def _remove(options: argparse.Namespace) -> int:
    settings = config.load(options.config)
    with_store(settings, lambda store: _registry(settings, store).remove(options.id))
    print(f"removed {options.id}")
    return 0


def _rotate(options: argparse.Namespace) -> int:
    from service.tenancy.keys import load_old_root
    from service.tenancy.vault import Vault

    settings, old = config.load(options.config), Vault(load_old_root(options.old_key_file))
    rotate: Callable[[Store], Awaitable[tuple[int, int]]] = lambda store: _registry(settings, store).rotate(old)  # noqa: E731
    changed, found = with_store(settings, rotate)
    print(f"ok: {changed} of {found} protected texts sealed anew")
    return 0


def _registry(settings: Settings, store: Store) -> Registry:
    from service.protection import Registry
    from service.tenancy.keys import load_root
    from service.tenancy.vault import Vault

    return Registry(store, Vault(load_root(settings.folder)))


def _text(path: Path | None) -> str:
    """From a file or standard input; one newline at its end is not part of it."""
    where = f"--file: {path}" if path else "standard input"
    try:
        if path is not None:
            raw = path.read_bytes()
        elif sys.stdin.isatty():
            raise ConfigError("the text is read from --file or from standard input, where nothing is")
        else:
            raw = sys.stdin.buffer.read(_MAX_BYTES)
        return raw.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{where}: {reason}") from None
