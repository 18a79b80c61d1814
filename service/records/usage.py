"""What was used, by day, tenant and model: read from the audit rows, whose times and tokens it sums."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from service.records.database import Database
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
        day = sa.cast(AUDIT.c.time / _DAY_S, sa.Integer)
        place = (day, AUDIT.c.tenant, AUDIT.c.model)
        query = (
            sa.select(
                day.label("day"),
                AUDIT.c.tenant,
                AUDIT.c.model,
                sa.func.count().label("requests"),
                _count(AUDIT.c.action == "block").label("blocked"),
                _count(AUDIT.c.action == "error").label("failed"),
                sa.func.sum(AUDIT.c.prompt_tokens).label("prompt_tokens"),
                sa.func.sum(AUDIT.c.completion_tokens).label("completion_tokens"),
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
        async with self.begin() as connection:
            return [Usage(**row) for row in (await connection.execute(query)).mappings()]


def _count(condition: sa.ColumnElement[bool]) -> sa.Function[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))
