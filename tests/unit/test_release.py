"""Events leave in order, whole, and only when all of their text is cleared."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from service.api.chat_reply import ChatStream, ChatWire
from service.api.responses_reply import ResponsesWire
from service.errors import GuardFailed
from service.firewall import patterns
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.firewall.verdict import Finding, Verdict, decide
from service.interfaces import Piece
from service.release import Release
from service.settings import Leakage

SECRET = "hunter2-correct-horse"


class Judge:
    """Clears what `flows` says of a channel's text so far; redacts the secret if asked to."""

    def __init__(self, flows: Callable[[str], int]) -> None:
        self.verdict = Verdict()
        self.flows = flows
        self.texts: dict[str, str] = {}
        self.fed: list[int] = []
        self.finished = self.blocked = False
        self.render: Callable[[str, int, int], str] = lambda channel, start, end: self.texts[channel][start:end]

    async def called(self, parts: object) -> None:
        pass

    async def feed(self, channel: str, text: str, *, last: bool = False) -> None:
        self.fed.append(len(text))
        self.texts[channel] = self.texts.get(channel, "") + text

    async def finish(self) -> None:
        self.finished = True

    def clears(self, texts: Sequence[str]) -> bool:
        return False

    async def whole(self, channel: str, text: str) -> str:
        return text

    def cleared(self, channel: str) -> int:
        text = self.texts[channel]
        return len(text) if self.finished else self.flows(text)


def held_back(text: str) -> int:
    return next(i for i in range(len(text) + 1) if SECRET.startswith(text[i:]) or i == len(text))


