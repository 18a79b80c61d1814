"""Where in a chat completion's reply a model's words can stand: every string, every key and number that nobody knows.

Strings that grow over a stream have a channel each. Ids, names of members and numbers are complete where they stand;
their channel ends in `=` (`interfaces.Piece`). Names of members that the protocol does not know are the provider's
text: in channels, which the record keeps, a keyed hash stands for them.
"""

from __future__ import annotations

import codecs
import re
import secrets
from collections.abc import Iterator
from hashlib import blake2s
from typing import Any, NamedTuple

from service.api import strict_json
from service.errors import UpstreamInvalid
from service.interfaces import Piece, Usage

MAX_CHANNELS = 4_096
"""Of one reply: 128 choices with their log-probabilities need fewer. Each is followed by itself, at a cost."""

# What the protocol and its best known dialects call things. A member by any other name may be the model's doing.
_KNOWN = """
id object model created system_fingerprint service_tier provider obfuscation choices usage error
index delta message finish_reason native_finish_reason stop_reason matched_stop logprobs text
role content refusal reasoning reasoning_content reasoning_details name tool_calls function_call function custom
arguments input audio data transcript expires_at format annotations url_citation start_index end_index url title
type summary signature thinking images image_url detail token bytes logprob top_logprobs tokens token_logprobs
text_offset prompt_tokens completion_tokens total_tokens prompt_tokens_details completion_tokens_details
cached_tokens audio_tokens text_tokens image_tokens reasoning_tokens accepted_prediction_tokens
rejected_prediction_tokens prompt_time completion_time total_time queue_time cost cost_details is_byok param code
metadata prompt_filter_results content_filter_results hate self_harm sexual violence filtered severity detected
jailbreak protected_material_text protected_material_code citations search_results snippet date source
prompt_cache_hit_tokens prompt_cache_miss_tokens prompt_logprobs kv_transfer_params x_groq warning
"""
_NAMES = frozenset(_KNOWN.split())
_ROLES = frozenset({"assistant", "user", "system", "developer", "tool", "function"})
_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call", "error"})
# Complete where they stand, wherever that is; a tool call's id is not: SDKs join its parts.
_COMPLETE = frozenset({"type", "format", "object", "model", "service_tier"})
_COMPLETE_AT_TOP = frozenset({"id", "system_fingerprint", "provider", "obfuscation"}) | _COMPLETE
_MIN_NUMBER = 10**7  # a protected text has eight characters
_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]*")
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
# The end of a text in which an escape has begun, or stands that is half a character.
_OPEN_ESCAPE = re.compile(
    r"(?<!\\)(?:\\\\)*((?:\\u[dD][89abAB][0-9a-fA-F]{2})(?:\\(?:u[0-9a-fA-F]{0,3})?)?|\\(?:u[0-9a-fA-F]{0,3})?)\Z"
)
_SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HASH_KEY = secrets.token_bytes(16)


class Slot(NamedTuple):
    """One string in a document: `box[key]` holds it.

    `kind` tells strings (`text`) from lists of UTF-8 bytes (`bytes`), from numbers (`number`), from object keys (`key`)
    and from a second reading of a string that was `old` when it was read (`unescaped`).
    """

    channel: str
    box: Any
    key: Any
    kind: str = "text"
    old: str = ""


class Texts:
    """Finds the texts in a reply's documents, and keeps what text is still half in one event and half in the next."""

    def __init__(self, *, streamed: bool = False) -> None:
        self._streamed = streamed
        self._unescaping: dict[str, str] = {}
        self._decoding: dict[str, codecs.IncrementalDecoder] = {}
        self._halves: dict[str, str] = {}
        self._channels: set[str] = set()

    def piece(self, document: dict[str, Any], raw: bytes, event: str = "") -> Piece:
        """One reply or event with its texts. Raises UpstreamInvalid for one that cannot be read in one way only."""
        texts: list[tuple[str, str]] = []
        slots: list[Slot] = []
        for slot in _slots(document, event):
            if not slot.channel.endswith("="):
                self._channels.add(slot.channel)
                if len(self._channels) > MAX_CHANNELS:
                    raise UpstreamInvalid(f"The provider's reply has more than {MAX_CHANNELS} texts side by side.")
            text = self._text(slot)
            texts.append((slot.channel, text))
            slots.append(slot)
            if slot.channel.endswith("/arguments") and (self._streamed or "\\" in text):
                # A tool's arguments are JSON in a string. Whoever reads them undoes its escapes, so that is judged too.
                channel = slot.channel + "#unescaped"
                texts.append((channel, self._unescape(channel, text)))
                slots.append(Slot(channel, slot.box, slot.key, "unescaped", slot.box[slot.key]))
        choices = document.get("choices") or ()
        return Piece(
            raw=raw,
            texts=tuple(texts),
            document=(event if self._streamed else None, document, slots),
            usage=_usage(document.get("usage")),
            final=any(choice.get("finish_reason") is not None for choice in choices),
            failed=bool(document.get("error")),
        )

    def _text(self, slot: Slot) -> str:
        if slot.kind == "key":
            return strict_json.whole(slot.key)
        value = slot.box[slot.key]
        if slot.kind == "number":
            return str(value)
        if slot.kind == "bytes":
            decoder = self._decoding.setdefault(slot.channel, codecs.getincrementaldecoder("utf-8")("replace"))
            return decoder.decode(bytes(value))
        if self._streamed and not slot.channel.endswith("="):
            # Whoever joins two texts joins the halves of a character; the first half by itself says nothing.
            value = _joined(self._halves.pop(slot.channel, "") + value)
            if "\ud800" <= value[-1:] <= "\udbff":
                self._halves[slot.channel], value = value[-1], value[:-1]
        return strict_json.whole(value)

    def _unescape(self, channel: str, text: str) -> str:
        text = self._unescaping.pop(channel, "") + text
        if self._streamed and (half := _OPEN_ESCAPE.search(text)):
            self._unescaping[channel] = half.group(1)
            text = text[: half.start(1)]
        return unescape(text)


