"""Chooses who may be asked for a model: by the routes, then by the providers' own globs, in their order."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from fnmatch import translate

import msgspec

from service.errors import MalformedRequest, NotFound
from service.settings import Provider as ProviderSettings
from service.settings import Route as RouteSettings
from service.settings import RouteTarget
from service.upstream.line import Line
from service.upstream.route import Route, Target

_FAMILIES = {
    "openai": ("openai",),
    "azure": ("openai",),
    "anthropic": ("anthropic",),
    "sandbox": ("openai", "anthropic"),
}
"""What each kind of provider speaks."""
_COUNTING = "anthropic.count_tokens"
_TRANSLATED = {"openai.chat": "anthropic", "anthropic.messages": "openai", _COUNTING: "openai"}
"""Protocols of callers, and to whose they can be translated."""


class Router:
    """The first entry of which the glob matches the whole model name and that speaks the caller's protocol; in routes
    those whom a translation reaches stand beside those who speak it, of other providers they are asked where none does.

    `lines` are by the providers' configured names. `estimate` counts the tokens of what is translated, since nobody
    whom that reaches has such a call; without it they are not counted.
    """

    def __init__(
        self,
        providers: Sequence[ProviderSettings],
        lines: Mapping[str, Line],
        routes: Sequence[RouteSettings] = (),
        draw: random.Random | None = None,
        estimate: Line | None = None,
    ) -> None:
        self._lines = lines
        self._estimate = estimate
        self._families = {entry.name: _FAMILIES[entry.kind] for entry in providers}
        self._translating = {entry.name for entry in providers if entry.translate_chat or entry.translate_messages}
        self._draw = draw or random.Random()  # noqa: S311 -- spreads load, keeps no secret
        own = [
            RouteSettings(model=glob, targets=(RouteTarget(provider=entry.name),))
            for entry in providers
            for glob in entry.models
        ]
        self._routes = [(re.compile(translate(rule.model)), rule) for rule in routes]
        self._own = [(re.compile(translate(rule.model)), rule) for rule in own]

    def choose(self, model: str, protocol: str | None) -> Route:
        """The providers of this model for a protocol such as `openai.chat`, with None for any.

        Raises NotFound, and MalformedRequest where the model's providers speak another family's protocols only.
        """
        asked = protocol.partition(".")[0] if protocol is not None else None
        entries = [(pattern, rule, True) for pattern, rule in self._routes]
        entries += [(pattern, rule, translating) for translating in (False, True) for pattern, rule in self._own]
        spoken: tuple[str, ...] = ()
        for pattern, rule, translating in entries:
            if not pattern.match(model):
                continue
            able = tuple(
                target
                for target in rule.targets
                if self._speaks(target.provider, asked) or (translating and self._is_reached(target.provider, protocol))
            )
            if able:
                return self._route(msgspec.structs.replace(rule, targets=able), model, protocol)
            spoken = spoken or self._families[rule.targets[0].provider]
        if spoken:
            raise MalformedRequest(
                f"This model's provider speaks the protocols of {spoken[0]}, not of {asked}.", pointer="/model"
            )
        raise NotFound("No provider is configured for this model.", pointer="/model")

    def named(self, name: str) -> Route:
        """To the provider of this name. Raises NotFound."""
        if name not in self._lines:
            raise NotFound("The provider that made this is not configured any more.")
        return Route([Target(self._lines[name], "")])

    def _speaks(self, provider: str, family: str | None) -> bool:
        return family is None or family in self._families[provider]

    def _is_reached(self, provider: str, protocol: str | None) -> bool:
        if protocol == _COUNTING and self._estimate is None:
            return False
        return provider in self._translating and _TRANSLATED.get(protocol or "") in self._families[provider]

    def _target(self, target: RouteTarget, model: str, protocol: str | None) -> Target:
        asked = protocol.partition(".")[0] if protocol is not None else None
        translated = not self._speaks(target.provider, asked)
        line = self._lines[target.provider]
        if translated and protocol == _COUNTING and self._estimate is not None:
            line = self._estimate
        return Target(line, target.model or model, translated=translated)

    def _route(self, rule: RouteSettings, model: str, protocol: str | None) -> Route:
        targets = list(rule.targets)
        if rule.pick == "weight" and len(targets) > 1:
            # The order in which they would come if each came at random, its weight times as often as one of weight 1.
            targets.sort(key=lambda target: self._draw.expovariate(target.weight))
        made = [self._target(target, model, protocol) for target in targets]
        return Route(made, next_on_429=rule.next_on_429)
