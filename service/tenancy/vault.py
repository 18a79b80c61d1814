"""Protected texts, sealed: AES-256-GCM under a key of each tenant's own, bound to tenant, id, kind and name.

Whoever has the database alone has nothing; whoever moves a row to another tenant, or a seal to another row, or changes
a byte, is found out when it is opened.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from service.errors import StorageFailed, Unsealable
from service.tenancy.keys import OLD_SECRET_VARIABLE, SECRET_VARIABLE, SecretRoot
from service.tenancy.sealing import Seal

_CACHED_SEALS = 1_024


class Sealed(Protocol):
    """A text as it is kept."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def tenant(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def sealed(self) -> str: ...  # noqa: D102
    @property
    def root(self) -> str: ...  # noqa: D102


class Vault:
    """Seals and opens texts under one root. `root_id` stands beside every seal."""

    def __init__(self, root: SecretRoot) -> None:
        self._root = root
        self.root_id = root.id
        self._seals: dict[str, Seal] = {}

    def seal(self, text: str, *, text_id: str, tenant: str, kind: str, name: str) -> str:
        """The sealed text, printable."""
        return self._of(tenant).close(text, _owner(text_id, tenant, kind, name))

    def open(self, kept: Sealed) -> str:
        """The text. Raises Unsealable, which names its id and says what to do."""
        if kept.root != self.root_id:
            raise Unsealable(
                f"protected text {kept.id} is sealed under another {SECRET_VARIABLE} (root {kept.root}, this one is "
                f"{self.root_id}): put the former one back, or stop the service, set {OLD_SECRET_VARIABLE} to it and "
                "run `semantic-firewall protected rotate`",
                kept.id,
            )
        try:
            text = self._of(kept.tenant).open(kept.sealed, _owner(kept.id, kept.tenant, kept.kind, kept.name))
        except StorageFailed:
            text = ""
        if not text:
            raise Unsealable(
                f"protected text {kept.id} was altered in the database: restore it from a backup, or remove it with "
                f"`semantic-firewall protected remove {kept.id}` and register it anew",
                kept.id,
            )
        return text

    def digest(self, text: str, tenant: str) -> str:
        """A keyed hash: equal for equal texts of one tenant, and of no two."""
        return self._root.digest(f"protected-digest/{tenant}")(text)

    def _of(self, tenant: str) -> Seal:
        seal = self._seals.get(tenant)
        if seal is None:
            if len(self._seals) >= _CACHED_SEALS:
                self._seals.clear()
            seal = self._seals[tenant] = Seal(self._root.key(f"protected/{tenant}"))
        return seal


def _owner(*parts: str) -> str:
    return msgspec.json.encode(parts).decode()
