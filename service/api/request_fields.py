"""The top-level members of a request: their types, and which of them the protocol does not know."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from service.api import strict_json
from service.api.asgi import malformed
from service.api.strict_json import pointer

_MODEL = re.compile(r"[^\s\x00-\x1f\x7f]{1,256}")
"""A model's name has no spaces: it is not judged, and stands in the record."""
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_MAX_UNKNOWN = 16


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """What one protocol knows. Members that stand in none of the typed sets may hold anything."""

    known: frozenset[str]
    booleans: frozenset[str] = frozenset()
    integers: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    strings: frozenset[str] = frozenset()

    def check(self, request: dict[str, Any]) -> None:
        """Raises MalformedRequest with the JSON pointer of a value of the wrong type; null is of every type."""
        for name, value in request.items():
            if name not in self.known and name.casefold() in self.known:
                # Some readers ignore case: they would take a second `Max_Tokens` for the one that was clamped.
                raise malformed(pointer(name), f"the field {name.casefold()}")
            if value is None:
                continue
            kind = type(value)
            if name in self.booleans and kind is not bool:
                raise malformed(pointer(name), "true or false")
            if name in self.integers and kind is not int:
                raise malformed(pointer(name), "an integer")
            if name in self.numbers and kind not in {int, float}:
                raise malformed(pointer(name), "a number")
            if name in self.objects and kind is not dict:
                raise malformed(pointer(name), "an object")
            if name in self.lists and kind is not list:
                raise malformed(pointer(name), "a list")
            if name in self.strings and kind is not str:
                raise malformed(pointer(name), "a string")

    def unknown(self, request: dict[str, Any]) -> tuple[str, ...]:
        """For the record: the members that are not known, `(other)` for names that are text."""
        return tuple(sorted({_recorded(name) for name in request.keys() - self.known}))[:_MAX_UNKNOWN]


def _recorded(name: str) -> str:
    return name if _FIELD_NAME.fullmatch(name) else "(other)"


def read_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises MalformedRequest and PayloadTooLarge."""
    request = strict_json.parse(body)
    if not isinstance(request, dict):
        raise malformed("", "an object")
    return request


def model_of(request: dict[str, Any]) -> str:
    """The model that is asked for. Raises MalformedRequest."""
    model = request.get("model")
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise malformed("/model", "a model name")
    return model
