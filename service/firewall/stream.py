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
from service.firewall import credential_readings
from service.firewall.argument_values import ValuePart
from service.firewall.asked import CallPart
from service.firewall.channel import Channel, values_in
from service.firewall.credential_readings import CredentialReadings
from service.firewall.exfiltration import ACTS, REPORTED, Conversation, ExfiltrationScanner, Hosts, Seen, weigh
from service.firewall.ngrams import Token
from service.firewall.owners import concerned
from service.firewall.pattern_index import IndexTracker
from service.firewall.patterns import MIN_PATTERN, Form, PatternTracker, project
from service.firewall.protected import RequestProtection
from service.firewall.readings import Sighting, projections
from service.firewall.split_secrets import SplitSecrets
from service.firewall.verdict import Action, Category, Finding, Verdict, decide, is_new_kind
from service.settings import Leakage

GUARD = "leakage"
_CATEGORIES: dict[str, Category] = {"secret": "leak.secret", "prompt": "leak.prompt", "canary": "leak.canary"}
# Findings kept of one reply, beside the first of each kind: a secret repeated a thousand times is told by these.
_MAX_FINDINGS = 64
# Sentences with fewer words than this say too little to be compared by meaning.
_MIN_MEANING_WORDS = 4.0
# A sentence of nothing but these is an image or the like: it has no meaning, and an encoder would take minutes for it.
_DATA = re.compile(r"[A-Za-z0-9+/=]{200,}")
# A whole reply is read in strides of some milliseconds, and others get their turn in between.
_STRIDE = 8_192
# Longer user texts are folded in a thread, so that the event loop goes on.
_INLINE_CHARS = 4_000
# Of the end of a whole text so much is looked at for a secret's beginning.
_PIECE_CHARS = 4_096
# Nothing that a disguise is spelled with, so that texts side by side do not make one.
_BETWEEN = "\n|\n"
_MAY_BE_ADDRESS = re.compile(r"[:/\\][/\\]|www\.|(?:https?|wss?|ftp|mailto):|&[#a-z]|[^\x00-\x7f]", re.IGNORECASE)


