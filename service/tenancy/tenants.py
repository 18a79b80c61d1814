"""Who asks, and what is set aside for it: the gateway's one door to keys, token counts and quotas."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from service.settings import Limits, Settings
from service.tenancy.caller import KeyCaller
from service.tenancy.counters import Amount, scope_of
from service.tenancy.demand import NOTHING, Demand
from service.tenancy.keys import Keys
from service.tenancy.model_table import UNKNOWN, ModelFacts, ModelTable, dearest, load_models
from service.tenancy.quota import Quota
from service.tenancy.tokens import TokenCounter, encoding_name
from service.tenancy.worst_case import check, output_tokens_of, with_the_rest, with_the_unknown

DEFAULT_TENANT = "default"
COUNT_DEADLINE_S = 30.0
"""For the tokens of a prompt, before anything is reserved."""

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
    model's output is more than what it delivers. `facts` are the worst of all models that may answer for `model`.
    """

    id: str
    tenant: str
    prompt_tokens: int
    max_output_tokens: int | None
    headers: tuple[tuple[str, str], ...]
    output_tokens: int = 0
    hidden_output: bool = False
    facts: ModelFacts = UNKNOWN
    model: str = ""


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
        demand: Demand = NOTHING,
        models: Sequence[str] = (),
    ) -> TokenReservation:
        """Count the texts and set them and the longest possible reply aside, for the tenant and for the key.

        `output_tokens` is the caller's own bound over all `choices`, None where it set none, 0 where nothing is
        generated. `token_ids` of the prompt's tokens came as ids: their texts may count as fewer, or not be known.
        `billed` says that a model reads them, which has a window and a price. `demand` is what the call costs beside
        the texts; `models` are the names by which those who may be asked know the model: the dearest is reserved for.

        Raises LimitExceeded, ContextLengthExceeded, CountersFailed, Overloaded and DeadlineExceeded where the texts are
        not counted in time, and Forbidden for a model, a tier or a tool without a price where a budget has to be kept.
        """
        limits = [self.limits(caller.tenant, caller.tenant_limits)]
        if caller.key_id:
            limits.append(_over(self._key_limits, caller.limits))
        answering = {name: self._facts_of(name, model) if billed else UNKNOWN for name in models or (model,)}
        least, prompt = await self._count_for(answering, model, texts, token_ids)
        facts = dearest(answering.values())
        if billed:
            check(facts, model, limits, prompt, demand)
            prompt = with_the_rest(answering, facts, prompt, demand)
        output, clamp = output_tokens_of(limits, facts, prompt, least, output_tokens, choices, demand)
        if billed:
            prompt = with_the_unknown(facts, limits, prompt, output, demand)
        reservation_id = uuid.uuid4().hex
        amount = Amount(prompt + output, facts.worst_nanousd(prompt, output, demand.caching))
        scopes = [scope_of("", limits[0]), *(scope_of(caller.key_id, each) for each in limits[1:])]
        counted = [scope for scope in scopes if scope is not None]
        headers = await self._quota.reserve(reservation_id, caller.tenant, counted, amount)
        return TokenReservation(
            reservation_id, caller.tenant, prompt, clamp, headers, output, facts.hidden_output, facts, model
        )

    def _facts_of(self, name: str, asked: str) -> ModelFacts:
        """Of a model by the name that its provider knows; where that has no price, that of the name it is asked by."""
        own = self._models.find(name)
        if own.priced or name == asked:
            return own
        alias = self._models.find(asked)
        if own is not UNKNOWN and not alias.priced:
            return own
        return msgspec.structs.replace(
            alias,
            token_factor=max(alias.token_factor, own.token_factor),
            hidden_output=alias.hidden_output or own.hidden_output,
        )

    async def _count_for(
        self, answering: Mapping[str, ModelFacts], model: str, texts: Sequence[str], token_ids: int
    ) -> tuple[int, int]:
        """Tokens of the prompt for those who may answer: as they are counted, the fewest, and estimated, the most."""
        counts: dict[str, int] = {}
        for name in (*answering, model):
            if (encoding := encoding_name(name)) not in counts:
                counts[encoding] = await self._counter.count(name, texts, deadline_s=COUNT_DEADLINE_S)
        around = TOKENS_PER_TEXT * len(texts) + TOKENS_PER_PROMPT if texts else 0
        factor = max(facts.token_factor for facts in answering.values())
        most = math.ceil((max(counts.values()) + around) * factor)
        return max(min(counts.values()) + around, token_ids), max(most, token_ids)

    async def count(self, model: str, texts: Sequence[str], *, estimated: bool = False) -> int:
        """Tokens of the texts, nothing added; `estimated` as the model's provider would bill them."""
        counted = await self._counter.count(model, texts)
        return math.ceil(counted * self._models.find(model).token_factor) if estimated else counted

    def decode(self, model: str, ids: Sequence[int]) -> tuple[str, bool] | None:
        """The text of token ids and whether it is all of them; None where the model's encoding is not known."""
        return self._counter.decode(model, ids)

    async def settle(
        self,
        reservation: object,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        *,
        written_tokens: int = 0,
        long_written_tokens: int = 0,
        model: str = "",
    ) -> None:
        """Replace a reservation of `reserve` by what was used, at the price of the `model` that answered, by its
        provider's name; at the dearest where nobody knows. Settling it a second time changes nothing.
        """
        if not isinstance(reservation, TokenReservation):
            raise TypeError("not a reservation of this object")
        facts = reservation.facts
        if model and facts is not UNKNOWN:
            facts = self._facts_of(model, reservation.model)
        cost = facts.cost_nanousd(prompt_tokens, completion_tokens, cached_tokens, written_tokens, long_written_tokens)
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
