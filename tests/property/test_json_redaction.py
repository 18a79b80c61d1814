"""What was JSON stays JSON when parts of it are taken out, wherever it is cut; else nothing of it leaves."""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.credential_cases import private_key
from service.api.chat_reply import ChatWire
from service.api.json_redaction import JsonText, covers
from service.api.messages_reply import MessagesWire
from service.api.reply_texts import unescape
from service.api.responses_reply import ResponsesWire
from service.firewall.channel import REDACTED
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.interfaces import Wire
from service.release import Release
from service.settings import Leakage

SECRET = "Zq9Wv7Tk3Lm5Xr8P"
PROTECTED = ProtectedTexts([ProtectedText("key", "secret", "", SECRET)])
PEM = private_key(random.Random(3))
LEAD = "The call: "


def shape(value: Any) -> Any:
    """The value without what its strings say."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "" if isinstance(value, str) else value


def escaped(text: str) -> str:
    return "".join(f"\\u{int.from_bytes(unit, 'big'):04x}" for unit in units(text))


def units(text: str) -> list[bytes]:
    data = text.encode("utf-16-be")
    return [data[at : at + 2] for at in range(0, len(data), 2)]


# -- parts of any text -------------------------------------------------------------------------------------------------

names = st.text(st.sampled_from('ab\\"é😀'), max_size=3)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(st.sampled_from('ab \n"\\/,:{]é😀'), max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def redactions(draw: Any) -> tuple[str, list[tuple[int, int]], list[int]]:
    """JSON, spans of it that must not leave, and where it is cut."""
    text = json.dumps(draw(values), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [(start, end) for start, end in list(pairwise(places))[::2] if end > start]
    cuts = draw(st.one_of(st.just(set(range(len(text)))), st.sets(st.integers(0, len(text)), max_size=6)))
    return text, spans, sorted(cuts | {0, len(text)})


def rendered(text: str, spans: Sequence[tuple[int, int]], start: int, end: int) -> str:
    """As judges say it: a mark where a span begins, nothing where it goes on."""
    made, at = "", start
    for first, last in spans:
        if last <= start or first >= end:
            continue
        made += text[at : max(at, first)] + (REDACTED if first >= start else "")
        at = max(at, min(last, end))
    return made + text[at:end]


def sent(text: str, spans: Sequence[tuple[int, int]], cuts: Sequence[int]) -> str | None:
    whole, out = JsonText(grows=True), []
    for start, end in pairwise(cuts):
        part, old, new = whole.take(text[start:end]), text[start:end], rendered(text, spans, start, end)
        made = (old, ()) if new == old else part.redacted(old, new)
        if made is None:
            return None
        out.append(made[0])
    assert whole.repeated().said() == "".join(out)
    return "".join(out)


@settings(max_examples=300, deadline=None)
@given(redactions())
@example(('"\\u0073\\ud83d\\ude00"', [(2, 9), (14, 19)], list(range(21))))
def test_json_stays_json_whatever_is_taken_out_of_it_and_wherever_it_is_cut(case: Any) -> None:
    text, spans, cuts = case
    whole, split = sent(text, spans, [0, len(text)]), sent(text, spans, cuts)
    assert (whole is None) == (split is None), "what is cut is blocked where the whole is"
    for said in (whole, split):
        if said is not None:
            value = json.loads(said)
            assert shape(value) == shape(json.loads(text))
            json.dumps(value, ensure_ascii=False).encode()  # and has no half of a character


def test_what_stands_in_a_name_or_a_number_cannot_be_taken_out() -> None:
    text = '{"secret": 12345678, "x": "secret", "y": null}'
    for start, end in ((3, 5), (12, 14), (41, 44)):
        assert sent(text, [(start, end)], [0, len(text)]) is None
    assert sent(text, [(27, 33)], [0, len(text)]) == '{"secret": 12345678, "x": "[redacted]", "y": null}'


def test_text_that_is_no_json_is_redacted_as_it_stands() -> None:
    assert sent('key: "a" 1234', [(9, 13)], [0, 5, 11, 13]) == 'key: "a" [redacted]'


def test_json_that_is_nested_too_deep_to_be_followed_is_not_rewritten() -> None:
    assert sent("[" * 600 + '"secret"' + "]" * 600, [(601, 607)], [0, 550, 604, 1208]) is None


@pytest.mark.parametrize(("taken", "whole"), [(((2, 10),), True), (((2, 3), (9, 10)), False), ((), False)])
def test_what_a_second_reading_must_not_say_has_to_be_gone_from_the_first(taken: Any, whole: bool) -> None:
    raw, part = '"ab\\u0073d", 1', JsonText(grows=False).take("")
    assert covers(part, raw, taken, unescape(raw), '"a[redacted]", 1') == whole


# -- replies -----------------------------------------------------------------------------------------------------------

SAYINGS: dict[str, str] = {
    "plain": f'{{"x":"{SECRET}"}}',
    "escaped": f'{{"x":"{escaped(SECRET)}"}}',
    "escaped in part": f'{{"x":"it \\n{SECRET[:5]}{escaped(SECRET[5:9])}{SECRET[9:]}\\" is"}}',
    "spaced out": f'{{"x":"{" ".join(SECRET)}\\n","y":[]}}',
    "escapes between": '{{"x":"\\"{}\\"\\ud83d\\ude00"}}'.format("\\/".join(SECRET)),
    "in two strings": f'["{SECRET[:7]}", "{SECRET[7:]}"]',
    "in a string and a number": '["Zq9Wv7Tk3Lm5Xr", 8, "P"]',
    "in a name": f'{{"{SECRET}":1}}',
    "ROT13": f'{{"x":"{codecs.encode(SECRET, "rot13")}","y":1}}',
    "a key without its end": json.dumps({"key": PEM.rpartition("\n")[0] + "\n", "host": "db1"}),
    "a key as lines": json.dumps({"key": PEM.split("\n"), "host": "db1"}),
    "a key in JSON in a string": json.dumps({"body": json.dumps({"key": PEM, "host": "db1"})}),
    "a password": json.dumps({"env": 'password="hT7$kq!pZ2vw" and so on', "n": 1}),
}


def chat(parts: Sequence[str]) -> list[Any]:
    head = {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]}
    deltas = [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in parts]
    return [{"choices": [{"index": 0, "delta": delta}]} for delta in (head, *deltas)]


def messages(parts: Sequence[str]) -> list[Any]:
    block = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
    message = {"type": "message", "id": "m", "role": "assistant", "content": [], "model": "m"}
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_stop"},
    ]


def responses(parts: Sequence[str]) -> list[Any]:
    kind = "response.function_call_arguments"
    events = [{"type": f"{kind}.delta", "output_index": 0, "item_id": "i", "delta": part} for part in parts]
    events.append({"type": f"{kind}.done", "output_index": 0, "item_id": "i", "arguments": "".join(parts)})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def chat_arguments(event: Any) -> str:
    return "".join(call["function"]["arguments"] for call in event["choices"][0]["delta"]["tool_calls"])


WIRES: dict[str, tuple[Wire, Callable[[Sequence[str]], list[Any]], Callable[[Any], str]]] = {
    "chat": (ChatWire(), chat, chat_arguments),
    "messages": (MessagesWire(), messages, lambda event: event.get("delta", {}).get("partial_json", "")),
    "responses": (ResponsesWire(), responses, lambda event: event.get("delta", "")),
}


async def answered(protocol: str, parts: Sequence[str]) -> str | None:
    """The arguments that a caller has at the end; None where the reply was blocked."""
    wire, write, arguments = WIRES[protocol]
    judge = ReplyJudge(PROTECTED.for_request("t"), Leakage(stream="exact", action="redact"), lambda text: "")
    release, reader, out = Release(judge, wire), wire.open_stream(), b""
    for event in write(parts):
        for piece in reader.feed(f"event: {event.get('type', '')}\ndata: {json.dumps(event)}\n\n".encode()):
            await release.take(piece)
        out += release.cleared()
    await release.finish()
    out += release.cleared()
    if release.blocked:
        return None
    events = [json.loads(line[6:]) for line in out.decode().splitlines() if line.startswith("data: ")]
    said = "".join(map(arguments, events))
    assert events[-1].get("arguments", said) == said, "what is said again is what was said"
    return said


def keeps_json(said: str | None, text: str) -> None:
    if said is None:
        return
    assert shape(json.loads(said)) == shape(json.loads(text))
    bare = "".join(char for char in unescape(unescape(said)) if char.isalnum())
    assert SECRET not in bare and codecs.encode(SECRET, "rot13") not in bare
    assert not any(line in said for line in PEM.split("\n")[1:-1])


BLOCKED = {"in a string and a number", "in a name"}


@pytest.mark.parametrize("kind", SAYINGS)
async def test_arguments_with_a_secret_stay_json_wherever_they_are_cut(kind: str) -> None:
    """Whole, in two parts, and character by character; where that cannot be, the reply is blocked."""
    text = SAYINGS[kind]
    cuts = range(1, len(text), max(1, len(text) // 60))
    for parts in [[text], list(text), *([text[:at], text[at:]] for at in cuts)]:
        said = await answered("chat", parts)
        assert (said is None) == (kind in BLOCKED), parts[0]
        keeps_json(said, text)


BITS = (SECRET, SECRET.lower(), SECRET[:8], SECRET[8:], "-".join(SECRET), codecs.encode(SECRET, "rot13"), "a word ")
KEYS = (PEM, PEM.rpartition("\n")[0] + "\n", json.dumps({"k": PEM, "s": SECRET}), "password=hT7$kq!pZ2vw;")
NOISE = ("\n", '"', "\\", "😀", "é", " ", ", ")


@st.composite
def cut_arguments(draw: Any) -> tuple[str, list[str]]:
    strings = st.lists(st.sampled_from(BITS + KEYS + NOISE), max_size=3).map("".join)
    inner = st.one_of(strings, st.lists(strings, max_size=3))
    value = draw(st.dictionaries(st.sampled_from(["a", "b", "api_key", 'q"']), inner, max_size=3))
    plain = json.dumps({"args": value, "n": 1}, ensure_ascii=draw(st.booleans()))
    every = draw(st.integers(1, 12))  # of twelve letters so many stay as they are
    text = "".join(escaped(c) if c in SECRET and n % 12 >= every else c for n, c in enumerate(plain))
    text = text if is_same(text) else plain
    places = sorted(draw(st.sets(st.integers(1, len(text) - 1), max_size=8)))
    return text, [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def is_same(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(WIRES)), cut_arguments())
async def test_arguments_of_every_protocol_stay_json_or_are_blocked(protocol: str, cut: tuple[str, list[str]]) -> None:
    text, parts = cut
    for pieces in ([text], parts):
        keeps_json(await answered(protocol, pieces), text)
