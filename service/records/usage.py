"""What was used, by day, tenant and model: read from the audit rows, whose times and tokens it sums."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from service.records.database import LONG_S, Database
from service.records.schema import AUDIT

_DAY_S = 86_400


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's calls of one model on one day. `day` counts days since the epoch (UTC); `blocked` and `failed` are
    those of the `requests` that ended in a block or an error. `model` is empty where no model was named.
    """

    day: int
    tenant: str
    model: str
    requests: int
    blocked: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class UsageReport(Database):
    """Sums over the audit table."""

    async def usage(
        self,
        tenant: str | None,
        begin: float,
        end: float,
        *,
        limit: int | None = None,
        after: tuple[int, str, str] | None = None,
    ) -> list[Usage]:
        """Of one tenant, or of all, from `begin` until before `end` (seconds since the epoch), ordered by day, tenant
        and model; at most `limit` of those that come after (day, tenant, model). Changes by operators are no usage.
        """
        days = AUDIT.c.time / sa.literal_column(str(_DAY_S))
        day = sa.cast(
            sa.func.floor(days) if self.on_server else days, sa.Integer
        )  # SQLite's cast cuts, the other rounds
        place = (day, AUDIT.c.tenant, AUDIT.c.model)
        query = (
            sa.select(
                day.label("day"),
                AUDIT.c.tenant,
                AUDIT.c.model,
                sa.func.count().label("requests"),
                _count(AUDIT.c.action == "block").label("blocked"),
                _count(AUDIT.c.action == "error").label("failed"),
                _sum(AUDIT.c.prompt_tokens).label("prompt_tokens"),
                _sum(AUDIT.c.completion_tokens).label("completion_tokens"),
            )
            .where(AUDIT.c.time >= begin, AUDIT.c.time < end, AUDIT.c.protocol.not_like("admin.%"))
            .group_by(*place)
            .order_by(*place)
            .limit(limit)
        )
        if tenant is not None:
            query = query.where(AUDIT.c.tenant == tenant)
        if after is not None:
            query = query.where(sa.tuple_(*place) > sa.tuple_(*(sa.literal(part) for part in after)))
        async with self.read(LONG_S) as connection:
            return [Usage(**row) for row in (await connection.execute(query)).mappings()]


def _count(condition: sa.ColumnElement[bool]) -> sa.Cast[int]:
    return _sum(sa.case((condition, 1), else_=0))


def _sum(values: sa.ColumnElement[int]) -> sa.Cast[int]:
    return sa.cast(sa.func.sum(values), sa.BigInteger)  # PostgreSQL's sums of such numbers are decimals
