"""The tables of the database, the version of their form, and the way from older forms to this one.

Migrations go forward only, one step for each version, all in one transaction: a process that dies within it leaves the
older form whole. A change of a table changes its definition here and adds a step below.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex, CreateTable

from service.errors import ConfigError

SCHEMA_VERSION = 4

METADATA = sa.MetaData()

SCHEMA = sa.Table(
    "schema_version",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time", sa.Double, nullable=False, index=True),
    sa.Column("request_id", sa.Text, nullable=False, unique=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("protocol", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("attempts", sa.Text, nullable=False, server_default="[]"),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("findings", sa.Text, nullable=False),  # JSON, as are all of the record's lists
    sa.Column("unjudged", sa.Text, nullable=False),
    sa.Column("unscannable", sa.Text, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("judge_ms", sa.Double, nullable=False),
    sa.Column("upstream_ms", sa.Double, nullable=False),
    sa.Column("reply_judge_ms", sa.Double, nullable=False),
    sa.Column("total_ms", sa.Double, nullable=False),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("unknown_fields", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)

KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("roles", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
    sa.Column("models", sa.Text, nullable=False, server_default="[]"),  # JSON, as are the two below
    sa.Column("routes", sa.Text, nullable=False, server_default="[]"),
    sa.Column("limits", sa.Text, nullable=False, server_default="{}"),
    sa.Column("old_digest", sa.Text),
    sa.Column("old_expires_at", sa.Double),
    sa.Column("system_prompt", sa.Text, nullable=False, server_default=""),  # sealed
)

ISSUED = sa.Table(
    "issued_ids",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("issued_at", sa.Double, nullable=False),
)

TENANTS = sa.Table(
    "tenants",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("limits", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

PROTECTED = sa.Table(
    "protected_texts",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),  # empty: every tenant
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("length", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("root", sa.Text, nullable=False),  # which root it is sealed under
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("removed_at", sa.Double),  # then nothing is sealed here any more
    sa.Column("change", sa.Integer, nullable=False, index=True),  # grows with every change of the table
)

_STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE api_keys ADD COLUMN models TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE api_keys ADD COLUMN routes TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE api_keys ADD COLUMN limits TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE api_keys ADD COLUMN old_digest TEXT",
        "ALTER TABLE api_keys ADD COLUMN old_expires_at DOUBLE",
        "ALTER TABLE api_keys ADD COLUMN system_prompt TEXT NOT NULL DEFAULT ''",
        # The first files with schema 1 were made before there were ids to keep.
        "CREATE TABLE IF NOT EXISTS issued_ids (id INTEGER NOT NULL PRIMARY KEY, digest TEXT NOT NULL UNIQUE, "
        "tenant TEXT NOT NULL, provider TEXT NOT NULL, issued_at DOUBLE NOT NULL)",
        "CREATE INDEX IF NOT EXISTS ix_issued_ids_tenant ON issued_ids (tenant)",
        "CREATE TABLE tenants (name TEXT NOT NULL PRIMARY KEY, limits TEXT NOT NULL, created_at DOUBLE NOT NULL)",
    ),
    2: ("ALTER TABLE audit ADD COLUMN attempts TEXT NOT NULL DEFAULT '[]'",),
    3: (
        "CREATE TABLE IF NOT EXISTS protected_texts (id TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL, "
        "kind TEXT NOT NULL, name TEXT NOT NULL, length INTEGER NOT NULL, digest TEXT NOT NULL, sealed TEXT NOT NULL, "
        "root TEXT NOT NULL, created_at DOUBLE NOT NULL, removed_at DOUBLE, change INTEGER NOT NULL)",
        "CREATE INDEX IF NOT EXISTS ix_protected_texts_tenant ON protected_texts (tenant)",
        "CREATE INDEX IF NOT EXISTS ix_protected_texts_change ON protected_texts (change)",
    ),
}
"""By the version that they start from."""


async def bring_up(connection: AsyncConnection, path: Path, create: bool) -> None:
    """Leave the tables in this version's form; where not `create`, only check that they are.

    Raises ConfigError for a newer database, which is left as it is, and for an older one that may not be changed.
    """
    if create:
        # Of several workers that start at once one does it; the others find it done.
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
    version = await _version(connection, path, create)
    if version == SCHEMA_VERSION:
        return
    if version is not None and not 0 < version < SCHEMA_VERSION:
        raise ConfigError(
            f"storage.url: {path} has schema {version}, this version reads {SCHEMA_VERSION}; "
            "run the version that made it, or name another file"
        )
    if not create:
        raise ConfigError(
            f"storage.url: {path} has the older schema {version}; `semantic-firewall migrate` brings it to "
            f"{SCHEMA_VERSION}, and so does the service when it starts"
        )
    if version is None:
        await _make(connection)
        return
    for step in range(version, SCHEMA_VERSION):
        for statement in _STEPS[step]:
            await connection.exec_driver_sql(statement)
    await connection.execute(SCHEMA.update().values(version=SCHEMA_VERSION))


async def _version(connection: AsyncConnection, path: Path, create: bool) -> int | None:
    """None where there are no tables of ours yet."""
    if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table(SCHEMA.name)):
        if create:
            return None
        raise ConfigError(f"storage.url: {path} is not the firewall's database")
    version = (await connection.execute(sa.select(SCHEMA.c.version))).scalar()
    return 0 if version is None else int(version)


async def _make(connection: AsyncConnection) -> None:
    for table in METADATA.sorted_tables:
        await connection.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            await connection.execute(CreateIndex(index, if_not_exists=True))
    await connection.execute(SCHEMA.insert(), [{"id": 1, "version": SCHEMA_VERSION}])
