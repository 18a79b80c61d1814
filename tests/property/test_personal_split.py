"""However a text or a reply is cut, the same personal data are found in it, hidden, and put back."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.chat_reply import ChatWire
from service.api.messages_reply import MessagesWire
from service.api.responses_reply import ResponsesWire
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.personal import WINDOW_CHARS, Scan, spotted_in
from service.firewall.personal_watch import PersonalDataWatch
from service.firewall.protected import ProtectedTexts
from service.restoring import RestoredReply
from service.settings import Leakage, Pii
from tests.plain_recogniser import plain

ANN, CARD = "ann.lee@example.com", "4111 1111 1111 1111"
MAIL, NUMBER = "<EMAIL_ADDRESS_QWERTYU>", "<CREDIT_CARD_ASDFGHJ>"
QUOTED = 'O"Neil\\n@example.com'
ODD = "<EMAIL_ADDRESS_ZXCVBNM>"
VALUES = {MAIL: ANN, NUMBER: CARD, ODD: QUOTED}
CHANNEL = "choices/0/content"

BITS = st.sampled_from([ANN, CARD, " ", "\n", "12 ", "is ", "a@", "Holiday ", "4111", "x" * 90, "7" * 60, "numbers, "])


@st.composite
def cuts(draw: Any, texts: st.SearchStrategy[str]) -> tuple[str, list[str]]:
    text = draw(texts)
    places = sorted(draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=12)))
    edges = [0, *(place for place in places if place < len(text)), len(text)]
    return text, [text[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=100, deadline=None)
@given(cuts(st.lists(BITS, min_size=1, max_size=14).map("".join)))
def test_the_same_data_are_found_wherever_a_text_is_cut(cut: tuple[str, list[str]]) -> None:
    text, parts = cut
    scan = Scan(plain)
    found = [seen for part in parts for seen in scan.feed(part)]
    assert [*found, *scan.finish()] == spotted_in(plain, text)


@pytest.mark.parametrize("filler", ["9" * 3_000, "ab " * 1_000, "x" * 3_000 + " ", "Holiday " * 300])
def test_a_datum_is_found_in_whatever_stands_around_it(filler: str) -> None:
    for shift in range(0, WINDOW_CHARS, 61):
        text = "b " * shift + filler + f" {CARD} " + filler
        found = [text[seen.start : seen.end] for seen in spotted_in(plain, text) if seen.entity == "CREDIT_CARD"]
        assert CARD in found


@settings(max_examples=50, deadline=None)
@given(cuts(st.lists(BITS, min_size=1, max_size=8).map("".join)))
async def test_what_the_model_utters_is_taken_out_wherever_it_is_cut(cut: tuple[str, list[str]]) -> None:
    text, parts = cut

    async def sent(pieces: list[str]) -> str:
        watch = PersonalDataWatch(Pii(enabled=True, replies="redact"), plain).watch
        guard = LeakageGuard(
            Leakage(stream="exact", credentials="allow", exfiltration="allow"),
            ProtectedTexts(),
            None,
            None,
            digest=str,
            watches=[watch],
        )
        judge = await guard.open("t", [], [], Asked())
        out, at = "", 0
        for piece in pieces:
            await judge.feed(CHANNEL, piece)
            out, at = out + judge.render(CHANNEL, at, judge.cleared(CHANNEL)), judge.cleared(CHANNEL)
        await judge.finish()
        return out + judge.render(CHANNEL, at, len(text))

    whole, split = await sent([text]), await sent(parts)
    assert split == whole
    left, at = "", 0
    for seen in spotted_in(plain, text):
        # Of data side by side one mark is left.
        left += text[at : seen.start] + ("" if at and at == seen.start else "[redacted]")
        at = seen.end
    assert whole == left + text[at:]


# -- putting back


class Reply:
    """A provider's, in these pieces."""

    status = 200
    headers = ()

    def __init__(self, content_type: str, pieces: list[bytes]) -> None:
        self.content_type = content_type
        self._pieces = pieces

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece

    async def close(self) -> None:
        pass


def data(document: Any, event: str = "") -> bytes:
    return (f"event: {event}\n" if event else "").encode() + b"data: " + json.dumps(document).encode() + b"\n\n"


def chat_stream(texts: list[str], arguments: list[str]) -> bytes:
    def chunk(delta: Any, reason: str | None = None) -> bytes:
        return data({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    def call(part: str, **head: Any) -> bytes:
        return chunk({"tool_calls": [{"index": 0, **head, "function": {"arguments": part}}]})

    said = b"".join(chunk({"content": text}) for text in texts)
    called = call("", id="c1", type="function") + b"".join(map(call, arguments))
    return said + called + chunk({}, "tool_calls") + b"data: [DONE]\n\n"


def chat_said(stream: bytes) -> tuple[str, str]:
    text = arguments = ""
    for line in stream.decode().splitlines():
        if line.startswith("data: {"):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            text += delta.get("content") or ""
            for part in delta.get("tool_calls", ()):
                arguments += part["function"]["arguments"]
    return text, arguments


def messages_stream(texts: list[str], arguments: list[str]) -> bytes:
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {**message, "usage": usage}}]
    events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    for text in texts:
        events.append({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})
    events.append({"type": "content_block_stop", "index": 0})
    block = {"type": "tool_use", "id": "t1", "name": "mail", "input": {}}
    events.append({"type": "content_block_start", "index": 1, "content_block": block})
    for part in arguments:
        delta = {"type": "input_json_delta", "partial_json": part}
        events.append({"type": "content_block_delta", "index": 1, "delta": delta})
    events.append({"type": "content_block_stop", "index": 1})
    events.append(
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": usage}
    )
    events.append({"type": "message_stop"})
    return b"".join(data(event, event["type"]) for event in events)


