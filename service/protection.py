"""Protected texts from their registration to every worker's memory: checked, sealed, kept, told of, looked for.

A text exists in the clear where it is registered, and in the memory of the workers that look for it. Nothing else here
holds or tells one: not the database, not an answer, not a log, not an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec
import structlog

from service.errors import ConfigError, Conflict, FirewallError, NotFound, StorageFailed, Unsealable
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.registration import FalseAlarms, check_text, false_alarms
from service.records.protected_table import ProtectedRow
from service.tenancy.keys import CACHE_S
from service.tenancy.vault import Vault

Kind = Literal["secret", "prompt"]
MAX_NAME_CHARS = 200
MAX_TEXT_CHARS = 65_536
MAX_TEXTS = 100_000
"""Of one tenant."""
PATIENCE_S = 10.0
"""For so long the database may be silent until replies are not judged by what was read before."""
_PAGE = 2_000

_log = structlog.get_logger("protection")


class TextStore(Protocol):
    """Where texts are kept. All raise StorageFailed."""

    async def add_protected(self, row: ProtectedRow) -> bool:
        """False where the tenant has one of this name."""

    async def count_protected(self, tenant: str) -> int:
        """How many texts a tenant has."""

    async def find_protected(self, text_id: str) -> ProtectedRow | None:
        """The text with this id, unless it was removed."""

    async def list_protected(
        self, tenant: str | None = None, *, limit: int | None = None, after: str | None = None
    ) -> list[ProtectedRow]:
        """By the time of their making."""

    async def remove_protected(self, text_id: str, at: float) -> bool:
        """False where there is none with this id."""

    async def changed_protected(self, after: tuple[int, str], limit: int) -> list[ProtectedRow]:
        """Those whose last change comes after (number of the change, id), removed ones included."""

    async def reseal_protected(self, rows: Sequence[ProtectedRow]) -> bool:
        """All or none; False where one of them was removed meanwhile."""


class Registered(msgspec.Struct, frozen=True):
    """A text just registered, and how often it stands in ordinary ones."""

    row: ProtectedRow
    alarms: FalseAlarms


class Registry:
    """Registers, removes and re-seals texts."""

    def __init__(self, store: TextStore, vault: Vault, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock

    async def add(self, kind: Kind, name: str, text: str, tenant: str = "") -> Registered:
        """Check, seal and keep a text, for one tenant or, without one, for every tenant.

        Raises ConfigError with the reason for a text that is refused, Conflict for a name that is taken.
        """
        if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise ConfigError(f"name: 1 to {MAX_NAME_CHARS} printable characters")
        if len(text) > MAX_TEXT_CHARS:
            raise ConfigError(f"text: longer than {MAX_TEXT_CHARS} characters")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError("text: half a character stands in it") from None
        given = ProtectedText(name, kind, tenant, text)
        check_text("text", given)
        if await self._store.count_protected(tenant) >= MAX_TEXTS:
            raise Conflict(f"A tenant has {MAX_TEXTS} protected texts at most.")
        alarms = await asyncio.to_thread(false_alarms, given)
        text_id = secrets.token_hex(8)
        row = ProtectedRow(
            id=text_id,
            tenant=tenant,
            kind=kind,
            name=name,
            length=len(text),
            digest=self._vault.digest(text, tenant),
            sealed=self._vault.seal(text, text_id=text_id, tenant=tenant, kind=kind, name=name),
            root=self._vault.root_id,
            created_at=self._clock(),
        )
        if not await self._store.add_protected(row):
            raise Conflict(f"There is a protected text {name!r} already.")
        return Registered(row, alarms)

    async def remove(self, text_id: str) -> None:
        """Forget a text. Raises NotFound."""
        if not await self._store.remove_protected(text_id, self._clock()):
            raise NotFound("There is no protected text with this id.")

    async def rotate(self, old: Vault) -> tuple[int, int]:
        """Seal all texts under the present root that are under the old one: (how many were, how many there are).

        All or none. Raises Unsealable for a text that neither root opens.
        """
        rows = await self._store.list_protected()
        moved = [await asyncio.to_thread(self._moved, row, old) for row in rows]
        changed = [row for row in moved if row is not None]
        if not await self._store.reseal_protected(changed):
            raise Conflict("Texts were removed meanwhile: stop the service, and run it again.")
        return len(changed), len(rows)

    def _moved(self, row: ProtectedRow, old: Vault) -> ProtectedRow | None:
        if row.root == self._vault.root_id:
            self._vault.open(row)
            return None
        text = old.open(row)
        return msgspec.structs.replace(
            row,
            sealed=self._vault.seal(text, text_id=row.id, tenant=row.tenant, kind=row.kind, name=row.name),
            digest=self._vault.digest(text, row.tenant),
            root=self._vault.root_id,
        )


class Watch:
    """Keeps what a worker looks for as the database has it: read at the start, and asked for changes ever after.

    What another process registers or removes is looked for after `CACHE_S` (as a revoked key is refused), and the time
    that reading it takes. A worker that cannot read its texts says so, and lets no reply pass as judged.
    """

    def __init__(
        self,
        store: TextStore,
        vault: Vault,
        texts: ProtectedTexts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._vault = vault
        self._texts = texts
        self._clock = clock
        self._place = (0, "")
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._compacting: asyncio.Task[None] | None = None
        self._read_at = 0.0

    async def start(self) -> None:
        """Read all texts, then watch. Raises Unsealable naming one that cannot be opened, StorageFailed."""
        await self.refresh()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Watch no longer."""
        for task in (self._task, self._compacting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def ping(self) -> None:
        """Raises StorageFailed where replies are not compared with what is registered."""
        if self._texts.stale:
            raise StorageFailed("Protected texts cannot be read.")

    async def refresh(self) -> None:
        """Take in what has changed. Raises as `start` does."""
        async with self._lock:
            place = self._place
            added: dict[str, ProtectedText] = {}
            removed: set[str] = set()
            while True:
                rows = await self._store.changed_protected(place, _PAGE)
                if not rows:
                    break
                opened = await asyncio.to_thread(self._opened, rows)
                added |= {text.id: text for text in opened}
                gone = {row.id for row in rows if row.removed_at is not None}
                removed |= gone
                for each in gone:
                    added.pop(each, None)
                place = (rows[-1].change, rows[-1].id)
            if place != self._place:
                # In a thread: the event loop goes on, with what it had until the new is whole.
                await asyncio.to_thread(self._texts.merge, list(added.values()), removed)
                self._place = place
                _log.info("protected texts changed", count=len(added) + len(removed))
            self._read_at = self._clock()
            self._texts.stale = False
        if self._texts.needs_compacting and (self._compacting is None or self._compacting.done()):
            self._compacting = asyncio.create_task(asyncio.to_thread(self._texts.compact))

    def _opened(self, rows: Sequence[ProtectedRow]) -> list[ProtectedText]:
        return [
            ProtectedText(row.name, "secret" if row.kind == "secret" else "prompt", row.tenant, text, row.id)
            for row in rows
            if row.removed_at is None and (text := self._vault.open(row))
        ]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CACHE_S)
            await self.look()

    async def look(self) -> None:
        """Take in what has changed, or note that it cannot be read."""
        try:
            await self.refresh()
        except Unsealable as error:
            self._fail(error, error.text_id)
        except Exception as error:
            if self._clock() - self._read_at > PATIENCE_S:
                self._fail(error)

    def _fail(self, error: Exception, text_id: str = "") -> None:
        if not self._texts.stale:
            code = error.code if isinstance(error, FirewallError) else type(error).__name__
            _log.error("protected texts unreadable", code=code, protected_id=text_id)
        self._texts.stale = True
