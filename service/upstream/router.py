"""Chooses the provider of a model by its globs, in the order of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import translate
from typing import Generic, TypeVar

from service.errors import NotFound
from service.settings import Provider as ProviderSettings

P = TypeVar("P")


class GlobRouter(Generic[P]):
    """The first provider of which a glob matches the whole model name. `providers` are by their configured name."""

    def __init__(self, settings: Sequence[ProviderSettings], providers: Mapping[str, P]) -> None:
        self._providers = providers
        self._rules = [
            (re.compile(translate(glob)), providers[entry.name]) for entry in settings for glob in entry.models
        ]

    def choose(self, model: str) -> P:
        """The provider of this model. Raises NotFound."""
        for pattern, provider in self._rules:
            if pattern.match(model):
                return provider
        raise NotFound("No provider is configured for this model.", pointer="/model")

    def named(self, name: str) -> P:
        """The provider of this name. Raises NotFound."""
        if name not in self._providers:
            raise NotFound("The provider that made this is not configured any more.")
        return self._providers[name]
