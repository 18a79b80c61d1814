"""Whose a protected text is, and which of them a tenant may know of."""

from __future__ import annotations

from typing import Literal

import msgspec


class Owner(msgspec.Struct, frozen=True):
    """Whose text it is. `disguise` is one that `patterns.DISGUISES` names; `tenant` is empty for every tenant."""

    name: str
    kind: Literal["secret", "prompt", "canary"]
    disguise: str = "exact"
    tenant: str = ""


Owners = tuple[Owner, ...]
"""Of one pattern: those of several tenants where they registered the same text, one for each."""
MAX_SHARING = 8
"""What more tenants have in common is nobody's own: finding it in a reply tells nothing of one of them."""


def joined(owners: Owners, owner: Owner) -> Owners:
    """The owners with one more; a later one of the same tenant takes the place of the former."""
    if owners and owners[0].tenant == owner.tenant and len(owners) == 1:
        return owners if owners[0] == owner else (owner,)
    others = tuple(each for each in owners if each.tenant != owner.tenant)
    if len(others) >= MAX_SHARING:
        return (msgspec.structs.replace(owner, tenant=""),)
    return (*others, owner)


def concerned(owners: Owners, tenant: str) -> Owner | None:
    """The owner that this tenant may know of: itself, or everyone. None where all are other tenants."""
    return next((owner for owner in owners if owner.tenant in ("", tenant)), None)
