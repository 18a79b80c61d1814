"""The database as the rest of the service knows it: audit rows, keys, tenants, protected texts, issued ids;
and their verification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.errors import StorageFailed
from service.records.audit import AuditFinding, AuditRow
from service.records.key_table import KeyTable
from service.records.pace import PaceReport
from service.records.place import Place
from service.records.protected_table import ProtectedTable
from service.records.schema import AUDIT, ISSUED
from service.records.tenant_table import TenantTable
from service.records.usage import UsageReport

_JSON_COLUMNS = ("findings", "attempts", "unjudged", "unscannable", "unknown_fields")


class Store(KeyTable, TenantTable, ProtectedTable, UsageReport, PaceReport):
    """All tables of one database. It is used after `open`; other methods raise StorageFailed."""

    async def add_rows(self, rows: Sequence[AuditRow]) -> None:
        """Write audit rows in one transaction; durable on return."""
        async with self.begin() as connection:
            await connection.execute(_INSERT_AUDIT, [columns(row) for row in rows])

    async def find_row(self, request_id: str) -> AuditRow | None:
        """The audit row of a request."""
        async with self.read() as connection:
            found = await connection.execute(sa.select(AUDIT).where(AUDIT.c.request_id == request_id))
            row = found.mappings().one_or_none()
        return _audit_row(row) if row else None

    async def add_issued(
        self, tenant: str, provider: str, digests: Sequence[str], at: float, tokens: int | None = None
    ) -> None:
        """Keep ids that a provider issued to a tenant, by their hashes, and the tokens of the call that made them;
        durable on return.
        """
        row = {"tenant": tenant, "provider": provider, "issued_at": at, "tokens": tokens}
        async with self.begin() as connection:
            await connection.execute(self._insert_issued(), [row | {"digest": digest} for digest in digests])

    async def find_issued(self, digest: str) -> tuple[str, int | None] | None:
        """The provider that issued the id with this hash, and the tokens of the call that made it."""
        async with self.read() as connection:
            query = sa.select(ISSUED.c.provider, ISSUED.c.tokens).where(ISSUED.c.digest == digest)
            row = (await connection.execute(query)).one_or_none()
        return (row.provider, row.tokens) if row else None

    async def forget_issued(self, tenant: str, keep: int) -> None:
        """Delete all but a tenant's newest ids."""
        own = ISSUED.c.tenant == tenant
        newest = sa.select(ISSUED.c.id).where(own).order_by(ISSUED.c.id.desc()).offset(keep).limit(1).scalar_subquery()
        async with self.begin() as connection:
            await connection.execute(ISSUED.delete().where(own, ISSUED.c.id <= newest))

    def _insert_issued(self) -> sa.Insert:
        """An id that comes again is new again."""
        if not self.on_server:
            return ISSUED.insert().prefix_with("OR REPLACE")
        insert = postgresql.insert(ISSUED)
        again = {name: insert.excluded[name] for name in ("id", "tenant", "provider", "issued_at", "tokens")}
        return insert.on_conflict_do_update(index_elements=["digest"], set_=again)


class AuditReport(msgspec.Struct, frozen=True):
    """Of `verify`: how many rows could be visited and what is wrong; nothing wrong is no problems."""

    rows: int
    problems: tuple[str, ...]


async def verify(place: Place) -> AuditReport:
    """Check a database in place, the service running or not: schema, a file's integrity, and that every row reads.

    Raises ConfigError where it cannot be opened at all.
    """
    store = Store(place)
    problems: list[str] = []
    rows = 0
    try:
        await store.open(create=False)
        async with store.begin(None) as connection:
            if not store.on_server:
                checked = await connection.execute(sa.text("PRAGMA integrity_check(20)"))
                problems += [line for (line,) in checked if line != "ok"]
            stream = await connection.stream(sa.select(AUDIT).order_by(AUDIT.c.id))
            async for row in stream.mappings():
                rows += 1
                try:
                    _audit_row(row)
                except msgspec.DecodeError:
                    problems.append(f"audit row {row['id']} cannot be read")
    except StorageFailed as error:
        problems.append(str(error))
    finally:
        await store.close()
    return AuditReport(rows, tuple(problems))


_INSERT_AUDIT = AUDIT.insert()


def columns(row: AuditRow) -> dict[str, Any]:
    """The row as the table holds it: lists as JSON."""
    values = {name: getattr(row, name) for name in row.__struct_fields__}
    for name in _JSON_COLUMNS:
        values[name] = msgspec.json.encode(values[name]).decode()
    return values


def _audit_row(row: sa.RowMapping) -> AuditRow:
    values = {name: row[name] for name in AuditRow.__struct_fields__}
    values["findings"] = msgspec.json.decode(values["findings"], type=tuple[AuditFinding, ...])
    for name in _JSON_COLUMNS[1:]:
        values[name] = msgspec.json.decode(values[name], type=tuple[str, ...])
    return AuditRow(**values)