def unescape(text: str) -> str:
    """The text with JSON's escapes undone."""
    return strict_json.whole(_joined(_ESCAPE.sub(_meaning, text)))


def _meaning(match: re.Match[str]) -> str:
    code, short = match.groups()
    return chr(int(code, 16)) if code else _SHORT[short]


def _joined(text: str) -> str:
    return _HALVES.sub(lambda pair: pair.group().encode("utf-16-le", "surrogatepass").decode("utf-16-le"), text)


def choice_index(box: dict[str, Any], position: int) -> int:
    """Whose text this is. Raises UpstreamInvalid: readers take `1`, `1.0` and `true` for one index or for several."""
    index = box.get("index")
    if index is None:
        return position
    if type(index) is not int or not 0 <= index < MAX_CHANNELS:
        raise UpstreamInvalid("The provider's reply has an index that is none.")
    return index


def _slots(document: dict[str, Any], event: str) -> Iterator[Slot]:
    if event:
        yield Slot("event=", None, event, "key")
    for key, value in document.items():
        yield from _key(document, key, "reply")
        if key == "choices" and isinstance(value, list):
            for position, choice in enumerate(value):
                yield from _choice(choice, f"choices/{choice_index(choice, position)}")
        elif key in _COMPLETE_AT_TOP and isinstance(value, str):
            yield Slot(f"reply/{key}=", document, key)
        else:
            yield from _any(document, key, f"reply/{_name(key)}")


def _choice(choice: dict[str, Any], channel: str) -> Iterator[Slot]:
    for key, value in choice.items():
        yield from _key(choice, key, channel)
        if key in {"delta", "message"} and isinstance(value, dict):
            # Some providers send the whole message so far with every delta.
            place = f"{channel}/message" if key == "message" and "delta" in choice else channel
            for name in value:
                yield from _key(value, name, place)
                yield from _message(value, name, place)
        elif key == "logprobs" and isinstance(value, dict):
            for name, tokens in value.items():
                yield from _key(value, name, f"{channel}#logprobs")
                place = f"{channel}#logprobs/{_name(name)}"
                if isinstance(tokens, list):  # tokens in a row are one text
                    for position in range(len(tokens)):
                        yield from _any(tokens, position, place)
                else:
                    yield from _any(value, name, place)
        elif key not in {"finish_reason", "native_finish_reason"} or (value is not None and value not in _REASONS):
            yield from _any(choice, key, f"{channel}/choice/{_name(key)}")


def _message(message: dict[str, Any], name: str, channel: str) -> Iterator[Slot]:
    value = message[name]
    if name == "tool_calls" and isinstance(value, list):
        for position, call in enumerate(value):
            if not isinstance(call, dict):
                yield from _any(value, position, f"{channel}/tool_calls/{position}")
                continue
            place = f"{channel}/tool_calls/{choice_index(call, position)}"
            for key, item in call.items():
                yield from _key(call, key, place)
                if key == "function" and isinstance(item, dict):
                    for part in item:
                        yield from _key(item, part, place)
                        yield from _any(item, part, f"{place}/{_name(part)}")
                else:
                    yield from _any(call, key, f"{place}/call/{_name(key)}")
    elif name == "audio" and isinstance(value, dict):
        for key, item in value.items():
            yield from _key(value, key, f"{channel}/audio")
            if key == "data" and isinstance(item, str) and _BASE64.fullmatch(item):
                continue  # sound
            if key == "id" and isinstance(item, str):
                yield Slot(f"{channel}/audio/id=", value, key)
            else:
                yield from _any(value, key, f"{channel}/audio/{_name(key)}")
    elif name != "role" or not isinstance(value, str) or value not in _ROLES:
        yield from _any(message, name, f"{channel}/{_name(name)}")


def _any(box: Any, key: Any, channel: str) -> Iterator[Slot]:
    """All strings, names and large numbers of a value of any shape."""
    value = box[key]
    if isinstance(value, str):
        yield Slot(f"{channel}=" if key in _COMPLETE else channel, box, key)
    elif isinstance(value, dict):
        for position, name in enumerate(value):
            if name not in _NAMES:
                # Older log-probabilities have tokens for keys, and those are one text.
                grows = "#logprobs" in channel
                yield Slot(f"{channel}/keys/{position}" if grows else f"{channel}/keys=", value, name, "key")
            yield from _any(value, name, f"{channel}/{_name(name)}")
    elif isinstance(value, list):
        if key == "bytes" and value:
            if not all(type(item) is int and 0 <= item < 256 for item in value):
                raise UpstreamInvalid("The provider's reply has bytes that are none.")
            yield Slot(channel, box, key, "bytes")
        else:
            for position in range(len(value)):
                yield from _any(value, position, f"{channel}/{position}")
    elif isinstance(value, (int, float)) and key != "logprob" and (abs(value) >= _MIN_NUMBER or value % 1):
        yield Slot(f"{channel}=", box, key, "number")


def _key(box: dict[str, Any], name: str, channel: str) -> Iterator[Slot]:
    if name not in _NAMES:
        yield Slot(f"{channel}/keys=", box, name, "key")


def _name(name: str) -> str:
    if name in _NAMES:
        return name
    return "~" + blake2s(name.encode("utf-8", "surrogatepass"), key=_HASH_KEY, digest_size=6).hexdigest()


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return None
    return Usage(prompt, completion)
