"""Protected texts as they are kept: sealed, with what may be told of them, and the number of their last change."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from service.records.database import LONG_S, Database
from service.records.schema import PROTECTED, PROTECTING

KEPT_REMOVALS_S = 86_400.0
"""For so long a removed text's id stays, so that every running worker is told of it."""

_ALIVE = PROTECTED.c.removed_at.is_(None)
_NEXT = sa.select(sa.func.coalesce(sa.func.max(PROTECTED.c.change), 0) + 1).scalar_subquery()


class ProtectedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A text as it is kept. `tenant` is empty for every tenant, `length` counts characters, `digest` is keyed by
    tenant, `root` tells the root that it is sealed under. Times are seconds since the epoch (UTC). One with
    `removed_at` has nothing sealed.
    """

    id: str
    tenant: str
    kind: str
    name: str
    length: int
    digest: str
    sealed: str
    root: str
    created_at: float
    removed_at: float | None = None
    change: int = 0


class ProtectedTable(Database):
    """The table of protected texts (`protection.TextStore`)."""

    async def add_protected(self, row: ProtectedRow) -> bool:
        """Keep a new text; False where the tenant has one of this name."""
        values = msgspec.structs.asdict(row) | {"change": _NEXT}
        same = sa.and_(_ALIVE, PROTECTED.c.tenant == row.tenant, PROTECTED.c.name == row.name)
        async with self.begin_alone(PROTECTING) as connection:
            if (await connection.execute(sa.select(PROTECTED.c.id).where(same).limit(1))).first() is not None:
                return False
            await connection.execute(PROTECTED.insert().values(values))
        return True

    async def count_protected(self, tenant: str) -> int:
        """How many texts a tenant has."""
        query = sa.select(sa.func.count()).where(_ALIVE, PROTECTED.c.tenant == tenant)
        async with self.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def find_protected(self, text_id: str) -> ProtectedRow | None:
        """The text with this id, unless it was removed."""
        async with self.read() as connection:
            found = await connection.execute(sa.select(PROTECTED).where(_ALIVE, PROTECTED.c.id == text_id))
            row = found.mappings().one_or_none()
        return ProtectedRow(**row) if row else None

    async def list_protected(
        self, tenant: str | None = None, *, limit: int | None = None, after: str | None = None
    ) -> list[ProtectedRow]:
        """Texts by the time of their making, of one tenant or of all; at most `limit` after the id `after`."""
        query = sa.select(PROTECTED).where(_ALIVE).order_by(PROTECTED.c.created_at, PROTECTED.c.id).limit(limit)
        if tenant is not None:
            query = query.where(PROTECTED.c.tenant == tenant)
        if after is not None:
            last = PROTECTED.alias()
            place = sa.select(last.c.created_at, last.c.id).where(last.c.id == after).scalar_subquery()
            query = query.where(sa.tuple_(PROTECTED.c.created_at, PROTECTED.c.id) > place)
        async with self.read(LONG_S) as connection:
            return [ProtectedRow(**row) for row in (await connection.execute(query)).mappings()]

    async def remove_protected(self, text_id: str, at: float) -> bool:
        """Forget a text; False where there is none with this id. Its id stays for a day."""
        gone = {"sealed": "", "digest": "", "removed_at": at, "change": _NEXT}
        old = sa.and_(PROTECTED.c.removed_at < at - KEPT_REMOVALS_S, PROTECTED.c.change < _NEXT - 1)
        async with self.begin_alone(PROTECTING) as connection:
            done = await connection.execute(PROTECTED.update().where(_ALIVE, PROTECTED.c.id == text_id).values(gone))
            await connection.execute(PROTECTED.delete().where(old))
        return bool(done.rowcount)

    async def changed_protected(self, after: tuple[int, str], limit: int) -> list[ProtectedRow]:
        """At most `limit` texts whose last change comes after (number of the change, id), removed ones included."""
        place = sa.tuple_(PROTECTED.c.change, PROTECTED.c.id)
        query = sa.select(PROTECTED).where(place > sa.tuple_(*map(sa.literal, after)))
        query = query.order_by(PROTECTED.c.change, PROTECTED.c.id).limit(limit)
        async with self.read(LONG_S) as connection:
            return [ProtectedRow(**row) for row in (await connection.execute(query)).mappings()]

    async def reseal_protected(self, rows: Sequence[ProtectedRow]) -> bool:
        """Give texts their new seals, all or none; False where one of them was removed meanwhile."""
        change = PROTECTED.update().where(_ALIVE, PROTECTED.c.id == sa.bindparam("of"))
        change = change.values({name: sa.bindparam(f"new_{name}") for name in ("sealed", "root", "digest", "change")})
        async with self.begin_alone(PROTECTING, LONG_S) as connection:
            number = (await connection.execute(sa.select(_NEXT))).scalar_one()
            alive = set((await connection.execute(sa.select(PROTECTED.c.id).where(_ALIVE))).scalars())
            if not alive.issuperset(row.id for row in rows):
                return False
            values = [
                {"of": r.id, "new_sealed": r.sealed, "new_root": r.root, "new_digest": r.digest, "new_change": number}
                for r in rows
            ]
            if values:
                await connection.execute(change, values)
        return True
