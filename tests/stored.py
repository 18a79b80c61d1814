"""What a database holds, for whoever looks for what must not be in it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from service.records.schema import METADATA
from service.records.store import Store


async def everything(store: Store) -> str:
    """Every row of every table, and of a file also every byte, its journal included."""
    found = ""
    async with store.begin() as connection:
        for table in METADATA.sorted_tables:
            found += "\n".join(str(dict(row)) for row in (await connection.execute(sa.select(table))).mappings())
    if isinstance(store.place, Path):
        files = sorted(store.place.parent.glob(f"{store.place.name}*"))
        found += b"".join(file.read_bytes() for file in files).decode("latin-1")
    return found
