"""Whatever the bytes, a parser reads them or refuses them with an error of this project's own: it never breaks.

Requests and replies are drawn from the vendors' types and then damaged: what is almost right gets deepest into it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api import (
    chat_reply_as_message,
    chat_to_messages,
    guardrail_litellm,
    guardrail_llm_guard,
    message_request_as_chat,
    messages_to_chat,
    moderations,
    scan,
)
from service.api.admin_shapes import NewKey, NewTenant, Rotation, TenantChange, read
from service.api.chat_stream_as_message import MessageEvents
from service.api.responses_stored import call_of
from service.api.translating import Events
from service.errors import FirewallError
from service.interfaces import Piece, Wire
from service.settings import Server
from tests.contract.test_every_field_answered import STREAMED, WHOLE
from tests.contract.test_every_field_asked import REQUESTS
from tests.sdk_types import drawn

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, 2**64, 0.5, -0.0, 1e308, "", " ", "x", "\x00", "\ud800", "\udc00x", "é" * 50),
    *("data:", "data:,", "data:;base64,=", "data:text/plain;charset=utf-16,%ff", "%PDF-", r'{"a": \ud83d', r"\u"),
    *([], {}, [[]], [None], {"": ""}, {"type": None}, {"type": "text"}, {"role": "user"}, [{"type": "x"}]),
)
PARSERS: dict[str, Callable[[bytes], Any]] = {
    **{name: lambda body, parse=parse: parse(body, Server()) for name, (parse, _) in REQUESTS.items()},  # type: ignore[misc]
    "scan": lambda body: scan.parse_scan(body, Server()),
    "moderations": lambda body: moderations.parse_request(body, Server()),
    "litellm": lambda body: guardrail_litellm.parse_request(body, Server()),
    "llm_guard prompt": lambda body: guardrail_llm_guard.parse_prompt(body, Server()),
    "llm_guard output": lambda body: guardrail_llm_guard.parse_output(body, Server()),
    "completion of a message": messages_to_chat.completion_of,
    "error of a message": messages_to_chat.error_of,
    "message of a completion": chat_reply_as_message.message_of,
    "error of a completion": lambda body: chat_reply_as_message.error_of(body, 500),
    "new key": lambda body: read(body, NewKey),
    "rotation": lambda body: read(body, Rotation),
    "new tenant": lambda body: read(body, NewTenant),
    "tenant's change": lambda body: read(body, TenantChange),
}
json_values = st.recursive(
    st.sampled_from(JUNK) | st.text(max_size=5) | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
thorough = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def damaged(value: Any, chance: Random) -> Any:
    """The value with something wrong in one place."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        how = chance.random()
        if how < 0.1:
            return {key: item for key, item in value.items() if key != name}
        if how < 0.2:
            return {**value, chance.choice(["", "type", "x", "index", "\ud800"]): chance.choice(JUNK)}
        return {**value, name: damaged(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        return [*value[:place], damaged(value[place], chance), *value[place:]]
    return chance.choice(JUNK)


def almost(kind: Any, chance: Random) -> Any:
    value = drawn(kind, chance, lambda: chance.choice(["a word", "x", "two\nlines", '{"a": "\\u00e9"}']))
    for _ in range(chance.randrange(3)):
        value = damaged(value, chance)
    return value


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", PARSERS)
@thorough
@given(body=st.binary(max_size=40) | json_values.map(encoded))
def test_no_bytes_break_a_parser(name: str, body: bytes) -> None:
    with contextlib.suppress(FirewallError):
        PARSERS[name](body)


@pytest.mark.parametrize("name", REQUESTS)
@thorough
@given(seed=st.integers(0, 2**32))
def test_no_request_that_is_almost_right_breaks_its_parser(name: str, seed: int) -> None:
    chance, (_, kind) = Random(seed), REQUESTS[name]
    for _ in range(5):
        given_ = almost(kind, chance)
        body = encoded({"model": "m", "max_tokens": 9, **given_} if isinstance(given_, dict) else given_)
        with contextlib.suppress(FirewallError):
            PARSERS[name](body)


@pytest.mark.parametrize(
    ("parse", "document"),
    [
        (PARSERS["responses"], {"model": "m", "tools": [{"type": {}}]}),
        (chat_to_messages.translate, {"model": "m", "messages": [], "tool_choice": ["auto"]}),
        (messages_to_chat.completion_of, {"content": [{"type": {}}]}),
        (chat_reply_as_message.message_of, {"choices": [{"message": {"content": [{"type": {}}]}}]}),
        (WHOLE["chat"][0].read_reply, {"choices": [{"finish_reason": {}}]}),
        (lambda body: STREAMED["responses"][0].open_stream().feed(b"data: " + body + b"\n\n"), {"type": []}),
    ],
)
def test_a_name_that_is_no_string_breaks_nothing(parse: Callable[[bytes], Any], document: Any) -> None:
    with contextlib.suppress(FirewallError):
        parse(encoded(document))


CHAT: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "stop": ["x"],
    "tool_choice": "auto",
    "tools": [{"type": "function", "function": {"name": "f", "description": "a word", "parameters": {}}}],
    "messages": [
        {"role": "system", "content": "a word"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": {"url": "data:", "detail": "auto"}},
            ],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "a word"},
    ],
}


