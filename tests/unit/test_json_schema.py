"""What fits a tool's schema and what does not; and that no schema takes long."""

from __future__ import annotations

from typing import Any

import pytest

from service.firewall.json_schema import NotChecked, TooLarge, violation
from service.firewall.schema_strings import FORMATS, MAX_PATHS, NotFollowed, followed

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
        "far": {"type": "string", "pattern": "^a+!$", "format": "of-its-own", "x-own": 1},
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
    with pytest.raises(TooLarge, match="too many steps"):
        violation({}, schema)


KEYWORDS: list[tuple[dict[str, Any], Any, Any, str]] = [
    ({"pattern": "^[a-z]+$"}, "abc", "abc\n", "pattern"),
    ({"pattern": r"\d{3}-[\w.]*"}, "no 123-a.b", "12-a", "pattern"),
    ({"pattern": r"^(?:cat|dog)?\.[^\]\[]$"}, "dog.x", "dog.[", "pattern"),
    ({"pattern": "^.$"}, "\x85", "\u2028", "pattern"),
    ({"format": "date"}, "2024-02-29", "2023-02-29", "format"),
    ({"format": "date-time"}, "2024-02-29t23:59:60.5+05:30", "2024-02-29 23:59:00Z", "format"),
    ({"format": "email"}, "a.b+c@x.example", "a b@x.example", "format"),
    ({"format": "uri"}, "https://x.example/%20?q=[1]#a", "//x.example/a b", "format"),
    ({"format": "uuid"}, "123E4567-e89b-12d3-a456-426614174000", "123e4567e89b12d3a456426614174000", "format"),
    ({"format": "ipv4"}, "10.0.0.255", "10.0.0.256", "format"),
    ({"format": "ipv6"}, "::ffff:10.0.0.1", "fe80::1%eth0", "format"),
    ({"patternProperties": {"^n_": {"type": "number"}}}, {"n_a": 1, "a": "x"}, {"n_a": "x"}, "type"),
    ({"patternProperties": {"^x-": {}}, "additionalProperties": False}, {"x-a": 1}, {"y": 1}, "additionalProperties"),
    ({"propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}, "propertyNames"),
    (
        {"uniqueItems": True},
        [1, True, "1", [1], [True], {}],
        [{"a": [1], "b": 2}, {"b": 2.0, "a": [1.0]}],
        "uniqueItems",
    ),
    ({"multipleOf": 0.1}, 0.3, 0.35, "multipleOf"),
    ({"multipleOf": 3}, 9.0, 10, "multipleOf"),
    ({"if": {"const": 1}, "then": {"type": "integer"}, "else": {"type": "string"}}, 1, 2, "type"),
    ({"if": {"type": "string"}, "then": {"maxLength": 1}}, 12, "12", "maxLength"),
    ({"dependentRequired": {"card": ["name"]}}, {"name": 1}, {"card": 1}, "dependentRequired"),
    ({"contains": {"const": 1}}, [0, 1], [0], "contains"),
    ({"contains": {"const": 1}, "minContains": 2}, [1, 1], [1], "contains"),
    ({"contains": {"const": 1}, "maxContains": 1}, [1, 2], [1, 1], "maxContains"),
    ({"minProperties": 1, "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}, "maxProperties"),
]


@pytest.mark.parametrize(("schema", "fits", "breaks", "keyword"), KEYWORDS)
def test_a_keyword_is_broken_by_what_it_forbids_and_by_nothing_else(
    schema: dict[str, Any], fits: Any, breaks: Any, keyword: str
) -> None:
    assert violation(fits, schema) == ""
    assert violation(breaks, schema) == keyword
    for other in (None, 7, "text", [], {}):  # keywords are about values of one kind
        if "if" not in schema and "contains" not in schema and not isinstance(other, type(fits)):
            assert violation(other, schema) in ("", "multipleOf", "minProperties")


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*b", r"(\w)\1", "(?=a)b", "(?i)a", "(?<n>a)", r"\p{L}", "a{2,5000}", "[", "(", "a++", "[^]"],
)
def test_a_pattern_without_a_bound_is_not_followed_and_that_is_told_where_all_else_fits(pattern: str) -> None:
    with pytest.raises(NotFollowed):
        followed(pattern)
    schema = {"pattern": pattern, "maxLength": 99}
    with pytest.raises(NotChecked, match="pattern"):
        violation("a" * 60 + "!", schema)
    assert violation("a" * 100, schema) == "maxLength"
    for hidden in ({"not": schema}, {"oneOf": [schema, {"const": 1}]}, {"anyOf": [schema, False]}):
        with pytest.raises(NotChecked):
            violation("aa", hidden)
    assert violation("aa", {"anyOf": [schema, {"type": "string"}]}) == ""


def test_a_pattern_that_would_take_long_is_not_held_against_a_long_text() -> None:
    assert violation("a" * 900, {"pattern": "^[a-z]*[0-9]*$"}) == ""
    for pattern, length in (("a*a*a*a*b", 100), ("(a|a)" * 30, 30), ("^a{0,999}a{0,999}a{0,999}b", 2_000)):
        assert followed(pattern).paths(length) > MAX_PATHS
        with pytest.raises(TooLarge):
            violation("a" * length, {"pattern": pattern})
    with pytest.raises(TooLarge):
        violation(["a" * 900] * 200, {"items": {"pattern": "^[a-z]*[0-9]*$"}})


def test_formats_are_read_once_however_long_the_text_is() -> None:
    for check in FORMATS.values():
        for part in ("a.", "1:", "%20", '"', "@", "a:"):
            assert check(part * 50_000) in (False, part == "a:")
