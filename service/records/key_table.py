"""Keys as they are kept: by id, with keyed hashes of their secrets and what each may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from service.errors import StorageFailed
from service.records.database import LONG_S, Database
from service.records.schema import KEYS, TENANTS
from service.settings import Limits

_UNLIMITED = Limits()
_FIND = (
    sa.select(KEYS, TENANTS.c.limits.label("tenant_limits"))
    .select_from(KEYS.outerjoin(TENANTS, TENANTS.c.name == KEYS.c.tenant))
    .where(KEYS.c.id == sa.bindparam("key_id"))
)


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is kept. Times are seconds since the epoch (UTC), None for never.

    `digest` is the keyed hash of its secret; `old_digest` that of the secret before the last rotation, which holds
    until `old_expires_at`. `models` (globs) and `routes` are what it may ask, all of them where empty; `limits` are its
    own, `tenant_limits` those of its tenant, None where the database does not know that. `system_prompt` is sealed.
    """

    id: str
    tenant: str
    digest: str
    roles: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    limits: Limits = Limits()
    old_digest: str | None = None
    old_expires_at: float | None = None
    system_prompt: str = ""
    tenant_limits: Limits | None = None


class KeyTable(Database):
    """The table of keys (`tenancy.keys.KeyStore`)."""

    async def find_key(self, key_id: str) -> KeyRow | None:
        """The key with this id and its tenant's limits, revoked and expired ones included."""
        row = await self.read_row(_FIND, {"key_id": key_id})
        return _key_row(row) if row else None

    async def add_key(
        self,
        *,
        key_id: str,
        tenant: str,
        digest: str,
        roles: tuple[str, ...],
        created_at: float,
        expires_at: float | None,
        models: tuple[str, ...] = (),
        routes: tuple[str, ...] = (),
        limits: Limits = _UNLIMITED,
        system_prompt: str = "",
    ) -> None:
        """Keep a new key."""
        row = {
            "id": key_id,
            "tenant": tenant,
            "digest": digest,
            "roles": ",".join(roles),
            "system_prompt": system_prompt,
        }
        row |= {"models": _encode(models), "routes": _encode(routes), "limits": encode_limits(limits)}
        async with self.begin() as connection:
            await connection.execute(KEYS.insert(), [row | {"created_at": created_at, "expires_at": expires_at}])

    async def rotate_key(self, key_id: str, digest: str, at: float, old_expires_at: float) -> bool:
        """Give a key a new secret; the one it had holds until then. False where there is no such key that is good."""
        alive = sa.or_(KEYS.c.expires_at.is_(None), KEYS.c.expires_at > at)
        values = {"digest": digest, "old_digest": KEYS.c.digest, "old_expires_at": old_expires_at}
        async with self.begin() as connection:
            good = sa.and_(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None), alive)
            done = await connection.execute(KEYS.update().where(good).values(values))
        return bool(done.rowcount)

    async def revoke_key(self, key_id: str, at: float) -> bool:
        """False where there is no such key that was still good."""
        good = sa.and_(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None))
        async with self.begin() as connection:
            done = await connection.execute(KEYS.update().where(good).values(revoked_at=at))
        return bool(done.rowcount)

    async def list_keys(
        self, tenant: str | None = None, *, limit: int | None = None, after: str | None = None
    ) -> list[KeyRow]:
        """Keys of one tenant, or of all, oldest first; at most `limit` of those that come after the key `after`."""
        order = sa.tuple_(KEYS.c.created_at, KEYS.c.id)
        query = sa.select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id).limit(limit)
        if tenant is not None:
            query = query.where(KEYS.c.tenant == tenant)
        if after is not None:
            last = KEYS.alias()
            query = query.where(
                order > sa.select(last.c.created_at, last.c.id).where(last.c.id == after).scalar_subquery()
            )
        async with self.read(LONG_S) as connection:
            return [_key_row(dict(row)) for row in (await connection.execute(query)).mappings()]


def encode_limits(limits: Limits) -> str:
    """As JSON, without what is not limited."""
    return _encode({name: value for name, value in msgspec.structs.asdict(limits).items() if value is not None})


def decode_limits(text: str) -> Limits:
    """Raises StorageFailed: limits that cannot be read must not be taken for none."""
    try:
        return msgspec.json.decode(text, type=Limits)
    except msgspec.DecodeError:
        raise StorageFailed("The database holds limits that cannot be read.") from None


def _encode(value: dict[str, Any] | Sequence[str]) -> str:
    return msgspec.json.encode(value).decode()


def _key_row(row: Mapping[str, Any]) -> KeyRow:
    values = dict(row)
    values["roles"] = tuple(values["roles"].split(","))
    values["limits"] = decode_limits(values["limits"])
    try:
        for name in ("models", "routes"):
            values[name] = msgspec.json.decode(values[name], type=tuple[str, ...])
    except msgspec.DecodeError:
        raise StorageFailed("The database holds a key that cannot be read.") from None
    if values.get("tenant_limits") is not None:
        values["tenant_limits"] = decode_limits(values["tenant_limits"])
    return KeyRow(**values)
