"""Where in a Responses reply a model's words can stand, whole or streamed (`reply_texts`).

A stream says everything up to four times: in deltas, at the end of the text, of its part and item, and in the final
response. All of them have one channel by place, as `output/0/content/0/text`; what only repeats it is marked so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.api.reply_texts import Slot, channel_name, index_of, strings, unknown_key
from service.api.texts import is_binary
from service.interfaces import Usage

# Complete where they stand, in an item as in an event; other strings of an item may grow.
_VALUES_WORDS = """
id type status role phase object call_id name namespace server_label container_id approval_request_id execution
encrypted_content fingerprint created_by item_id response_id obfuscation code param message background
output_format quality size
"""
_VALUES = frozenset(_VALUES_WORDS.split())
_STEPS = frozenset({"delta", "done", "added"})
# Of each family of events: the list in the item that holds the text, the number that says where, the member's name.
_FAMILIES: dict[str, tuple[str, str, str]] = {
    "output_text": ("content", "content_index", "text"),
    "refusal": ("content", "content_index", "refusal"),
    "reasoning_text": ("content", "content_index", "text"),
    "reasoning_summary_text": ("summary", "summary_index", "text"),
    "reasoning_part": ("content", "content_index", ""),
    "content_part": ("content", "content_index", ""),
    "reasoning_summary_part": ("summary", "summary_index", ""),
    "output_text.annotation": ("content", "content_index", "annotations"),
    "function_call_arguments": ("", "", "arguments"),
    "mcp_call_arguments": ("", "", "arguments"),
    "custom_tool_call_input": ("", "", "input"),
    "code_interpreter_call_code": ("", "", "code"),
    "apply_patch_call_operation_diff": ("operation", "", "diff"),
    "shell_call_command": ("action/commands", "command_index", ""),
    "shell_call_output_content": ("output", "command_index", ""),
    "output_item": ("", "", ""),
}
_WHOLES = frozenset({"text", "refusal", "arguments", "input", "code", "diff", "command", "output", "annotation"})


def response_slots(response: dict[str, Any], stage: str = "") -> Iterator[Slot]:
    """A response object. In a stream `stage` tells one event that holds it from the next."""
    for key, value in response.items():
        yield from unknown_key(response, key, "reply")
        if key == "output" and isinstance(value, list):
            for position in range(len(value)):
                yield from _item(value, position, f"output/{position}", stage)
        elif key in {"object", "status"} and isinstance(value, str):
            yield Slot(f"reply/{key}=", response, key)
        else:
            yield from _complete(strings(response, key, f"echo/{channel_name(key)}"))


def event_slots(event: dict[str, Any]) -> Iterator[Slot]:
    """One event of a stream. Raises UpstreamInvalid for an index that readers may take differently."""
    place, step = place_of(event)
    stage = channel_name(_kind(event) or "untyped")
    for key, value in event.items():
        yield from unknown_key(event, key, "event")
        if key == "response" and isinstance(value, dict):
            yield from response_slots(value, stage)
        elif key == "item":
            yield from _item(event, key, _output(event), stage)
        elif key == "part" and place:
            yield from _part(event, key, place, stage)
        elif key == "logprobs" and place:
            yield from _logprobs(event, f"{place}#logprobs{'' if step == 'delta' else ':' + stage}")
        elif key == "partial_image_b64" and is_binary(value):
            continue  # an image
        elif place and key == "delta":
            yield from strings(event, key, place)
        elif place and key in _WHOLES:
            yield from _again(strings(event, key, place), stage)
        elif key == "delta" and _kind(event) == "response.audio.delta" and is_binary(value):
            continue  # sound
        elif key in _VALUES and isinstance(value, str):
            yield Slot(f"event/{key}=", event, key)
        else:
            yield from _unforeseen(event, key)


def place_of(event: dict[str, Any]) -> tuple[str, str]:
    """The channel that an event is about, or below which its texts stand, and whether it is its `delta`, `done`, …

    Empty for an event that is not known to carry text. Raises UpstreamInvalid.
    """
    family, _, step = _kind(event).removeprefix("response.").rpartition(".")
    if family not in _FAMILIES or step not in _STEPS:
        return "", ""
    box, index, member = _FAMILIES[family]
    place = _output(event)
    if box:
        place += f"/{box}"
    if index:
        place += f"/{index_of(event, 0, index)}"
    if member:
        place += f"/{member}"
    if member == "annotations":
        place += f"/{index_of(event, 0, 'annotation_index')}"
    return place, step


def ends_of(event: dict[str, Any]) -> str:
    """The channel that gets no more text after this event, nor do those below it; empty where there is none."""
    place, step = place_of(event)
    return place if step == "done" or "/annotations/" in place else ""


def _kind(event: dict[str, Any]) -> str:
    kind = event.get("type")
    return kind if isinstance(kind, str) else ""


def _output(event: dict[str, Any]) -> str:
    """Which item of the output it is. Some servers do not number them."""
    item_id = event.get("item_id")
    if event.get("output_index") is None and isinstance(item_id, str):
        return f"output/{channel_name(item_id)}"
    return f"output/{index_of(event, 0, 'output_index')}"


def _unforeseen(event: dict[str, Any], key: str) -> Iterator[Slot]:
    """A member that nobody knows: whatever it is a part of goes on in the next event of its kind, unless that is the
    last. The channel is the kind but for its last word, with whatever numbers the event.
    """
    family, _, step = _kind(event).rpartition(".")
    numbers = [str(index_of(event, 0, name)) for name in sorted(event) if name.endswith("_index")]
    slots = strings(event, key, "/".join(["event", channel_name(family), *numbers, channel_name(key)]))
    yield from _complete(slots) if step in {"done", "completed"} else slots


def _item(box: Any, key: Any, channel: str, stage: str) -> Iterator[Slot]:
    item = box[key]
    if not isinstance(item, dict):
        yield from _again(strings(box, key, channel), stage)
        return
    for name, value in item.items():
        yield from unknown_key(item, name, channel)
        if name in {"content", "summary"} and isinstance(value, list):
            for position in range(len(value)):
                yield from _part(value, position, f"{channel}/{name}/{position}", stage)
        elif name == "result" and isinstance(value, str) and item.get("type") == "image_generation_call":
            if not is_binary(value):
                yield from _again(strings(item, name, f"{channel}/{name}"), stage)
        elif name in _VALUES and name != "code" and isinstance(value, str):
            yield Slot(f"{channel}/{name}=", item, name)
        else:
            yield from _again(strings(item, name, f"{channel}/{channel_name(name)}"), stage)


def _part(box: Any, key: Any, channel: str, stage: str) -> Iterator[Slot]:
    part = box[key]
    if not isinstance(part, dict):
        yield from _again(strings(box, key, channel), stage)
        return
    for name in part:
        yield from unknown_key(part, name, channel)
        if name == "logprobs":
            # In a stream they come again with every stage, token by token: each is a text of its own.
            yield from _logprobs(part, f"{channel}/text#logprobs{':' + stage if stage else ''}")
        else:
            yield from _again(strings(part, name, f"{channel}/{channel_name(name)}"), stage)


def _logprobs(box: dict[str, Any], channel: str) -> Iterator[Slot]:
    tokens = box["logprobs"]
    if not isinstance(tokens, list):
        yield from strings(box, "logprobs", channel)
        return
    for position in range(len(tokens)):  # tokens in a row are one text
        yield from strings(tokens, position, channel)


def _again(slots: Iterator[Slot], stage: str) -> Iterator[Slot]:
    """In a stream each of these may be what was said before."""
    for slot in slots:
        if not stage or slot.channel.endswith("="):
            yield slot
        elif slot.kind == "text":
            yield slot._replace(channel=f"={slot.channel}")
        else:
            yield slot._replace(channel=f"{slot.channel}#{stage}")


def _complete(slots: Iterator[Slot]) -> Iterator[Slot]:
    for slot in slots:
        grows = slot.kind == "text" and not slot.channel.endswith("=")
        yield slot._replace(channel=f"{slot.channel}=") if grows else slot


def issued_in(document: dict[str, Any]) -> tuple[str, ...]:
    """The ids in a response object or an event by which the caller may later ask for what the provider keeps."""
    response = document.get("response", document)
    found: list[Any] = []
    items: list[Any] = [document.get("item"), {"content": [document.get("part"), document]}]
    if isinstance(response, dict) and response.get("object") == "response" and response.get("deleted") is not True:
        conversation = response.get("conversation")
        found += [response.get("id"), conversation.get("id") if isinstance(conversation, dict) else conversation]
        output = response.get("output")
        items += output if isinstance(output, list) else []
    for item in items:
        if isinstance(item, dict):
            found += [item.get("id"), item.get("container_id")]
            found += [each for box in _files_of(item) for each in (box.get("file_id"), box.get("container_id"))]
    return tuple(name for name in found if isinstance(name, str) and name)


def _files_of(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What an item says of files that were made for it. Those that were found were there before: whose is not said."""
    for part in _list(item.get("content")):
        if isinstance(part, dict):
            for each in (part.get("annotation"), *_list(part.get("annotations"))):
                if isinstance(each, dict) and each.get("type") == "container_file_citation":
                    yield each


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def usage_of(response: Any) -> Usage | None:
    """Tokens as a response object reports them."""
    usage = response.get("usage") if isinstance(response, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return None
    details = usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, completion, cached if type(cached) is int and 0 <= cached <= prompt else 0)
