"""`GET /v1/models` and `GET /v1/models/{id}`: what can be asked for here.

The globs of routes and providers are listed as they stand in the configuration. Any name that a provider would be asked
for is found by its id, also one that is not listed. A key that may ask for some models only sees no others: of a glob
that is wider than its own, its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from service.api.asgi import Handler, credential_of, page
from service.api.chat_reply import ChatWire
from service.api.request_fields import is_model_name
from service.errors import NotFound
from service.interfaces import Caller, Router
from service.settings import Provider, Route

PATH = "/v1/models"


def handler(
    providers: Sequence[Provider],
    routes: Sequence[Route],
    sandbox_models: Sequence[str],
    router: Router,
    authenticate: Callable[[str], Awaitable[Caller]],
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

    def show(path: str, globs: Sequence[str]) -> dict[str, Any]:
        name = path.strip("/")
        if not name:
            return {"object": "list", "data": _seen(entries, globs)}
        # A mount also gets the paths that only begin like its own.
        if not path.startswith("/") or not is_model_name(name) or not _is_among(name, globs):
            raise NotFound("There is no such model here.")
        return entries.get(name) or _entry(name, router.choose(name, None).name)

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        globs: list[str] = []

        async def allow(headers: Mapping[str, str]) -> None:
            if check is not None:
                check(headers)
            globs.extend((await authenticate(credential_of(headers))).models)

        async def render(path: str) -> tuple[int, str, bytes]:
            return 200, "application/json", msgspec.json.encode(show(path, globs))

        await page(render, error_body=ChatWire().error_body, allow=allow)(scope, receive, send)

    return handle


def _is_among(name: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


def _seen(entries: Mapping[str, dict[str, Any]], globs: Sequence[str]) -> list[dict[str, Any]]:
    """What a key with these globs may ask for."""
    seen: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        if _is_among(name, globs):
            seen.setdefault(name, entry)
            continue
        for glob in globs:
            if fnmatchcase(glob, name):
                seen.setdefault(glob, _entry(glob, entry["owned_by"]))
    return list(seen.values())


def _entry(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _names(provider: Provider, sandbox_models: Sequence[str]) -> list[str]:
    names: list[str] = []
    for glob in provider.models:
        names += sandbox_models if provider.kind == "sandbox" and glob == "sandbox-*" else [glob]
    return list(dict.fromkeys(names))
