"""Nothing of a secret leaves in any field of a reply, whole or streamed, and ordinary replies leave byte for byte."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
from collections.abc import Callable
from typing import Any

import pytest

from service.api.chat_reply import ChatWire
from service.api.reply_texts import MAX_CHANNELS
from service.errors import UpstreamInvalid
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.interfaces import Piece
from service.release import Release
from service.settings import Leakage

SECRET = "sk-live-9f8A7b6C5d4E3f2G"
NUMBER = 918273645546372
BOLD = "".join(chr(0x1D5D4 + ord(c) - 65) if c.isupper() else chr(0x1D5EE + ord(c) - 97) for c in "CorrectHorseBattery")
PROTECTED = ProtectedTexts(
    [
        ProtectedText("key", "secret", "", SECRET),
        ProtectedText("number", "secret", "", str(NUMBER)),
        ProtectedText("words", "secret", "", "CorrectHorseBattery"),
    ]
)
SENT = (SECRET, str(NUMBER), BOLD)


def release(action: str = "block", stream: str = "exact") -> Release:
    settings = Leakage(stream=stream, action=action)  # type: ignore[arg-type]
    return Release(ReplyJudge(PROTECTED.for_request("t"), settings, lambda text: "digest"), ChatWire())


async def send(to: Release, pieces: list[Piece]) -> bytes:
    out = b""
    for piece in pieces:
        await to.take(piece)
        out += to.cleared()
    if not to.blocked:
        await to.finish()
        out += to.cleared()
    return out


def events(*documents: Any, name: str = "") -> list[Piece]:
    reader = ChatWire().open_stream()
    head = f"event: {name}\n" if name else ""
    raw = "".join(f"{head}data: {json.dumps(document)}\n\n" for document in documents)
    return reader.feed(raw.encode())


def delta(**fields: Any) -> dict[str, Any]:
    return {"id": "c1", "created": 1_700_000_000, "model": "m", "choices": [{"index": 0, "delta": fields}]}


def call(**fields: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": 0, "type": "function", **fields}])


def top(**fields: Any) -> dict[str, Any]:
    return {**delta(content="hello"), **fields}


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": "hello"}, **fields}]}


FIELDS: dict[str, dict[str, Any]] = {
    "id": top(id=SECRET),
    "model": top(model=SECRET),
    "object": top(object=SECRET),
    "system_fingerprint": top(system_fingerprint=SECRET),
    "obfuscation": top(obfuscation=SECRET),
    "created": top(created=NUMBER),
    "usage": {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": NUMBER}},
    "an unknown number": top(extra={"n": -NUMBER}),
    "an unknown float": top(extra=[NUMBER + 0.5]),
    "a name at the top": top(**{SECRET: 1}),
    "a name in a choice": choice(**{SECRET: 1}),
    "a name in a delta": delta(**{SECRET: None}),
    "a name in a tool call": call(**{SECRET: 1}),
    "a name in a function": call(function={SECRET: 1}),
    "a name in logprobs": choice(logprobs={SECRET: None}),
    "a name deep down": delta(extra={"x": [{SECRET: 1}]}),
    "role": delta(role=SECRET),
    "finish_reason": choice(finish_reason=SECRET),
    "native_finish_reason": choice(native_finish_reason=SECRET),
    "a tool call's id": call(id=SECRET),
    "a tool call's type": call(type=SECRET),
    "a custom tool's input": call(custom={"name": "f", "input": SECRET}),
    "an annotation's type": delta(annotations=[{"type": SECRET}]),
    "audio id": delta(audio={"id": SECRET}),
    "audio transcript": delta(audio={"transcript": SECRET}),
    "content in math letters": delta(content=BOLD),
    "logprobs bytes": choice(logprobs={"content": [{"token": "", "bytes": list(SECRET.encode())}]}),
    "error": {"error": {"message": "bad", "code": SECRET}},
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("stream", ["exact", "sentence", "buffer"])
async def test_a_secret_leaves_in_no_field_of_a_stream(field: str, stream: str) -> None:
    out = await send(to := release(stream=stream), events(FIELDS[field]))
    assert to.blocked
    assert out == b""


@pytest.mark.parametrize("field", FIELDS)
async def test_a_secret_leaves_in_no_field_of_a_whole_reply_that_is_redacted(field: str) -> None:
    body = json.dumps(FIELDS[field]).replace('"delta"', '"message"').encode()
    out = await send(to := release("redact"), [ChatWire().read_reply(body)])
    assert to.verdict.action in {"redact", "block"}
    assert not any(secret in json.dumps(json.loads(out or b"{}"), ensure_ascii=False) for secret in SENT)


async def test_an_event_s_name_may_be_a_secret() -> None:
    texts = ProtectedTexts([ProtectedText("s", "secret", "", "hunter.correct_horse")])
    to = Release(ReplyJudge(texts.for_request("t"), Leakage(), str.upper), ChatWire())
    assert await send(to, events(delta(content="x"), name="hunter.correct_horse")) == b""


async def test_a_provider_s_header_is_judged_before_it_is_passed_on() -> None:
    to = release("redact")
    await to.take_headers([("x-request-id", SECRET), ("openai-version", "2020-10-01")])
    assert to.headers == [("openai-version", "2020-10-01")]
    await (blocking := release()).take_headers([("x-request-id", f"req-{SECRET}")])
    assert blocking.blocked


@pytest.mark.parametrize(
    "field",
    [
        lambda half: delta(content=half),
        lambda half: delta(reasoning_content=half),
        lambda half: call(function={"arguments": half}),
        lambda half: call(function={"arguments": json.dumps(half)[1:-1]}),
    ],
)
async def test_letters_whose_surrogates_are_split_over_events_are_one_text(field: Callable[[str], Any]) -> None:
    halves = [
        chr(unit)
        for letter in BOLD
        for unit in (0xD800 + ((ord(letter) - 0x10000) >> 10), 0xDC00 + (ord(letter) & 0x3FF))
    ]
    await send(to := release(), events(*(field(half) for half in halves)))
    assert to.blocked


@pytest.mark.parametrize(
    "twins",
    [
        lambda part: {"choices": [{"index": 0, "delta": {"content": part}, "message": {"content": "zz"}}]},
        lambda part: {"choices": [{"index": 0, "content": "zz", "delta": {"content": part}}]},
        lambda part: {"choices/0/content": "zz", **delta(content=part)},
        lambda part: call(arguments="zz", function={"arguments": part}),
        lambda part: call(custom={"arguments": "zz"}, function={"arguments": part}),
    ],
)
async def test_text_of_one_field_never_stands_between_the_parts_of_another(twins: Callable[[str], Any]) -> None:
    parts = [SECRET[at : at + 5] for at in range(0, len(SECRET), 5)]
    await send(to := release(), events(*map(twins, parts)))
    assert to.blocked


@pytest.mark.parametrize("index", [True, 1.0, "1", -1, [1], {"a": 1}, 10**9])
@pytest.mark.parametrize("make", [choice, call])
async def test_an_index_that_readers_take_differently_is_refused(make: Any, index: Any) -> None:
    document = make(index=index) if make is choice else delta(tool_calls=[{"index": index}])
    with pytest.raises(UpstreamInvalid):
        events(document)


async def test_bytes_that_are_none_are_refused() -> None:
    with pytest.raises(UpstreamInvalid):
        events(choice(logprobs={"content": [{"token": "", "bytes": [115.0, 107.0]}]}))


async def test_ten_thousand_choices_are_refused() -> None:
    choices = [{"index": 0, "delta": {"content": "x"}} | {"index": n} for n in range(10_000)]
    with pytest.raises(UpstreamInvalid):
        events({"choices": choices})
    with pytest.raises(UpstreamInvalid):
        events(delta(extra=["x"] * (MAX_CHANNELS + 1)))


async def test_an_error_that_is_not_json_to_us_is_judged_as_its_reader_may_read_it() -> None:
    escaped = "".join(f"\\u{ord(char):04x}" if n % 2 else char for n, char in enumerate(SECRET))
    piece = ChatWire().read_error(b'{"a":1,"a":2,"message":"%s"}' % escaped.encode())
    for action in ("block", "redact"):
        sent = await send(to := release(action), [piece])
        assert to.blocked or (b"[redacted]" in sent and b"\\u" not in sent)


async def test_an_ordinary_stream_leaves_byte_for_byte_and_its_ids_hold_nothing_up() -> None:
    documents = [
        {**delta(content=""), "system_fingerprint": "fp_44709d6fcb", "service_tier": "default", "obfuscation": "x8K"},
        delta(role="assistant", content="", refusal=None),
        *(delta(content=word) for word in ("A ", "word. ", "\ud83d", "\ude00 and more. ")),
    ]
    to = release(stream="sentence")
    pieces = events(*documents)
    out = b""
    for number, piece in enumerate(pieces):
        await to.take(piece)
        out += to.cleared()
        if number == 1:
            assert out == pieces[0].raw + pieces[1].raw
    await to.finish()
    assert out + to.cleared() == b"".join(piece.raw for piece in pieces)


async def test_a_value_that_comes_with_every_event_is_recorded_once() -> None:
    out = await send(to := release("redact"), events(*[top(id=SECRET, content=str(n)) for n in range(5)]))
    assert SECRET.encode() not in out and out.count(b"[redacted]") == 5
    assert len(to.verdict.findings) == 1


@pytest.mark.parametrize(
    "written",
    [
        codecs.encode(SECRET, "rot13"),
        "".join(f"\\u{ord(char):04x}" for char in SECRET),
        "".join(f"&#{ord(char)};" for char in SECRET),
        ", ".join(str(ord(char)) for char in SECRET),
        base64.b32encode(SECRET.encode()).decode(),
        base64.b32encode(b"key: " + SECRET.encode()).decode(),
    ],
)
async def test_a_secret_in_other_codes_is_withheld(written: str) -> None:
    await send(to := release(), events(*(delta(content=char) for char in written)))
    assert to.blocked


async def test_others_get_their_turn_while_thousands_of_short_texts_are_judged() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    to = release()
    piece = ChatWire().read_reply(b'{"x":{' + b",".join(b'"k%d":"%d"' % (n, n) for n in range(4_000)) + b"}}")
    watch = asyncio.create_task(other())
    await to.take(piece)
    watch.cancel()
    assert turns >= 100
    assert not to.blocked
