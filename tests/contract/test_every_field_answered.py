"""No field of the replies that the vendors' SDKs can read carries a secret out, whole or streamed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.beta import BetaMessage, BetaRawMessageStreamEvent
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from service.api.chat_reply import ChatWire
from service.api.completions import CompletionsWire
from service.api.embeddings import EmbeddingsWire
from service.api.messages_reply import MessagesWire
from service.api.responses_reply import ResponsesWire
from service.errors import UpstreamInvalid
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.interfaces import Wire
from service.release import Release
from service.settings import Leakage
from tests.sdk_types import Marked, marked

SECRET = "sk-live-9f8A7b6C5d4E3f2G"
NUMBER = 918273645546372
LETTERS = "LettersOfBase64AndNothing9Else42"
PROTECTED = ProtectedTexts([ProtectedText("a key", "secret", "", str(text)) for text in (SECRET, NUMBER, LETTERS)])
WHOLE: dict[str, tuple[Wire, Any]] = {
    "chat": (ChatWire(), ChatCompletion),
    "completions": (CompletionsWire(), Completion),
    "embeddings": (EmbeddingsWire(), CreateEmbeddingResponse),
    "responses": (ResponsesWire(), Response),
    "messages": (MessagesWire(), Message),
    "messages, beta": (MessagesWire(), BetaMessage),
}
STREAMED: dict[str, tuple[Wire, Any]] = {
    "chat": (ChatWire(), ChatCompletionChunk),
    "completions": (CompletionsWire(), Completion),
    "responses": (ResponsesWire(), ResponseStreamEvent),
    "messages": (MessagesWire(), RawMessageStreamEvent),
    "messages, beta": (MessagesWire(), BetaRawMessageStreamEvent),
}
BEFORE_A_BLOCK = 'event: message_start\ndata: {"type":"message_start","message":{"id":"m","content":[]}}\n\n'
BEFORE_A_DELTA = (
    BEFORE_A_BLOCK
    + 'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text"}}\n\n'
)


def release(wire: Wire, action: Literal["block", "redact"] = "block") -> Release:
    settings = Leakage(stream="exact", action=action)
    return Release(ReplyJudge(PROTECTED.for_request("t"), settings, lambda text: "digest"), wire)


async def answered(wire: Wire, document: Any, action: Literal["block", "redact"] = "block") -> bytes:
    """What leaves of a whole reply."""
    to = release(wire, action)
    await to.take(wire.read_reply(json.dumps(document).encode()), last=True)
    await to.finish()
    return to.cleared()


async def streamed(wire: Wire, *documents: Any) -> bytes:
    """What leaves of a stream of these events, and what has left before its last one was judged."""
    to, reader, out = release(wire), wire.open_stream(), b""
    kind = documents[0].get("type") if isinstance(wire, MessagesWire) else ""
    if str(kind).startswith("content_block"):
        for document in documents:
            document["index"] = 0
        raw = BEFORE_A_BLOCK if kind == "content_block_start" else BEFORE_A_DELTA
        for piece in reader.feed(raw.encode()):
            await to.take(piece)
    for document in documents:
        for piece in reader.feed(f"data: {json.dumps(document)}\n\n".encode()):
            await to.take(piece)
            out += to.cleared()
    if not to.blocked:
        await to.finish()
        out += to.cleared()
    return out


def samples(kind: Any, mark: Any) -> Iterator[Marked]:
    """A response, and an item of it, stand in many events; each is taken apart in one of them."""
    for found in marked(kind, mark):
        event, within, _ = found.place.partition(").response(")
        if within and event != "(ResponseCompletedEvent":
            continue
        if ").item(" not in found.place or found.place.startswith(("(ResponseOutputItemDoneEvent", "(Response)")):
            yield found


async def escaped(way: Any, wire: Wire, kind: Any, mark: Any) -> tuple[list[Marked], list[Marked]]:
    """The samples whose mark left, and those with a string where the SDK has one that were refused all the same."""
    left, refused = [], []
    for found in samples(kind, mark):
        try:
            out = await way(wire, found.value)
        except UpstreamInvalid:
            if found.kind == "text":
                refused.append(found)
            continue
        if found.kind != "null" and str(mark).encode() in out:
            left.append(found)
    return left, refused


@pytest.mark.parametrize("mark", [SECRET, NUMBER])
@pytest.mark.parametrize("name", WHOLE)
async def test_a_secret_in_any_field_of_a_whole_reply_does_not_leave(name: str, mark: Any) -> None:
    assert (await escaped(answered, *WHOLE[name], mark))[0] == []


@pytest.mark.parametrize("mark", [SECRET, NUMBER])
@pytest.mark.parametrize("name", STREAMED)
async def test_a_secret_in_any_field_of_an_event_does_not_leave(name: str, mark: Any) -> None:
    assert (await escaped(streamed, *STREAMED[name], mark))[0] == []


WAYS = [(way, *pair) for way, table in ((answered, WHOLE), (streamed, STREAMED)) for pair in table.values()]


@pytest.mark.parametrize(("way", "wire", "kind"), WAYS)
async def test_a_reply_of_each_shape_that_the_sdk_knows_leaves_byte_for_byte(way: Any, wire: Wire, kind: Any) -> None:
    for found in samples(kind, "word"):
        if found.kind in {"text", "null", "unknown"}:
            out = await way(wire, found.value)
            assert json.dumps(found.value).encode() in out, found


# What readers of a stream join. OpenAI's SDK joins every string of a delta (`accumulate_delta`); Anthropic's puts a
# signature in the place of the one before. Names of members stay apart everywhere.
JOINED = {
    "chat": r"\.choices\[\]\(Choice\)\.delta\(.*\.\w+",
    "completions": r"\(Completion\)\.choices\[\]\(CompletionChoice\)\.text",
    "responses": r"\(\w+\)\.delta",
    "messages": r"\(RawContentBlockDeltaEvent\)\.delta\(\w+\)\.(?!signature)\w+",
    "messages, beta": r"\(BetaRawContentBlockDeltaEvent\)\.delta\(\w+\)\.(?!signature)\w+",
}


@pytest.mark.parametrize("name", STREAMED)
async def test_a_secret_cut_over_two_events_does_not_leave_in_any_field_that_grows(name: str) -> None:
    wire, kind = STREAMED[name]
    first, second = SECRET[:12], SECRET[12:]
    left, tried = [], 0
    for one, other in zip(samples(kind, first), samples(kind, second), strict=True):
        if one.kind in {"text", "unknown"} and re.search(JOINED[name] + "$", one.place):
            out = await streamed(wire, one.value, other.value)
            tried += 1
            if first.encode() in out and second.encode() in out:
                left.append(one)
    assert left == []
    assert tried >= {"completions": 1, "messages": 6}.get(name, 9)


PICTURE = base64.b64encode(bytes(range(256)) * 4).decode()
AUDIO = {"index": 0, "message": {"role": "assistant", "audio": {"id": "audio_1", "data": PICTURE}}}
IMAGE = {"type": "image_generation_call", "id": "ig_1", "result": PICTURE}


@pytest.mark.parametrize(
    ("way", "wire", "document"),
    [
        (answered, ChatWire(), {"choices": [AUDIO]}),
        (streamed, ChatWire(), {"choices": [{"index": 0, "delta": AUDIO["message"]}]}),
        (answered, ResponsesWire(), {"object": "response", "output": [IMAGE]}),
        (streamed, ResponsesWire(), {"type": "response.output_item.done", "output_index": 0, "item": IMAGE}),
        (
            streamed,
            ResponsesWire(),
            {"type": "response.image_generation_call.partial_image", "partial_image_b64": PICTURE},
        ),
        (streamed, ResponsesWire(), {"type": "response.audio.delta", "delta": PICTURE}),
    ],
)
async def test_a_sound_or_an_image_leaves_as_it_is_and_words_in_its_place_do_not(
    way: Any, wire: Wire, document: Any
) -> None:
    sent = json.dumps(document)
    assert sent.encode() in await way(wire, document)
    for words in (LETTERS, base64.b64encode(f"the key is {LETTERS}, ".encode() * 9).decode()):
        assert words.encode() not in await way(wire, json.loads(sent.replace(PICTURE, words)))


def two_parts(first: str, second: str) -> list[Any]:
    """A text in two parts of one message, and in two messages."""
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in (first, second)]
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    base = {"id": "r", "object": "response", "created_at": 1, "model": "m", "tools": [], "tool_choice": "auto"}
    base["parallel_tool_calls"] = True
    outputs = [[{**message, "content": parts}], [{**message, "content": [part]} for part in parts]]
    return [{**base, "output": output} for output in outputs]


@pytest.mark.parametrize("number", [0, 1])
async def test_a_secret_cut_over_two_parts_that_the_sdk_joins_does_not_leave(number: int) -> None:
    document = two_parts(f"The key: {SECRET[:12]}", f"{SECRET[12:]}, as you asked.")[number]
    assert SECRET in Response.model_validate(document).output_text
    assert SECRET[12:].encode() not in await answered(ResponsesWire(), document)
    places = [(0, 0), (0, 1)] if number == 0 else [(0, 0), (1, 0)]
    events = [
        {"type": f"response.output_text.{step}", "output_index": item, "content_index": part, name: text}
        for (item, part), text in zip(places, (SECRET[:12], SECRET[12:]), strict=True)
        for step, name in (("delta", "delta"), ("done", "text"))
    ]
    out = await streamed(ResponsesWire(), *events, {"type": "response.completed", "response": document})
    assert SECRET[12:].encode() not in out


@pytest.mark.parametrize("number", [0, 1])
async def test_a_text_in_two_parts_leaves_byte_for_byte(number: int) -> None:
    document = two_parts("The rivers: the Ebro", " and the Duero.")[number]
    assert await answered(ResponsesWire(), document) == json.dumps(document).encode()


@pytest.mark.parametrize("number", [0, 1])
async def test_a_secret_within_a_second_part_is_redacted_there(number: int) -> None:
    document = two_parts("The rivers: the Ebro", f" and {SECRET}.")[number]
    out = await answered(ResponsesWire(), document, "redact")
    assert Response.model_validate_json(out).output_text == "The rivers: the Ebro and [redacted]."


async def test_a_secret_cut_over_two_parts_of_a_chat_s_content_does_not_leave() -> None:
    parts = [{"type": "text", "text": text} for text in (SECRET[:12], SECRET[12:])]
    document = {"choices": [{"index": 0, "message": {"role": "assistant", "content": parts}}]}
    assert await answered(ChatWire(), document) == b""
