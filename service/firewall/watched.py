"""The judge of a reply with watchers beside it: each has its own category and its own action.

What the judge of protected texts does not look for (tool calls, a prompt told piecemeal, words that attack the next
reader) is seen by watchers. Text leaves when the judge and all watchers let it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from service.errors import GuardFailed, UnavailableError
from service.firewall.asked import Asked, CallPart
from service.firewall.channel import REDACTED
from service.firewall.ngrams import ascii_words
from service.firewall.stream import ReplyJudge
from service.firewall.verdict import Action, Category, Finding, Verdict, decide, is_new_kind

_MAX_FINDINGS = 64


class Sight(msgspec.Struct, frozen=True):
    """What a watcher saw at [start, end) of a channel; `text` is what its keyed hash is made of."""

    category: Category
    action: Action
    channel: str
    start: int
    end: int
    text: str
    detail: str
    score: float = 1.0


class Opening(msgspec.Struct, frozen=True):
    """What a watcher may know of the request. `prompts` are texts that must not be told, the request's own last."""

    tenant: str
    asked: Asked
    system_texts: tuple[str, ...]
    user_texts: tuple[str, ...]
    prompts: tuple[str, ...]


class Watcher(Protocol):
    """Looks for one thing in one reply. All but `held` may raise UnavailableError."""

    guard: str

    def held(self, channel: str, end: int) -> int:
        """The first character of the channel, whose text ends at `end`, that must wait; `end` where none must."""

    def clears(self, channel: str, spelled: Sequence[str]) -> bool:
        """Whether a channel whose whole text has these folded words (`ngrams.ascii_words`) surely holds nothing for it
        to see, so that it need not be told of the text at all. Quick; False wherever that takes longer to say.
        """

    async def called(self, parts: Sequence[CallPart]) -> list[Sight]:
        """Parts of tool calls, told before the texts of their channels."""

    async def feed(self, channel: str, text: str) -> list[Sight]:
        """The next text of a channel."""

    async def end(self, channel: str) -> list[Sight]:
        """The channel gets no more text."""

    async def finish(self) -> list[Sight]:
        """The reply has ended."""


Watch = Callable[[Opening], Watcher | None]
"""Opens a watcher for one reply; None where there is nothing for it to see."""


