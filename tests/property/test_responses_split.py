"""However a Responses stream is cut, it is the same stream."""

from __future__ import annotations

import json

from service.api.responses_reply import ResponsesWire
from service.upstream.sandbox_responses import events_of, response_to

_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
_RESPONSE = response_to({"model": "m"}, {"content": "grüße 😀"}, _USAGE)
_EVENTS = list(events_of(_RESPONSE, lambda text: [text[:4], text[4:]]))
_KEPT = {"response.created", "response.output_text.delta", "response.output_text.done", "response.completed"}
STREAM = b"".join(
    b"event: %s\r\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event, ensure_ascii=number % 2 == 0).encode())
    for number, event in enumerate(_EVENTS)
    if event["type"] in _KEPT
)


def texts(chunks: list[bytes]) -> list[tuple[bytes, tuple[tuple[str, str], ...]]]:
    reader = ResponsesWire().open_stream()
    pieces = [piece for chunk in chunks for piece in reader.feed(chunk)] + reader.finish()
    return [(piece.raw, piece.texts) for piece in pieces]


def test_a_reply_split_at_every_byte_gives_the_same_texts() -> None:
    whole = texts([STREAM])
    said = [text for _, found in whole for channel, text in found if channel == "output/0/content/0/text"]
    assert "".join(said) == "grüße 😀"
    again = [text for _, found in whole for channel, text in found if channel == "=output/0/content/0/text"]
    assert again == ["grüße 😀"] * 2
    for cut in range(1, len(STREAM)):
        assert texts([STREAM[:cut], STREAM[cut:]]) == whole
    assert texts([STREAM[at : at + 1] for at in range(len(STREAM))]) == whole
