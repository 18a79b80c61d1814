"""What several watchers see of one reply, put on record and taken out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.firewall.asked import CallPart
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedTexts
from service.firewall.verdict import Action
from service.firewall.watched import Sight, WatchedJudge
from service.settings import Leakage

CHANNEL = "choices/0/content"


class Script:
    """Sees what it is told to see, at the first text."""

    guard = "script"

    def __init__(self, *sights: Sight) -> None:
        self._sights = list(sights)

    def held(self, channel: str, end: int) -> int:
        return end

    async def called(self, parts: Sequence[CallPart]) -> list[Sight]:
        return []

    async def feed(self, channel: str, text: str) -> list[Sight]:
        seen, self._sights = self._sights, []
        return seen

    async def end(self, channel: str) -> list[Sight]:
        return []

    async def finish(self) -> list[Sight]:
        return []


def sight(action: Action, start: int, end: int, detail: str = "seen") -> Sight:
    return Sight("leak.piecemeal", action, CHANNEL, start, end, "text", detail)


async def judged(text: str, *sights: Sight) -> Any:
    guard = LeakageGuard(Leakage(stream="exact"), ProtectedTexts(), None, None, digest=str)
    judge = WatchedJudge(await guard.open("t", (), ()), [Script(*sights)], str, fails_closed=True)
    await judge.feed(CHANNEL, text)
    await judge.finish()
    return judge


async def test_what_stops_a_reply_is_on_record_however_much_was_found_before() -> None:
    judge = await judged(
        "x" * 500, *(sight("flag", at * 2, at * 2 + 1, str(at)) for at in range(200)), sight("block", 450, 460)
    )
    assert judge.blocked and judge.verdict.action == "block"
    assert judge.verdict.decisive.start == 450 and len(judge.verdict.findings) == 65


async def test_what_overlaps_is_taken_out_once() -> None:
    judge = await judged(
        "0123456789" * 3, *(sight("redact", at, at + 4) for at in (2, 3, 5, 20)), sight("redact", 12, 29)
    )
    assert judge.render(CHANNEL, 0, 7) == "01[redacted]"
    assert judge.render(CHANNEL, 7, 15) + judge.render(CHANNEL, 15, 30) == "901[redacted]9"
