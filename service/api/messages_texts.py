"""Where in a reply of Anthropic's Messages a model's words can stand (`reply_texts`).

The text of all text blocks is one channel, `content/text`: applications join them, and citations cut one sentence into
many blocks. What else grows has a channel within its block. All other strings are complete where they stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.api.reply_texts import Slot, channel_name, index_of, strings, unknown_key
from service.errors import UpstreamInvalid
from service.interfaces import Usage

EVENTS = frozenset(
    {"message_start", "message_delta", "message_stop", "ping", "error"}
    | {"content_block_start", "content_block_delta", "content_block_stop"}
)
# Of a block; of a delta only those that replace what was there.
_COMPLETE = frozenset(
    {"type", "id", "name", "tool_use_id", "server_name", "signature", "data", "file_id", "role", "model"}
)
_COMPLETE_IN_DELTAS = frozenset({"type", "signature"})
_COUNTED = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def message_slots(message: dict[str, Any], *, streamed: bool) -> Iterator[Slot]:
    """Of a whole message, or of the one that a stream begins with. Errors and counts are read by it as well."""
    for key, value in message.items():
        yield from unknown_key(message, key, "message")
        if key == "content" and isinstance(value, list):
            for position in range(len(value)):
                yield from _block(value, position, position, streamed=streamed)
        else:
            yield from _complete(message, key, f"message/{channel_name(key)}")


def event_slots(document: dict[str, Any], kind: str, name: str) -> Iterator[Slot]:
    """Of one event of a stream. Raises UpstreamInvalid where it says nothing of the block that it belongs to."""
    if name and name not in EVENTS:
        yield Slot("event=", None, name, "key")
    for key, value in document.items():
        yield from unknown_key(document, key, "event")
        if key == "message" and kind == "message_start" and isinstance(value, dict):
            yield from message_slots(value, streamed=True)
        elif key == "content_block" and kind == "content_block_start":
            yield from _block(document, key, block_index(document), streamed=True)
        elif key == "delta" and kind == "content_block_delta" and isinstance(value, dict):
            for member in value:
                place = f"content/{block_index(document)}"
                yield from unknown_key(value, member, place)
                yield from _member(value, member, place, _COMPLETE_IN_DELTAS, streamed=True)
        elif kind not in EVENTS:
            # Nobody knows what its reader joins: every string may be a part of a text that grows.
            yield from strings(document, key, f"event/{channel_name(kind)}/{channel_name(key)}")
        elif key != "type" or value != kind:
            yield from _complete(document, key, f"event/{channel_name(key)}")


def block_index(document: dict[str, Any]) -> int:
    """The block that an event belongs to. Raises UpstreamInvalid."""
    index = index_of(document, -1)
    if index < 0:
        raise UpstreamInvalid("The provider's stream has an event of a block without its index.")
    return index


def usage_of(usage: dict[str, Any]) -> Usage | None:
    """What a reply reports. Tokens read from and written to the provider's cache are tokens of the prompt."""
    counts: list[Any] = [usage.get(name) or 0 for name in _COUNTED]
    output: Any = usage.get("output_tokens")
    if "input_tokens" not in usage or any(type(count) is not int or count < 0 for count in (*counts, output)):
        return None
    written, read = counts[1], counts[2]
    details = usage.get("cache_creation")
    long: Any = details.get("ephemeral_1h_input_tokens") if isinstance(details, dict) else 0
    long = min(long, written) if type(long) is int and long > 0 else 0
    return Usage(sum(counts), output, read, written - long, long)


def issued_in(document: dict[str, Any]) -> tuple[str, ...]:
    """The ids in a message or an event by which the caller may later refer to what the provider keeps: of a container,
    and of files that code made there.
    """
    found: list[Any] = []
    blocks: list[Any] = [document.get("content_block")]
    for box in (document, document.get("message"), document.get("delta")):
        if isinstance(box, dict):
            container, content = box.get("container"), box.get("content")
            found.append(container.get("id") if isinstance(container, dict) else None)
            blocks += content if isinstance(content, list) else []
    for block in blocks:
        if isinstance(block, dict) and str(block.get("type")).endswith("code_execution_tool_result"):
            result = block.get("content")
            made = result.get("content") if isinstance(result, dict) else None
            found += [file.get("file_id") for file in made if isinstance(file, dict)] if isinstance(made, list) else []
    return tuple(name for name in found if isinstance(name, str) and name)


def _block(box: Any, key: Any, index: int, *, streamed: bool) -> Iterator[Slot]:
    block, place = box[key], f"content/{index}"
    if not isinstance(block, dict):
        yield from strings(box, key, place)
        return
    for name in block:
        yield from unknown_key(block, name, place)
        yield from _member(block, name, place, _COMPLETE, streamed=streamed)


def _member(box: dict[str, Any], name: str, place: str, complete: frozenset[str], *, streamed: bool) -> Iterator[Slot]:
    channel = f"{place}/{channel_name(name)}"
    if isinstance(box[name], str):
        if name == "text":
            yield Slot("content/text", box, name)
        else:
            yield Slot(f"{channel}=" if name in complete else channel, box, name)
    elif streamed:
        yield from _complete(box, name, channel)
    else:
        yield from strings(box, name, channel)


def _complete(box: Any, key: Any, channel: str) -> Iterator[Slot]:
    """All strings of a value that no later event adds to."""
    for slot in strings(box, key, channel):
        yield slot if slot.channel.endswith("=") else slot._replace(channel=f"{slot.channel}=")
