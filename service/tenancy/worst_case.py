"""The most that one call can use: what has to be set aside before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from service.errors import ContextLengthExceeded, Forbidden
from service.settings import Limits
from service.tenancy.counters import EXACT
from service.tenancy.demand import Demand, picture_tokens, tool_tokens
from service.tenancy.model_table import ModelFacts, budget_nanousd

DEFAULT_OUTPUT_TOKENS = 4_096
"""What a reply is bounded to where tokens are limited and neither the caller nor the tenant sets a bound: without one
there is no worst case that could be reserved."""
DEFAULT_CONTEXT_TOKENS = 128_000
"""What a model reads at most, where neither its window nor all that it reads is known."""


def check(facts: ModelFacts, model: str, limits: Sequence[Limits], prompt: int, demand: Demand) -> None:
    """Raises ContextLengthExceeded, and Forbidden for what has no price where there is a budget."""
    if facts.context_tokens is not None and prompt > facts.context_tokens:
        raise ContextLengthExceeded(f"This model reads {facts.context_tokens} tokens; the prompt has some {prompt}.")
    for each, whose in zip(limits, ("tenant", "key"), strict=False):
        if each.budget_usd_per_day is None:
            continue
        if not facts.priced:
            raise Forbidden(
                f"The {whose} has a budget_usd_per_day, and no price is known for the model {model!r}.",
                pointer="/model",
            )
        for fee in demand.fees:
            if fee.name not in facts.covers:
                raise Forbidden(
                    f"The {whose} has a budget_usd_per_day, and no price is known for {fee.name!r} of {model!r}.",
                    pointer=fee.pointer,
                )


def with_the_rest(answering: Iterable[str], facts: ModelFacts, prompt: int, demand: Demand) -> int:
    """Tokens of the prompt with those of what is no text. They are a worst case and refuse nothing by themselves: no
    model reads more than its window.
    """
    more = demand.tokens
    more += max(picture_tokens(name, demand.pictures) + tool_tokens(name, demand) for name in answering)
    window = facts.context_tokens
    return prompt + more if window is None else max(prompt, min(prompt + more, window))


def with_the_unknown(facts: ModelFacts, limits: Sequence[Limits], prompt: int, output: int, demand: Demand) -> int:
    """Tokens of the prompt where the model reads what is not known here: all of its window that the reply leaves, if a
    limit counts them.
    """
    if not demand.unknown or not any(_counts_tokens(each) for each in limits):
        return prompt
    return max(prompt, (facts.context_tokens or DEFAULT_CONTEXT_TOKENS) - output)


def output_tokens_of(
    limits: Sequence[Limits],
    facts: ModelFacts,
    prompt: int,
    least: int,
    asked: int | None,
    choices: int,
    demand: Demand,
) -> tuple[int, int | None]:
    """Tokens to reserve for the replies of all choices, and what each must be clamped to, if anything. `least` is what
    the prompt takes of the model's window for certain.
    """
    bounds = [each.max_output_tokens for each in limits if each.max_output_tokens is not None]
    rooms: list[int] = []
    if asked is None:
        rooms = [room // choices for each in limits for room in _rooms(each, facts, prompt, demand)]
    if rooms:
        bounds = [min(bounds, default=DEFAULT_OUTPUT_TOKENS), max(1, min(rooms))]
    longest = facts.max_output_tokens
    if longest is not None and (bounds or asked is not None):
        bounds.append(longest)
    bound = min(bounds, default=None)
    if longest is not None and facts.context_tokens is not None:
        longest = min(longest, max(1, facts.context_tokens - least))
    if bound is None or (asked is not None and asked <= bound * choices):
        return min(asked or 0, EXACT if longest is None else longest * choices), None
    return min(bound, bound if longest is None else longest) * choices, bound


def _counts_tokens(limits: Limits) -> bool:
    return any(cap is not None for cap in (limits.tokens_per_minute, limits.tokens_per_day, limits.budget_usd_per_day))


def _rooms(limits: Limits, facts: ModelFacts, prompt: int, demand: Demand) -> Iterator[int]:
    """Of each limit on tokens: a small one is not spent on the guess for one request, but a quarter of it, or what the
    prompt leaves of it.
    """
    caps = [cap for cap in (limits.tokens_per_minute, limits.tokens_per_day) if cap is not None]
    yield from (min(cap // 4, cap - prompt) for cap in caps)
    budget = budget_nanousd(limits)
    if budget is not None and facts.output_picousd:
        left = budget - facts.worst_nanousd(prompt, 0, demand.caching)
        yield min(budget // 4, left) * 1_000 // facts.output_picousd
