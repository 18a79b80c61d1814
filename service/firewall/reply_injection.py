"""A reply that attacks whoever reads it next: another agent, a tool, a later turn.

The classifier of prompts over the reply's text, judged as a tool's result would be, with a limit of its own. Each
window costs one run of the encoder, as it would in a prompt: about as much again as judging the same text going in.
Where it blocks, text waits: in mode `buffer` for the end of the reply, else for the end of a piece of some sentences;
and a text that is longer than `max_windows` stops the reply, since the rest of it is not scored. Where it flags, that
is on record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from service.firewall.asked import CallPart
from service.firewall.policy import as_category
from service.firewall.sentences import SentenceSplitter
from service.firewall.text_score import TextScore
from service.firewall.watched import Opening, Sight
from service.settings import ReplyInjection

Score = Callable[[str], Awaitable[TextScore]]
"""Scores one text whole. Raises UnavailableError."""

_PIECE_CHARS = 400
"""A streamed text is scored when so much of it has come and a sentence ends, together with as much before it."""


class ReplyInjectionGuard:
    """Opens a watcher for each reply. `threshold` is the score from which a reply attacks."""

    def __init__(self, settings: ReplyInjection, score: Score, threshold: float, *, buffers: bool) -> None:
        self.settings = settings
        self.score = score
        self.threshold = threshold
        self.buffers = buffers
        self.max_chars = settings.max_windows * _PIECE_CHARS

    def watch(self, opening: Opening) -> ReplyInjectionWatcher | None:
        """A watcher for one reply."""
        del opening
        return ReplyInjectionWatcher(self) if self.settings.enabled else None


class _Text:
    def __init__(self) -> None:
        self.splitter = SentenceSplitter()
        self.text = ""
        self.judged = 0
        self.over = False


class ReplyInjectionWatcher:
    """Follows one reply (`watched.Watcher`). Repeated forms of a text (`#`) are not scored again."""

    guard = "reply_injection"

    def __init__(self, guard: ReplyInjectionGuard) -> None:
        self._guard = guard
        self._texts: dict[str, _Text] = {}
        self._by_piece = guard.settings.action == "block" and not guard.buffers

    def held(self, channel: str, end: int) -> int:
        """What is not scored yet, where it could be blocked."""
        state = self._texts.get(channel)
        if state is None or self._guard.settings.action != "block" or state.over:
            return end
        return state.judged

    def clears(self, channel: str, spelled: Sequence[str]) -> bool:
        """Only repeated forms: all else is scored."""
        del spelled
        return "#" in channel

    async def called(self, parts: Sequence[CallPart]) -> list[Sight]:
        """Nothing: the channels say it."""
        del parts
        return []

    async def feed(self, channel: str, text: str) -> list[Sight]:
        """The next text; scored when enough has come."""
        if "#" in channel:
            return []
        state = self._texts.setdefault(channel, _Text())
        if state.over:
            return []
        room = self._guard.max_chars - len(state.text)
        state.text += text[:room]
        if len(text) > room:
            # Nothing passes unjudged without being on record, and nothing at all where it could be blocked.
            action = self._guard.settings.action
            detail = "longer than reply_injection.max_windows: the rest is not scored"
            at = len(state.text)
            return [*await self.end(channel), Sight("oversize", action, channel, at, at, "", detail, 0.0)]
        if not self._by_piece:
            return []
        state.splitter.feed(text)
        ended = [end for _, end in state.splitter.pop()]
        if ended and ended[-1] - state.judged >= _PIECE_CHARS:
            return await self._score(channel, state, ended[-1])
        return []

    async def end(self, channel: str) -> list[Sight]:
        """Score what is left."""
        state = self._texts.get(channel)
        if state is None or state.over:
            return []
        found = await self._score(channel, state, len(state.text))
        state.over = True
        return found

    async def finish(self) -> list[Sight]:
        """Score what is left of all texts."""
        return [sight for channel in list(self._texts) for sight in await self.end(channel)]

    async def _score(self, channel: str, state: _Text, end: int) -> list[Sight]:
        # An attack cut in two is whole in the next look: each begins as much before its piece.
        start = max(0, state.judged - _PIECE_CHARS) if self._by_piece else 0
        text = state.text[start:end]
        state.judged = end
        if not text.strip():
            return []
        score = await self._guard.score(text)
        if score.score < self._guard.threshold:
            return []
        action = self._guard.settings.action
        first, last = start + score.start, start + (score.end or len(text))
        kind = as_category(score.category)
        return [Sight("reply.injection", action, channel, first, last, text, kind, score.score)]
