"""Do a tool call's arguments fit the schema that the tool was offered with? In bounded steps, and without fetching.

JSON Schema 2020-12, the part that tools are described with. What is not known here never makes a violation, and a
`pattern` that has no bound on its time is not followed (`schema_strings`): where all else fits, that is told. A
reference to anything but a place in the same schema is never followed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from fractions import Fraction
from typing import Any, TypeGuard

from service.firewall.schema_strings import FORMATS, MAX_PATHS, NotFollowed, followed

MAX_STEPS = 20_000
_MAX_DEPTH = 64
_CHARS_A_STEP = 64  # of a reference, a name or a string
_PATHS_A_STEP = 500  # of a pattern
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
    """The schema cannot be followed here, such as a remote reference or a pattern without a bound."""


class TooLarge(NotChecked):
    """Value and schema together take more steps than are taken, or are nested too deep."""


def violation(value: Any, schema: Any, max_steps: int = MAX_STEPS) -> str:
    """The first keyword that the value breaks; empty where it fits. Raises NotChecked."""
    check = _Check(schema, max_steps)
    broken = next(check.broken(value, schema, 0), "")
    if not broken and check.doubt:
        raise NotChecked(check.doubt)
    return broken


class _Check:
    def __init__(self, root: Any, steps: int) -> None:
        self._root = root
        self._steps = steps
        self.doubt = ""  # the keyword that could not be followed and has not been broken

    def _take(self, steps: int) -> None:
        """Raises NotChecked where there were more than are taken."""
        self._steps -= steps
        if self._steps < 0:
            raise TooLarge("too many steps")

    def broken(self, value: Any, schema: Any, depth: int) -> Iterator[str]:
        # A list of names is gone through for each value that it is said of.
        self._take(1 + sum(len(_list(schema, name)) for name in _LISTS) if isinstance(schema, dict) else 1)
        if depth > _MAX_DEPTH:
            raise TooLarge("too deep")
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
            yield from self._of_string(value, schema)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield from _bounds(value, schema, "minimum", "maximum")
            if _is_number(least := schema.get("exclusiveMinimum")) and value <= least:
                yield "exclusiveMinimum"
            if _is_number(most := schema.get("exclusiveMaximum")) and value >= most:
                yield "exclusiveMaximum"
            if _is_number(step := schema.get("multipleOf")) and not _is_multiple(value, step):
                yield "multipleOf"
        yield from self._combined(value, schema, depth)

    def _fits(self, value: Any, schema: Any, depth: int) -> bool | None:
        """None where it could not be said, for all that was followed."""
        before, self.doubt = self.doubt, ""
        broken = next(self.broken(value, schema, depth), "")
        doubt, self.doubt = self.doubt, before
        return None if doubt and not broken else not broken

    def _fitting(self, values: Iterator[tuple[Any, Any]], depth: int) -> tuple[int, int]:
        """How many of these (value, schema) fit, and how many may."""
        found = [self._fits(value, schema, depth) for value, schema in values]
        return found.count(True), found.count(None)

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
        for name, others in _dict(schema, "dependentRequired").items():
            if name in value and isinstance(others, list):
                self._take(1 + len(others))
                if any(isinstance(other, str) and other not in value for other in others):
                    yield "dependentRequired"
        patterns = _dict(schema, "patternProperties")
        for name, item in value.items():
            if (
                "propertyNames" in schema
                and self._certain(name, schema["propertyNames"], depth, "propertyNames") is False
            ):
                yield "propertyNames"
            named: bool | None = name in known
            if name in known:
                yield from self.broken(item, known[name], depth + 1)
            for pattern, inner in patterns.items():
                self._take(1)
                matches = self._matches(pattern, name)
                if matches is None:
                    self.doubt = "patternProperties"
                    named = named or None
                elif matches:
                    named = True
                    yield from self.broken(item, inner, depth + 1)
            if named is False and "additionalProperties" in schema:
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
        if schema.get("uniqueItems") is True and len({self._spelled(item, 0) for item in value}) < len(value):
            yield "uniqueItems"
        if "contains" in schema:
            sure, unsure = self._fitting(((item, schema["contains"]) for item in value), depth + 1)
            least, most = schema.get("minContains", 1), schema.get("maxContains")
            if _is_number(least) and sure + unsure < least:
                yield "contains"
            elif _is_number(most) and sure > most:
                yield "maxContains"
            elif unsure and ((_is_number(least) and sure < least) or _is_number(most)):
                self.doubt = "contains"

    def _of_string(self, value: str, schema: Mapping[str, Any]) -> Iterator[str]:
        yield from _bounds(len(value), schema, "minLength", "maxLength")
        if isinstance(pattern := schema.get("pattern"), str):
            matches = self._matches(pattern, value)
            if matches is False:
                yield "pattern"
            elif matches is None:
                self.doubt = "pattern"
        if isinstance(kind := schema.get("format"), str) and kind in FORMATS:
            self._take(len(value) // _CHARS_A_STEP)
            if not FORMATS[kind](value):
                yield "format"

    def _matches(self, pattern: str, text: str) -> bool | None:
        """None for a pattern that is not followed. Raises TooLarge for a text that is too long for one that is."""
        try:
            known = followed(pattern)
        except NotFollowed:
            return None
        if (paths := known.paths(len(text))) > MAX_PATHS:
            raise TooLarge("too long for its pattern")
        self._take(paths // _PATHS_A_STEP + len(text) // _CHARS_A_STEP)
        return known.search.search(text) is not None

    def _spelled(self, value: Any, depth: int) -> Hashable:
        """The same for what is equal in JSON. Of strings, whose hashes nobody can make alike on purpose."""
        if depth > _MAX_DEPTH:
            raise TooLarge("too deep")
        self._take(1 + (len(value) // _CHARS_A_STEP if isinstance(value, str) else 0))
        if isinstance(value, list):
            return ("list", *(self._spelled(item, depth + 1) for item in value))
        if isinstance(value, dict):
            return frozenset((name, self._spelled(item, depth + 1)) for name, item in value.items())
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return (type(value).__name__, str(value))

    def _certain(self, value: Any, schema: Any, depth: int, keyword: str) -> bool | None:
        """As `_fits`, with a doubt kept under the name of the keyword that it is about."""
        fits = self._fits(value, schema, depth + 1)
        if fits is None:
            self.doubt = keyword
        return fits

    def _combined(self, value: Any, schema: Mapping[str, Any], depth: int) -> Iterator[str]:
        for part in _list(schema, "allOf"):
            yield from self.broken(value, part, depth + 1)
        if some := _list(schema, "anyOf"):
            found: bool | None = False
            for part in some:
                fits = self._fits(value, part, depth + 1)
                if fits:
                    found = True
                    break
                found = None if fits is None else found
            if found is None:
                self.doubt = "anyOf"
            elif not found:
                yield "anyOf"
        if one := _list(schema, "oneOf"):
            sure, unsure = self._fitting(((value, part) for part in one), depth + 1)
            if sure > 1 or sure + unsure == 0:
                yield "oneOf"
            elif unsure:
                self.doubt = "oneOf"
        if "not" in schema and self._certain(value, schema["not"], depth, "not"):
            yield "not"
        if "if" in schema and ("then" in schema or "else" in schema):
            fits = self._certain(value, schema["if"], depth, "if")
            if fits is not None:
                yield from self.broken(value, schema.get("then" if fits else "else", True), depth + 1)

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


def _dict(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = schema.get(name)
    return value if isinstance(value, dict) else {}


def _is_multiple(value: float, step: float) -> bool:
    """In decimal: 0.3 is three times 0.1."""
    try:
        return step <= 0 or Fraction(str(value)) % Fraction(str(step)) == 0
    except ValueError:  # no number, or without end
        return True


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
