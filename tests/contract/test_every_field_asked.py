"""No field of the requests that the vendors' SDKs can make escapes: a mark in any place of any of them is judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from openai.types import completion_create_params as legacy_create_params
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from service.api import chat, completions, embeddings, messages, responses
from service.errors import MalformedRequest
from service.interfaces import Call
from service.settings import Server
from tests.sdk_types import Marked, marked, said_before

SENTENCE = "a mark that nobody else says"
DASHED = "a-mark-that-nobody-else-says"
Parse = Callable[[bytes, Server], Call]


def no_ids(model: str, ids: Any) -> None:
    return None


REQUESTS: dict[str, tuple[Parse, Any]] = {
    "chat/completions": (chat.parse_request, chat_create_params.CompletionCreateParamsBase),
    "responses": (responses.parse_request, response_create_params.ResponseCreateParamsBase),
    "embeddings": (partial(embeddings.parse_request, decode=no_ids), embedding_create_params.EmbeddingCreateParams),
    "completions": (
        partial(completions.parse_request, decode=no_ids),
        legacy_create_params.CompletionCreateParamsBase,
    ),
    "messages": (messages.parse_request, message_create_params.MessageCreateParamsBase),
    "messages, beta": (messages.parse_request, beta_message_create_params.MessageCreateParamsBase),
    "messages/count_tokens": (messages.parse_count, message_count_tokens_params.MessageCountTokensParams),
}
# The exceptions, in full.
ROUTED = ("model",)
"""Chooses the provider: it must match a configured glob, has no spaces, and stands in no prompt."""
ATTACHED = ("file_id", "file_data", "file_url", "image_url", "url", "data", "result")
"""One that can be an address or a binary is no text: `on_unscannable` decides about it. Any other is judged."""
KEPT = ("container", "conversation", "id", "previous_response_id")
"""Names what the provider keeps: only an id that was issued to this tenant is passed on."""


def body(request: dict[str, Any]) -> bytes:
    return json.dumps({"model": "up-whole", **said_before(request)}).encode()


def fate(parse: Parse, found: Marked, mark: str) -> str:
    """What becomes of the mark."""
    member = found.place.rpartition(".")[2].removesuffix("[]")
    try:
        call = parse(body(found.value), Server())
    except MalformedRequest:
        return "refused"
    if any(mark in segment.text for segment in call.prompt.segments):
        return "judged"
    if member in KEPT and any(reference.id == mark for reference in call.references):
        return "kept"
    if mark == DASHED and member in ATTACHED and call.prompt.unscannable:
        return "unscannable"
    return "routed" if mark == DASHED and member in ROUTED and call.model == mark else "escaped"


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_of_each_shape_that_the_sdk_knows_is_read(name: str) -> None:
    parse, kind = REQUESTS[name]
    refused = {}
    for found in marked(kind, "word"):
        try:
            parse(body(found.value), Server())
        except MalformedRequest as error:
            if found.kind in {"text", "null"}:
                refused[found.place] = (error.pointer, found.value)
    assert refused == {}


@pytest.mark.parametrize("mark", [SENTENCE, DASHED])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_mark_in_any_field_of_a_request_is_judged(name: str, mark: str) -> None:
    parse, kind = REQUESTS[name]
    fates = [(fate(parse, found, mark), found) for found in marked(kind, mark) if found.kind != "null"]
    assert sum(how == "judged" for how, _ in fates) > len(fates) / 3
    assert [found for how, found in fates if how == "escaped"] == []
    # What the SDK has a string for is read; only where it has none may a string be refused.
    assert {found.place.rpartition(".")[2] for how, found in fates if how == "refused" and found.kind == "text"} <= {
        "model"
    }
