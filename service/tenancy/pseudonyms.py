"""What a provider is told in the place of the caller's own names, of its end users and of its caches."""

from __future__ import annotations

from collections.abc import Callable, Collection


class Pseudonyms:
    """Stable names that tell a provider nothing. `digest` is a keyed hash; `told` are the names of providers that are
    told the tenant's where a call names nobody.
    """

    def __init__(self, digest: Callable[[str], str], told: Collection[str] = ()) -> None:
        self._digest = digest
        self.told = frozenset(told)

    def of(self, tenant: str, name: str = "") -> str:
        """32 hexadecimal digits: the same for the same name of a tenant, until the root secret changes, and another
        for every other tenant's. Without a name the tenant's own.
        """
        return self._digest(f"{tenant}\x00{name}")
