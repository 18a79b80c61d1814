"""What is known of models: windows, longest replies and prices, from `models.toml` and the operator's `[[models]]`.

Money is counted in whole billionths of a dollar, prices in whole trillionths a token: neither is ever a float.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from decimal import Decimal
from fnmatch import translate
from functools import lru_cache
from pathlib import Path

import msgspec

from service.errors import ConfigError
from service.settings import Limits, Model, Settings
from service.tenancy.demand import Caching

SHIPPED = Path(__file__).with_name("models.toml")
NANOUSD = 1_000_000_000
_PICO_PER_MTOK = Decimal(1_000_000)  # a dollar for a million tokens is a million trillionths for one
_CACHED_MODELS = 1_024
_SHORT_WRITE, _LONG_WRITE = 125, 200
"""Hundredths of the plain price for tokens that are written to a provider's cache for five minutes, and for an hour
(Anthropic, "Prompt caching: pricing").
"""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model; None is not known. Prices are trillionths of a dollar (`picousd`) a token."""

    context_tokens: int | None = None
    max_output_tokens: int | None = None
    input_picousd: int | None = None
    output_picousd: int | None = None
    cached_picousd: int | None = None
    written_picousd: int | None = None
    hidden_output: bool = False
    token_factor: float = 1.0
    covers: frozenset[str] = frozenset()

    @property
    def write_price(self) -> int | None:
        """Of a token of the prompt that is written to the cache for minutes."""
        return None if self.input_picousd is None else self._written(_SHORT_WRITE)

    @property
    def priced(self) -> bool:
        """Whether its price is known."""
        return self.input_picousd is not None and self.output_picousd is not None

    def cost_nanousd(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        written_tokens: int = 0,
        long_written_tokens: int = 0,
    ) -> int:
        """Billionths of a dollar, rounded up; 0 without a price. The last three are of the prompt: read from the
        provider's cache, written to it for minutes, and for longer.
        """
        if self.input_picousd is None or self.output_picousd is None:
            return 0
        cached = min(cached_tokens, prompt_tokens)
        written = min(written_tokens, prompt_tokens - cached)
        long_written = min(long_written_tokens, prompt_tokens - cached - written)
        cached_price = self.input_picousd if self.cached_picousd is None else self.cached_picousd
        cost = (prompt_tokens - cached - written - long_written) * self.input_picousd + cached * cached_price
        cost += written * self._written(_SHORT_WRITE) + long_written * self._written(_LONG_WRITE)
        return -((cost + completion_tokens * self.output_picousd) // -1_000)

    def worst_nanousd(self, prompt_tokens: int, completion_tokens: int, caching: Caching = "") -> int:
        """What these tokens cost at most, whatever the provider's cache has and takes of the prompt."""
        written, long_written = prompt_tokens * (caching == "short"), prompt_tokens * (caching == "long")
        return max(
            self.cost_nanousd(prompt_tokens, completion_tokens),
            self.cost_nanousd(prompt_tokens, completion_tokens, prompt_tokens),
            self.cost_nanousd(prompt_tokens, completion_tokens, 0, written, long_written),
        )

    def _written(self, hundredths: int) -> int:
        """The price of a token that is written, where it is not known so many hundredths of a plain one."""
        if self.written_picousd is None:
            return -((self.input_picousd or 0) * hundredths // -100)
        return -(self.written_picousd * hundredths // -_SHORT_WRITE)


UNKNOWN = ModelFacts()


def dearest(several: Iterable[ModelFacts]) -> ModelFacts:
    """The worst of several models in every respect: what any of them may read, write and cost. Of one its own."""
    all_of_them = tuple(dict.fromkeys(several))
    if len(all_of_them) == 1:
        return all_of_them[0]
    return ModelFacts(
        context_tokens=_most(each.context_tokens for each in all_of_them),
        max_output_tokens=_most(each.max_output_tokens for each in all_of_them),
        input_picousd=_most(each.input_picousd for each in all_of_them),
        output_picousd=_most(each.output_picousd for each in all_of_them),
        cached_picousd=_most(each.cached_picousd for each in all_of_them),
        written_picousd=_most(each.write_price for each in all_of_them),
        hidden_output=any(each.hidden_output for each in all_of_them),
        token_factor=max(each.token_factor for each in all_of_them),
        covers=frozenset(name for name in all_of_them[0].covers if all(name in each.covers for each in all_of_them)),
    )


def _most(values: Iterable[int | None]) -> int | None:
    """None where one of them is not known."""
    known = list(values)
    return None if None in known else max(value for value in known if value is not None)


class ModelTable:
    """Entries in their order; the first whose glob matches the whole name holds."""

    def __init__(self, entries: Iterable[Model]) -> None:
        self._entries = [(entry.name, re.compile(translate(entry.name)), _facts(entry)) for entry in entries]
        self._find = lru_cache(_CACHED_MODELS)(self._search)

    def find(self, model: str) -> ModelFacts:
        """Of a model by its name, `vendor/model` included; `UNKNOWN` where no entry matches."""
        return self._find(model)

    def may_price(self, glob: str) -> bool:
        """Whether some name that this glob matches can have a price."""
        priced = [name for name, _, facts in self._entries if facts.priced]
        return any(_overlap(glob, name) or _overlap(glob.rpartition("/")[2], name) for name in priced)

    def _search(self, model: str) -> ModelFacts:
        for name in dict.fromkeys((model, model.rpartition("/")[2])):
            for _, pattern, facts in self._entries:
                if pattern.match(name):
                    return facts
        return UNKNOWN


def load_models(settings: Settings) -> ModelTable:
    """The operator's entries before the shipped ones."""
    shipped = msgspec.convert(tomllib.loads(SHIPPED.read_text(encoding="utf-8"))["models"], list[Model])
    return ModelTable([*settings.models, *shipped])


def check(settings: Settings) -> None:
    """Refuse half a price, and a budget that no request could ever be counted in. Raises ConfigError naming the key.

    A budget of everyone's needs a possible price for every glob of every provider: what has none is refused to all. One
    tenant's needs one glob with a possible price. Whether a model that matches has one, only its request can tell.
    """
    for index, model in enumerate(settings.models):
        prices = ("input_usd_per_mtok", "output_usd_per_mtok")
        missing_prices = [name for name in prices if getattr(model, name) is None]
        if missing_prices and (len(missing_prices) == 1 or model.cached_input_usd_per_mtok is not None):
            raise ConfigError(
                f"models[{index}].{missing_prices[0]}: missing; a price is known where {' and '.join(prices)} are given"
            )
    table = load_models(settings)
    globs: list[tuple[str, tuple[str, ...]]] = [
        (f"providers[{i}].models", (glob,)) for i, p in enumerate(settings.providers) for glob in p.models
    ]
    globs += [
        (f"routes[{i}].model", (route.model, *(target.model for target in route.targets)))
        for i, route in enumerate(settings.routes)
    ]
    missing = [(where, names[0]) for where, names in globs if not _may_price(table, *names)]
    everyone = (("limits", settings.limits), ("keys.limits", settings.keys.limits))
    tenants = [(f"tenants[{i}].limits", t.limits) for i, t in enumerate(settings.tenants) if t.limits is not None]
    for where, limits in everyone:
        if limits.budget_usd_per_day is not None and missing:
            raise ConfigError(
                f"{where}.budget_usd_per_day: no price can be found for {missing[0][1]!r} of {missing[0][0]}; "
                "give its prices in [[models]]"
            )
    for where, limits in tenants:
        if limits.budget_usd_per_day is not None and len(missing) == len(globs):
            raise ConfigError(f"{where}.budget_usd_per_day: no provider's model has a price; add [[models]]")


def _may_price(table: ModelTable, glob: str, *targets: str) -> bool:
    """Whether a glob can have a price: its own, or all of a route's targets theirs."""
    return table.may_price(glob) or (bool(targets) and all(table.may_price(name) for name in targets))


def budget_nanousd(limits: Limits) -> int | None:
    """The day's budget in billionths of a dollar; None where there is none."""
    budget = limits.budget_usd_per_day
    return None if budget is None else max(1, int(Decimal(repr(budget)) * NANOUSD))


def _facts(entry: Model) -> ModelFacts:
    return ModelFacts(
        context_tokens=entry.context_tokens,
        max_output_tokens=entry.max_output_tokens,
        input_picousd=_picousd(entry.input_usd_per_mtok),
        output_picousd=_picousd(entry.output_usd_per_mtok),
        cached_picousd=_picousd(entry.cached_input_usd_per_mtok),
        written_picousd=_picousd(entry.cache_write_usd_per_mtok),
        hidden_output=entry.hidden_output,
        token_factor=entry.token_factor,
        covers=frozenset(entry.covers),
    )


def _picousd(price: float | None) -> int | None:
    # The shortest decimal that reads as this float is what the file says.
    return None if price is None else -int(-Decimal(repr(price)) * _PICO_PER_MTOK // 1)


def _overlap(one: str, other: str) -> bool:
    """Whether some name matches both globs; a set in brackets counts as any one character."""
    left, right = (re.sub(r"\[[^]]+\]", "?", glob) for glob in (one, other))
    reached = {(0, 0)}
    waiting = [(0, 0)]
    while waiting:
        i, j = waiting.pop()
        if i == len(left) and j == len(right):
            return True
        a, b = left[i : i + 1], right[j : j + 1]
        steps = []
        if a == "*":
            steps += [(i + 1, j), *([(i, j + 1)] if b else [])]
        if b == "*":
            steps += [(i, j + 1), *([(i + 1, j)] if a else [])]
        if a and b and "*" not in (a, b) and (a == b or "?" in (a, b)):
            steps.append((i + 1, j + 1))
        for step in steps:
            if step not in reached:
                reached.add(step)
                waiting.append(step)
    return False
