"""The event reader gives what the specification says, and refuses what could carry unjudged text."""

from __future__ import annotations

import pytest

from service.api.sse import Event, Parser, render
from service.errors import UpstreamInvalid


def read(data: bytes) -> list[Event]:
    parser = Parser()
    return parser.feed(data) + parser.finish()


def test_a_plain_event_keeps_its_own_bytes() -> None:
    raw = b'data: {"a": 1}\r\n\r\n'
    assert read(raw) == [Event('{"a": 1}', raw)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_all_three_line_ends_are_read(end: bytes) -> None:
    assert [e.data for e in read(b"data:a" + end + b"data: b" + end * 2 + b"data:  c" + end * 2)] == ["a\nb", " c"]


def test_comments_and_ids_do_not_reach_the_caller() -> None:
    events = read(b": secret comment\nid: secret\nevent: message\ndata: x\n\n: alone\n\n")
    assert [e.raw for e in events] == [b"event: message\ndata: x\n\n", b":\n\n"]
    assert events[1].data is None


def test_a_byte_order_mark_is_dropped() -> None:
    assert read(b"\xef\xbb\xbfdata: x\n\n") == [Event("x", b"data: x\n\n")]


@pytest.mark.parametrize("data", [b"data: x", b"data: x\n", b"data: x\n\ndata", b'data: {"a"'])
def test_a_stream_that_ends_within_an_event_is_invalid(data: bytes) -> None:
    with pytest.raises(UpstreamInvalid):
        read(data)


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r\n"])
def test_a_last_done_without_its_blank_line_is_let_pass(tail: bytes) -> None:
    assert [e.data for e in read(b"data: x\n\ndata: [DONE]" + tail)] == ["x", "[DONE]"]


def test_invalid_utf8_is_refused_and_not_replaced() -> None:
    with pytest.raises(UpstreamInvalid):
        read(b"data: \xff\n\n")


def test_an_event_without_end_is_refused_at_the_limit() -> None:
    parser = Parser(max_event_bytes=1000)
    with pytest.raises(UpstreamInvalid):
        for _ in range(200):
            parser.feed(b"data: 012345")


def test_what_is_rendered_is_read_back() -> None:
    assert read(render("a\nb", "error")) == [Event("a\nb", b"event: error\ndata: a\ndata: b\n\n", "error")]
