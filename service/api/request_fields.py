"""The top-level members of a request: their types, what is known of them, and the model's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from service.api import strict_json
from service.api.asgi import malformed
from service.api.strict_json import pointer

_MODEL = re.compile(r"[^\s\x00-\x1f\x7f]{1,256}")
"""A model's name has no spaces: it is not judged, and stands in the record."""
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_MAX_RECORDED = 16


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """What one protocol's requests may hold, by type. `ranges` bound integers, both ends included."""

    known: frozenset[str]
    booleans: frozenset[str] = frozenset()
    integers: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    strings: frozenset[str] = frozenset()
    ranges: Mapping[str, tuple[int, int]] = {}


def read_object(body: bytes) -> dict[str, Any]:
    """The body's object. Raises MalformedRequest, PayloadTooLarge."""
    request = strict_json.parse(body)
    if not isinstance(request, dict):
        raise malformed("", "an object")
    return request


def check_types(request: Mapping[str, Any], fields: Fields) -> None:
    """Raises MalformedRequest with the JSON pointer of the first member of a wrong type. None is no value."""
    for name, value in request.items():
        if name not in fields.known and name.casefold() in fields.known:
            # Some readers ignore case: they would take a second `Max_Tokens` for the one that was clamped.
            raise malformed(pointer(name), f"the field {name.casefold()}")
        if value is None:
            continue
        kind = type(value)
        if name in fields.booleans and kind is not bool:
            raise malformed(pointer(name), "true or false")
        if name in fields.integers and kind is not int:
            raise malformed(pointer(name), "an integer")
        if name in fields.numbers and kind not in {int, float}:
            raise malformed(pointer(name), "a number")
        if name in fields.objects and kind is not dict:
            raise malformed(pointer(name), "an object")
        if name in fields.lists and kind is not list:
            raise malformed(pointer(name), "a list")
        if name in fields.strings and kind is not str:
            raise malformed(pointer(name), "a string")
    for name, (low, high) in fields.ranges.items():
        value = request.get(name)
        if value is not None and not low <= value <= high:
            raise malformed(pointer(name), f"an integer from {low} to {high}")


def is_model_name(name: object) -> bool:
    """Whether it may stand in the record as the name of a model."""
    return isinstance(name, str) and _MODEL.fullmatch(name) is not None


def model_of(request: Mapping[str, Any]) -> str:
    """The model asked for. Raises MalformedRequest."""
    model = request.get("model")
    if not isinstance(model, str) or not is_model_name(model):
        raise malformed("/model", "a model name")
    return model


def unknown_fields(request: Mapping[str, Any], fields: Fields) -> tuple[str, ...]:
    """Members that the protocol does not know, as they may stand in the record."""
    names = {name if _FIELD_NAME.fullmatch(name) else "(other)" for name in request.keys() - fields.known}
    return tuple(sorted(names))[:_MAX_RECORDED]
