"""Where in a reply a model's words can stand: every string, and every key and number that nobody knows.

Strings that grow over a stream have a channel each. Ids, names of members and numbers are complete where they stand;
their channel ends in `=` (`interfaces.Piece`). Names of members that no protocol knows are the provider's text: in
channels, which the record keeps, a keyed hash stands for them. Each protocol says itself which string has which
channel (`chat_texts`); what is the same for all of them is here.
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2s
from typing import Any, NamedTuple

from service.api import sse, strict_json
from service.api.json_redaction import NOTHING, JsonPart, JsonText, covers
from service.api.reply_parts import Seams
from service.errors import MalformedRequest, PayloadTooLarge, UpstreamInvalid
from service.firewall.asked import CallPart
from service.interfaces import Piece, Usage

MAX_CHANNELS = 4_096
"""Of one reply: 128 choices with their log-probabilities need fewer. Each is followed by itself, at a cost."""

# What the protocols and their best known dialects call things. A member by any other name may be the model's doing.
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
content_block partial_json stop_sequence stop_details explanation category container diagnostics request_id details
input_tokens output_tokens cache_creation cache_creation_input_tokens cache_read_input_tokens output_tokens_details
ephemeral_5m_input_tokens ephemeral_1h_input_tokens server_tool_use web_search_requests web_fetch_requests inference_geo
speed iterations context_management applied_edits citation cited_text document_index document_title start_char_index
end_char_index start_page_number end_page_number start_block_index end_block_index search_result_index encrypted_index
encrypted_content page_age file_id tool_use_id caller tool_id server_name is_error error_code return_code stdout stderr
media_type retrieved_at
event response sequence_number item part item_id output_index content_index summary_index command_index annotation_index
annotation partial_image_b64 partial_image_index command output outputs status phase created_at completed_at
incomplete_details reason instructions parallel_tool_calls temperature tool_choice tools top_p background conversation
max_output_tokens max_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_options
prompt_cache_retention safety_identifier truncation user store effort input_tokens_details strict parameters call_id
namespace queries results filename score attributes action actions query sources pattern container_id logs result
environment operation diff path outcome exit_code max_output_length commands server_label approval_request_id approve
revised_prompt output_format quality size pending_safety_checks acknowledged_safety_checks created_by execution
fingerprint verbosity deleted variables version
"""
NAMES = frozenset(_KNOWN.split())
# Complete where they stand, wherever that is; a tool call's id is not: SDKs join its parts.
COMPLETE = frozenset({"type", "format", "object", "model", "service_tier"})
_JSON_TEXTS = re.compile(r"/(?:arguments|partial_json)(?:#\d+)?\Z")
_MIN_NUMBER = 10**7  # a protected text has eight characters
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

    A channel that begins with `=` is one whose whole text this string may repeat (`Texts`).
    `kind` tells strings (`text`) from lists of UTF-8 bytes (`bytes`), from numbers (`number`), from object keys (`key`)
    and from a second reading of a string that was `old` when it was read (`unescaped`, `joined`). `json` is of a
    string that holds JSON, and of its second reading.
    """

    channel: str
    box: Any
    key: Any
    kind: str = "text"
    old: str = ""
    json: JsonPart | None = None


class Texts:
    """Finds the texts in a reply's documents, and keeps what text is still half in one event and half in the next.

    Some protocols say a text piece by piece and then once more as a whole (`repeats`). A whole that is what its channel
    has said needs no second judgement; one whose channel is silent so far is that channel's text; any other is judged
    by itself. A text that goes on in another part is judged across the seam as well, in a channel of its own.
    """

    def __init__(self, *, streamed: bool = False, repeats: bool = False) -> None:
        self._streamed = streamed
        self._repeats = repeats
        self._unescaping: dict[str, str] = {}
        self._decoding: dict[str, codecs.IncrementalDecoder] = {}
        self._halves: dict[str, str] = {}
        self._channels: set[str] = set()
        self._said: dict[str, blake2s] = {}
        self._over: set[str] = set()
        self._seams = Seams()
        self._json: dict[str, JsonText] = {}

    def piece(
        self,
        slots: Iterable[Slot],
        document: dict[str, Any],
        raw: bytes,
        event: str = "",
        *,
        usage: Usage | None = None,
        final: bool = False,
        failed: bool = False,
        ends: str = "",
        number: int | None = None,
        issued: tuple[str, ...] = (),
        calls: Iterable[CallPart] = (),
    ) -> Piece:
        """One reply or event with its texts, which `slots` finds in it. `ends` is a channel that gets no more text, nor
        do those below it. Raises UpstreamInvalid for one that cannot be read in one way only.
        """
        texts: list[tuple[str, str]] = []
        found: list[Slot] = []
        alone: list[str] = []
        for slot in slots:
            if slot.channel.startswith("="):
                slot = self._repeated(slot)  # noqa: PLW2901
                if "#" in slot.channel:
                    alone.append(slot.channel)
            elif slot.channel in self._over:
                raise UpstreamInvalid("The provider went on with a text that had ended.")
            again = slot.channel.startswith("=")
            if not again and not slot.channel.endswith("="):
                self._channels.add(slot.channel)
                if len(self._channels) > MAX_CHANNELS:
                    raise UpstreamInvalid(f"The provider's reply has more than {MAX_CHANNELS} texts side by side.")
            text = strict_json.whole(slot.box[slot.key]) if again else self._text(slot)
            if self._repeats and not again and slot.kind == "text" and not slot.channel.endswith("="):
                self._said.setdefault(slot.channel, blake2s()).update(text.encode())
            part = self._json_part(slot, text, again=again)
            texts.append((slot.channel, text))
            found.append(slot._replace(json=part))
            # A tool's arguments are JSON in a string. Whoever reads them undoes its escapes, so that is judged too;
            # what is said again was judged so when it was said.
            if part is not None and not again and (self._streamed or "\\" in text):
                channel = slot.channel + "#unescaped"
                self._channels.add(channel)
                part = part._replace(escape=self._unescaping.get(channel, ""))
                texts.append((channel, self._unescape(channel, text)))
                found.append(Slot(channel, slot.box, slot.key, "unescaped", slot.box[slot.key], part))
                if slot.channel in alone:
                    alone.append(channel)
            if not again and (joined := self._seams.joined(slot.channel, text)) is not None:
                texts.append(joined)
                found.append(Slot(joined[0], slot.box, slot.key, "joined", slot.box[slot.key]))
        return Piece(
            raw=raw,
            texts=tuple(texts),
            document=(event if self._streamed else None, document, found),
            usage=usage,
            final=final,
            failed=failed,
            ended=(*alone, *self._ended(ends)),
            number=number,
            issued=issued,
            calls=tuple(calls),
        )

    def _json_part(self, slot: Slot, text: str, *, again: bool) -> JsonPart | None:
        """Where a string that holds JSON belongs, None for any other."""
        if slot.kind != "text" or not _JSON_TEXTS.search(slot.channel):
            return None
        whole = self._json.setdefault(slot.channel.removeprefix("="), JsonText(grows=self._streamed))
        return whole.repeated() if again else whole.take(text)

    def _repeated(self, slot: Slot) -> Slot:
        """Where a text stands that may repeat another."""
        channel = slot.channel[1:]
        said = self._said.get(channel)
        if said is None:
            return slot._replace(channel=channel)
        text = strict_json.whole(slot.box[slot.key])
        if said.digest() == blake2s(text.encode()).digest():
            return slot
        return slot._replace(channel=f"{channel}#{len(self._channels)}")

    def _ended(self, ends: str) -> list[str]:
        if not ends:
            return []
        below = (f"{ends}/", f"{ends}#")
        found = sorted(c for c in self._channels - self._over if c == ends or c.startswith(below))
        self._over.update(found)
        return found

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


def index_of(box: dict[str, Any], position: int, name: str = "index") -> int:
    """Whose text this is. Raises UpstreamInvalid: readers take `1`, `1.0` and `true` for one index or for several."""
    index = box.get(name)
    if index is None:
        return position
    if type(index) is not int or not 0 <= index < MAX_CHANNELS:
        raise UpstreamInvalid("The provider's reply has an index that is none.")
    return index


def strings(box: Any, key: Any, channel: str) -> Iterator[Slot]:
    """All strings, names and large numbers of a value of any shape."""
    value = box[key]
    if isinstance(value, str):
        yield Slot(f"{channel}=" if key in COMPLETE else channel, box, key)
    elif isinstance(value, dict):
        for position, name in enumerate(value):
            if name not in NAMES:
                # Older log-probabilities have tokens for keys, and those are one text.
                grows = "#logprobs" in channel
                yield Slot(f"{channel}/keys/{position}" if grows else f"{channel}/keys=", value, name, "key")
            yield from strings(value, name, f"{channel}/{channel_name(name)}")
    elif isinstance(value, list):
        if key == "bytes" and value:
            if not all(type(item) is int and 0 <= item < 256 for item in value):
                raise UpstreamInvalid("The provider's reply has bytes that are none.")
            yield Slot(channel, box, key, "bytes")
        else:
            for position in range(len(value)):
                yield from strings(value, position, f"{channel}/{position}")
    elif isinstance(value, (int, float)) and (abs(value) >= _MIN_NUMBER or (value % 1 and key != "logprob")):
        yield Slot(f"{channel}=", box, key, "number")


def unknown_key(box: dict[str, Any], name: str, channel: str) -> Iterator[Slot]:
    """A member's name, where no protocol knows it."""
    if name not in NAMES:
        yield Slot(f"{channel}/keys=", box, name, "key")


