"""A prompt told in other words: what counts together, what does not count, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from service.firewall import retelling
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedTexts
from service.firewall.retelling import PASSAGE_CHARS, RetellingGuard, passages, signals, telling
from service.firewall.watched import Opening
from service.scoring.artifact import Retelling
from service.settings import Leakage
from training.leak import read
from training.retelling import fit, learn, unrelated

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


class Encoder:
    """Reads one thing in a text: whether it says "told". Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.asked += texts
        said = np.array(["told" in text for text in texts], np.float32)
        return np.column_stack([said, 1 - said])

    async def embed(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
        return self.vectors(texts), np.arange(len(texts))


async def flagged(encoder: Encoder, reply: str, *, user: str = "") -> bool:
    learned = Retelling(tone=(1.0, 0.0), tone_bias=0.5, weights=(0.0, 0.0, 0.0, 0.0, 1.0), limit=1.0)
    guard = RetellingGuard(Leakage(retelling="flag"), encoder.embed, learned)
    watcher = guard.watch(Opening("t", Asked(), (PROMPT,), (user,), (PROMPT,)))
    assert watcher is not None
    await watcher.feed(CHANNEL, reply)
    return bool(await watcher.finish())


async def test_with_an_encoder_the_tone_decides_of_what_says_something_of_the_prompt() -> None:
    encoder = Encoder()
    assert await flagged(encoder, "I was told of vouchers of 12 EUR for furniture.")
    assert not await flagged(encoder, "We have vouchers of 12 EUR for furniture.")
    assert len(encoder.asked) == 2


async def test_what_says_nothing_of_the_prompt_or_only_what_the_user_said_is_not_encoded() -> None:
    encoder = Encoder()
    assert not await flagged(encoder, "I was told that it rains.")
    assert not await flagged(encoder, "I was told of vouchers of 12 EUR.", user="Vouchers of 12 EUR?")
    assert encoder.asked == []


def test_the_tone_is_learned_on_every_other_prompt_and_told_of_the_rest() -> None:
    some = TOLD[40:60]
    learned, figures = learn(Encoder().vectors, some)
    assert len(learned.tone) == 2 and learned.tone[0] > learned.tone[1] and len(learned.weights) == 5
    assert (figures["prompts_learned"], figures["prompts_reported"]) == (10, 10)
    assert figures["false_alarms"]["total"] == sum(len(one.benign) for one in some[1::2])
    assert figures["recall_verbatim"]["hits"] > 0
