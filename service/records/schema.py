"""The tables of the database, the version of their form, and the way from older forms to this one.

Migrations go forward only, one step for each version, all in one transaction: a process that dies within it leaves the
older form whole. A change of a table changes its definition here and adds a step below.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex, CreateTable

from service.errors import ConfigError

SCHEMA_VERSION = 5
FIRST_ON_SERVER = 4
"""The first version that could be kept on a server."""
MAKING, PROTECTING = 7_311_001, 7_311_002
"""Turns that writers take (`take_turn`): who makes tables, and who changes protected texts."""

METADATA = sa.MetaData()

# A server is to compare texts by their bytes, as SQLite does: the order of pages does not hang on its locale.
_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# SQLite's own row number has 64 bits, and only a column of this very type is that.
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

SCHEMA = sa.Table(
    "schema_version",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", _NUMBER, primary_key=True),
    sa.Column("time", sa.Double, nullable=False, index=True),
    sa.Column("request_id", _TEXT, nullable=False, unique=True),
    sa.Column("tenant", _TEXT, nullable=False),
    sa.Column("key_id", _TEXT, nullable=False),
    sa.Column("protocol", _TEXT, nullable=False),
    sa.Column("model", _TEXT, nullable=False),
    sa.Column("provider", _TEXT, nullable=False),
    sa.Column("attempts", _TEXT, nullable=False, server_default="[]"),
    sa.Column("action", _TEXT, nullable=False),
    sa.Column("category", _TEXT, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("findings", _TEXT, nullable=False),  # JSON, as are all of the record's lists
    sa.Column("unjudged", _TEXT, nullable=False),
    sa.Column("unscannable", _TEXT, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("judge_ms", sa.Double, nullable=False),
    sa.Column("upstream_ms", sa.Double, nullable=False),
    sa.Column("reply_judge_ms", sa.Double, nullable=False),
    sa.Column("total_ms", sa.Double, nullable=False),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("unknown_fields", _TEXT, nullable=False),
    sa.Column("error", _TEXT, nullable=False),
)

KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", _TEXT, primary_key=True),
    sa.Column("tenant", _TEXT, nullable=False, index=True),
    sa.Column("digest", _TEXT, nullable=False),
    sa.Column("roles", _TEXT, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
    sa.Column("models", _TEXT, nullable=False, server_default="[]"),  # JSON, as are the two below
    sa.Column("routes", _TEXT, nullable=False, server_default="[]"),
    sa.Column("limits", _TEXT, nullable=False, server_default="{}"),
    sa.Column("old_digest", _TEXT),
    sa.Column("old_expires_at", sa.Double),
    sa.Column("system_prompt", _TEXT, nullable=False, server_default=""),  # sealed
)

ISSUED = sa.Table(
    "issued_ids",
    METADATA,
    sa.Column("id", _NUMBER, primary_key=True),
    sa.Column("digest", _TEXT, nullable=False, unique=True),
    sa.Column("tenant", _TEXT, nullable=False, index=True),
    sa.Column("provider", _TEXT, nullable=False),
    sa.Column("issued_at", sa.Double, nullable=False),
    sa.Column("tokens", _NUMBER),
)

TENANTS = sa.Table(
    "tenants",
    METADATA,
    sa.Column("name", _TEXT, primary_key=True),
    sa.Column("limits", _TEXT, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

PROTECTED = sa.Table(
    "protected_texts",
    METADATA,
    sa.Column("id", _TEXT, primary_key=True),
    sa.Column("tenant", _TEXT, nullable=False, index=True),  # empty: every tenant
    sa.Column("kind", _TEXT, nullable=False),
    sa.Column("name", _TEXT, nullable=False),
    sa.Column("length", sa.Integer, nullable=False),
    sa.Column("digest", _TEXT, nullable=False),
    sa.Column("sealed", _TEXT, nullable=False),
    sa.Column("root", _TEXT, nullable=False),  # which root it is sealed under
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("removed_at", sa.Double),  # then nothing is sealed here any more
    sa.Column("change", _NUMBER, nullable=False, index=True),  # grows with every change of the table
)

Step = str | tuple[str, str]

_STEPS: dict[int, tuple[Step, ...]] = {
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
    4: (
        (
            "ALTER TABLE issued_ids ADD COLUMN tokens INTEGER",
            "ALTER TABLE issued_ids ADD COLUMN tokens BIGINT",
        ),
    ),
}
"""By the version that they start from. Where the two databases need other words: (SQLite's, PostgreSQL's)."""


async def take_turn(connection: AsyncConnection, turn: int) -> None:
    """Wait until no other transaction has this turn, and keep it until the present one ends."""
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql("BEGIN IMMEDIATE")  # one turn for everything: a file has one writer
    else:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.literal(turn, sa.BigInteger))))


async def bring_up(connection: AsyncConnection, place: str, create: bool) -> None:
    """Leave the tables in this version's form; where not `create`, only check that they are.

    Raises ConfigError for a newer database, which is left as it is, and for an older one that may not be changed.
    """
    if create:
        # Of several workers that start at once one does it; the others find it done.
        await take_turn(connection, MAKING)
    version = await _version(connection, place, create)
    if version == SCHEMA_VERSION:
        return
    on_server = connection.dialect.name != "sqlite"
    if version is not None and not (FIRST_ON_SERVER if on_server else 1) <= version < SCHEMA_VERSION:
        raise ConfigError(
            f"storage.url: {place} has schema {version}, this version reads {SCHEMA_VERSION}; "
            "run the version that made it, or name another database"
        )
    if not create:
        raise ConfigError(
            f"storage.url: {place} has the older schema {version}; `semantic-firewall migrate` brings it to "
            f"{SCHEMA_VERSION}, and so does the service when it starts"
        )
    if version is None:
        await _make(connection)
        return
    for step in range(version, SCHEMA_VERSION):
        for statement in _STEPS[step]:
            words = statement if isinstance(statement, str) else statement[on_server]
            await connection.exec_driver_sql(words)
    await connection.execute(SCHEMA.update().values(version=SCHEMA_VERSION))


async def _version(connection: AsyncConnection, place: str, create: bool) -> int | None:
    """None where there are no tables of ours yet."""
    if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table(SCHEMA.name)):
        if create:
            return None
        raise ConfigError(
            f"storage.url: {place} is not the firewall's database; `semantic-firewall migrate` makes its tables where "
            "there are none, and so does the service when it starts"
        )
    version = (await connection.execute(sa.select(SCHEMA.c.version))).scalar()
    return 0 if version is None else int(version)


async def _make(connection: AsyncConnection) -> None:
    for table in METADATA.sorted_tables:
        await connection.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            await connection.execute(CreateIndex(index, if_not_exists=True))
    await connection.execute(SCHEMA.insert(), [{"id": 1, "version": SCHEMA_VERSION}])