def channel_name(name: str) -> str:
    """A member's name as it may stand in a channel."""
    if name in NAMES:
        return name
    return "~" + blake2s(name.encode("utf-8", "surrogatepass"), key=_HASH_KEY, digest_size=6).hexdigest()


def read_document(body: bytes) -> dict[str, Any]:
    """A reply's or an event's object. Raises UpstreamInvalid for what readers may understand in different ways."""
    try:
        document = strict_json.parse(body, any_character=True)
    except (MalformedRequest, PayloadTooLarge):
        raise UpstreamInvalid("The provider's reply is not JSON that every reader understands alike.") from None
    if not isinstance(document, dict):
        raise UpstreamInvalid("The provider's reply is not an object.")
    return document


def read_as_text(body: bytes) -> Piece:
    """A body that is no JSON to us; its reader may undo escapes in it all the same."""
    text = body.decode("utf-8", "replace").replace("\x00", "")
    return Piece(raw=text.encode(), texts=(("error", text), ("error#unescaped", unescape(text))))


def rewrite(piece: Piece, texts: Sequence[str]) -> bytes | None:
    """The piece with these texts in the place of its own, in their order; None where one cannot be changed."""
    if piece.document is None:
        return texts[0].encode() if texts[0] != piece.texts[0][1] else None
    event, document, slots = piece.document
    raw, taken = "", NOTHING
    for slot, new, (channel, old) in zip(slots, texts, piece.texts, strict=True):
        if slot.kind == "text":
            raw, taken = old, NOTHING
        if new == old:
            continue
        if slot.kind == "text" and slot.json is not None:
            if channel.startswith("="):
                slot.box[slot.key] = slot.json.said()
                continue
            if (made := slot.json.redacted(old, new)) is None:
                return None
            slot.box[slot.key], taken = made
        elif slot.kind == "text":
            slot.box[slot.key] = new
        elif slot.kind in {"bytes", "number"}:
            slot.box[slot.key] = None
        elif slot.kind == "unescaped" and slot.json is not None:
            if not covers(slot.json, raw, taken, old, new):
                return None
        elif slot.kind == "key" or slot.box[slot.key] == slot.old:
            return None
    written = json.dumps(document)
    return written.encode() if event is None else sse.render(written, event)
