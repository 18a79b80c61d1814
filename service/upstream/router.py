"""Chooses the provider of a model by its globs, in the order of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import translate
from typing import Generic, TypeVar

from service.errors import MalformedRequest, NotFound
from service.settings import Provider as ProviderSettings

P = TypeVar("P")

_FAMILIES = {"openai": ("openai",), "anthropic": ("anthropic",), "sandbox": ("openai", "anthropic")}
"""What each kind of provider speaks."""


class GlobRouter(Generic[P]):
    """The first provider of which a glob matches the whole model name and that speaks the caller's protocol.

    `providers` are by their configured name.
    """

    def __init__(self, settings: Sequence[ProviderSettings], providers: Mapping[str, P]) -> None:
        self._providers = providers
        self._rules = [
            (re.compile(translate(glob)), _FAMILIES[entry.kind], providers[entry.name])
            for entry in settings
            for glob in entry.models
        ]

    def choose(self, model: str, protocol: str | None) -> P:
        """The provider of this model for a protocol such as `openai.chat`, with None for any.

        Raises NotFound, and MalformedRequest where the model's providers speak another family's protocols only.
        """
        asked = protocol.partition(".")[0] if protocol is not None else None
        spoken: tuple[str, ...] = ()
        for pattern, families, provider in self._rules:
            if pattern.match(model):
                if asked is None or asked in families:
                    return provider
                spoken = spoken or families
        if spoken:
            raise MalformedRequest(
                f"This model's provider speaks the protocols of {spoken[0]}, not of {asked}.", pointer="/model"
            )
        raise NotFound("No provider is configured for this model.", pointer="/model")

    def named(self, name: str) -> P:
        """The provider of this name. Raises NotFound."""
        if name not in self._providers:
            raise NotFound("The provider that made this is not configured any more.")
        return self._providers[name]
