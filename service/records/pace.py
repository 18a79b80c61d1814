"""How many calls an hour are usual: read from the audit rows, so that a process that has just started knows it."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from service.records.database import LONG_S, Database
from service.records.schema import AUDIT

_HOUR_S = 3_600


class Pace(msgspec.Struct, frozen=True):
    """The `calls` of the busiest hour of a key, or where `key_id` is empty of a tenant over all its keys."""

    tenant: str
    key_id: str
    calls: int


class PaceReport(Database):
    """Sums over the audit table."""

    async def paces(self, begin: float, end: float, *, limit: int) -> list[Pace]:
        """Of the busiest `limit` tenants and as many keys, from `begin` until before `end` (seconds since the epoch).

        Calls count that a provider was to answer, and that were neither refused nor suspected of copying a model.
        """
        place = AUDIT.c.time / sa.literal_column(str(_HOUR_S))
        # SQLite's cast cuts, the other rounds.
        hour = sa.cast(sa.func.floor(place) if self.on_server else place, sa.Integer)
        kept = (
            *(AUDIT.c.time >= begin, AUDIT.c.time < end, AUDIT.c.provider != ""),
            *(AUDIT.c.action.in_(("allow", "flag", "redact")), AUDIT.c.category != "model_extraction"),
        )
        of_tenants = sa.select(AUDIT.c.tenant, sa.literal("").label("key_id"), sa.func.count().label("calls"))
        of_keys = sa.select(AUDIT.c.tenant, AUDIT.c.key_id, sa.func.count().label("calls"))
        found: list[Pace] = []
        for hours in (
            of_tenants.where(*kept).group_by(AUDIT.c.tenant, hour),
            of_keys.where(*kept, AUDIT.c.key_id != "").group_by(AUDIT.c.tenant, AUDIT.c.key_id, hour),
        ):
            async with self.read(LONG_S) as connection:
                found += [Pace(**row) for row in (await connection.execute(_busiest(hours, limit))).mappings()]
        return found


def _busiest(hours: sa.Select[tuple[str, str, int]], limit: int) -> sa.Select[tuple[str, str, int]]:
    of = hours.subquery()
    most = sa.func.max(of.c.calls).label("calls")
    names = (of.c.tenant, of.c.key_id)
    return sa.select(*names, most).group_by(*names).order_by(most.desc()).limit(limit)
