"""A chat completion's reply as one of Anthropic's Messages, and its errors: whole. What of it events say as well.

What comes out is read and judged like any provider's Message, and only that leaves. Members of a reply that are not
told, such as thoughts (`reasoning_content`), notes and log-probabilities, are dropped unread.

Sources: OpenAI API reference, "The chat completion object"; Anthropic API reference, "Messages", "Errors".
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from hashlib import blake2s
from typing import Any

from service.api.chat_texts import usage_of
from service.api.messages_reply import error_type
from service.api.reply_texts import read_document
from service.errors import UpstreamInvalid

_DROPPED = frozenset({"thinking", "reasoning"})
# Output that a Message has no block for.
_UNTOLD = ("audio", "images", "function_call")
_ERROR_TYPES = frozenset(
    {"invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error"}
    | {"request_too_large", "rate_limit_error", "timeout_error", "api_error", "overloaded_error"}
)


def message_of(body: bytes, stops: Collection[str] = ()) -> bytes:
    """A whole chat completion; `stops` are the texts at which it was to stop. Raises UpstreamInvalid."""
    completion = read_document(body)
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    said = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(said, dict) or completion.get("error"):
        raise UpstreamInvalid("The provider's reply is no chat completion of one choice.")
    head = head_of(completion)
    text, refusal = texts_of(said)
    content: list[dict[str, Any]] = [{"type": "text", "text": part} for part in (text, refusal) if part]
    for index, call in enumerate(calls_of(said)):
        call_id, name, arguments = call_of(call)
        value = object_of(arguments)
        if value is None:
            if choice.get("finish_reason") == "length":
                break  # cut off within it: there is no call yet
            raise no_object()
        block = {"type": "tool_use", "id": call_id or made_id(head["id"], index), "name": name or "", "input": value}
        content.append(block)
    called = any(block["type"] == "tool_use" for block in content)
    ending = ending_of(choice, stops, called=called, refused=bool(refusal))
    return encoded({**head, "content": content, **ending, "usage": told_usage(completion.get("usage"))}).encode()


def error_of(body: bytes, status: int) -> bytes:
    """A provider's error in the caller's envelope; as it is where nobody can say what in it is the message."""
    try:
        document = read_document(body)
    except UpstreamInvalid:
        return body
    words = _words(document)
    return body if words is None else encoded(_error(error_type(status), words)).encode()


def event_error(document: dict[str, Any]) -> str:
    """An error within a stream, in the caller's envelope: its status has gone, so its own type is told or guessed."""
    error = document.get("error")
    told = error if isinstance(error, dict) else {}
    kind, code = told.get("type"), told.get("code")
    if not isinstance(kind, str) or kind not in _ERROR_TYPES:
        kind = error_type(code) if type(code) is int and 400 <= code < 600 else "api_error"
    return encoded(_error(kind, _words(document) or "The provider failed."))


def head_of(document: dict[str, Any]) -> dict[str, Any]:
    """What a Message begins with."""
    name, model = document.get("id"), document.get("model")
    return {
        "id": name if isinstance(name, str) and name else f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model if isinstance(model, str) else "",
    }


def texts_of(said: dict[str, Any]) -> tuple[str, str]:
    """What a message or a delta says, and what it says in refusal. Raises UpstreamInvalid for what cannot be told."""
    if any(said.get(name) for name in _UNTOLD):
        raise _unknown()
    return _text(said.get("content")), _text(said.get("refusal"))


def calls_of(said: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls in a message or in a delta. Raises UpstreamInvalid."""
    calls = said.get("tool_calls")
    calls = [] if calls is None else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _unknown()
    return calls


def call_of(call: dict[str, Any]) -> tuple[str, str, str]:
    """A call's id, name and arguments, each empty where it is not there. Raises UpstreamInvalid."""
    function = call.get("function")
    if call.get("type") not in (None, "", "function") or not isinstance(function, (dict, type(None))):
        raise _unknown()
    function = function or {}
    arguments = function.get("arguments")
    if isinstance(arguments, dict):  # some servers send an object, whatever the reference says
        arguments = encoded(arguments)
    found = [call.get("id"), function.get("name"), arguments]
    if not all(isinstance(part, (str, type(None))) for part in found):
        raise _unknown()
    return found[0] or "", found[1] or "", found[2] or ""


def made_id(reply_id: str, index: int) -> str:
    """An id for a call that the provider gave none: a Message's calls need one, no two of a conversation the same."""
    return "toolu_" + blake2s(f"{reply_id}/{index}".encode("utf-8", "replace"), digest_size=12).hexdigest()


def object_of(arguments: str) -> dict[str, Any] | None:
    """A call's arguments, empty ones too; None where they are no JSON object that every reader understands alike."""
    try:
        return read_document(arguments.encode("utf-8", "surrogatepass")) if arguments else {}
    except UpstreamInvalid:
        return None


def no_object() -> UpstreamInvalid:
    """The refusal of a call whose arguments are none."""
    return UpstreamInvalid("The provider's reply has a tool call whose arguments are no JSON object.")


def ending_of(choice: dict[str, Any], stops: Collection[str], *, called: bool, refused: bool) -> dict[str, Any]:
    """Why it ended. Servers that say at which text they stopped do so beside the reason (vLLM, SGLang)."""
    reason = choice.get("finish_reason")
    matched = next((choice[name] for name in ("stop_reason", "matched_stop") if choice.get(name)), None)
    if reason == "length":
        told = "max_tokens"
    elif reason == "content_filter" or refused:
        told = "refusal"
    elif called:  # some say `stop` where they call
        told = "tool_use"
    elif isinstance(matched, str) and matched in stops:
        return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    else:
        told = "end_turn"
    return {"stop_reason": told, "stop_sequence": None}


def told_usage(usage: Any) -> dict[str, int | None]:
    """What a reply used, with null for what nobody counted: tokens out of a cache are none of `input_tokens` here."""
    counted = usage_of(usage)
    if counted is None:
        return {"input_tokens": None, "output_tokens": None}
    return {
        "input_tokens": counted.prompt_tokens - counted.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counted.cached_tokens,
        "output_tokens": counted.completion_tokens,
    }


def encoded(value: Any) -> str:
    """As JSON, with escapes: a provider may say a lone surrogate, which has no UTF-8."""
    return json.dumps(value, separators=(",", ":"))


def _text(content: Any) -> str:
    """Some servers say their text in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    parts: list[Any] = content if isinstance(content, list) else [None]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(text := part.get("text"), str):
            texts.append(text)
        elif not isinstance(kind, str) or kind not in _DROPPED:
            raise _unknown()
    return "".join(texts)


def _words(document: dict[str, Any]) -> str | None:
    """An error's message, wherever a server puts it."""
    error = document.get("error")
    inner = error.get("message") if isinstance(error, dict) else error
    found = (inner, document.get("message"), document.get("detail"))
    return next((words for words in found if isinstance(words, str)), None)


def _error(kind: str, words: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": words}}


def _unknown() -> UpstreamInvalid:
    return UpstreamInvalid("The provider's reply holds what no Message can.")
