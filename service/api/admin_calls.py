"""One call of the admin API: what was asked, what came of it, and how long a page is."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from service.errors import MalformedRequest

DEFAULT_PAGE, MAX_PAGE = 100, 1_000


class Request(msgspec.Struct, frozen=True):
    """One call: the id or name in its path, its query, its body."""

    subject: str
    query: Mapping[str, str]
    body: bytes


class Done(msgspec.Struct, frozen=True):
    """What came of a call: its answer, and whom it concerned, for the record."""

    status: int
    answer: Any
    tenant: str = ""
    key_id: str = ""


Operation = Callable[[Request], Awaitable[Done]]


def page_limit(query: Mapping[str, str]) -> int:
    """How many are asked for. Raises MalformedRequest."""
    written = query.get("limit", str(DEFAULT_PAGE))
    if not re.fullmatch(r"[0-9]{1,4}", written) or not 1 <= int(written) <= MAX_PAGE:
        raise MalformedRequest(f"limit: 1 to {MAX_PAGE}.")
    return int(written)
