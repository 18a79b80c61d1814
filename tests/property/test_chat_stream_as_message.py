"""However a streamed chat completion is cut, it is the same Message, and it says and calls what was said and called."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.chat_stream_as_message import MessageEvents
from service.api.messages_reply import MessagesStream

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
calls = st.lists(st.dictionaries(words, words | st.integers(-9, 9), max_size=3), max_size=4)


def line(delta: Any = None, reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    return b"data: " + json.dumps({**HEAD, "choices": [choice], **more}, ensure_ascii=False).encode() + b"\n\n"


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def stream(said: str, inputs: list[dict[str, Any]], size: int) -> bytes:
    """A stream of this text and of these calls, told in pieces of `size` characters."""
    out = [line({"role": "assistant", "content": ""}), *(line({"content": piece}) for piece in cut(said, size))]
    for index, value in enumerate(inputs):
        head = {"index": index, "id": f"c{index}", "type": "function"}
        out.append(line({"tool_calls": [{**head, "function": {"name": "f", "arguments": ""}}]}))
        for piece in cut(json.dumps(value), size):
            out.append(line({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
    out.append(line({}, "tool_calls" if inputs else "stop"))
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    out.append(b"data: " + json.dumps({**HEAD, "choices": [], "usage": usage}).encode() + b"\n\n")
    return b"".join([*out, b"data: [DONE]\n\n"])


def told(chunks: list[bytes]) -> bytes:
    events = MessageEvents()
    out = [piece for chunk in chunks for piece in events.feed(chunk)]
    return b"".join([*out, *events.finish()])


@settings(max_examples=60, deadline=None)
@given(said=words, inputs=calls, size=st.integers(1, 9), data=st.data())
def test_a_stream_cut_anywhere_is_the_same_message_with_all_that_was_said(
    said: str, inputs: list[dict[str, Any]], size: int, data: st.DataObject
) -> None:
    raw = stream(said, inputs, size)
    places = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=40)))
    chunks = [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]
    out = told(chunks)
    assert out == told([raw])
    reader = MessagesStream()
    pieces = [*reader.feed(out), *reader.finish()]
    found = [text for piece in pieces for text in piece.texts]
    assert "".join(text for channel, text in found if channel == "content/text") == said
    first = 1 if said else 0
    for index, value in enumerate(inputs):
        told_as = "".join(text for channel, text in found if channel == f"content/{first + index}/partial_json")
        assert json.loads(told_as) == value


def test_a_stream_in_single_bytes_is_the_same_message() -> None:
    raw = stream("grüße 😀", [{"a": "é"}, {}], 3).replace(b"\n\n", b"\r\n\r\n")
    assert told([raw[at : at + 1] for at in range(len(raw))]) == told([raw])
