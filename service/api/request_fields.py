"""The top-level members of a request: their types, their bounds, and which of them a protocol knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from service.api import strict_json
from service.api.asgi import malformed
from service.api.strict_json import pointer

_MODEL = re.compile(r"[^\s\x00-\x1f\x7f]{1,256}")
"""A model's name has no spaces: it is not judged, and stands in the record."""
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_MAX_RECORDED = 16


class Fields:
    """The members that one protocol knows, by their JSON type; `others` have more than one.

    `ranges` bound integers, both ends included. `known` are all of them.
    """

    def __init__(
        self,
        *,
        booleans: frozenset[str] = frozenset(),
        integers: frozenset[str] = frozenset(),
        numbers: frozenset[str] = frozenset(),
        objects: frozenset[str] = frozenset(),
        lists: frozenset[str] = frozenset(),
        strings: frozenset[str] = frozenset(),
        others: frozenset[str] = frozenset(),
        ranges: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self._types = (
            (booleans, (bool,), "true or false"),
            (integers, (int,), "an integer"),
            (numbers, (int, float), "a number"),
            (objects, (dict,), "an object"),
            (lists, (list,), "a list"),
            (strings, (str,), "a string"),
        )
        self._ranges = ranges or {}
        self.known = others.union(*(names for names, _, _ in self._types))

    def check(self, request: Mapping[str, Any]) -> None:
        """Raises MalformedRequest with the pointer of a member of the wrong type or out of its range; null is none."""
        for name, value in request.items():
            if name not in self.known and name.casefold() in self.known:
                # Some readers ignore case: they would take a second `Max_Tokens` for the one that was clamped.
                raise malformed(pointer(name), f"the field {name.casefold()}")
            if value is None:
                continue
            for names, types, wanted in self._types:
                if name in names and type(value) not in types:
                    raise malformed(pointer(name), wanted)
        for name, (low, high) in self._ranges.items():
            value = request.get(name)
            if value is not None and not low <= value <= high:
                raise malformed(pointer(name), f"an integer from {low} to {high}")


def read_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises MalformedRequest and PayloadTooLarge."""
    request = strict_json.parse(body)
    if not isinstance(request, dict):
        raise malformed("", "an object")
    return request


def is_model_name(name: str) -> bool:
    """Whether it may stand in the record as the name of a model."""
    return _MODEL.fullmatch(name) is not None


def model_of(request: Mapping[str, Any]) -> str:
    """The model that is asked for. Raises MalformedRequest."""
    model = request.get("model")
    if not isinstance(model, str) or not is_model_name(model):
        raise malformed("/model", "a model name")
    return model


def recorded(names: Iterable[str]) -> tuple[str, ...]:
    """Names of unknown members as they may stand in the record, which holds no text: `(other)` for names that are."""
    return tuple(sorted({name if _FIELD_NAME.fullmatch(name) else "(other)" for name in names}))[:_MAX_RECORDED]
