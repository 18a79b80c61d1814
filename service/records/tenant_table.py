"""Tenants that were made while the service runs, beside those of the configuration."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from service.records.database import LONG_S, Database
from service.records.key_table import decode_limits, encode_limits
from service.records.schema import KEYS, PROTECTED, PROTECTING, TENANTS
from service.settings import Limits


class TenantRow(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant as it is kept; `created_at` is seconds since the epoch (UTC)."""

    name: str
    limits: Limits
    created_at: float


class TenantTable(Database):
    """The table of tenants (`tenancy.directory.TenantStore`)."""

    async def add_tenant(self, name: str, limits: Limits, at: float) -> bool:
        """False where there is one of this name."""
        row = {"name": name, "limits": encode_limits(limits), "created_at": at}
        async with self.begin() as connection:
            done = await connection.execute(self.insert(TENANTS).values(row).on_conflict_do_nothing())
        return bool(done.rowcount)

    async def find_tenant(self, name: str) -> TenantRow | None:
        """The tenant of this name."""
        async with self.read() as connection:
            found = await connection.execute(sa.select(TENANTS).where(TENANTS.c.name == name))
            row = found.mappings().one_or_none()
        return _tenant_row(row) if row else None

    async def list_tenants(self, *, limit: int | None = None, after: str = "") -> list[TenantRow]:
        """By name, at most `limit` of those that come after the name `after`."""
        query = sa.select(TENANTS).where(TENANTS.c.name > after).order_by(TENANTS.c.name).limit(limit)
        async with self.read(LONG_S) as connection:
            return [_tenant_row(row) for row in (await connection.execute(query)).mappings()]

    async def limit_tenant(self, name: str, limits: Limits, before: Limits) -> bool:
        """Give a tenant other limits; False where there is none of this name that has the limits `before`."""
        known = sa.and_(TENANTS.c.name == name, TENANTS.c.limits == encode_limits(before))
        async with self.begin() as connection:
            done = await connection.execute(TENANTS.update().where(known).values(limits=encode_limits(limits)))
        return bool(done.rowcount)

    async def drop_tenant(self, name: str, at: float) -> bool:
        """Delete a tenant, revoke its keys and forget its protected texts, all or nothing; False where there is none of
        this name.
        """
        async with self.begin_alone(PROTECTING, LONG_S) as connection:
            done = await connection.execute(TENANTS.delete().where(TENANTS.c.name == name))
            if done.rowcount:
                own = sa.and_(KEYS.c.tenant == name, KEYS.c.revoked_at.is_(None))
                await connection.execute(KEYS.update().where(own).values(revoked_at=at))
                number = sa.select(sa.func.coalesce(sa.func.max(PROTECTED.c.change), 0) + 1).scalar_subquery()
                gone = {"sealed": "", "digest": "", "removed_at": at, "change": number}
                texts = sa.and_(PROTECTED.c.tenant == name, PROTECTED.c.removed_at.is_(None))
                await connection.execute(PROTECTED.update().where(texts).values(gone))
        return bool(done.rowcount)


def _tenant_row(row: sa.RowMapping) -> TenantRow:
    return TenantRow(name=row["name"], limits=decode_limits(row["limits"]), created_at=row["created_at"])
