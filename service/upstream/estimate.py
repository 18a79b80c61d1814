"""How many tokens a chat has, for callers whose provider has no call that says so: counted here, as tiktoken counts.

Source for what a message costs beside its text: OpenAI Cookbook, "How to count tokens with tiktoken". Providers whose
tokens are not OpenAI's count otherwise, and images are not counted: it is an estimate.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

Count = Callable[[str, Sequence[str]], Awaitable[int]]
"""How many tokens these texts have for that model."""

NAME = "firewall"
"""Who answers, in the audit row: no provider was asked."""
_PER_MESSAGE = 3
_PER_REPLY = 3


class Estimate:
    """Answers chats with their count, in the shape of Anthropic's (`interfaces.Provider`)."""

    name = NAME
    asks_usage = False

    def __init__(self, count: Count) -> None:
        self._count = count

    async def open(
        self, path: str, body: bytes, *, stream: bool, headers: Mapping[str, str], method: str = "POST", model: str = ""
    ) -> CountReply:
        """Count one chat."""
        del path, stream, headers, method
        chat = json.loads(body)
        tokens = await self._count(model, list(counted_texts(chat)))
        return CountReply(tokens + _PER_MESSAGE * len(chat["messages"]) + _PER_REPLY)


class CountReply:
    """A count (`interfaces.Reply`)."""

    status = 200
    content_type = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, tokens: int) -> None:
        self._body = json.dumps({"input_tokens": tokens}).encode()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes."""
        yield self._body

    async def close(self) -> None:
        """There is nothing to close."""


def counted_texts(chat: dict[str, Any]) -> Iterator[str]:
    """What of a chat costs tokens: its texts, its calls, and its tools as they are written."""
    for message in chat["messages"]:
        content = message.get("content") or []
        yield from [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        for call in message.get("tool_calls") or ():
            yield call["function"]["name"]
            yield call["function"]["arguments"]
    for tool in chat.get("tools") or ():
        yield json.dumps(tool["function"], ensure_ascii=False)
