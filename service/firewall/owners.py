"""Protected texts, whose they are, and which of them a tenant may know of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec


class ProtectedText(msgspec.Struct, frozen=True, gc=False):
    """One registered text; `tenant` is empty for every tenant, `id` for a text of the configuration."""

    name: str
    kind: Literal["secret", "prompt"]
    tenant: str
    value: str
    id: str = ""

    def __repr__(self) -> str:
        return f"ProtectedText({self.name!r}, {self.kind!r}, {self.tenant!r})"


class Owner(msgspec.Struct, frozen=True, gc=False):
    """Whose text it is. `disguise` is one that `patterns.DISGUISES` names; `tenant` is empty for every tenant."""

    name: str
    kind: Literal["secret", "prompt", "canary"]
    disguise: str = "exact"
    tenant: str = ""


Owners = tuple[Owner, ...]
"""Of one pattern: those of several tenants where they registered the same text, one for each."""
MAX_SHARING = 8
"""What more tenants have in common is nobody's own: finding it in a reply tells nothing of one of them."""


def of_one_pattern(owners: Iterable[Owner]) -> Owners:
    """Of one tenant the first to write a pattern has it: disguises go from the plain to the far-fetched."""
    found: Owners = ()
    for owner in owners:
        if all(each.tenant != owner.tenant for each in found):
            if len(found) >= MAX_SHARING:
                return (msgspec.structs.replace(owner, tenant=""),)
            found = (*found, owner)
    return found


def concerned(owners: Owners, tenant: str) -> Owner | None:
    """The owner that this tenant may know of: itself, or everyone. None where all are other tenants."""
    return next((owner for owner in owners if owner.tenant in ("", tenant)), None)
