"""`GET /v1/models` and `GET /v1/models/{id}`: what can be asked for here.

The globs of routes and providers are listed as they stand in the configuration. Any name that a provider would be asked
for is found by its id, also one that is not listed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from service.api.asgi import Handler, credential_of, page
from service.api.chat_reply import ChatWire
from service.api.request_fields import is_model_name
from service.errors import NotFound
from service.interfaces import Router
from service.settings import Provider, Route

PATH = "/v1/models"


def handler(
    providers: Sequence[Provider],
    routes: Sequence[Route],
    sandbox_models: Sequence[str],
    router: Router,
    authenticate: Callable[[str], Awaitable[Any]],
    *,
    check: Callable[[Mapping[str, str]], None] | None,
) -> Handler:
    """The listing and its entries, for callers whom `authenticate` accepts; `check` refuses requests by their headers.

    To be mounted at `PATH`: its paths are what follows.
    """
    entries: dict[str, dict[str, Any]] = {}
    for route in routes:
        entries.setdefault(route.model, _entry(route.model, route.targets[0].provider))
    for provider in providers:
        for name in _names(provider, sandbox_models):
            entries.setdefault(name, _entry(name, provider.name))  # the first provider is the one that is asked
    listing = msgspec.json.encode({"object": "list", "data": list(entries.values())})

    async def allow(headers: Mapping[str, str]) -> None:
        if check is not None:
            check(headers)
        await authenticate(credential_of(headers))

    async def render(path: str) -> tuple[int, str, bytes]:
        name = path.strip("/")
        if not name:
            return 200, "application/json", listing
        # A mount also gets the paths that only begin like its own.
        if not path.startswith("/") or not is_model_name(name):
            raise NotFound("There is no such model here.")
        entry = entries.get(name) or _entry(name, router.choose(name, None).name)
        return 200, "application/json", msgspec.json.encode(entry)

    return page(render, error_body=ChatWire().error_body, allow=allow)


def _entry(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _names(provider: Provider, sandbox_models: Sequence[str]) -> list[str]:
    names: list[str] = []
    for glob in provider.models:
        names += sandbox_models if provider.kind == "sandbox" and glob == "sandbox-*" else [glob]
    return list(dict.fromkeys(names))
