"""The caller's own names in a request, for whom it asks and of its caches, and bodies with other names in their place.

All tenants share the provider's account: equal names of two tenants would be one person and one cache there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from service.api import strict_json
from service.api.strict_json import pointer

OPENAI_MEMBERS: tuple[tuple[str, ...], ...] = (("user",), ("safety_identifier",), ("prompt_cache_key",))
MESSAGE_MEMBERS = (*OPENAI_MEMBERS, ("metadata", "user_id"))
"""Servers that speak both families may know OpenAI's as well."""


def names_of(request: Mapping[str, Any], members: Sequence[tuple[str, ...]] = OPENAI_MEMBERS) -> dict[str, str]:
    """The names that a request gives, by their JSON pointer; what is no string stands as its JSON."""
    found: dict[str, str] = {}
    for path in members:
        value: Any = request
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None and value != "":
            found[pointer(*path)] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return found


def with_names(body: bytes, names: Mapping[str, str]) -> bytes:
    """A valid body with these names at their pointers, every other byte as it is."""
    for place, name in names.items():
        body = strict_json.splice_value(body, place.split("/")[1:], name)
    return body


def with_user(body: bytes, name: str) -> bytes:
    """A valid body of OpenAI's protocols that says for whom it asks, as it is where it does already."""
    request = json.loads(body)
    if request.get("user") or request.get("safety_identifier"):
        return body
    return strict_json.splice_member(body, "user", name)
