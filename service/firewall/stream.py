"""The reply while it streams: text is held only while it can still be part of a match, then cleared, redacted or cut.

One `ReplyJudge` per reply. A channel is one text that grows (`choices/0/content`); channels are held apart from each
other. All offsets are characters of the channel's text, from its start.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from service.errors import GuardFailed, UnavailableError
from service.firewall.channel import Channel
from service.firewall.ngrams import Token
from service.firewall.patterns import MIN_PATTERN
from service.firewall.protected import RequestProtection
from service.firewall.verdict import Action, Category, Finding, Verdict, decide
from service.settings import Leakage

GUARD = "leakage"
# Findings kept of one reply; a reply that repeats a secret a thousand times is told by the first ones.
_MAX_FINDINGS = 64
# Sentences with fewer words than this say too little to be compared by meaning.
_MIN_MEANING_WORDS = 4.0
# A sentence of nothing but these is an image or the like: it has no meaning, and an encoder would take minutes for it.
_DATA = re.compile(r"[A-Za-z0-9+/=]{200,}")
# A whole reply is read in strides of some milliseconds, and others get their turn in between.
_STRIDE = 8_192
# Longer user texts are folded in a thread, so that the event loop goes on.
_INLINE_CHARS = 4_000


class _Match(msgspec.Struct, frozen=True):
    """Protected text at [start, end) of a channel."""

    category: Category
    start: int
    end: int
    detail: str
    score: float = 1.0


def _encoded(name: str, start: int, end: int) -> _Match:
    return _Match("leak.prompt", start, end, f"{name}, encoded")


class Closeness(Protocol):
    """Compares sentences with the protected prompts by their meaning."""

    async def leaks(self, sentences: Sequence[str]) -> list[float | None]:
        """The similarity in [0, 1] of each sentence that tells a prompt, None for the others.

        Raises UnavailableError.
        """


class ReplyJudge:
    """Judges one reply. Feed it in order, one call at a time.

    With action `block` or `redact` not one character of a match has been cleared when the match is found, however the
    text was cut. Once `blocked`, `cleared` stands still for every channel. With `flag` and stream `exact` or `sentence`
    text is cleared as it is fed. `feed` and `finish` raise UnavailableError where the guard cannot judge and its
    `on_error` is "block"; the judge is blocked then as well, and its verdict names the guard in `unjudged`.

    Only text that is not rendered yet, or may still be part of a match, is kept: `render` is to be called with
    ascending ranges that do not overlap, each at most once.
    """

    def __init__(
        self,
        protection: RequestProtection,
        settings: Leakage,
        digest: Callable[[str], str],
        closeness: Closeness | None = None,
    ) -> None:
        self._protection = protection
        self._action: Action = settings.action
        self._fails_closed = settings.on_error == "block"
        self._buffers = settings.stream == "buffer"
        self._digest = digest
        self._closeness = closeness
        self._by_sentence = settings.stream != "exact" and protection.has_prompts
        self._channels: dict[str, Channel] = {}
        self._findings: list[Finding] = []
        self._blocked = False
        self._finished = False
        self._unjudged = False
        self._user_texts_read = False

    async def feed(self, channel: str, text: str, *, last: bool = False) -> None:
        """Judge the next text of a channel. Raises UnavailableError where it cannot and fails closed.

        `last`: the channel ends with it; its sentences wait for `finish`, where those of all channels go together.
        """
        if self._finished:
            raise RuntimeError("text after the end of the reply")
        if self._blocked or not text:
            return
        await self._read(self._channel(channel), text, last=last)

    async def _read(self, state: Channel, text: str, *, last: bool) -> None:
        for start in range(0, len(text), _STRIDE):
            if start:
                await asyncio.sleep(0)
            try:
                found = self._take(state, text[start : start + _STRIDE])
                if last and start + _STRIDE >= len(text):
                    found += self._end(state)
                await self._judge(state, found)
                if not last:
                    await self._judge_sentences([(state, state.sentences.pop())])
            except Exception as error:
                self._failed(state, error)
            self._clear(state)
            if self._blocked:
                return

    async def whole(self, channel: str, text: str) -> str:
        """Judge a value that is complete in itself, such as an id; what may be sent of it, "" once `blocked`.

        Raises as `feed` does. `channel` is for the record only.
        """
        if self._blocked:
            return ""
        if len(text) < MIN_PATTERN and text.isascii():
            return text
        if self._protection.clears(text, by_meaning=self._by_sentence):
            return text
        state = Channel(channel, self._protection, self._by_sentence)
        await self._read(state, text, last=True)
        if not self._blocked:
            try:
                await self._judge_sentences([(state, state.sentences.pop())])
            except Exception as error:
                self._failed(state, error)
        return "" if self._blocked else "".join(state.pieces(0, state.end))

    async def end(self, channel: str) -> None:
        """The channel gets no more text: judge what was held of it, then clear it. Raises as `feed` does."""
        state = self._channels.get(channel)
        if self._blocked or state is None or state.ended:
            return
        try:
            await self._judge(state, self._end(state))
            await self._judge_sentences([(state, state.sentences.pop())])
        except Exception as error:
            self._failed(state, error)
        self._clear(state)

    async def finish(self) -> None:
        """The reply has ended: judge what was held, then clear it. Raises as `feed` does."""
        if self._finished:
            return
        self._finished = True
        if self._blocked:
            return
        try:
            for state in self._channels.values():
                if not state.ended:
                    await self._judge(state, self._end(state))
            await self._judge_sentences([(state, state.sentences.pop()) for state in self._channels.values()])
        except Exception as error:
            self._failed(None, error)
        for state in self._channels.values():
            self._clear(state)

    def cleared(self, channel: str) -> int:
        """How many characters of the channel, from its start, may leave now; 0 for a channel not seen."""
        state = self._channels.get(channel)
        return 0 if state is None else state.cleared

    def render(self, channel: str, start: int, end: int) -> str:
        """The text to send for [start, end), redacted where it must be; lets go of what lies before `end`.

        A redacted range becomes one `[redacted]`, where it begins. Raises ValueError for text that is not cleared or
        was rendered before.
        """
        if start == end:
            return ""
        state = self._channels[channel]
        if end > state.cleared or start < state.rendered or end < start:
            raise ValueError("only text that is cleared and was not rendered before can be rendered")
        text = "".join(state.pieces(start, end))
        state.rendered = end
        state.trim()
        return text

    @property
    def blocked(self) -> bool:
        """Whether nothing more of this reply may leave."""
        return self._blocked

    @property
    def verdict(self) -> Verdict:
        """Of all text fed so far; final after `finish` or once `blocked`."""
        return decide(self._findings, (GUARD,) if self._unjudged else ())

    # ---- the matchers

    def _channel(self, name: str) -> Channel:
        state = self._channels.get(name)
        if state is None:
            state = self._channels[name] = Channel(name, self._protection, self._by_sentence)
        return state

    def _take(self, state: Channel, text: str) -> list[_Match]:
        start = state.end
        state.append(text)
        found: list[_Match] = []
        for projector, trackers in state.projections:
            letters, offsets = projector.feed(text, start)
            for tracker in trackers:
                for owner, first, last in tracker.feed(letters, offsets):
                    category: Category = "leak.secret" if owner.kind == "secret" else "leak.prompt"
                    found.append(_Match(category, first, last, f"{owner.name}, {owner.disguise}"))
        if state.words is not None:
            found += self._take_words(state, state.words.feed(text, start))
        if state.encoded is not None:
            found += [_encoded(*run) for run in state.encoded.feed(text, start)]
        if self._by_sentence:
            state.sentences.feed(text)
        return found

    def _end(self, state: Channel) -> list[_Match]:
        found = self._take_words(state, state.words.finish()) if state.words is not None else []
        if state.encoded is not None:
            found += [_encoded(*run) for run in state.encoded.finish()]
        if self._by_sentence:
            state.sentences.finish()
        state.ended = True
        return found

    def _take_words(self, state: Channel, tokens: list[Token]) -> list[_Match]:
        if self._by_sentence:
            state.tokens += tokens
        return [
            _Match("leak.prompt", first, last, f"{name}, verbatim")
            for runs in state.runs
            for name, first, last in runs.feed(tokens)
        ]

    async def _judge(self, state: Channel, found: list[_Match]) -> None:
        for match in found:
            if match.category == "leak.prompt":
                await self._read_user_texts()
                if self._protection.typed_by_user(state.slice(match.start, match.end)):
                    continue
            self._found(state, match)

    async def _read_user_texts(self) -> None:
        """Fold what the user wrote, in a thread where that is long."""
        if not self._user_texts_read:
            if sum(map(len, self._protection.user_texts)) > _INLINE_CHARS:
                await asyncio.to_thread(lambda: self._protection.typed)
            self._user_texts_read = True

    # ---- sentences

    async def _judge_sentences(self, ended: list[tuple[Channel, list[tuple[int, int]]]]) -> None:
        if not self._by_sentence:
            return
        waiting: list[tuple[Channel, int, int]] = []
        for state, spans in ended:
            for start, end in spans:
                tokens = state.pop_tokens(end)
                if self._blocked:
                    return
                name, share = self._protection.overlap(tokens, typed=False)
                if name:
                    await self._read_user_texts()
                    name, share = self._protection.overlap(tokens, typed=True)
                if name:
                    self._found(state, _Match("leak.prompt", start, end, f"{name}, near verbatim", share))
                elif (
                    sum(token.weight for token in tokens) >= _MIN_MEANING_WORDS
                    and not state.redacted(start, end)
                    and not _DATA.fullmatch(state.slice(start, end))
                ):
                    waiting.append((state, start, end))
        if waiting and self._closeness is not None and not self._blocked:
            scores = await self._closeness.leaks([state.slice(start, end) for state, start, end in waiting])
            for (state, start, end), score in zip(waiting, scores, strict=True):
                if score is None:
                    continue
                await self._read_user_texts()
                if not self._protection.typed_by_user(state.slice(start, end)):
                    self._found(state, _Match("leak.prompt", start, end, "system prompt, by meaning", score))
        for state, spans in ended:
            if spans:
                state.judged = spans[-1][1]

    def _failed(self, state: Channel | None, error: Exception) -> None:
        self._unjudged = True
        if self._fails_closed:
            self._blocked = True
            if isinstance(error, UnavailableError):
                raise error
            raise GuardFailed("the reply could not be judged") from error
        for channel in self._channels.values() if state is None else (state,):
            channel.judged = channel.end if self._finished else max(channel.judged, channel.sentences.start)

    # ---- what follows

    def _found(self, state: Channel, match: _Match) -> None:
        start, end = match.start, match.end
        digest = self._digest(state.slice(start, end))
        finding = Finding(
            GUARD, match.category, match.score, self._action, state.name, start, end, digest, match.detail
        )
        previous = self._findings[-1] if self._findings else None
        if (
            previous is not None
            and (previous.pointer, previous.category, previous.detail) == (state.name, match.category, match.detail)
            and previous.start <= start <= previous.end
        ):
            # A run that goes on is one finding; its digest is that of the part that is still at hand.
            self._findings[-1] = msgspec.structs.replace(
                finding, start=previous.start, end=max(end, previous.end), score=max(match.score, previous.score)
            )
        elif len(self._findings) < _MAX_FINDINGS:
            self._findings.append(finding)
        if self._action == "block":
            self._blocked = True
        elif self._action == "redact":
            state.redact(start, end)

    def _clear(self, state: Channel) -> None:
        if self._blocked:
            return
        held = state.held()
        if self._by_sentence:
            held = min(held, state.judged)
        state.keep = held
        if self._buffers and not self._finished:
            return
        if self._action == "flag":
            held = state.end
        state.cleared = max(state.cleared, held)
        state.trim()