def pieces(*texts: str, reason: str | None = None) -> list[Piece]:
    reader = ChatStream()
    out = []
    for text in texts:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        out += reader.feed(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
    return out


@pytest.mark.parametrize("cut", range(1, len(SECRET)))
async def test_no_event_leaves_that_may_begin_a_match(cut: int) -> None:
    judge = Judge(held_back)
    release = Release(judge, ChatWire())
    harmless, first, second = pieces("it is ", SECRET[:cut], SECRET[cut:])
    await release.take(harmless)
    assert release.cleared() == harmless.raw
    await release.take(first)
    assert release.cleared() == b""
    await release.take(second)
    judge.blocked = True
    assert release.cleared() == b""


async def test_an_event_held_back_leaves_once_it_is_no_match_after_all() -> None:
    release = Release(Judge(held_back), ChatWire())
    first, second = pieces("hunter", " and gatherer ")
    await release.take(first)
    assert release.cleared() == b""
    await release.take(second)
    assert release.cleared() == first.raw + second.raw


async def test_a_finish_reason_waits_for_the_whole_verdict_and_holds_what_follows() -> None:
    release = Release(Judge(len), ChatWire())
    (last,) = pieces("", reason="stop")
    (after,) = pieces("late")
    await release.take(last)
    await release.take(after)
    assert release.cleared() == b""
    await release.finish()
    assert release.cleared() == last.raw + after.raw


async def test_a_redaction_over_several_events_keeps_each_of_them_valid() -> None:
    judge = Judge(len)
    judge.render = lambda channel, start, end: {0: "it is ", 6: "[redacted]", 11: "!"}[start]
    release = Release(judge, ChatWire())
    first, *others = pieces("it is ", "hunte", "r2!")
    for piece in [first, *others]:
        await release.take(piece)
    events = release.cleared().split(b"\n\n")[:-1]
    assert events[0] + b"\n\n" == first.raw
    texts = [json.loads(event[6:])["choices"][0]["delta"]["content"] for event in events]
    assert texts == ["it is ", "[redacted]", "!"]


async def test_a_redaction_that_cannot_be_written_is_a_block() -> None:
    finding = Finding("leakage", "leak.secret", 1.0, "redact")
    judge = Judge(len)
    judge.verdict = decide([finding])
    judge.render = lambda channel, start, end: "[redacted]" if channel.endswith("#unescaped") else "\\u0068"
    release = Release(judge, ChatWire())
    delta = {"tool_calls": [{"index": 0, "function": {"arguments": "\\u0068"}}]}
    event = json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()
    (piece,) = ChatStream().feed(b"data: " + event + b"\n\n")
    await release.take(piece)
    assert release.cleared() == b""
    assert release.blocked
    assert release.verdict.action == "block"


async def test_a_long_text_is_judged_in_slices_and_leaves_whole() -> None:
    judge = Judge(len)
    release = Release(judge, ChatWire())
    (piece,) = pieces("word " * 10_000)
    await release.take(piece)
    assert max(judge.fed) <= 4_096
    assert release.cleared() == piece.raw


KEPT_BYTES = 262_144


def kept_bytes(value: Any, seen: set[int]) -> int:
    """The size of a value and of what hangs on it, each counted once."""
    if id(value) in seen or isinstance(value, type) or callable(value):
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(kept_bytes(each, seen) for pair in value.items() for each in pair)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return size + sum(kept_bytes(each, seen) for each in value)
    if isinstance(value, msgspec.Struct):
        return size + sum(kept_bytes(getattr(value, name), seen) for name in value.__struct_fields__)
    return size + kept_bytes(getattr(value, "__dict__", None), seen)


class Passing(Judge):
    """Lets everything go, and keeps nothing but where each channel ends."""

    def __init__(self) -> None:
        super().__init__(len)
        self.ends: dict[str, int] = {}

    async def feed(self, channel: str, text: str, *, last: bool = False) -> None:
        self.ends[channel] = self.ends.get(channel, 0) + len(text)

    def cleared(self, channel: str) -> int:
        return self.ends[channel]


async def test_of_a_long_stream_little_is_kept_and_all_of_it_is_counted() -> None:
    counted: list[int] = []

    async def count(texts: Sequence[str]) -> int:
        counted.append(sum(map(len, texts)))
        return counted[-1]

    judge, wire = Passing(), ChatWire()
    release, reader = Release(judge, wire, count=count), wire.open_stream()
    kept, sent, text = 0, 0, "word " * 3_300
    judge.render = lambda channel, start, end: text
    for number in range(1_300):
        choice = {"index": number % 2, "delta": {"content": text}}
        event = b"data: " + json.dumps({"id": f"chat-{number}", "choices": [choice]}).encode() + b"\n\n"
        for piece in reader.feed(event):
            await release.take(piece)
        sent += len(release.cleared())
        if number % 50 == 0:
            kept = max(kept, kept_bytes(vars(release), {id(judge), id(wire)}))
    assert sent > 20_000_000 and kept < KEPT_BYTES
    left = sum(len(part) for parts in release.texts.values() for part in parts)
    assert release.tokens + left == 1_300 * len(text) and max(counted) < KEPT_BYTES


async def test_of_small_events_and_their_judge_little_is_kept() -> None:
    protection = ProtectedTexts([ProtectedText("vault", "secret", "", SECRET)]).for_request("t")
    judge = ReplyJudge(protection, Leakage(stream="exact"), lambda text: "digest")
    release, reader, wire = Release(judge, ChatWire()), ChatWire().open_stream(), ChatWire()
    known = {id(each) for each in (wire, protection, *protection.patterns, *patterns._TABLES.values())}
    before = kept_bytes(vars(release), set(known))
    for number in range(8_000):
        choice = {"index": number % 8, "delta": {"content": f"word{number} "}}
        for piece in reader.feed(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"):
            await release.take(piece)
        release.cleared()
    assert kept_bytes(vars(release), set(known)) - before < KEPT_BYTES


async def test_a_stream_that_holds_back_too_much_is_given_up_and_nothing_of_it_leaves() -> None:
    release = Release(Judge(lambda text: 0), ChatWire(), max_held_bytes=5_000)
    with pytest.raises(GuardFailed, match="holds back more"):
        for piece in pieces(*["held " * 20] * 100):
            await release.take(piece)
            assert release.cleared() == b""
    assert 5_000 < release._held_bytes < 6_000


async def test_what_is_said_again_is_sent_as_it_was_sent() -> None:
    protection = ProtectedTexts([ProtectedText("vault", "secret", "", SECRET)]).for_request("t")
    judge = ReplyJudge(protection, Leakage(stream="exact", action="redact"), lambda text: "digest")
    release, reader = Release(judge, ResponsesWire()), ResponsesWire().open_stream()
    said = f"It is {SECRET}, and again {SECRET}!"
    events: list[dict[str, Any]] = [
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": said[at : at + 5]}
        for at in range(0, len(said), 5)
    ]
    events.append({"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": said})
    out = b""
    for event in events:
        for piece in reader.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()):
            await release.take(piece)
        out += release.cleared()
    await release.finish()
    out += release.cleared()
    sent = [json.loads(event.partition(b"data: ")[2]) for event in out.split(b"\n\n")[:-1]]
    deltas = "".join(event["delta"] for event in sent[:-1])
    assert sent[-1]["text"] == deltas == "It is [redacted], and again [redacted]!"
