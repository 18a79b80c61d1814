"""Where in a chat completion's reply a model's words can stand (`reply_texts`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.api.reply_calls import chat_calls
from service.api.reply_texts import COMPLETE, Slot, Texts, channel_name, index_of, strings, unknown_key
from service.api.texts import is_binary
from service.interfaces import Piece, Usage

_ROLES = frozenset({"assistant", "user", "system", "developer", "tool", "function"})
_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call", "error"})
_COMPLETE_AT_TOP = frozenset({"id", "system_fingerprint", "provider", "obfuscation"}) | COMPLETE


def piece_of(texts: Texts, document: dict[str, Any], raw: bytes, event: str = "") -> Piece:
    """One reply or event with its texts. Raises UpstreamInvalid."""
    return texts.piece(
        _slots(document, event),
        document,
        raw,
        event,
        usage=usage_of(document.get("usage")),
        final=any(choice.get("finish_reason") is not None for choice in document.get("choices") or ()),
        failed=bool(document.get("error")),
        issued=issued_in(document),
        calls=chat_calls(document),
    )


def issued_in(document: dict[str, Any]) -> tuple[str, ...]:
    """The ids in a reply or an event by which the caller may later refer to what the provider keeps: of its sound."""
    found: list[Any] = []
    for choice in document.get("choices") or ():
        for said in (choice.get("message"), choice.get("delta")):
            sound = said.get("audio") if isinstance(said, dict) else None
            found.append(sound.get("id") if isinstance(sound, dict) else None)
    return tuple(name for name in found if isinstance(name, str) and name)


def _slots(document: dict[str, Any], event: str) -> Iterator[Slot]:
    if event:
        yield Slot("event=", None, event, "key")
    for key, value in document.items():
        yield from unknown_key(document, key, "reply")
        if key == "choices" and isinstance(value, list):
            for position, choice in enumerate(value):
                yield from _choice(choice, f"choices/{index_of(choice, position)}")
        elif key in _COMPLETE_AT_TOP and isinstance(value, str):
            yield Slot(f"reply/{key}=", document, key)
        else:
            yield from strings(document, key, f"reply/{channel_name(key)}")


def _choice(choice: dict[str, Any], channel: str) -> Iterator[Slot]:
    for key, value in choice.items():
        yield from unknown_key(choice, key, channel)
        if key in {"delta", "message"} and isinstance(value, dict):
            # Some providers send the whole message so far with every delta.
            place = f"{channel}/message" if key == "message" and "delta" in choice else channel
            for name in value:
                yield from unknown_key(value, name, place)
                yield from _message(value, name, place)
        elif key == "logprobs" and isinstance(value, dict):
            for name, tokens in value.items():
                yield from unknown_key(value, name, f"{channel}#logprobs")
                place = f"{channel}#logprobs/{channel_name(name)}"
                if isinstance(tokens, list):  # tokens in a row are one text
                    for position in range(len(tokens)):
                        yield from strings(tokens, position, place)
                else:
                    yield from strings(value, name, place)
        elif (
            key not in {"finish_reason", "native_finish_reason"} or not isinstance(value, str) or value not in _REASONS
        ):
            yield from strings(choice, key, f"{channel}/choice/{channel_name(key)}")


def _message(message: dict[str, Any], name: str, channel: str) -> Iterator[Slot]:
    value = message[name]
    if name == "tool_calls" and isinstance(value, list):
        for position, call in enumerate(value):
            if not isinstance(call, dict):
                yield from strings(value, position, f"{channel}/tool_calls/{position}")
                continue
            place = f"{channel}/tool_calls/{index_of(call, position)}"
            for key, item in call.items():
                yield from unknown_key(call, key, place)
                if key == "function" and isinstance(item, dict):
                    for part in item:
                        yield from unknown_key(item, part, place)
                        yield from strings(item, part, f"{place}/{channel_name(part)}")
                else:
                    yield from strings(call, key, f"{place}/call/{channel_name(key)}")
    elif name == "audio" and isinstance(value, dict):
        for key, item in value.items():
            yield from unknown_key(value, key, f"{channel}/audio")
            if key == "data" and is_binary(item):
                continue  # sound
            yield from strings(value, key, f"{channel}/audio/{channel_name(key)}")
    elif name != "role" or not isinstance(value, str) or value not in _ROLES:
        yield from strings(message, name, f"{channel}/{channel_name(name)}")


def usage_of(usage: Any) -> Usage | None:
    """What a reply reports; None where it reports nothing that can be read."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, completion, cached if type(cached) is int and 0 <= cached <= prompt else 0)
