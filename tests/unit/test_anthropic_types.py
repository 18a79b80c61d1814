"""The types of Anthropic's SDK, looked into: every string that a reply can carry reaches a channel."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.beta import BetaMessage, BetaRawMessageStreamEvent
from anthropic.types.shared.error_type import ErrorType
from pydantic import BaseModel

from service.api.messages_reply import MessagesStream, MessagesWire
from service.errors import WireError
from tests.unit.test_messages_reply import block, start

MARK = "a mark that nobody else says"


def samples(kind: Any, depth: int = 0) -> Iterator[Any]:
    """Values of a type, each with the mark in one of its strings."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from samples(inner[0], depth)
    elif kind is str or kind is object or kind is Any:
        yield MARK
    elif origin in {typing.Union, types.UnionType}:
        for part in inner:
            yield from samples(part, depth)
    elif origin is list:
        yield from ([value] for value in samples(inner[0], depth))
    elif origin is dict:
        yield from ({"key": value} for value in samples(inner[1], depth))
    elif isinstance(kind, type) and issubclass(kind, BaseModel) and depth < 6:
        plain = {
            name: typing.get_args(field.annotation)[0]
            for name, field in kind.model_fields.items()
            if name == "type" and typing.get_origin(field.annotation) is typing.Literal
        }
        for name, field in kind.model_fields.items():
            if name not in plain:
                yield from ({**plain, (field.alias or name): value} for value in samples(field.annotation, depth + 1))


@pytest.mark.parametrize("kind", [Message, BetaMessage])
def test_every_string_of_a_message_reaches_a_channel(kind: Any) -> None:
    documents = list(samples(kind))
    assert len(documents) > 50
    for document in documents:
        piece = MessagesWire().read_reply(json.dumps(document).encode())
        assert MARK in {text for _, text in piece.texts}, document


@pytest.mark.parametrize("kinds", [RawMessageStreamEvent, BetaRawMessageStreamEvent])
def test_every_string_of_an_event_reaches_a_channel(kinds: Any) -> None:
    documents = list(samples(kinds))
    assert len(documents) > 50
    for document in documents:
        reader = MessagesStream()
        kind = document["type"]
        if kind.startswith("content_block"):
            document["index"] = 0
            reader.feed(start() + (b"" if kind == "content_block_start" else block(0)))
        (piece,) = reader.feed(f"event: {kind}\ndata: {json.dumps(document)}\n\n".encode())
        assert MARK in {text for _, text in piece.texts}, document


@pytest.mark.parametrize("status", range(400, 600))
def test_errors_have_types_that_the_sdk_knows(status: int) -> None:
    kind = MessagesWire().phrase(WireError(status, "x", "y", "z")).type
    # The SDK knows a body that is too large by its status; the type stands in the API's reference only.
    assert kind in {*typing.get_args(ErrorType), "request_too_large"}
