"""The strict reader refuses whatever two readers could read differently, and says where."""

from __future__ import annotations

import json
import time

import pytest

from service.api import strict_json
from service.errors import MalformedRequest, PayloadTooLarge


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"x":[{"a":1,"b":3,"a":2}]}', "/x/0/a"),
        (b'{"a":1,"\\u0061":2}', "/a"),
        (b'{"a/b~c":{"k":1,"k":1}}', "/a~1b~0c/k"),
        (b'{"m":[1,"\\ud800"]}', "/m/1"),
        (b'{"m":[1,"x\\uDC00y"]}', "/m/1"),
        (b'{"m":"\\udc00\\ud800"}', "/m"),
        (b'{"m":"a\\u0000b"}', "/m"),
        (b'{"n":18446744073709551616}', "/n"),
        (b'{"n":' + b"9" * 5000 + b"}", "/n"),
        (b'{"n":[0,1e999]}', "/n/1"),
        (b'{"deep":' + b"[" * 64 + b"]" * 64 + b"}", "/deep"),
    ],
)
def test_an_ambiguous_value_is_refused_with_its_pointer(body: bytes, pointer: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        strict_json.parse(body)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"a\x00b"',
        b"NaN",
        b"-Infinity",
        b"{} {}",
        b"{'a':1}",
        b'{"a":1,}',
        b"[" * 100_000,
        b'{"\\ud800":1}',
        b'"a\nb"',
        b"\xa0{}",
    ],
)
def test_what_is_not_plain_json_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        strict_json.parse(body)


@pytest.mark.parametrize(
    "value",
    [{"a": "😀 é \\u0000 as text"}, [1, -(2**63), 2**64 - 1, 1.5, True, None], "", {"": {"": []}}],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_ordinary_json_is_read_as_any_reader_reads_it(value: object, ascii_only: bool) -> None:
    assert strict_json.parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_64_levels_are_read_and_65_are_not() -> None:
    strict_json.parse(b"[" * 64 + b"]" * 64)
    with pytest.raises(MalformedRequest):
        strict_json.parse(b"[" * 65 + b"]" * 65)


def test_a_reply_may_hold_nul_and_lone_surrogates() -> None:
    assert strict_json.parse(b'["\\u0000\\ud800"]', any_character=True) == ["\x00\ud800"]
    assert strict_json.whole("a\ud800b") == "a\ufffdb"


def test_a_body_of_nothing_but_brackets_is_refused_quickly() -> None:
    started = time.perf_counter()
    with pytest.raises(PayloadTooLarge):
        strict_json.parse(b"[" + b"[]," * 1_300_000 + b"[]]")
    assert time.perf_counter() - started < 0.5


def test_commas_within_a_long_text_are_not_counted_as_values() -> None:
    text = "1,2,[3],{4}," * 50_000
    assert strict_json.parse(json.dumps([text]).encode()) == [text]


def test_a_chat_of_a_megabyte_is_read_well_under_100_ms() -> None:
    turns = [{"role": "user", "content": "how do I bake bread? é 😀 " * 4} for _ in range(6_000)]
    body = json.dumps({"model": "m", "messages": turns}).encode()
    fastest = min(_seconds(body) for _ in range(3))
    assert len(body) > 900_000
    assert fastest < 0.1


def _seconds(body: bytes) -> float:
    started = time.perf_counter()
    strict_json.parse(body)
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{ }", b'{"n":3 }'),
        (b'{"a":"n\\":{}", "n" : [2] ,"c":2}', b'{"a":"n\\":{}", "n" : 3 ,"c":2}'),
        (' {"é":{"n":1}}'.encode(), ' {"n":3,"é":{"n":1}}'.encode()),
    ],
)
def test_splicing_a_member_leaves_every_other_byte(body: bytes, expected: bytes) -> None:
    assert strict_json.splice_member(body, "n", 3) == expected


def test_pointers_are_escaped_as_rfc_6901_says() -> None:
    assert strict_json.pointer("a/b", 0, "m~n") == "/a~1b/0/m~0n"
