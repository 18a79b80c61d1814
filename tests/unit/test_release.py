"""Events leave in order, whole, and only when all of their text is cleared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from service.api.chat_reply import ChatStream, ChatWire
from service.firewall.verdict import Finding, Verdict, decide
from service.interfaces import Piece
from service.release import Release

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
    assert "".join(release.texts["choices/0/content"]) == "word " * 10_000