@thorough
@given(seed=st.integers(0, 2**32))
def test_no_chat_that_is_almost_right_breaks_its_translation(seed: int) -> None:
    chance = Random(seed)
    for _ in range(20):
        body = encoded(damaged(CHAT, chance))
        with contextlib.suppress(FirewallError):
            PARSERS["chat/completions"](body)
            chat_to_messages.translate(body)


MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "stream": True,
    "system": [{"type": "text", "text": "a word"}],
    "stop_sequences": ["x"],
    "metadata": {"user_id": "u"},
    "thinking": {"type": "disabled"},
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "tools": [{"name": "f", "description": "a word", "input_schema": {}, "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "x", "citations": []},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0K"}},
                {"type": "document", "title": "a", "source": {"type": "text", "media_type": "text/plain", "data": "b"}},
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "c"}]}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "x", "signature": "s"},
                {"type": "text", "text": "a word"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": ["b"]}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "content": [{"type": "text", "text": "d"}],
                    "is_error": True,
                }
            ],
        },
        {"role": "system", "content": "a word"},
        {"role": "user", "content": "a word"},
    ],
}


@thorough
@given(seed=st.integers(0, 2**32))
def test_no_message_that_is_almost_right_breaks_its_translation(seed: int) -> None:
    chance = Random(seed)
    for _ in range(20):
        body = encoded(damaged(MESSAGE, chance))
        with contextlib.suppress(FirewallError):
            PARSERS["messages"](body)
            chat = message_request_as_chat.translate(body, asks_usage=True)
            PARSERS["chat/completions"](chat)


def rewritten(wire: Wire, pieces: list[Piece]) -> None:
    for piece in pieces:
        if piece.texts:
            wire.rewrite(piece, ["[redacted]" for _ in piece.texts])


@pytest.mark.parametrize("name", WHOLE)
@thorough
@given(seed=st.integers(0, 2**32))
def test_no_reply_that_is_almost_right_breaks_its_reader(name: str, seed: int) -> None:
    chance, (wire, kind) = Random(seed), WHOLE[name]
    for _ in range(5):
        body = encoded(almost(kind, chance))
        with contextlib.suppress(FirewallError):
            rewritten(wire, [wire.read_reply(body)])
        wire.read_error(body)
        wire.read_error(body[: chance.randrange(len(body) + 1)])
        if name.startswith("messages"):
            with contextlib.suppress(FirewallError):
                messages_to_chat.completion_of(body)
        if name.startswith("chat"):
            with contextlib.suppress(FirewallError):
                chat_reply_as_message.message_of(body)
            chat_reply_as_message.error_of(body, 400)


@pytest.mark.parametrize("name", STREAMED)
@thorough
@given(seed=st.integers(0, 2**32))
def test_no_stream_that_is_almost_right_breaks_its_reader(name: str, seed: int) -> None:
    chance, (wire, kind) = Random(seed), STREAMED[name]
    reader = wire.open_stream()
    translators: dict[str, Events] = {
        "messages": messages_to_chat.ChatEvents(tells_usage=True),
        "chat": MessageEvents(),
    }
    sent: list[bytes] = []
    with contextlib.suppress(FirewallError):
        for _ in range(8):
            event = almost(kind, chance)
            head = f"event: {event.get('type')}\n" if isinstance(event, dict) and chance.random() < 0.3 else ""
            raw = head.encode("utf-8", "replace") + b"data: " + encoded(event) + b"\n\n"
            sent.append(raw)
            rewritten(wire, reader.feed(raw))
        reader.finish()
    with contextlib.suppress(FirewallError):
        for translator in (found for family, found in translators.items() if name.startswith(family)):
            for raw in sent:
                list(translator.feed(raw))
            list(translator.finish())


@thorough
@given(method=st.sampled_from(["GET", "POST", "DELETE", ""]), path=st.text(max_size=20), query=st.binary(max_size=40))
def test_no_request_line_breaks_the_reading_of_what_is_kept(method: str, path: str, query: bytes) -> None:
    with contextlib.suppress(FirewallError):
        call_of(method, "/resp_1" + path, query)
