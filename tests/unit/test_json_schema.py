"""What fits a tool's schema and what does not; and that no schema takes long."""

from __future__ import annotations

from typing import Any

import pytest

from service.firewall.json_schema import NotChecked, violation

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": 150},
        "kind": {"enum": ["a", 1]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        "pair": {"prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False},
        "either": {"oneOf": [{"type": "string"}, {"const": 7}], "not": {"const": "no"}},
        "some": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "all": {"allOf": [{"type": "object"}, {"minProperties": 1}]},
        "maybe": {"type": "string", "nullable": True},
        "far": {"type": "string", "pattern": "(a+)+$", "format": "email", "x-own": 1},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "const": "t"}},
}


@pytest.mark.parametrize(
    "value",
    [
        {"name": "Ann"},
        {"name": "Ann", "age": 3.0, "kind": 1.0, "tags": ["t", "t"], "pair": ["x", True]},
        {"name": "Ann", "age": None, "either": 7, "some": None, "all": {"x": 1}, "maybe": None},
        {"name": "Ann", "far": "a" * 60 + "!"},
    ],
)
def test_a_value_that_fits_breaks_nothing(value: Any) -> None:
    assert violation(value, PERSON) == ""


@pytest.mark.parametrize(
    ("member", "keyword"),
    [
        ({"name": ""}, "minLength"),
        ({"name": "Annabel"}, "maxLength"),
        ({"age": True}, "type"),
        ({"age": 1.5}, "type"),
        ({"age": -1}, "minimum"),
        ({"age": 150}, "exclusiveMaximum"),
        ({"kind": True}, "enum"),
        ({"tags": ["x"]}, "const"),
        ({"tags": ["t"] * 3}, "maxItems"),
        ({"pair": ["x", True, 1]}, "false"),
        ({"either": 8}, "oneOf"),
        ({"either": "no"}, "not"),
        ({"some": "x"}, "anyOf"),
        ({"all": {}}, "minProperties"),
        ({"more": 1}, "additionalProperties"),
    ],
)
def test_the_keyword_that_is_broken_is_told(member: dict[str, Any], keyword: str) -> None:
    assert violation({"name": "Ann", **member}, PERSON) == keyword
    assert violation({}, PERSON) == "required"


@pytest.mark.parametrize("reference", ["https://x.example/s.json", "file:///etc/passwd", "other.json", "#/none", 7])
def test_nothing_but_a_place_in_the_same_schema_is_referred_to(reference: Any) -> None:
    with pytest.raises(NotChecked):
        violation({}, {"$ref": reference})


def test_a_schema_that_refers_to_itself_or_branches_without_end_is_given_up() -> None:
    with pytest.raises(NotChecked):
        violation({}, {"$ref": "#"})
    wide: dict[str, Any] = {"anyOf": [{"allOf": [{"$ref": "#"}] * 9}] * 9}
    with pytest.raises(NotChecked):
        violation(1, wide)
    with pytest.raises(NotChecked):
        violation(list(range(30_000)), {"items": {"type": "integer"}})


@pytest.mark.parametrize(
    "schema",
    [
        {"required": [1] * 25_000},
        {"type": ["string"] * 25_000 + ["object"]},
        {"enum": [1] * 25_000 + [{}]},
        {"$ref": "#" + "/" * 2_000_000},
    ],
)
def test_long_lists_and_references_in_a_schema_count_for_each_value_they_are_held_against(schema: Any) -> None:
    with pytest.raises(NotChecked, match="too many steps"):
        violation({}, schema)
