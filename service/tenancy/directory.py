"""All tenants: those of the configuration, which only its file can change, and those of the database."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec
import structlog

from service.errors import ConfigError, Conflict, NotFound
from service.settings import TENANT_NAME, Limits, Settings
from service.tenancy.tenants import DEFAULT_TENANT

_NAME = re.compile(TENANT_NAME)
_TRIES = 10
_KEY_ID = re.compile(r"[0-9a-f]{16}")
"""As keys are made."""

_log = structlog.get_logger("tenancy")


class StoredTenant(Protocol):
    """What is kept of a tenant."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def limits(self) -> Limits: ...  # noqa: D102
    @property
    def created_at(self) -> float: ...  # noqa: D102


class TenantStore(Protocol):
    """Where tenants are kept. All raise StorageFailed."""

    async def add_tenant(self, name: str, limits: Limits, at: float) -> bool:
        """False where there is one of this name."""

    async def find_tenant(self, name: str) -> StoredTenant | None:
        """The tenant of this name."""

    async def list_tenants(self, *, limit: int | None = None, after: str = "") -> Sequence[StoredTenant]:
        """By name, at most `limit` of those that come after the name `after`."""

    async def limit_tenant(self, name: str, limits: Limits, before: Limits) -> bool:
        """Give a tenant other limits; False where there is none of this name that has the limits `before`."""

    async def drop_tenant(self, name: str, at: float) -> bool:
        """Delete a tenant and revoke its keys; False where there is none of this name."""


class KnownTenant(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant, wherever it stands. `created_at` is seconds since the epoch, None where the configuration names it."""

    name: str
    limits: Limits
    origin: Literal["configuration", "database"]
    created_at: float | None = None


class KeyFinder(Protocol):
    """Where keys are found. Raises StorageFailed."""

    async def find_key(self, key_id: str) -> object | None:
        """The key with this id."""


class NameStore(TenantStore, KeyFinder, Protocol):
    """Where names are looked up."""


class Named(msgspec.Struct, frozen=True):
    """A tenant that a key of the configuration (`protected[0].tenant`) is about, and that `[[tenants]]` does not name.
    `may_be_key`: or the id of a key.
    """

    where: str
    name: str
    may_be_key: bool = False

    def __str__(self) -> str:
        return f"{self.where}: there is no tenant {self.name!r}"


def named_elsewhere(settings: Settings) -> list[Named]:
    """Whom the configuration is about without naming them in `[[tenants]]`: they are of the database, or misspelled."""
    known = {DEFAULT_TENANT, *(tenant.name for tenant in settings.tenants)}
    named = [Named(f"protected[{at}].tenant", text.tenant) for at, text in enumerate(settings.protected) if text.tenant]
    named += [Named(f"extraction.exempt[{at}]", name, True) for at, name in enumerate(settings.extraction.exempt)]
    return [each for each in named if each.name not in known]


def check(settings: Settings) -> list[Named]:
    """Those of whom only the database can tell whether they exist; what looks like the id of a key is taken for one.

    Raises ConfigError where nobody can have such a name: in open mode there are no keys, and no tenants but the file's.
    """
    named = named_elsewhere(settings)
    if named and settings.auth.mode == "open":
        raise ConfigError(str(named[0]))
    return [each for each in named if not (each.may_be_key and _KEY_ID.fullmatch(each.name))]


async def report_unknown(settings: Settings, store: NameStore) -> None:
    """Log whom the configuration is about though neither it nor the database knows them. They may come to be later."""
    for each in named_elsewhere(settings):
        is_key = each.may_be_key and await store.find_key(each.name) is not None
        if not is_key and await store.find_tenant(each.name) is None:
            _log.warning("no such tenant", at=each.where, tenant=each.name)


class Directory:
    """Finds, makes, changes and deletes tenants."""

    def __init__(self, settings: Settings, store: TenantStore, clock: Callable[[], float] = time.time) -> None:
        named = {DEFAULT_TENANT: Limits(), **{t.name: t.limits or Limits() for t in settings.tenants}}
        self._named = {n: KnownTenant(name=n, limits=own, origin="configuration") for n, own in named.items()}
        self._store = store
        self._clock = clock

    async def find(self, name: str) -> KnownTenant:
        """Raises NotFound."""
        if name in self._named:
            return self._named[name]
        stored = await self._store.find_tenant(name)
        if stored is None:
            raise NotFound(f"There is no tenant {name!r}.")
        return _known(stored)

    async def list(self, *, limit: int | None = None, after: str = "") -> list[KnownTenant]:
        """By name, at most `limit` of those that come after the name `after`."""
        after = after.partition("\0")[0]  # no name has one, and PostgreSQL knows no such text
        stored = await self._store.list_tenants(limit=limit, after=after)
        # Of the first `limit` of all, those that are stored are among the first `limit` of the stored.
        found = {each.name: _known(each) for each in stored}
        found |= {name: tenant for name, tenant in self._named.items() if name > after}
        return [tenant for _, tenant in sorted(found.items())[:limit]]

    async def create(self, name: str, limits: Limits) -> KnownTenant:
        """Raises ConfigError for a name that cannot be one, Conflict for one that is taken."""
        if not _NAME.fullmatch(name):
            raise ConfigError("name: up to 63 lower-case letters, digits, `_` and `.`, the first no sign")
        now = self._clock()
        if name in self._named or not await self._store.add_tenant(name, limits, now):
            raise Conflict(f"There is a tenant {name!r} already.")
        return KnownTenant(name=name, limits=limits, origin="database", created_at=now)

    async def change(self, name: str, changes: Mapping[str, float | None]) -> KnownTenant:
        """Replace single limits of a tenant; None takes one away.

        Raises ConfigError for what is no limit, NotFound, and Conflict for a tenant of the configuration, or one that
        others change without end.
        """
        self._refuse_named(name)
        for _ in range(_TRIES):
            tenant = await self.find(name)
            limits = change_limits(tenant.limits, changes)
            # Whoever changed another limit meanwhile is not to lose that.
            if await self._store.limit_tenant(name, limits, tenant.limits):
                return msgspec.structs.replace(tenant, limits=limits)
        raise Conflict(f"The tenant {name!r} is being changed by others.")

    async def delete(self, name: str) -> None:
        """Delete a tenant and revoke its keys. Raises NotFound, Conflict for one of the configuration."""
        self._refuse_named(name)
        if not await self._store.drop_tenant(name, self._clock()):
            raise NotFound(f"There is no tenant {name!r}.")

    def _refuse_named(self, name: str) -> None:
        if name in self._named:
            raise Conflict(f"The tenant {name!r} belongs to the configuration: change it there.")


def change_limits(limits: Limits, changes: Mapping[str, float | None]) -> Limits:
    """The limits with single ones replaced; None takes one away. Raises ConfigError naming what is wrong."""
    merged = {name: value for name, value in msgspec.structs.asdict(limits).items() if value is not None} | dict(
        changes
    )
    try:
        return msgspec.convert({name: value for name, value in merged.items() if value is not None}, Limits)
    except msgspec.ValidationError as error:
        raise ConfigError(f"limits: {error}") from None


def _known(stored: StoredTenant) -> KnownTenant:
    return KnownTenant(name=stored.name, limits=stored.limits, origin="database", created_at=stored.created_at)
