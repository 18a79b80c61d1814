"""The commands that operators have for keys, tenants and usage: what the admin API does, on the database's host.

Everything is printed as JSON lines, but a new key, which is printed alone and once.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from service import settings as config
from service.errors import ConfigError, NotFound
from service.settings import Limits, Settings
from service.tenancy.directory import Directory, change_limits
from service.tenancy.moments import moment_of

if TYPE_CHECKING:
    from service.records.store import Store

T = TypeVar("T")
_DAY_S = 86_400.0


def add_commands(commands: Any, configured: argparse.ArgumentParser) -> None:
    """Add `keys`, `tenants` and `usage`; `configured` has the option `--config`."""
    keys = commands.add_parser("keys", help="keys of callers").add_subparsers(required=True, metavar="action")
    create = keys.add_parser("create", parents=[configured], help="make a key and print it once")
    create.add_argument("--tenant", required=True)
    create.add_argument(
        "--roles", type=_names, default=(), metavar="user,tool,…", help="what it may send (default: all)"
    )
    create.add_argument("--expires-at", type=_moment, metavar="T", help="ISO 8601, or seconds since the epoch")
    create.add_argument("--models", type=_names, default=(), metavar="GLOB,…", help="what it may ask (default: all)")
    create.add_argument("--routes", type=_names, default=(), metavar="chat,…", help="what it may call (default: all)")
    create.add_argument("--limit", type=_limit, action="append", default=[], metavar="NAME=N", help="its own limits")
    create.add_argument("--system-prompt-file", type=Path, metavar="F", help="put before every prompt; never shown")
    create.set_defaults(run=_keys_create)
    listing = keys.add_parser("list", parents=[configured], help="list keys, without their secrets")
    listing.add_argument("--tenant")
    listing.set_defaults(run=_keys_list)
    rotate = keys.add_parser("rotate", parents=[configured], help="give a key a new secret and print it once")
    rotate.add_argument("id")
    rotate.add_argument("--old-expires-at", type=_moment, metavar="T", help="until then both hold (default: now)")
    rotate.set_defaults(run=_keys_rotate)
    revoke = keys.add_parser("revoke", parents=[configured], help="make a key worthless")
    revoke.add_argument("id")
    revoke.set_defaults(run=_keys_revoke)

    tenants = commands.add_parser("tenants", help="who has keys").add_subparsers(required=True, metavar="action")
    listing = tenants.add_parser("list", parents=[configured], help="those of configuration and database")
    listing.set_defaults(run=_tenants_list)
    for name, run, help_ in (
        ("create", _tenants_create, "make a tenant"),
        ("set", _tenants_set, "change its limits; NAME=none takes one away"),
    ):
        action = tenants.add_parser(name, parents=[configured], help=help_)
        action.add_argument("name")
        action.add_argument("--limit", type=_limit, action="append", default=[], metavar="NAME=N")
        action.set_defaults(run=run)
    delete = tenants.add_parser("delete", parents=[configured], help="delete a tenant and revoke its keys")
    delete.add_argument("name")
    delete.set_defaults(run=_tenants_delete)

    usage = commands.add_parser("usage", parents=[configured], help="requests and tokens by day, tenant and model")
    usage.add_argument("--tenant")
    usage.add_argument("--from", dest="begin", type=_moment, metavar="T", help="default: 30 days before --to")
    usage.add_argument("--to", dest="end", type=_moment, metavar="T", help="default: now")
    usage.set_defaults(run=_usage)


# -- keys ------------------------------------------------------------------------------------------------------------


def _keys_create(options: argparse.Namespace) -> int:
    from service.tenancy.keys import Keys, load_root

    settings = config.load(options.config)
    prompt = _text_of(options.system_prompt_file) if options.system_prompt_file else ""
    limits = change_limits(Limits(), dict(options.limit))

    async def create(store: Store) -> str:
        directory = Directory(settings, store)
        try:
            await directory.find(options.tenant)
        except NotFound:
            known = ", ".join(tenant.name for tenant in await directory.list())
            raise ConfigError(f"--tenant: there is no tenant {options.tenant!r}; there are {known}") from None
        made = await Keys(store, load_root(settings.folder)).create(
            options.tenant,
            options.roles,
            options.expires_at,
            models=options.models,
            routes=options.routes,
            limits=limits,
            system_prompt=prompt,
        )
        return made.key

    print(with_store(settings, create, make=True))
    return 0


def _keys_list(options: argparse.Namespace) -> int:
    from service.api.admin_shapes import key_shown

    rows = with_store(config.load(options.config), lambda store: store.list_keys(options.tenant))
    return print_lines(key_shown(row) for row in rows)


def _keys_rotate(options: argparse.Namespace) -> int:
    from service.tenancy.keys import Keys, load_root

    settings = config.load(options.config)

    async def rotate(store: Store) -> str:
        made = await Keys(store, load_root(settings.folder)).rotate(options.id, options.old_expires_at)
        if made is None:
            raise ConfigError(f"there is no key {options.id!r} that is still good")
        return made.key

    print(with_store(settings, rotate))
    return 0


def _keys_revoke(options: argparse.Namespace) -> int:
    if not with_store(config.load(options.config), lambda store: store.revoke_key(options.id, time.time())):
        raise ConfigError(f"there is no key {options.id!r} that could be revoked")
    print(f"revoked {options.id}")
    return 0


# -- tenants and usage -----------------------------------------------------------------------------------------------


def _tenants_list(options: argparse.Namespace) -> int:
    from service.api.admin_shapes import tenant_shown

    settings = config.load(options.config)
    found = with_store(settings, lambda store: Directory(settings, store).list(), make=True)
    return print_lines(map(tenant_shown, found))


def _tenants_create(options: argparse.Namespace) -> int:
    from service.api.admin_shapes import tenant_shown

    settings, limits = config.load(options.config), change_limits(Limits(), dict(options.limit))
    made = with_store(settings, lambda store: Directory(settings, store).create(options.name, limits), make=True)
    return print_lines([tenant_shown(made)])


def _tenants_set(options: argparse.Namespace) -> int:
    from service.api.admin_shapes import tenant_shown

    settings = config.load(options.config)

    changes = dict(options.limit)
    changed = with_store(settings, lambda store: Directory(settings, store).change(options.name, changes))
    return print_lines([tenant_shown(changed)])


def _tenants_delete(options: argparse.Namespace) -> int:
    settings = config.load(options.config)
    with_store(settings, lambda store: Directory(settings, store).delete(options.name))
    print(f"deleted {options.name}")
    return 0


def _usage(options: argparse.Namespace) -> int:
    from service.api.admin_shapes import usage_shown

    end = time.time() + 1.0 if options.end is None else options.end
    begin = end - 30 * _DAY_S if options.begin is None else options.begin
    rows = with_store(config.load(options.config), lambda store: store.usage(options.tenant, begin, end))
    return print_lines(map(usage_shown, rows))


# -- the frame -------------------------------------------------------------------------------------------------------


def with_store(settings: Settings, work: Callable[[Store], Awaitable[T]], *, make: bool = False) -> T:
    """Do something with the database, which has to exist unless `make`."""
    from service.records.place import database_place
    from service.records.store import Store

    async def run() -> T:
        store = Store(database_place(settings))
        try:
            await store.open(create=make)
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def print_lines(shown: Iterable[Any]) -> int:
    """Each as a line of JSON."""
    for each in shown:
        sys.stdout.write(msgspec.json.encode(each).decode() + "\n")
    return 0


def _text_of(path: Path) -> str:
    """A file's text; one newline at its end is not part of it."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"--system-prompt-file: {path}: {reason}") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _moment(text: str) -> float:
    try:
        return moment_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is {error}") from None


def _limit(text: str) -> tuple[str, float | None]:
    name, _, written = text.partition("=")
    if written == "none":
        return name, None
    try:
        value = msgspec.json.decode(written, type=int | float)
    except msgspec.DecodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not such as concurrency=5 or concurrency=none") from None
    return name, value
