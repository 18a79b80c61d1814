"""Who asks, and what is set aside for it: the gateway's one door to keys, token counts and quotas."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from service.errors import Forbidden
from service.settings import Limits, Settings
from service.tenancy.keys import MESSAGE_ROLES, Keys
from service.tenancy.quota import Quota
from service.tenancy.tokens import TokenCounter

DEFAULT_TENANT = "default"
DEFAULT_OUTPUT_TOKENS = 4_096
"""What a reply is bounded to where tokens are limited and neither the caller nor the tenant sets a bound: without one
there is no worst case that could be reserved."""

TOKENS_PER_TEXT = 4
TOKENS_PER_PROMPT = 3
"""What the chat format adds around each message and before the reply, as OpenAI's cookbook counts it."""


class _Named(Protocol):
    @property
    def tenant(self) -> str: ...


class KeyCaller(msgspec.Struct, frozen=True):
    """Who asks. `roles` are those whose text this key may send; `key_id` is empty in open mode."""

    tenant: str
    key_id: str = ""
    roles: tuple[str, ...] = MESSAGE_ROLES

    def authorise(self, sent: Iterable[tuple[str, str]]) -> None:
        """Check the (role, JSON pointer) of each text sent. Raises Forbidden naming the pointer.

        A prompt cannot grant itself authority: what its key may not send is refused before any text is read.
        """
        for role, pointer in sent:
            if role not in self.roles:
                raise Forbidden(f"This key may not send {role} text.", pointer=pointer)


class TokenReservation(msgspec.Struct, frozen=True):
    """Tokens set aside. `prompt_tokens` was counted here. `max_output_tokens` is what each choice must be clamped to,
    None where the request needs no clamp: the caller's own bound is within the limits, or there are none.
    """

    id: str
    tenant: str
    prompt_tokens: int
    max_output_tokens: int | None
    headers: tuple[tuple[str, str], ...]


class Tenants:
    """All tenants. `keys` None is open mode: everyone is tenant `default`."""

    def __init__(self, settings: Settings, counter: TokenCounter, quota: Quota, keys: Keys | None = None) -> None:
        self._defaults = settings.limits
        self._limits = {t.name: t.limits for t in settings.tenants if t.limits is not None}
        self._counter = counter
        self._quota = quota
        self._keys = keys

    async def authenticate(self, credential: str) -> KeyCaller:
        """Raises Unauthenticated, which does not say what was wrong."""
        if self._keys is None:
            return KeyCaller(DEFAULT_TENANT)
        key = await self._keys.verify(credential)
        return KeyCaller(key.tenant, key.id, tuple(key.roles))

    async def reserve(
        self,
        caller: _Named,
        model: str,
        texts: Sequence[str],
        output_tokens: int | None,
        choices: int = 1,
        token_ids: int = 0,
    ) -> TokenReservation:
        """Count the texts and set them and the longest possible reply aside. Raises LimitExceeded.

        `output_tokens` is the caller's own bound over all `choices`, None where it set none, 0 where nothing is
        generated. `token_ids` of the prompt's tokens came as ids: their texts may count as fewer, or not be known.
        """
        limits = self.limits(caller.tenant)
        prompt = await self._counter.count(model, texts)
        if texts:
            prompt += TOKENS_PER_TEXT * len(texts) + TOKENS_PER_PROMPT
        prompt = max(prompt, token_ids)
        output, clamp = _output(limits, prompt, output_tokens, choices)
        reservation_id = uuid.uuid4().hex
        headers = self._quota.reserve(reservation_id, caller.tenant, limits, prompt + output)
        return TokenReservation(reservation_id, caller.tenant, prompt, clamp, headers)

    async def count(self, model: str, texts: Sequence[str]) -> int:
        """Tokens of the texts, nothing added."""
        return await self._counter.count(model, texts)

    def decode(self, model: str, ids: Sequence[int]) -> tuple[str, bool] | None:
        """The text of token ids and whether it is all of them; None where the model's encoding is not known."""
        return self._counter.decode(model, ids)

    async def settle(self, reservation: object, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace a reservation of `reserve` by what was used. Settling it a second time changes nothing."""
        if not isinstance(reservation, TokenReservation):
            raise TypeError("not a reservation of this object")
        self._quota.settle(reservation.id, prompt_tokens + completion_tokens)

    def limits(self, tenant: str) -> Limits:
        """The tenant's own limits, each left out one from the defaults."""
        own = self._limits.get(tenant)
        if own is None:
            return self._defaults
        given = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
        return msgspec.structs.replace(self._defaults, **given)


def _output(limits: Limits, prompt: int, asked: int | None, choices: int) -> tuple[int, int | None]:
    """Tokens to reserve for the replies of all choices, and what each must be clamped to, if anything."""
    bound = limits.max_output_tokens
    caps = [cap for cap in (limits.tokens_per_minute, limits.tokens_per_day) if cap is not None]
    if caps and asked is None:
        # A small limit is not spent on the guess for one request: a quarter of it, or what the prompt leaves of it.
        room = max(1, min(min(caps) // 4, min(caps) - prompt) // choices)
        bound = min(bound or DEFAULT_OUTPUT_TOKENS, room)
    if bound is None or (asked is not None and asked <= bound * choices):
        return asked or 0, None
    return bound * choices, bound
