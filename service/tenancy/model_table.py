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

SHIPPED = Path(__file__).with_name("models.toml")
NANOUSD = 1_000_000_000
_PICO_PER_MTOK = Decimal(1_000_000)  # a dollar for a million tokens is a million trillionths for one
_CACHED_MODELS = 1_024


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model; None is not known. Prices are trillionths of a dollar (`picousd`) a token."""

    context_tokens: int | None = None
    max_output_tokens: int | None = None
    input_picousd: int | None = None
    output_picousd: int | None = None
    cached_picousd: int | None = None
    hidden_output: bool = False

    @property
    def priced(self) -> bool:
        """Whether its price is known."""
        return self.input_picousd is not None and self.output_picousd is not None

    def cost_nanousd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int:
        """Billionths of a dollar, rounded up; 0 without a price. `cached_tokens` are those of the prompt."""
        if self.input_picousd is None or self.output_picousd is None:
            return 0
        cached = min(cached_tokens, prompt_tokens)
        cached_price = self.input_picousd if self.cached_picousd is None else self.cached_picousd
        cost = (prompt_tokens - cached) * self.input_picousd + cached * cached_price
        return -((cost + completion_tokens * self.output_picousd) // -1_000)


UNKNOWN = ModelFacts()


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
    globs = [(f"providers[{i}].models", glob) for i, p in enumerate(settings.providers) for glob in p.models]
    globs += [(f"routes[{i}].model", route.model) for i, route in enumerate(settings.routes)]
    missing = [(where, glob) for where, glob in globs if not table.may_price(glob)]
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
        hidden_output=entry.hidden_output,
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
