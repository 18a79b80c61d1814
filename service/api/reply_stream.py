"""Reads one streamed reply event by event; each protocol says what an event is and when the reply is whole."""

from __future__ import annotations

from service.api import sse
from service.api.reply_texts import Texts
from service.errors import UpstreamInvalid
from service.interfaces import Piece


class EventReader:
    """What the readers of all protocols share (`interfaces.StreamReader`)."""

    def __init__(self, texts: Texts, max_event_bytes: int = sse.MAX_EVENT_BYTES) -> None:
        self._parser = sse.Parser(max_event_bytes)
        self._texts = texts
        self._ended = False

    @property
    def kept_bytes(self) -> int:
        """Of the event that is not whole yet."""
        return self._parser.kept_bytes

    def feed(self, chunk: bytes) -> list[Piece]:
        """The events that these bytes complete. Raises UpstreamInvalid."""
        return [self._event(event) for event in self._parser.feed(chunk)]

    def finish(self) -> list[Piece]:
        """The end of the bytes. Raises UpstreamInvalid where the reply is not complete."""
        pieces = [self._event(event) for event in self._parser.finish()]
        if not self._is_whole():
            raise UpstreamInvalid("The provider's stream broke off before its end.")
        return pieces

    def _event(self, event: sse.Event) -> Piece:
        return Piece(raw=event.raw) if event.data is None else self._piece(event, event.data)

    def _is_whole(self) -> bool:
        return self._ended

    def _piece(self, event: sse.Event, data: str) -> Piece:
        """An event with data. Raises UpstreamInvalid."""
        raise NotImplementedError
