"""Nothing of a secret leaves in any field of a message, whole or streamed; ordinary ones leave byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.messages_reply import CountWire, MessagesStream, MessagesWire
from service.errors import Overloaded, UpstreamInvalid, WireError, to_wire
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.interfaces import Piece, Usage
from service.release import Release
from service.settings import Leakage

SECRET = "sk-live-9f8A7b6C5d4E3f2G"
PROTECTED = ProtectedTexts([ProtectedText("key", "secret", "", SECRET)])


def release(action: str = "block", stream: str = "exact") -> Release:
    settings = Leakage(stream=stream, action=action)  # type: ignore[arg-type]
    return Release(ReplyJudge(PROTECTED.for_request("t"), settings, lambda text: "digest"), MessagesWire())


def event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def start(**members: Any) -> bytes:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 7, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": usage, **members}
    return event("message_start", message=message)


def block(index: int, **members: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": "text", "text": "", **members})


def delta(index: int, **members: Any) -> bytes:
    return event("content_block_delta", index=index, delta=members)


def stop(index: int) -> bytes:
    return event("content_block_stop", index=index)


END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}) + event("message_stop")


def read(raw: bytes) -> list[Piece]:
    reader = MessagesStream()
    return reader.feed(raw) + reader.finish()


async def send(to: Release, pieces: list[Piece]) -> bytes:
    out = b""
    for piece in pieces:
        await to.take(piece)
        out += to.cleared()
    if not to.blocked:
        await to.finish()
        out += to.cleared()
    return out


FIELDS: dict[str, bytes] = {
    "id": start(id=SECRET) + END,
    "model": start(model=SECRET) + END,
    "role": start(role=SECRET) + END,
    "container": start(container={"id": SECRET}) + END,
    "a name at the top": event("ping", **{SECRET: 1}) + start() + END,
    "a name in the message": start(**{SECRET: 1}) + END,
    "a name in a block": start() + block(0, **{SECRET: 1}) + END,
    "a name in a delta": start() + block(0) + delta(0, type="text_delta", **{SECRET: 1}) + END,
    "a tool's name": start() + block(0, type="tool_use", name=SECRET) + END,
    "a tool's id": start() + block(0, type="tool_use", id=SECRET) + END,
    "a tool's first input": start() + block(0, type="tool_use", input={"x": [SECRET]}) + END,
    "a server tool's result": start() + block(0, type="x_tool_result", content=[{"url": SECRET}]) + END,
    "redacted thinking": start() + block(0, type="redacted_thinking", data=SECRET) + END,
    "a citation": start() + block(0) + delta(0, type="citations_delta", citation={"cited_text": SECRET}) + END,
    "a signature": start() + block(0) + delta(0, type="signature_delta", signature=SECRET) + END,
    "a delta nobody knows": start() + block(0) + delta(0, type="new_delta", words=SECRET) + END,
    "an event nobody knows": start() + event("new_event", words=[SECRET]) + END,
    "a stop sequence": start() + event("message_delta", delta={"stop_sequence": SECRET}) + event("message_stop"),
    "a stop reason": start() + event("message_delta", delta={"stop_reason": SECRET}) + event("message_stop"),
    "a member of the last event": start() + event("message_stop", note=SECRET),
    "an error": start() + event("error", error={"type": "api_error", "message": SECRET}),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("stream", ["exact", "sentence", "buffer"])
async def test_a_secret_leaves_in_no_field_of_a_stream(field: str, stream: str) -> None:
    out = await send(to := release(stream=stream), read(FIELDS[field]))
    assert to.blocked
    assert SECRET.encode() not in out


GROWING = {
    "text": ("text_delta", "text", {}),
    "thinking": ("thinking_delta", "thinking", {"type": "thinking"}),
    "input": ("input_json_delta", "partial_json", {"type": "tool_use", "name": "f", "input": {}}),
    "unknown": ("new_delta", "words", {"type": "new"}),
}


@pytest.mark.parametrize("action", ["block", "redact"])
@pytest.mark.parametrize("kind", GROWING)
async def test_a_secret_that_grows_over_events_never_leaves(kind: str, action: str) -> None:
    name, member, fields = GROWING[kind]
    parts = [delta(0, type=name, **{member: letter}) for letter in f"it is {SECRET} now"]
    out = await send(to := release(action), read(start() + block(0, **fields) + b"".join(parts) + stop(0) + END))
    sent = [json.loads(line[6:]) for line in out.decode().splitlines() if line.startswith("data: ")]
    said = "".join(document.get("delta", {}).get(member, "") for document in sent)
    assert to.verdict.action == action
    assert said == ("it is [redacted] now" if action == "redact" else "it is ")


async def test_a_secret_escaped_in_a_tool_s_input_is_withheld() -> None:
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in SECRET)
    parts = [delta(0, type="input_json_delta", partial_json=part) for part in ('{"a":"', *escaped, '"}')]
    await send(to := release(), read(start() + block(0, type="tool_use", input={}) + b"".join(parts) + stop(0) + END))
    assert to.blocked


async def test_a_secret_over_two_text_blocks_is_withheld_since_applications_join_them() -> None:
    halves = [
        block(index) + delta(index, type="text_delta", text=half) + stop(index)
        for index, half in enumerate((SECRET[:9], SECRET[9:]))
    ]
    out = await send(to := release(), read(start() + b"".join(halves) + END))
    assert to.blocked
    assert SECRET[:9].encode() not in out


@pytest.mark.parametrize("action", ["block", "redact"])
async def test_a_whole_message_is_judged_in_every_block(action: str) -> None:
    for content in (
        [{"type": "text", "text": f"is {SECRET}"}],
        [{"type": "text", "text": SECRET[:9]}, {"type": "text", "text": SECRET[9:]}],
        [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": {"b": [SECRET]}}}],
        [{"type": "thinking", "thinking": SECRET, "signature": "s"}],
    ):
        body = json.dumps({"type": "message", "content": content, "stop_reason": "end_turn"}).encode()
        out = await send(to := release(action), [MessagesWire().read_reply(body)])
        assert to.verdict.action == action
        assert "".join(part for part in (SECRET[:9], SECRET[9:]) if part.encode() in out) != SECRET


async def test_what_follows_a_block_does_not_wait_for_the_end_of_its_text() -> None:
    """The last sentence of a thought is judged when its block stops, not when the reply does."""
    settings = Leakage(stream="sentence")
    protection = PROTECTED.for_request("t", ["The duty manager decides on refunds above four hundred euros."])
    to = Release(ReplyJudge(protection, settings, lambda text: "digest"), MessagesWire())
    raw = (
        start()
        + block(0, type="thinking", thinking="")
        + delta(0, type="thinking_delta", thinking="I should ask the manager")
        + stop(0)
        + block(1)
    )
    out = b""
    for piece in MessagesStream().feed(raw):
        await to.take(piece)
        out += to.cleared()
    assert out == raw


async def test_an_ordinary_stream_leaves_byte_for_byte_and_its_reason_waits_for_the_end() -> None:
    raw = (
        start()
        + event("ping")
        + block(0)
        + b"".join(delta(0, type="text_delta", text=word) for word in ("A ", "word. ", "\ud83d", "\ude00 word. "))
        + stop(0)
        + block(1, type="tool_use", id="toolu_1", name="f", input={})
        + delta(1, type="input_json_delta", partial_json='{"a": 1}')
        + stop(1)
    )
    to, out = release(), b""
    pieces = read(raw + END)
    for piece in pieces:
        await to.take(piece)
        out += to.cleared()
    assert out == raw
    await to.finish()
    assert out + to.cleared() == raw + END
    assert [piece.final for piece in pieces[-2:]] == [True, True]


def test_a_stream_that_ends_without_its_output_s_count_is_not_settled_to_the_one_it_began_with() -> None:
    last = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 5, "output_tokens": None})
    reader = MessagesStream()
    pieces = reader.feed(start() + last + event("message_stop"))
    assert [piece.usage for piece in pieces] == [Usage(12, 0, 7, partial=True), None, None]


def test_usage_is_known_with_the_last_counts_and_holds_what_the_cache_took() -> None:
    pieces = read(start() + END)
    assert [piece.usage for piece in pieces] == [Usage(12, 0, 7, partial=True), Usage(12, 9, 7), None]


def test_what_a_stream_writes_to_the_cache_is_told_apart_by_how_long_it_stays() -> None:
    kept = {"cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10}}
    usage = {"input_tokens": 5, "cache_creation_input_tokens": 30, "output_tokens": 1, **kept}
    assert read(start(usage=usage) + END)[1].usage == Usage(35, 9, 0, 20, 10)


def test_a_stream_that_begins_without_a_count_of_its_prompt_says_nothing_of_it() -> None:
    assert read(start(usage={"input_tokens": 0, "output_tokens": 0}) + END)[0].usage is None


def test_a_count_settles_to_nothing() -> None:
    assert CountWire().read_reply(b'{"input_tokens": 2095}').usage == Usage(0, 0)


@pytest.mark.parametrize(
    "raw",
    [
        block(0) + END,
        start() + start() + END,
        start() + block(1) + END,
        start() + block(0) + block(0) + END,
        start() + delta(0, type="text_delta", text="x") + END,
        start() + block(0) + stop(0) + delta(0, type="text_delta", text="x") + END,
        start() + block(0) + event("content_block_delta", delta={"text": "x"}) + END,
        start() + block(0) + event("content_block_delta", index="0", delta={"text": "x"}) + END,
        start() + END + event("ping"),
        start(),
        b"",
        b'event: ping\ndata: {"type":"message_stop"}\n\n',
        b'event: other\ndata: {"type":"message_start","message":{}}\n\n',
        b"data: {}\n\n",
        b'event: ping\ndata: {"type":5}\n\n',
        b"event: ping\ndata: [1]\n\n",
    ],
)
def test_a_stream_that_readers_could_read_in_two_ways_is_refused(raw: bytes) -> None:
    with pytest.raises(UpstreamInvalid):
        read(raw)


def test_an_error_of_the_provider_ends_the_stream() -> None:
    pieces = read(start() + event("error", error={"type": "overloaded_error", "message": "busy"}))
    assert [piece.failed for piece in pieces] == [False, True]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
    ],
)
def test_errors_have_types_that_the_sdk_knows(status: int, kind: str) -> None:
    error = WireError(status, "x", "y", "What is wrong.", "/system/0")
    body = json.loads(MessagesWire().error_body(error))
    assert body == {"type": "error", "error": {"type": kind, "message": "/system/0: What is wrong."}}
    assert MessagesWire().error_event(error, None).startswith(b'event: error\ndata: {"type":"error"')


def test_a_full_queue_is_anthropic_s_own_status() -> None:
    error = MessagesWire().phrase(to_wire(Overloaded("busy")))
    assert (error.status, error.type) == (529, "overloaded_error")
    assert MessagesWire().phrase(error) == error


async def test_text_after_the_end_of_its_channel_is_refused() -> None:
    judge = ReplyJudge(PROTECTED.for_request("t"), Leakage(stream="exact"), str)
    await judge.feed("a", SECRET[:5])
    assert judge.cleared("a") == 0
    await judge.end("a")
    assert judge.cleared("a") == 5
    with pytest.raises(RuntimeError):
        await judge.feed("a", SECRET[5:])
