"""Where sentences end, in a text that comes in pieces."""

from __future__ import annotations

import re

MAX_SENTENCE_CHARS = 400

# A full stop inside 3.14 or example.com ends nothing: it takes white space after it. CJK marks end at once.
_END = re.compile(r"""[.!?\u2026]+["'\u201d\u2019)\]*_]*(?=\s)|[\u3002\uff01\uff1f\uff61]+|\n""")
# What may still be waiting for its white space; a run of closers longer than this is no end of a sentence.
_MAX_END = 16


class SentenceSplitter:
    """Finds the ends of sentences in one growing text. Linear in the text; keeps at most 16 characters of it.

    `start` is the offset of the sentence that has not ended.
    """

    def __init__(self) -> None:
        self.start = 0
        self._end = 0
        self._tail = ""
        self._ready: list[tuple[int, int]] = []

    def feed(self, text: str) -> None:
        """The next text."""
        text = self._tail + text
        base = self._end - len(self._tail)
        self._end = base + len(text)
        done = 0
        for match in _END.finditer(text):
            self._close(base + match.end())
            done = match.end()
        self._tail = text[max(done, len(text) - _MAX_END) :]
        # An end found later lies in the tail or after it, so everything before may be cut.
        while self._end - len(self._tail) - self.start >= MAX_SENTENCE_CHARS:
            self._cut(self.start + MAX_SENTENCE_CHARS)

    def finish(self) -> None:
        """The text has ended, and its last sentence with it."""
        self._close(self._end)
        self._tail = ""

    def pop(self) -> list[tuple[int, int]]:
        """(start, end) of the sentences that ended since the last call, in order, without gaps."""
        ready, self._ready = self._ready, []
        return ready

    def _close(self, end: int) -> None:
        while end - self.start > MAX_SENTENCE_CHARS:
            self._cut(self.start + MAX_SENTENCE_CHARS)
        if end > self.start:
            self._cut(end)

    def _cut(self, end: int) -> None:
        self._ready.append((self.start, end))
        self.start = end


def split(text: str) -> list[str]:
    """The sentences of a whole text, without white space around them; empty ones left out."""
    splitter = SentenceSplitter()
    splitter.feed(text)
    splitter.finish()
    return [sentence for start, end in splitter.pop() if (sentence := text[start:end].strip())]
