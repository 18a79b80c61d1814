"""What several watchers see of one reply, put on record and taken out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.firewall.asked import Asked, CallPart
from service.firewall.leakage import LeakageGuard
from service.firewall.piecemeal import ToldBefore
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.retelling import RetellingGuard
from service.firewall.verdict import Action
from service.firewall.watched import Sight, WatchedJudge
from service.settings import Leakage, Piecemeal
from training.leak import read

CHANNEL = "choices/0/content"


class Script:
    """Sees what it is told to see, at the first text."""

    guard = "script"

    def __init__(self, *sights: Sight) -> None:
        self._sights = list(sights)

    def held(self, channel: str, end: int) -> int:
        return end

    def clears(self, channel: str, spelled: Sequence[str]) -> bool:
        return False

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


async def test_a_whole_reply_gets_the_verdict_that_it_gets_in_pieces() -> None:
    settings = Leakage(stream="exact")
    found = []
    for told in read()[:12]:
        for reply in (*told.leaks, *told.benign):
            verdicts = []
            for cut in (len(reply.text), len(reply.text) // 2):
                watches = [RetellingGuard(settings).watch, ToldBefore(Piecemeal(share=0.02)).watch]
                guard = LeakageGuard(settings, ProtectedTexts(), None, None, digest=str, watches=watches)
                judge = await guard.open("t", [told.prompt], [getattr(reply, "user", "")], Asked(caller="a"))
                await judge.feed(CHANNEL, reply.text[:cut], last=cut == len(reply.text))
                await judge.feed(CHANNEL, reply.text[cut:], last=True)
                await judge.finish()
                kinds = {(one.guard, one.category, one.detail) for one in judge.verdict.findings}
                # One that blocks ends the judging, and what it had not come to is not seen.
                verdicts.append("block" if judge.blocked else kinds)
            assert verdicts[0] == verdicts[1]
            found.append(bool(verdicts[0]))
    assert any(found) and not all(found)


async def test_a_reply_whose_ids_hold_a_secret_is_not_cleared_at_a_glance() -> None:
    protected = ProtectedTexts([ProtectedText("vault", "secret", "", "hunter2-correct-horse")])
    judge = WatchedJudge(
        await LeakageGuard(Leakage(stream="exact"), protected, None, None, digest=str).open("t", (), ()),
        (),
        str,
        fails_closed=True,
    )
    assert judge.clears(["chatcmpl-1", "gpt-4o", "sandbox: rules, not a model"])
    assert not judge.clears(["chatcmpl-1", "HUNTER2 correct_horse", "gpt-4o"])
    assert not judge.clears(["gpt-4o", "see https://collect.example/?q=1"])
    assert await judge.whole("id", "hunter2-correct-horse") == "" and not judge.clears(["gpt-4o"])
