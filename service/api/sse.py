"""Server-sent events, read incrementally: bytes may be split anywhere, in a character, a line end or an event.

Source: WHATWG HTML, "Server-sent events", parsing an event stream. Stricter where a lenient reader could be led to read
something else than what was judged: invalid UTF-8 is an error, and so is a stream that ends within an event.
"""

from __future__ import annotations

import re

import msgspec

from service.errors import UpstreamInvalid

MAX_EVENT_BYTES = 1_048_576

_LINE_END = re.compile(rb"\r\n|\n|\r")
_EVENT_NAME = re.compile(r"[A-Za-z_.]{1,64}")


class Event(msgspec.Struct, frozen=True):
    """One event. `data` is None for a block without data, such as a comment that keeps the connection open.

    `raw` is what may be sent on: the event's own bytes up to and with its blank line, unless it holds comments, ids or
    other fields. Those are free text that nobody judges, so `raw` is then the event written anew without them.
    """

    data: str | None
    raw: bytes
    name: str = ""


class Parser:
    """Bytes in, events out."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._buffer = bytearray()
        self._line_start = 0  # within the buffer, which begins with the current event
        self._scanned = 0  # no line end lies before this offset
        self._lines: list[bytes] = []
        self._begun = False

    @property
    def kept_bytes(self) -> int:
        """Of the event that is not whole yet."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes and return the events that they complete.

        Raises UpstreamInvalid for an event over `max_event_bytes` and for invalid UTF-8.
        """
        self._buffer += chunk
        if not self._begun:
            if b"\xef\xbb\xbf".startswith(self._buffer[:3]) and len(self._buffer) < 3:
                return []
            self._begun = True
            if self._buffer.startswith(b"\xef\xbb\xbf"):
                del self._buffer[:3]
        return self._events(last=False)

    def finish(self) -> list[Event]:
        """The end of the stream: return what it completes.

        Raises UpstreamInvalid where it ends within an event. `data: [DONE]` without its blank line is let pass: some
        servers end so, and nothing can follow it.
        """
        events = self._events(last=True)
        rest = bytes(self._buffer)
        if rest.strip() == b"data: [DONE]":
            self._buffer.clear()
            events.append(Event("[DONE]", b"data: [DONE]\n\n"))
        elif rest.strip() and not all(line.startswith(b":") for line in _LINE_END.split(rest) if line):
            raise UpstreamInvalid("The provider's stream ended within an event.")
        return events

    def _events(self, *, last: bool) -> list[Event]:
        events: list[Event] = []
        buffer = self._buffer
        while True:
            match = _LINE_END.search(buffer, self._scanned)
            # A CR at the very end may be half of a CRLF: only the next byte can tell.
            if match is None or (not last and match.end() == len(buffer) and match.group() == b"\r"):
                self._scanned = len(buffer) if match is None else match.start()
                break
            line = bytes(buffer[self._line_start : match.start()])
            self._line_start = self._scanned = match.end()
            if line:
                self._lines.append(line)
                continue
            if self._lines:
                events.append(_event(self._lines, bytes(buffer[: match.end()])))
            del buffer[: match.end()]
            self._line_start = self._scanned = 0
            self._lines = []
        if len(buffer) > self._max_event_bytes:
            raise UpstreamInvalid("The provider sent an event that is too large.")
        return events


def _event(lines: list[bytes], raw: bytes) -> Event:
    data: list[str] = []
    name = ""
    plain = True
    for line in lines:
        try:
            field, _, value = line.decode("utf-8").partition(":")
        except UnicodeDecodeError:
            raise UpstreamInvalid("The provider's stream is not UTF-8.") from None
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event" and _EVENT_NAME.fullmatch(value):
            name = value
        else:
            plain = False
    if not data:
        return Event(None, b":\n\n", name)
    text = "\n".join(data)
    return Event(text, raw if plain else render(text, name), name)


def render(data: str, name: str = "") -> bytes:
    """Write one event."""
    head = f"event: {name}\n" if name else ""
    return (head + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n").encode("utf-8", "replace")