class WatchedJudge:
    """The judge and its watchers as one (`interfaces.ReplyJudge`)."""

    def __init__(
        self, judge: ReplyJudge, watchers: Sequence[Watcher], digest: Callable[[str], str], *, fails_closed: bool
    ) -> None:
        self._judge = judge
        self._watchers = watchers
        self._digest = digest
        self._fails_closed = fails_closed
        self._ends: dict[str, int] = {}
        self._cleared: dict[str, int] = {}
        self._redactions: dict[str, list[tuple[int, int]]] = {}
        self._findings: list[Finding] = []
        self._unjudged: dict[str, None] = {}
        self._blocked = False
        self._finished = False

    async def called(self, parts: Sequence[CallPart]) -> None:
        """Parts of tool calls, told before the texts of their channels. Raises UnavailableError, as all below do."""
        await self._each(lambda watcher: watcher.called(parts))

    async def feed(self, channel: str, text: str, *, last: bool = False) -> None:
        """The next text of a channel, and whether the channel ends with it."""
        if self.blocked or not text:
            return
        is_whole = last and channel not in self._ends
        self._ends[channel] = self._ends.get(channel, 0) + len(text)
        await self._judge.feed(channel, text, last=last)
        watchers = self._watchers
        if is_whole and (spelled := ascii_words(text)) is not None:
            watchers = [watcher for watcher in watchers if not watcher.clears(channel, spelled)]
        await self._each(lambda watcher: watcher.feed(channel, text), watchers)
        if last:
            await self._each(lambda watcher: watcher.end(channel), watchers)

    async def end(self, channel: str) -> None:
        """The channel gets no more text."""
        await self._judge.end(channel)
        await self._each(lambda watcher: watcher.end(channel))

    async def finish(self) -> None:
        """The reply has ended."""
        if self._finished:
            return
        self._finished = True
        await self._judge.finish()
        await self._each(lambda watcher: watcher.finish())

    async def whole(self, channel: str, text: str) -> str:
        """Judge a value that is complete in itself; what may be sent of it."""
        sent = await self._judge.whole(channel, text)
        return "" if self._blocked else sent

    def clears(self, texts: Sequence[str]) -> bool:
        """Whether texts that are complete in themselves surely hold nothing, so that `whole` would give them back."""
        return not self._blocked and self._judge.clears(texts)

    def cleared(self, channel: str) -> int:
        """Characters of the channel, from its start, that may leave now; stands still once `blocked`."""
        if self._blocked:
            return self._cleared.get(channel, 0)
        cleared, end = self._judge.cleared(channel), self._ends.get(channel, 0)
        if not self._finished:
            cleared = min([cleared, *(watcher.held(channel, end) for watcher in self._watchers)])
        cleared = self._cleared[channel] = max(cleared, self._cleared.get(channel, 0))
        return cleared

    def render(self, channel: str, start: int, end: int) -> str:
        """The text to send for [start, end), which is cleared."""
        parts: list[str] = []
        at = start
        ahead = [(first, last) for first, last in self._redactions.get(channel, ()) if last > start]
        if channel in self._redactions:
            self._redactions[channel] = ahead  # what lies before was sent
        for first, last in ahead:
            if last <= at or first >= end:
                continue
            parts.append(self._judge.render(channel, at, max(at, first)))
            if first >= start:
                parts.append(REDACTED)
            at = max(at, min(last, end))
        parts.append(self._judge.render(channel, at, end))
        return "".join(parts)

    @property
    def blocked(self) -> bool:
        """Nothing more may leave."""
        return self._blocked or self._judge.blocked

    @property
    def verdict(self) -> Verdict:
        """Of what was judged so far, by all of them."""
        verdict = self._judge.verdict
        return decide([*verdict.findings, *self._findings], dict.fromkeys((*verdict.unjudged, *self._unjudged)))

    async def _each(
        self, ask: Callable[[Watcher], Awaitable[list[Sight]]], watchers: Sequence[Watcher] | None = None
    ) -> None:
        for watcher in self._watchers if watchers is None else watchers:
            if self.blocked:
                return
            try:
                seen = await ask(watcher)
            except Exception as error:
                self._unjudged[watcher.guard] = None
                if not self._fails_closed:
                    continue
                self._blocked = True
                if isinstance(error, UnavailableError):
                    raise
                raise GuardFailed("the reply could not be judged") from error
            for sight in seen:
                self._found(watcher.guard, sight)

    def _found(self, guard: str, sight: Sight) -> None:
        finding = Finding(
            guard,
            sight.category,
            sight.score,
            sight.action,
            sight.channel,
            sight.start,
            sight.end,
            self._digest(sight.text),
            sight.detail,
        )
        previous = self._findings[-1] if self._findings else None
        if (
            previous is not None
            and (previous.pointer, previous.category, previous.detail) == (sight.channel, sight.category, sight.detail)
            and previous.start <= sight.start <= previous.end
        ):
            # What goes on is one finding.
            end, score = max(previous.end, sight.end), max(previous.score, sight.score)
            self._findings[-1] = msgspec.structs.replace(finding, start=previous.start, end=end, score=score)
        elif len(self._findings) < _MAX_FINDINGS or is_new_kind(finding, self._findings):
            self._findings.append(finding)
        if sight.action == "block":
            self._blocked = True
        elif sight.action == "redact":
            ranges = self._redactions.setdefault(sight.channel, [])
            if ranges and ranges[-1][0] <= sight.start <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(ranges[-1][1], sight.end))
            else:
                insort(ranges, (sight.start, sight.end))