class _Match(msgspec.Struct, frozen=True):
    """What must not leave at [start, end) of a channel. With `weak` it is only put on record; `words` are a
    prompt's.
    """

    category: Category
    start: int
    end: int
    detail: str
    score: float = 1.0
    weak: bool = False
    words: bool = False


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
    text is cleared as it is fed. Protected texts, credentials and addresses each have their action. `feed` and `finish`
    raise UnavailableError where the guard cannot judge and its `on_error` is "block"; the judge is blocked then as
    well, and its verdict names the guard in `unjudged`.

    Only text that is not rendered yet, or may still be part of a match, is kept: `render` is to be called with
    ascending ranges that do not overlap, each at most once.
    """

    def __init__(
        self,
        protection: RequestProtection,
        settings: Leakage,
        digest: Callable[[str], str],
        closeness: Closeness | None = None,
        canary: Action = "block",
        split: SplitSecrets | None = None,
    ) -> None:
        self._protection = protection
        self._split = split or SplitSecrets()
        self._actions: dict[Category, Action] = {
            "leak.secret": settings.action,
            "leak.prompt": settings.action,
            "leak.canary": canary,
            "leak.credential": settings.credentials,
            "leak.exfiltration": settings.exfiltration,
            "cross_tenant": "block",  # whatever one tenant's policy says: the text is another's
        }
        self._hosts = Hosts(settings.allowed_hosts)
        self._conversation = Conversation(protection.prompts, protection.user_texts, protection.results)
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

    async def called(self, parts: Sequence[CallPart]) -> None:
        """Parts of tool calls: their texts come in channels, and that they are calls is for others to judge."""

    async def feed(self, channel: str, text: str, *, last: bool = False) -> None:
        """Judge the next text of a channel. Raises UnavailableError where it cannot and fails closed.

        `last`: the channel ends with it; its sentences wait for `finish`, where those of all channels go together.
        """
        if self._finished:
            raise RuntimeError("text after the end of the reply")
        if self._blocked or not text:
            return
        state = self._channel(channel)
        if state.ended:
            raise RuntimeError("text after the end of its channel")
        await self._read(state, text, last=last)

    async def end(self, channel: str) -> None:
        """The channel gets no more text: judge what was held of it, then clear it. Raises as `feed` does."""
        state = self._channels.get(channel)
        if state is None or state.ended or self._blocked or self._finished:
            return
        try:
            await self._judge(state, self._end(state))
            await self._judge_scanned(state, self._scan(state, None))
            await self._judge_sentences([(state, state.sentences.pop())])
        except Exception as error:
            self._failed(state, error)
        self._clear(state)

    async def _read(self, state: Channel, text: str, *, last: bool) -> None:
        if last and not state.end and not self._by_sentence and self._clean(text) and self._tells_none(state, text):
            state.append(text)
            state.ended = True
            self._clear(state)
            return
        for start in range(0, len(text), _STRIDE):
            if start:
                await asyncio.sleep(0)
            part = text[start : start + _STRIDE]
            try:
                found, seen = self._take(state, part), self._scan(state, part)
                if last and start + _STRIDE >= len(text):
                    found += self._end(state)
                    seen += self._scan(state, None)
                await self._judge(state, found)
                await self._judge_scanned(state, seen)
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
        is_argument = "/input/" in channel
        if not is_argument:
            if len(text) < MIN_PATTERN and text.isascii():
                return text
            if self._protection.clears(text, by_meaning=self._by_sentence) and not self._suspects(text):
                return text
            if self.clears((text,)):
                return text
        state = self._open(channel)
        if not is_argument:  # ids and names tell no piece of a secret
            state.is_text, state.values = False, None
        await self._read(state, text, last=True)
        if not self._blocked:
            try:
                await self._judge_sentences([(state, state.sentences.pop())])
            except Exception as error:
                self._failed(state, error)
        return "" if self._blocked else "".join(state.pieces(0, state.end))

    def clears(self, texts: Sequence[str]) -> bool:
        """Whether texts that are complete in themselves surely hold nothing, all looked at as one. In doubt False."""
        return not self._blocked and not self._by_sentence and self._clean(_BETWEEN.join(texts))

    async def finish(self) -> None:
        """The reply has ended: judge what was held, then clear it. Raises as `feed` does."""
        if self._finished:
            return
        self._finished = True
        if self._blocked:
            return
        self._split.finish()
        try:
            for state in self._channels.values():
                if not state.ended:
                    await self._judge(state, self._end(state))
                    await self._judge_scanned(state, self._scan(state, None))
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

    def doubt(self) -> None:
        """Not all that the reply should be compared with is known: the verdict says that it was not judged."""
        self._unjudged = True

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
            state = self._channels[name] = self._open(name)
        return state

    def _open(self, name: str) -> Channel:
        credential = CredentialReadings() if self._actions["leak.credential"] != "allow" else None
        addresses = ExfiltrationScanner(self._hosts) if self._actions["leak.exfiltration"] != "allow" else None

        def heard(
            form: Form, letters: str, offsets: list[int], trackers: Sequence[PatternTracker | IndexTracker]
        ) -> list[Sighting]:
            # Of arguments each value is a text of its own.
            if not state.is_text or state.values is not None:
                return []
            return self._pieces(state, name, form, letters, offsets, trackers)

        state = Channel(name, self._protection, self._by_sentence, credential, addresses, heard)
        return state

    def _suspects(self, text: str) -> bool:
        """Whether a whole value needs to be looked at for credentials and addresses."""
        return (self._actions["leak.credential"] != "allow" and credential_readings.may_hold(text)) or (
            self._actions["leak.exfiltration"] != "allow" and _MAY_BE_ADDRESS.search(text) is not None
        )

    def _clean(self, text: str) -> bool:
        """Whether a whole text that nothing is compared with by its meaning surely holds nothing."""
        return len(text) <= _STRIDE and self._protection.clears_text(text) and not self._suspects(text)

    def _take(self, state: Channel, text: str) -> list[_Match]:
        start = state.end
        state.append(text)
        found = state.patterns.feed(text, start)
        if state.values is not None:
            found += self._take_values(state, state.values.feed(text, start))
        if state.words is not None:
            found += self._take_words(state, state.words.feed(text, start))
        if state.encoded is not None:
            found += [(owners, "encoded", first, last) for owners, first, last in state.encoded.feed(text, start)]
        if self._by_sentence:
            state.sentences.feed(text)
        return self._told(found)

    def _take_values(self, state: Channel, parts: Sequence[ValuePart]) -> list[Sighting]:
        """The values among a call's arguments, each as a text of its own."""
        found: list[Sighting] = []
        for part in parts:
            if part.begins:
                state.value, state.value_number = projections(self._protection.patterns), state.value_number + 1
            name = f"{state.name}\0{state.value_number}"
            for projector, trackers in state.value:
                letters, places = projector.feed(part.text, 0)
                if not letters:
                    continue
                offsets, ends = [part.edges[at] for at in places], [part.edges[at + 1] for at in places]
                for tracker in trackers:
                    tracker.feed(letters, offsets)  # what stands in it is found in the whole as well
                found += self._pieces(state, name, projector.form, letters, offsets, trackers, ends)
            if part.ends:
                state.going_on.clear()
        return found

    def _pieces(
        self,
        state: Channel,
        text: str,
        form: Form,
        letters: str,
        offsets: list[int],
        trackers: Sequence[PatternTracker | IndexTracker],
        ends: list[int] | None = None,
    ) -> list[Sighting]:
        """What is complete with the next letters of a text, and where it goes on with what others began. `offsets` are
        those of the letters, `ends` those behind them.
        """
        begun = [each for tracker in trackers for each in tracker.begun()]
        seen, live = self._split.take(text, form, letters, begun)
        size = len(letters)
        found: list[Sighting] = []
        for owners, start, end in seen:
            # What began before these letters was held from there.
            held = [at for at in (*state.going_on.values(), *(each.held for each in trackers)) if at is not None]
            first = offsets[size + start] if size + start >= 0 else min(offsets[0], *held)
            last = max(size + end, 1) - 1
            found.append((owners, "in pieces", first, ends[last] if ends else offsets[last] + 1))
        if live:
            state.going_on[form] = offsets[size - live] if live <= size else state.going_on.get(form, offsets[0])
        else:
            state.going_on.pop(form, None)
        return found

    def _tells_none(self, state: Channel, text: str) -> bool:
        """Whether a whole text that holds no secret surely tells no piece of one. What it says is kept for others."""
        if not state.is_text or not self._protection.patterns:
            return True
        texts = {state.name: text}
        if (values := values_in(state.name)) is not None:
            texts = {f"{state.name}\0{at}": part.text for at, part in enumerate(values.feed(text, 0), 1)}
        told: list[tuple[str, Form, str]] = []
        for name, value in texts.items():
            for projector, trackers in projections(self._protection.patterns):
                letters = project(value, projector.form)
                last = letters[-_PIECE_CHARS:]
                for tracker in trackers:
                    tracker.feed(last, list(range(len(last))))
                    if not self._split.passes(projector.form, tracker.begun()):
                        return False
                told.append((name, projector.form, letters))
        for each in told:
            self._split.keep(*each)
        return True

    def _end(self, state: Channel) -> list[_Match]:
        found = state.patterns.finish()
        if state.words is not None:
            found += self._take_words(state, state.words.finish())
        if state.encoded is not None:
            found += [(owners, "encoded", first, last) for owners, first, last in state.encoded.finish()]
        if self._by_sentence:
            state.sentences.finish()
        state.ended = True
        return self._told(found)

    def _take_words(self, state: Channel, tokens: list[Token]) -> list[Sighting]:
        if self._by_sentence:
            state.tokens += tokens
        return [(owners, "verbatim", first, last) for runs in state.runs for owners, first, last in runs.feed(tokens)]

    def _told(self, found: list[Sighting]) -> list[_Match]:
        """As matches. What is also this tenant's own, or everyone's, is no other's."""
        matches: list[_Match] = []
        others: list[_Match] = []
        for owners, how, start, end in found:
            owner = concerned(owners, self._protection.tenant)
            told = owner or owners[0]
            detail = f"{told.name}, {how or told.disguise}"
            if owner is None:
                others.append(
                    _Match("cross_tenant", start, end, f"{told.tenant}: {detail}", words=told.kind == "prompt")
                )
            else:
                matches.append(_Match(_CATEGORIES[told.kind], start, end, detail))
        own = [(match.start, match.end) for match in matches]
        return matches + [m for m in others if not any(m.start < end and start < m.end for start, end in own)]

    def _scan(self, state: Channel, text: str | None) -> list[_Match | Seen]:
        """What stands in the text that was just taken, or, with None, at the end of the channel."""
        found: list[_Match | Seen] = []
        if state.credentials is not None:
            scanner = state.credentials
            sights = scanner.finish() if text is None else scanner.feed(text, state.end - len(text))
            found += [_Match("leak.credential", at.start, at.end, at.name, at.score) for at in sights]
        if state.exfiltration is not None:
            addresses = state.exfiltration
            found += addresses.finish() if text is None else addresses.feed(text, state.end - len(text))
        return found

    async def _judge_scanned(self, state: Channel, found: list[_Match | Seen]) -> None:
        for item in found:
            match = await self._weigh(state, item) if isinstance(item, Seen) else item
            if match is None:
                continue
            # What the caller typed tells him nothing; of a match that was found already, nothing more leaves.
            begun = state.redacted(match.start, match.start + 1)
            if begun or not self._typed(state.slice(match.start, match.end)):
                self._found(state, match)

    async def _weigh(self, state: Channel, seen: Seen) -> _Match | None:
        if seen.kind != "hidden" and not seen.text:  # more of an address
            return _Match("leak.exfiltration", seen.start, seen.end, "very long address") if state.carrying else None
        if seen.kind != "hidden" and self._conversation.size > _INLINE_CHARS:
            await asyncio.to_thread(lambda: self._conversation.grams)
        score, detail = weigh(seen, self._conversation)
        state.carrying = score >= ACTS
        if score < REPORTED:
            return None
        return _Match("leak.exfiltration", seen.start, seen.end, detail, score, weak=score < ACTS)

    def _typed(self, text: str) -> bool:
        return any(text in typed for typed in self._protection.user_texts)

    async def _judge(self, state: Channel, found: list[_Match]) -> None:
        for match in found:
            # Words that the user wrote tell him nothing; of whole secrets that does not hold.
            if match.category == "leak.prompt" or match.words:
                await self._read_user_texts()
                if self._protection.typed_by_user(state.slice(match.start, match.end)):
                    continue
            self._found(state, match)

    async def _read_user_texts(self) -> None:
        """Fold what the user wrote, in a thread where that is long."""
        if not self._user_texts_read:
            if sum(map(len, self._protection.supplied)) > _INLINE_CHARS:
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
        action: Action = "flag" if match.weak else self._actions[match.category]
        finding = Finding(GUARD, match.category, match.score, action, state.name, start, end, digest, match.detail)
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
        elif len(self._findings) < _MAX_FINDINGS or is_new_kind(finding, self._findings):
            self._findings.append(finding)
        if action == "block":
            self._blocked = True
        elif action == "redact":
            state.redact(start, end)

    def _clear(self, state: Channel) -> None:
        if self._blocked:
            return
        held = state.held()
        if self._by_sentence:
            held = min(held, state.judged)
        state.keep = held
        if self._actions["leak.secret"] == "flag" and not (self._protection.guards_others or self._protection.marked):
            held = state.end
        scanners: list[tuple[Category, CredentialReadings | ExfiltrationScanner | None]] = [
            ("leak.credential", state.credentials),
            ("leak.exfiltration", state.exfiltration),
        ]
        for category, scanner in scanners:
            if scanner is not None and scanner.held is not None:
                state.keep = min(state.keep, scanner.held)
                if self._actions[category] in ("block", "redact"):
                    held = min(held, scanner.held)
        if self._buffers and not self._finished:
            return
        state.cleared = max(state.cleared, held)
        state.trim()
