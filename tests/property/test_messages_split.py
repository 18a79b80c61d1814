"""However a stream of Messages is cut, it is the same stream."""

from __future__ import annotations

from service.api.messages_reply import MessagesStream

STREAM = (
    '\ufeffevent: message_start\r\ndata: {"type":"message_start","message":{"id":"m","content":[],'
    '"usage":{"input_tokens":3,"output_tokens":1}}}\r\n\r\n'
    'event: ping\ndata: {"type":"ping"}\n\n'
    ": comment\n\n"
    'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    '"content_block":{"type":"text","text":""}}\n\n'
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,\n'
    'data: "delta":{"type":"text_delta","text":"grüße 😀"}}\r\r'
    'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    'event: content_block_start\ndata: {"type":"content_block_start","index":1,'
    '"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}\n\n'
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,'
    '"delta":{"type":"input_json_delta","partial_json":"{\\"a\\":\\"\\\\u00"}}\n\n'
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,'
    '"delta":{"type":"input_json_delta","partial_json":"e9\\"}"}}\n\n'
    'event: content_block_stop\ndata: {"type":"content_block_stop","index":1}\n\n'
    'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use"},'
    '"usage":{"output_tokens":4}}\n\n'
    'event: message_stop\ndata: {"type":"message_stop"}\n\n'
).encode()


def test_a_reply_split_at_every_byte_gives_the_same_pieces() -> None:
    def pieces(chunks: list[bytes]) -> list[object]:
        reader = MessagesStream()
        found = [piece for chunk in chunks for piece in reader.feed(chunk)] + reader.finish()
        return [(piece.raw, piece.texts, piece.usage, piece.ended, piece.final) for piece in found]

    reader = MessagesStream()
    whole = reader.feed(STREAM)
    reader.finish()
    assert len(whole) == 12
    said: dict[str, str] = {}
    for channel, text in (found for piece in whole for found in piece.texts if not found[0].endswith("=")):
        said[channel] = said.get(channel, "") + text
    assert said == {
        "content/text": "grüße 😀",
        "content/1/partial_json": '{"a":"\\u00e9"}',
        "content/1/partial_json#unescaped": '{"a":"é"}',
    }
    wanted = pieces([STREAM])
    for cut in range(1, len(STREAM)):
        assert pieces([STREAM[:cut], STREAM[cut:]]) == wanted
    assert pieces([STREAM[at : at + 1] for at in range(len(STREAM))]) == wanted
