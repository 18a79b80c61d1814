"""`GET /v1/models`: what can be asked for here. A provider's globs are listed as they stand in the configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from service.api.asgi import Handler, credential_of, page
from service.api.chat_reply import ChatWire
from service.settings import Provider


def handler(
    providers: Sequence[Provider],
    sandbox_models: Sequence[str],
    authenticate: Callable[[str], Awaitable[Any]],
    *,
    check: Callable[[Mapping[str, str]], None] | None,
) -> Handler:
    """The listing, for callers whom `authenticate` accepts; `check` refuses requests by their headers."""
    entries = [
        {"id": name, "object": "model", "created": 0, "owned_by": provider.name}
        for provider in providers
        for name in _names(provider, sandbox_models)
    ]
    body = msgspec.json.encode({"object": "list", "data": entries})

    async def allow(headers: Mapping[str, str]) -> None:
        if check is not None:
            check(headers)
        await authenticate(credential_of(headers))

    async def render(_: str) -> tuple[int, str, bytes]:
        return 200, "application/json", body

    return page(render, error_body=ChatWire().error_body, allow=allow)


def _names(provider: Provider, sandbox_models: Sequence[str]) -> list[str]:
    names: list[str] = []
    for glob in provider.models:
        names += sandbox_models if provider.kind == "sandbox" and glob == "sandbox-*" else [glob]
    return list(dict.fromkeys(names))
