"""Which ids of kept things were issued to which tenant: nobody reads, goes on from or deletes what is another's.

All tenants share the provider's account, so the provider cannot tell them apart. What is kept durably of an id is a
keyed hash of tenant and id, with the provider's name and how many tokens the call had that made it. The system texts
under which it was made are kept in memory only, so that a later turn and a later look at the reply are still compared
with them; a restart forgets these.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec
import structlog

from service.errors import StorageFailed

MAX_PER_TENANT = 100_000
"""Ids of one tenant that are known; older ones are not found any more."""
_TRIM_EVERY = 1_024
_REMEMBERED_IDS = 65_536
_REMEMBERED_CHARS = 8_388_608

_log = structlog.get_logger("gateway")


class Origin(msgspec.Struct, frozen=True):
    """Of something that a provider keeps: who made it, and the system texts it was made under, while they are known.

    `tokens` are those of the call that made it, prompt and reply, None where they are not known: whoever goes on from
    it has them read again.
    """

    provider: str
    system_texts: tuple[str, ...] = ()
    tokens: int | None = None


class IssuedStore(Protocol):
    """Where ids are kept. All raise StorageFailed."""

    async def add_issued(
        self, tenant: str, provider: str, digests: Sequence[str], at: float, tokens: int | None = None
    ) -> None:
        """Durable on return."""

    async def find_issued(self, digest: str) -> tuple[str, int | None] | None:
        """The provider's name, and the tokens."""

    async def forget_issued(self, tenant: str, keep: int) -> None:
        """Delete all but the newest of a tenant."""


class IssuedIds:
    """The record of ids (`interfaces.IssuedIds`). `digest` is a keyed hash.

    `on_error` "allow" lets a reply pass whose ids were not kept: they will not be found, and so be of no use. With
    `everyones` a second hash without the tenant is kept, so that another's id can be told from one that nobody has.
    """

    def __init__(
        self,
        store: IssuedStore,
        digest: Callable[[str], str],
        on_error: Literal["block", "allow"] = "block",
        *,
        everyones: bool = False,
        max_per_tenant: int = MAX_PER_TENANT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._digest = digest
        self._on_error = on_error
        self._everyones = everyones
        self._max_per_tenant = max_per_tenant
        self._clock = clock
        self._added: dict[str, int] = {}
        self._texts: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._texts_of: OrderedDict[str, str] = OrderedDict()
        self._chars = 0

    async def record(self, tenant: str, ids: Sequence[str], origin: Origin) -> None:
        """Keep ids; durable on return. Raises StorageFailed where the policy is to fail closed."""
        digests = [self._of(tenant, issued_id) for issued_id in ids]
        self._remember(digests, origin.system_texts)
        if self._everyones:
            digests += [self._of("", issued_id) for issued_id in ids]
        # The first after a start trims too: whoever restarts often would never come to the thousandth.
        added = self._added.get(tenant, -1) + 1
        self._added[tenant] = added
        try:
            await self._store.add_issued(tenant, origin.provider, digests, self._clock(), origin.tokens)
            if added % _TRIM_EVERY == 0:
                await self._store.forget_issued(tenant, self._max_per_tenant)
        except StorageFailed:
            _log.error("issued ids lost", tenant=tenant, code=StorageFailed.code)
            if self._on_error == "block":
                raise

    async def find(self, tenant: str, issued_id: str) -> Origin | None:
        """None where it was not issued to this tenant, or is older than what is kept. Raises StorageFailed."""
        digest = self._of(tenant, issued_id)
        found = await self._store.find_issued(digest)
        if found is None:
            return None
        provider, tokens = found
        return Origin(provider, self._texts.get(self._texts_of.get(digest, ""), ()), tokens)

    async def is_anyone_s(self, issued_id: str) -> bool:
        """Whether it is known to have been issued to some tenant; False without `everyones`. Raises StorageFailed."""
        return self._everyones and await self._store.find_issued(self._of("", issued_id)) is not None

    def _of(self, tenant: str, issued_id: str) -> str:
        return self._digest(f"{tenant}\x00{issued_id}")

    def _remember(self, digests: Sequence[str], texts: tuple[str, ...]) -> None:
        if not texts:
            return
        # Most calls of an application have the same system text: it is kept once.
        name = self._digest("\x00".join(texts))
        if name not in self._texts:
            self._texts[name] = texts
            self._chars += sum(map(len, texts))
        self._texts.move_to_end(name)
        while self._chars > _REMEMBERED_CHARS and len(self._texts) > 1:
            _, forgotten = self._texts.popitem(last=False)
            self._chars -= sum(map(len, forgotten))
        for digest in digests:
            self._texts_of[digest] = name
            self._texts_of.move_to_end(digest)
        while len(self._texts_of) > _REMEMBERED_IDS:
            self._texts_of.popitem(last=False)
