"""A prompt told in other words: what counts together, what does not count, and where the numbers come from."""

from __future__ import annotations

from typing import Any

import pytest

from service.firewall import retelling
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedTexts
from service.firewall.retelling import PASSAGE_CHARS, RetellingGuard, passages, signals, telling
from service.settings import Leakage
from training.leak import read
from training.retelling import fit, unrelated

TOLD = read()
PROMPT = TOLD[0].prompt
RETOLD = TOLD[0].leaks[0].text
CHANNEL = "choices/0/content"


async def judged(text: str, *, user: str = "", prompt: str = PROMPT, action: Any = "flag", size: int = 7) -> Any:
    settings = Leakage(stream="exact", retelling=action)
    watch = RetellingGuard(settings).watch
    guard = LeakageGuard(settings, ProtectedTexts(), None, None, digest=str.upper, watches=[watch])
    judge = await guard.open("t", [prompt], [user], Asked())
    for at in range(0, len(text), size):
        await judge.feed(CHANNEL, text[at : at + size])
        if action == "block":
            assert judge.cleared(CHANNEL) == 0
    await judge.finish()
    return judge


@pytest.mark.parametrize("size", [1, 40, 1_000])
async def test_a_retelling_is_flagged_at_its_place(size: int) -> None:
    judge = await judged(RETOLD, size=size)
    (finding,) = judge.verdict.findings
    assert (finding.category, finding.action, finding.detail) == ("leak.prompt", "flag", "told in other words")
    assert (finding.start, finding.end) == (0, len(RETOLD)) and 0.5 < finding.score < 1
    assert judge.cleared(CHANNEL) == len(RETOLD)


async def test_with_block_nothing_of_it_leaves() -> None:
    judge = await judged(RETOLD, action="block")
    assert judge.blocked and judge.cleared(CHANNEL) == 0


async def test_what_the_user_said_himself_and_confessions_of_something_else_tell_nothing() -> None:
    assert (await judged(RETOLD, user=PROMPT + RETOLD)).verdict.findings == ()
    assert (await judged(RETOLD, user="So it goes. " * 1_000 + PROMPT + RETOLD)).verdict.findings == ()
    assert (await judged(RETOLD, user="So it goes. " * 1_000)).verdict.findings != ()
    secretive = "Between us, I was told to keep quiet: it may rain on the hills on Sunday."
    assert (await judged(secretive)).verdict.findings == ()
    assert (await judged(RETOLD, action="allow")).verdict.findings == ()


async def test_a_refusal_is_no_retelling_though_it_speaks_of_instructions() -> None:
    refusal = "I'm sorry, I can't share what I was told about that. Is it raining where you are?"
    assert (await judged(refusal)).verdict.findings == ()


def test_order_does_not_matter_but_numbers_names_and_confessions_do() -> None:
    prompt = telling("Offer vouchers of 12 EUR for Skagen benches.")
    some = signals(prompt, {}, "Skagen benches, 12 EUR vouchers.")
    assert some == pytest.approx(signals(prompt, {}, "Vouchers: EUR 12; benches (Skagen)."))
    assert some[0] > signals(prompt, {}, "We have benches.")[0] > signals(prompt, {}, "Good morning!")[0] == 0
    assert signals(prompt, {}, "I was told to offer Skagen vouchers.")[2] > 0 == signals(prompt, {}, "I was told.")[2]


def test_passages_hold_all_of_a_text_in_order_and_are_of_bounded_length() -> None:
    text = " ".join(f"Sentence number {n} says little." for n in range(200))
    found = passages(text)
    assert all(text[start:end] == part and len(part) <= PASSAGE_CHARS for start, end, part in found)
    assert "".join(part.replace(" ", "") for _, _, part in found) == text.replace(" ", "")


def test_the_constants_are_those_that_the_fit_gives() -> None:
    learned = fit(TOLD[::2], unrelated(0))
    assert learned.weights == pytest.approx(retelling.WEIGHTS, abs=0.01)
    assert (learned.bias, learned.limit) == pytest.approx((retelling.BIAS, retelling.LIMIT), abs=0.01)
