"""Messages, and the counting of their tokens, for callers whose provider speaks chat completions."""

from __future__ import annotations

import json
from functools import partial

from service.api import message_request_as_chat
from service.api.chat_reply import ChatWire
from service.api.chat_reply_as_message import error_of, message_of
from service.api.chat_stream_as_message import MessageEvents
from service.api.translating import TranslatedReply
from service.interfaces import Reply


class MessagesAsChat:
    """For callers of Messages (`interfaces.Translation`)."""

    path = ChatWire.path

    def request(self, body: bytes, *, asks_usage: bool) -> bytes:
        """What the provider is sent. Raises MalformedRequest naming what a chat cannot say."""
        return message_request_as_chat.translate(body, asks_usage=asks_usage)

    def reply(self, reply: Reply, asked: bytes, *, tells_usage: bool) -> Reply:
        """What is judged, and sent to the caller: every Message says what it used."""
        del tells_usage
        stops = frozenset(json.loads(asked).get("stop_sequences") or ())
        return TranslatedReply(
            reply,
            events=MessageEvents(stops),
            whole=partial(message_of, stops=stops),
            failed=partial(error_of, status=reply.status),
        )


class CountAsChat:
    """For callers who only count. Chats have no such call: `upstream.estimate` counts the chat that would be sent, so
    what would be refused is refused here as well.
    """

    path = ChatWire.path

    def request(self, body: bytes, *, asks_usage: bool) -> bytes:
        """The chat that is counted. Raises MalformedRequest naming what a chat cannot say."""
        del asks_usage
        return message_request_as_chat.translate(body, asks_usage=False)

    def reply(self, reply: Reply, asked: bytes, *, tells_usage: bool) -> Reply:
        """As it is: the count is written in the caller's protocol."""
        del asked, tells_usage
        return reply