def messages_said(stream: bytes) -> tuple[str, str]:
    said = {"text": "", "partial_json": ""}
    for line in stream.decode().splitlines():
        if line.startswith("data: "):
            delta = json.loads(line[6:]).get("delta", {})
            for name in said:
                said[name] += delta.get(name, "")
    return said["text"], said["partial_json"]


def responses_stream(texts: list[str], arguments: list[str]) -> bytes:
    text, argument = "".join(texts), "".join(arguments)
    part = {"type": "output_text", "text": "", "annotations": []}
    message = {"type": "message", "id": "i1", "role": "assistant", "status": "completed", "content": []}
    call = {
        "type": "function_call",
        "id": "i2",
        "call_id": "c1",
        "name": "mail",
        "arguments": "",
        "status": "completed",
    }
    whole = [message | {"content": [part | {"text": text}]}, call | {"arguments": argument}]
    at = {"item_id": "i1", "output_index": 0, "content_index": 0}
    on = {"item_id": "i2", "output_index": 1}
    response = {"id": "r1", "object": "response", "status": "in_progress", "output": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": message},
        {"type": "response.content_part.added", **at, "part": part},
        *({"type": "response.output_text.delta", **at, "delta": each} for each in texts),
        {"type": "response.output_text.done", **at, "text": text},
        {"type": "response.content_part.done", **at, "part": part | {"text": text}},
        {"type": "response.output_item.done", "output_index": 0, "item": whole[0]},
        {"type": "response.output_item.added", "output_index": 1, "item": call},
        *({"type": "response.function_call_arguments.delta", **on, "delta": each} for each in arguments),
        {"type": "response.function_call_arguments.done", **on, "arguments": argument},
        {"type": "response.output_item.done", "output_index": 1, "item": whole[1]},
        {"type": "response.completed", "response": response | {"status": "completed", "output": whole}},
    ]
    return b"".join(data(event | {"sequence_number": n}, event["type"]) for n, event in enumerate(events))


def responses_said(stream: bytes) -> tuple[str, str]:
    text = arguments = ""
    last: Any = None
    for line in stream.decode().splitlines():
        if line.startswith("data: "):
            last = json.loads(line[6:])
            if last["type"] == "response.output_text.delta":
                text += last["delta"]
            elif last["type"] == "response.function_call_arguments.delta":
                arguments += last["delta"]
    output = last["response"]["output"]
    assert (output[0]["content"][0]["text"], output[1]["arguments"]) == (text, arguments)
    return text, arguments


PROTOCOLS = {
    "chat": (ChatWire(), chat_stream, chat_said),
    "messages": (MessagesWire(), messages_stream, messages_said),
    "responses": (ResponsesWire(), responses_stream, responses_said),
}
TEXT = f"Dear {MAIL}: <b>{NUMBER}</b>, <EMAIL_ADDRESS_UNKNOWN> <{MAIL}"
ARGUMENTS = json.dumps({"to": f"{MAIL}", "cc": [ODD], "n": "\\ <EMAIL"}).replace(f'"{MAIL}', f'"\\u003c{MAIL[1:]}', 1)
PUT_BACK = f"Dear {ANN}: <b>{CARD}</b>, <EMAIL_ADDRESS_UNKNOWN> <{ANN}"


async def restored(wire: Any, pieces: list[bytes], content_type: str = "text/event-stream") -> bytes:
    reply = RestoredReply(Reply(content_type, pieces), wire, VALUES)
    return b"".join([chunk async for chunk in reply.chunks()])


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_placeholders_are_put_back_into_texts_and_arguments_wherever_the_model_was_cut(protocol: str) -> None:
    wire, write, said = PROTOCOLS[protocol]
    for size in (1, 2, 3, 7, 1_000):
        texts = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
        arguments = [ARGUMENTS[at : at + size] for at in range(0, len(ARGUMENTS), size)]
        text, written = said(await restored(wire, [write(texts, arguments)]))
        assert text == PUT_BACK
        assert json.loads(written) == {"to": ANN, "cc": [QUOTED], "n": "\\ <EMAIL"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stream_says_the_same_wherever_its_bytes_are_split_also_at_all_of_them(protocol: str) -> None:
    wire, write, _ = PROTOCOLS[protocol]
    stream = write([TEXT[:9], TEXT[9:20], TEXT[20:]], [ARGUMENTS[:14], ARGUMENTS[14:]])
    whole = await restored(wire, [stream])
    assert MAIL.encode() not in whole
    for at in range(1, len(stream), 29):
        assert await restored(wire, [stream[:at], stream[at:]]) == whole
    assert await restored(wire, [stream[at : at + 1] for at in range(len(stream))]) == whole


async def test_whole_replies_are_put_back_and_what_holds_none_is_left_byte_for_byte() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "mail", "arguments": ARGUMENTS}}
    message = {"role": "assistant", "content": TEXT, "tool_calls": [call]}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    said = json.loads(await restored(ChatWire(), [body[:40], body[40:]], "application/json"))["choices"][0]["message"]
    assert said["content"] == PUT_BACK
    assert json.loads(said["tool_calls"][0]["function"]["arguments"])["cc"] == [QUOTED]
    plainly = (
        b'{ "choices": [ {"index":0, "message": {"role":"assistant", "content":"a < b"}, "finish_reason":"stop"} ] }'
    )
    assert await restored(ChatWire(), [plainly], "application/json") == plainly
