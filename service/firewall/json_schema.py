"""Do a tool call's arguments fit the schema that the tool was offered with? In bounded steps, and without fetching.

JSON Schema 2020-12, the part that tools are described with. What is not known here never makes a violation; `pattern`
and `format` are left out on purpose, since a regular expression has no bound on its time. A reference to anything but
a place in the same schema is never followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

MAX_STEPS = 20_000
_MAX_DEPTH = 64
_CHARS_A_STEP = 64  # of a reference
_LISTS = ("type", "enum", "required")
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int, float),
}


class NotChecked(Exception):
    """The schema cannot be followed here: a remote reference, or more steps than are taken."""


def violation(value: Any, schema: Any, max_steps: int = MAX_STEPS) -> str:
    """The first keyword that the value breaks; empty where it fits. Raises NotChecked."""
    return next(_Check(schema, max_steps).broken(value, schema, 0), "")


class _Check:
    def __init__(self, root: Any, steps: int) -> None:
        self._root = root
        self._steps = steps

    def _take(self, steps: int) -> None:
        """Raises NotChecked where there were more than are taken."""
        self._steps -= steps
        if self._steps < 0:
            raise NotChecked("too many steps")

    def broken(self, value: Any, schema: Any, depth: int) -> Iterator[str]:
        # A list of names is gone through for each value that it is said of.
        self._take(1 + sum(len(_list(schema, name)) for name in _LISTS) if isinstance(schema, dict) else 1)
        if depth > _MAX_DEPTH:
            raise NotChecked("too deep")
        if schema is False:
            yield "false"
        if not isinstance(schema, dict):
            return
        if "$ref" in schema:
            yield from self.broken(value, self._resolve(schema["$ref"]), depth + 1)
        yield from self._of_any_type(value, schema)
        if isinstance(value, dict):
            yield from self._of_object(value, schema, depth)
        elif isinstance(value, list):
            yield from self._of_list(value, schema, depth)
        elif isinstance(value, str):
            yield from _bounds(len(value), schema, "minLength", "maxLength")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield from _bounds(value, schema, "minimum", "maximum")
            if _is_number(least := schema.get("exclusiveMinimum")) and value <= least:
                yield "exclusiveMinimum"
            if _is_number(most := schema.get("exclusiveMaximum")) and value >= most:
                yield "exclusiveMaximum"
        yield from self._combined(value, schema, depth)

    def _fits(self, value: Any, schema: Any, depth: int) -> bool:
        return next(self.broken(value, schema, depth), "") == ""

    def _of_any_type(self, value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
        given = schema.get("type")
        kinds: list[Any] = [given] if isinstance(given, str) else _list(schema, "type")
        nullable = schema.get("nullable") is True and value is None  # OpenAPI's way of saying it
        # A kind that nobody knows may be any.
        known = bool(kinds) and not nullable and all(isinstance(kind, str) and kind in _TYPES for kind in kinds)
        if known and not any(_is_of(value, kind) for kind in kinds):
            yield "type"
        if isinstance(schema.get("enum"), list) and not nullable and not any(_same(value, e) for e in schema["enum"]):
            yield "enum"
        if "const" in schema and not _same(value, schema["const"]):
            yield "const"

    def _of_object(self, value: dict[str, Any], schema: Mapping[str, Any], depth: int) -> Iterator[str]:
        known = schema.get("properties")
        known = known if isinstance(known, dict) else {}
        needed = schema.get("required")
        if isinstance(needed, list) and any(isinstance(name, str) and name not in value for name in needed):
            yield "required"
        yield from _bounds(len(value), schema, "minProperties", "maxProperties")
        for name, item in value.items():
            if name in known:
                yield from self.broken(item, known[name], depth + 1)
            elif "patternProperties" not in schema and "additionalProperties" in schema:
                for keyword in self.broken(item, schema["additionalProperties"], depth + 1):
                    yield "additionalProperties" if keyword == "false" else keyword

    def _of_list(self, value: list[Any], schema: Mapping[str, Any], depth: int) -> Iterator[str]:
        yield from _bounds(len(value), schema, "minItems", "maxItems")
        first = schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        for number, item in enumerate(value):
            if number < len(first):
                yield from self.broken(item, first[number], depth + 1)
            elif isinstance(schema.get("items"), (dict, bool)):
                yield from self.broken(item, schema["items"], depth + 1)

    def _combined(self, value: Any, schema: Mapping[str, Any], depth: int) -> Iterator[str]:
        for part in _list(schema, "allOf"):
            yield from self.broken(value, part, depth + 1)
        if (some := _list(schema, "anyOf")) and not any(self._fits(value, part, depth + 1) for part in some):
            yield "anyOf"
        if (one := _list(schema, "oneOf")) and sum(self._fits(value, part, depth + 1) for part in one) != 1:
            yield "oneOf"
        if "not" in schema and self._fits(value, schema["not"], depth + 1):
            yield "not"

    def _resolve(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise NotChecked("remote reference")
        node = self._root
        self._take(len(reference) // _CHARS_A_STEP)
        for step in reference[1:].strip("/").split("/") if reference != "#" else ():
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and len(key) < 6 and int(key) < len(node):
                node = node[int(key)]
            else:
                raise NotChecked("dead reference")
        return node


def _list(schema: Mapping[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bounds(size: float, schema: Mapping[str, Any], least: str, most: str) -> Iterator[str]:
    if _is_number(schema.get(least)) and size < schema[least]:
        yield least
    if _is_number(schema.get(most)) and size > schema[most]:
        yield most


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, _TYPES[kind]):
        return isinstance(value, bool) and kind == "boolean"
    return kind != "integer" or not isinstance(value, float) or value.is_integer()


def _same(one: Any, other: Any) -> bool:
    """Equal in JSON: 1 and 1.0 are, 1 and true are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
