"""However a stream is cut, it is the same stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.api.chat_reply import ChatStream
from service.api.sse import Event, Parser

STREAM = (
    '\ufeffdata: {"choices":[{"index":0,"delta":{"content":"grüße 😀"}}]}\r\n\r\n'
    ": ping\n\n"
    'event: x\ndata: {"choices":[{"index":0,\ndata: "delta":{"content":"b"}}]}\n\n'
    'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\r\r'
    "data: [DONE]\n\n"
).encode()


def read(chunks: list[bytes]) -> list[Event]:
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)] + parser.finish()


def test_a_stream_split_at_every_byte_gives_the_same_events() -> None:
    whole = read([STREAM])
    assert len(whole) == 5
    for cut in range(1, len(STREAM)):
        assert read([STREAM[:cut], STREAM[cut:]]) == whole
    assert read([STREAM[i : i + 1] for i in range(len(STREAM))]) == whole


def test_a_reply_split_at_every_byte_gives_the_same_texts() -> None:
    def texts(chunks: list[bytes]) -> list[tuple[bytes, tuple[tuple[str, str], ...]]]:
        reader = ChatStream()
        pieces = [piece for chunk in chunks for piece in reader.feed(chunk)] + reader.finish()
        return [(piece.raw, piece.texts) for piece in pieces]

    whole = texts([STREAM])
    assert [text for _, found in whole for text in found if not text[0].endswith("=")] == [
        ("choices/0/content", "grüße 😀"),
        ("choices/0/content", "b"),
    ]
    for cut in range(1, len(STREAM)):
        assert texts([STREAM[:cut], STREAM[cut:]]) == whole


@given(
    lines=st.lists(st.text(st.sampled_from("da:t \r\n\ufeffé😀x"), max_size=12), max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_any_text_cut_anywhere_gives_the_same_events(lines: list[str], cuts: list[int]) -> None:
    data = "".join(f"data:{line}\n\n" for line in lines).encode()
    places = sorted({min(cut, len(data)) for cut in cuts})
    chunks = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    assert read(chunks) == read([data])
