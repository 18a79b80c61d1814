"""Who asks, and what is set aside for it: the gateway's one door to keys, token counts and quotas."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from service.errors import ContextLengthExceeded, Forbidden
from service.settings import Limits, Settings
from service.tenancy.caller import KeyCaller
from service.tenancy.counters import EXACT, Amount, scope_of
from service.tenancy.keys import Keys
from service.tenancy.model_table import UNKNOWN, ModelFacts, ModelTable, budget_nanousd, load_models
from service.tenancy.quota import Quota
from service.tenancy.tokens import TokenCounter

DEFAULT_TENANT = "default"
COUNT_DEADLINE_S = 30.0
"""For the tokens of a prompt, before anything is reserved."""
DEFAULT_OUTPUT_TOKENS = 4_096
"""What a reply is bounded to where tokens are limited and neither the caller nor the tenant sets a bound: without one
there is no worst case that could be reserved."""

TOKENS_PER_TEXT = 4
TOKENS_PER_PROMPT = 3
"""What the chat format adds around each message and before the reply, as OpenAI's cookbook counts it."""


class _Caller(Protocol):
    @property
    def tenant(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def tenant_limits(self) -> Limits | None: ...


class TokenReservation(msgspec.Struct, frozen=True):
    """Tokens and money set aside. `prompt_tokens` was counted here. `max_output_tokens` is what each choice must be
    clamped to, None where the request needs no clamp: the caller's own bound is within the limits, or there are none.

    `output_tokens` is what was reserved for all choices together, 0 where nothing bounds them. `hidden_output`: the
    model's output is more than what it delivers.
    """

    id: str
    tenant: str
    prompt_tokens: int
    max_output_tokens: int | None
    headers: tuple[tuple[str, str], ...]
    output_tokens: int = 0
    hidden_output: bool = False
    facts: ModelFacts = UNKNOWN


class Tenants:
    """All tenants. `keys` None is open mode: everyone is tenant `default`."""

    def __init__(
        self,
        settings: Settings,
        counter: TokenCounter,
        quota: Quota,
        keys: Keys | None = None,
        models: ModelTable | None = None,
    ) -> None:
        self._defaults = settings.limits
        self._key_limits = settings.keys.limits
        self._models = models or load_models(settings)
        self._limits = {t.name: t.limits or Limits() for t in settings.tenants}
        self._counter = counter
        self._quota = quota
        self._keys = keys

    async def authenticate(self, credential: str) -> KeyCaller:
        """Raises Unauthenticated, which does not say what was wrong."""
        if self._keys is None:
            return KeyCaller(DEFAULT_TENANT)
        key = await self._keys.verify(credential)
        return KeyCaller(
            key.tenant,
            key.id,
            tuple(key.roles),
            tuple(key.models),
            tuple(key.routes),
            key.limits,
            key.tenant_limits,
            self._keys.system_prompt(key),
        )

    async def reserve(
        self,
        caller: _Caller,
        model: str,
        texts: Sequence[str],
        output_tokens: int | None,
        choices: int = 1,
        token_ids: int = 0,
        *,
        billed: bool = True,
    ) -> TokenReservation:
        """Count the texts and set them and the longest possible reply aside, for the tenant and for the key.

        `output_tokens` is the caller's own bound over all `choices`, None where it set none, 0 where nothing is
        generated. `token_ids` of the prompt's tokens came as ids: their texts may count as fewer, or not be known.
        `billed` says that a model reads them, which has a window and a price.

        Raises LimitExceeded, ContextLengthExceeded, CountersFailed, Overloaded and DeadlineExceeded where the texts are
        not counted in time, and Forbidden for a model without a price where a budget has to be kept.
        """
        limits = [self.limits(caller.tenant, caller.tenant_limits)]
        if caller.key_id:
            limits.append(_over(self._key_limits, caller.limits))
        prompt = await self._counter.count(model, texts, deadline_s=COUNT_DEADLINE_S)
        if texts:
            prompt += TOKENS_PER_TEXT * len(texts) + TOKENS_PER_PROMPT
        prompt = max(prompt, token_ids)
        facts = self._facts(caller, model, limits, prompt) if billed else UNKNOWN
        output, clamp = _output(limits, facts, prompt, output_tokens, choices)
        reservation_id = uuid.uuid4().hex
        amount = Amount(prompt + output, facts.cost_nanousd(prompt, output))
        scopes = [scope_of("", limits[0]), *(scope_of(caller.key_id, each) for each in limits[1:])]
        counted = [scope for scope in scopes if scope is not None]
        headers = await self._quota.reserve(reservation_id, caller.tenant, counted, amount)
        return TokenReservation(
            reservation_id, caller.tenant, prompt, clamp, headers, output, facts.hidden_output, facts
        )

    def _facts(self, caller: _Caller, model: str, limits: Sequence[Limits], prompt: int) -> ModelFacts:
        facts = self._models.find(model)
        if facts.context_tokens is not None and prompt > facts.context_tokens:
            raise ContextLengthExceeded(
                f"This model reads {facts.context_tokens} tokens; the prompt has some {prompt}."
            )
        for each, whose in zip(limits, ("tenant", "key"), strict=False):
            if each.budget_usd_per_day is not None and not facts.priced:
                raise Forbidden(
                    f"The {whose} has a budget_usd_per_day, and no price is known for the model {model!r}.",
                    pointer="/model",
                )
        return facts

    async def count(self, model: str, texts: Sequence[str]) -> int:
        """Tokens of the texts, nothing added."""
        return await self._counter.count(model, texts)

    def decode(self, model: str, ids: Sequence[int]) -> tuple[str, bool] | None:
        """The text of token ids and whether it is all of them; None where the model's encoding is not known."""
        return self._counter.decode(model, ids)

    async def settle(
        self, reservation: object, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0
    ) -> None:
        """Replace a reservation of `reserve` by what was used. Settling it a second time changes nothing."""
        if not isinstance(reservation, TokenReservation):
            raise TypeError("not a reservation of this object")
        cost = reservation.facts.cost_nanousd(prompt_tokens, completion_tokens, cached_tokens)
        await self._quota.settle(reservation.id, Amount(prompt_tokens + completion_tokens, cost))

    def limits(self, tenant: str, stored: Limits | None = None) -> Limits:
        """The tenant's own limits, each left out one from the defaults. `stored` are those that the database has of it;
        the configuration's come first.
        """
        return _over(self._defaults, self._limits.get(tenant, stored))


def _over(defaults: Limits, own: Limits | None) -> Limits:
    if own is None:
        return defaults
    given = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
    return msgspec.structs.replace(defaults, **given) if given else defaults


def _output(
    limits: Sequence[Limits], facts: ModelFacts, prompt: int, asked: int | None, choices: int
) -> tuple[int, int | None]:
    """Tokens to reserve for the replies of all choices, and what each must be clamped to, if anything."""
    bounds = [each.max_output_tokens for each in limits if each.max_output_tokens is not None]
    rooms = [] if asked is not None else [room // choices for each in limits for room in _rooms(each, facts, prompt)]
    if rooms:
        bounds = [min(bounds, default=DEFAULT_OUTPUT_TOKENS), max(1, min(rooms))]
    bound = min(bounds, default=None)
    longest = facts.max_output_tokens
    if bound is not None and longest is not None:
        bound = min(bound, longest)
    if longest is not None and facts.context_tokens is not None:
        longest = min(longest, max(1, facts.context_tokens - prompt))
    if bound is None or (asked is not None and asked <= bound * choices):
        return min(asked or 0, EXACT if longest is None else longest * choices), None
    return min(bound, bound if longest is None else longest) * choices, bound


def _rooms(limits: Limits, facts: ModelFacts, prompt: int) -> Iterator[int]:
    """Of each limit on tokens: a small one is not spent on the guess for one request, but a quarter of it, or what the
    prompt leaves of it.
    """
    caps = [cap for cap in (limits.tokens_per_minute, limits.tokens_per_day) if cap is not None]
    yield from (min(cap // 4, cap - prompt) for cap in caps)
    budget = budget_nanousd(limits)
    if budget is not None and facts.output_picousd:
        left = budget - facts.cost_nanousd(prompt, 0)
        yield min(budget // 4, left) * 1_000 // facts.output_picousd
