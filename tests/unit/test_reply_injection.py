"""What of a reply is scored before it leaves, and what follows for the rest."""

from __future__ import annotations

from typing import Any

import pytest

from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedTexts
from service.firewall.reply_injection import ReplyInjectionGuard
from service.firewall.text_score import TextScore
from service.settings import Leakage, ReplyInjection

SENTENCES = [f"Boat {number} lies in the harbour of the town and waits. " for number in range(100, 140)]
CHANNEL = "choices/0/content"


async def told(text: str, action: Any, *, buffers: bool, size: int) -> tuple[Any, int, str]:
    """The judge, how much of the text was cleared, and what was scored."""
    scored = ""

    async def score(part: str) -> TextScore:
        nonlocal scored
        scored += part
        return TextScore(0.0, -9.0, "injection", 0, 0, "main", 1, 0.0, {})

    watch = ReplyInjectionGuard(
        ReplyInjection(enabled=True, action=action, max_windows=4), score, 0.5, buffers=buffers
    ).watch
    guard = LeakageGuard(Leakage(stream="exact"), ProtectedTexts(), None, None, digest=str, watches=[watch])
    judge = await guard.open("t", [], [], Asked())
    cleared = 0
    for at in range(0, len(text), size):
        await judge.feed(CHANNEL, text[at : at + size])
        cleared = max(cleared, judge.cleared(CHANNEL))
    await judge.finish()
    return judge, max(cleared, judge.cleared(CHANNEL)), scored


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("size", [7, 900, 100_000])
async def test_where_it_blocks_nothing_leaves_that_is_not_scored(buffers: bool, size: int) -> None:
    text = "".join(SENTENCES)
    judge, cleared, scored = await told(text, "block", buffers=buffers, size=size)
    assert judge.blocked and cleared <= 1_600
    assert all(sentence in scored for sentence in SENTENCES if text.index(sentence) + len(sentence) <= cleared)
    (finding,) = judge.verdict.findings
    assert (finding.category, finding.action) == ("oversize", "block")
    assert finding.detail == "longer than reply_injection.max_windows: the rest is not scored"


async def test_where_it_flags_the_rest_leaves_and_is_on_record() -> None:
    judge, cleared, _ = await told("".join(SENTENCES), "flag", buffers=False, size=900)
    assert (judge.blocked, cleared) == (False, len("".join(SENTENCES)))
    assert [(f.category, f.action) for f in judge.verdict.findings] == [("oversize", "flag")]


async def test_a_text_that_fits_leaves_whole() -> None:
    judge, cleared, _ = await told("".join(SENTENCES[:20]), "block", buffers=False, size=7)
    assert (judge.blocked, cleared, judge.verdict.findings) == (False, len("".join(SENTENCES[:20])), ())
