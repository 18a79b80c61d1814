"""Who asks, and what its key lets it ask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from functools import lru_cache

import msgspec

from service.errors import Forbidden
from service.settings import Limits
from service.tenancy.keys import MESSAGE_ROLES, ROUTES

_SAME_ROUTE = {"count_tokens": "messages"}
_OTHER_MODELS = frozenset({"models", "fallbacks", "fallback_models"})
"""Members by which some providers are told of further models; none of them is a member of the protocols here."""


class KeyCaller(msgspec.Struct, frozen=True):
    """Who asks. `roles` are those whose text this key may send; `key_id` is empty in open mode.

    `models` (globs) and `routes` are what it may ask, all of them where empty. `limits` are the key's own,
    `tenant_limits` those of a tenant that the configuration does not name. `system_prompt` is put before every prompt.
    """

    tenant: str
    key_id: str = ""
    roles: tuple[str, ...] = MESSAGE_ROLES
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    limits: Limits = Limits()
    tenant_limits: Limits | None = None
    system_prompt: str = ""

    def authorise(self, sent: Iterable[tuple[str, str]]) -> None:
        """Check the (role, JSON pointer) of each text sent. Raises Forbidden naming the pointer.

        A prompt cannot grant itself authority: what its key may not send is refused before any text is read.
        """
        for role, pointer in sent:
            if role not in self.roles:
                raise Forbidden(f"This key may not send {role} text.", pointer=pointer)

    def permit_route(self, protocol: str) -> None:
        """Check the protocol spoken (`Wire.name`). Raises Forbidden."""
        if self.routes and (route := route_of(protocol)) not in self.routes:
            raise Forbidden(f"This key may not call the route {route}.")

    def permit_model(
        self, model: str, unknown_fields: Sequence[str] = (), further: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Check the model asked for and the `further` ones, (model, JSON pointer), that tools name. `unknown_fields`
        are the request's members that its protocol does not know: some providers look for more models among them.
        Raises Forbidden naming the pointer.
        """
        if not self.models:
            return
        for name, pointer in ((model, "/model"), *further):
            if not any(_pattern(glob).match(name) for glob in self.models):
                raise Forbidden("This key may not ask for this model.", pointer=pointer)
        if others := sorted(_OTHER_MODELS & set(unknown_fields)):
            raise Forbidden("This key may not name further models.", pointer=f"/{others[0]}")


def route_of(protocol: str) -> str:
    """The name by which keys know a protocol: `openai.chat` is `chat`."""
    name = protocol.rpartition(".")[2]
    name = _SAME_ROUTE.get(name, name)
    if name not in ROUTES:
        raise ValueError(f"{name} is not listed among the routes")
    return name


@lru_cache(1_024)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))
