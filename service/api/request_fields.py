"""The members of a request's body: their types, and which of them a protocol knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from service.api.asgi import malformed
from service.api.strict_json import pointer

_MODEL = re.compile(r"[^\s\x00-\x1f\x7f]{1,256}")
"""A model's name has no spaces: it is not judged, and stands in the record."""
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_MAX_RECORDED = 16


class Fields:
    """The top-level members that one protocol knows, by their JSON type; `others` have more than one."""

    def __init__(
        self,
        *,
        booleans: frozenset[str],
        integers: frozenset[str],
        numbers: frozenset[str],
        objects: frozenset[str],
        lists: frozenset[str],
        strings: frozenset[str],
        others: frozenset[str],
    ) -> None:
        self._types = (
            (booleans, (bool,), "true or false"),
            (integers, (int,), "an integer"),
            (numbers, (int, float), "a number"),
            (objects, (dict,), "an object"),
            (lists, (list,), "a list"),
            (strings, (str,), "a string"),
        )
        self._others = others

    @cached_property
    def known(self) -> frozenset[str]:
        """All of them."""
        return self._others.union(*(names for names, _, _ in self._types))

    def check(self, request: Mapping[str, Any], bounds: Mapping[str, int]) -> None:
        """Raises MalformedRequest with the pointer of a member of the wrong type, or that is not in 1 … its bound."""
        for name, value in request.items():
            if name not in self.known and name.casefold() in self.known:
                # Some readers ignore case: they would take a second `Max_Tokens` for the one that was clamped.
                raise malformed(pointer(name), f"the field {name.casefold()}")
            if value is None:
                continue
            for names, types, wanted in self._types:
                if name in names and type(value) not in types:
                    raise malformed(pointer(name), wanted)
        for name, bound in bounds.items():
            value = request.get(name)
            if value is not None and not 1 <= value <= bound:
                raise malformed(pointer(name), "a positive integer in range")


def model_of(request: Mapping[str, Any]) -> str:
    """The model's name. Raises MalformedRequest."""
    model = request.get("model")
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise malformed("/model", "a model name")
    return model


def recorded(names: Iterable[str]) -> tuple[str, ...]:
    """Unknown names as they may stand in the record, which holds no text."""
    return tuple(sorted({name if _FIELD_NAME.fullmatch(name) else "(other)" for name in names}))[:_MAX_RECORDED]
