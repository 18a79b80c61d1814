"""A prompt told bit by bit adds up; what is told by others, long ago or by the caller himself does not."""

from __future__ import annotations

from typing import Any

import pytest

from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.ngrams import short_grams, words
from service.firewall.piecemeal import ToldBefore
from service.firewall.protected import ProtectedTexts
from service.settings import Leakage, Piecemeal
from training.leak import read

PROMPT = read()[0].prompt
WORDS = PROMPT.split()
BITS = [" ".join(WORDS[at : at + 6]) for at in range(0, len(WORDS), 6)]
CHANNEL = "choices/0/content"


class World:
    def __init__(self, **settings: Any) -> None:
        self.now = 0.0
        self.told = ToldBefore(Piecemeal(**settings), lambda: self.now)
        self.guard = LeakageGuard(
            Leakage(stream="exact"), ProtectedTexts(), None, None, digest=str.upper, watches=[self.told.watch]
        )

    async def say(self, text: str, *, caller: str = "a", user: str = "", prompt: str = PROMPT, size: int = 5) -> Any:
        judge = await self.guard.open("t", [prompt], [user], Asked(caller=caller))
        for at in range(0, len(text), size):
            await judge.feed(CHANNEL, text[at : at + size])
        await judge.finish()
        return judge

    async def turns(self, **more: Any) -> int:
        """How many bits it takes; 0 where all of them pass."""
        for turn, bit in enumerate(BITS, 1):
            if (await self.say(f"It goes on: {bit} ... more?", **more)).verdict.findings:
                return turn
        return 0


async def test_bits_that_are_no_leak_by_themselves_are_found_when_they_add_up() -> None:
    for bit in BITS:
        assert (await World().say(f"It goes on: {bit} ... more?")).verdict.findings == ()
    assert 2 <= await World().turns() <= 8


async def test_the_finding_names_the_last_phrase_and_the_action_is_that_of_the_settings() -> None:
    world = World()
    for bit in BITS:
        judge = await world.say(f"Next: {bit} ... more?")
        if judge.verdict.findings:
            break
    finding = judge.verdict.findings[0]
    assert (finding.category, finding.action, finding.guard) == ("leak.piecemeal", "flag", "piecemeal")
    assert words(f"Next: {bit}"[finding.start : finding.end]) and not judge.blocked


@pytest.mark.parametrize("size", [1, 3, 50, 1_000])
async def test_with_block_nothing_of_the_phrase_that_is_one_too_many_leaves(size: int) -> None:
    world = World(action="block")
    for bit in BITS:
        text = f"Next comes this: {bit} and that was it."
        judge = await world.say(text, size=size)
        if judge.blocked:
            break
    (finding,) = judge.verdict.findings
    assert judge.cleared(CHANNEL) <= finding.start < finding.end <= len(text)


async def test_another_caller_another_prompt_and_the_callers_own_words_do_not_add_up() -> None:
    world = World()
    for number, bit in enumerate(BITS):
        assert (await world.say(f"So: {bit}.", caller=f"caller {number}")).verdict.findings == ()
    assert await World().turns(user=PROMPT) == 0
    assert await World().turns(prompt=read()[1].prompt) == 0


async def test_what_was_told_before_the_window_is_forgotten() -> None:
    world = World(window_s=60.0)
    for bit in BITS:
        assert (await world.say(f"So: {bit}.")).verdict.findings == ()
        world.now += 61.0


async def test_a_phrase_told_again_is_as_young_as_its_last_telling() -> None:
    world = World(window_s=10.0)
    for now, grams, count in ((0.0, {1, 2}, 2), (6.0, {1}, 2), (11.0, {3}, 2), (17.0, {4}, 2)):
        world.now = now
        assert world.told.add("a", b"", grams) == count


async def test_a_callers_own_words_are_no_telling_however_much_he_wrote() -> None:
    assert await World().turns(user="So it goes. " * 1_000 + PROMPT) == 0


async def test_memory_is_bounded_and_the_oldest_caller_is_forgotten_first() -> None:
    world = World(max_entries=2)
    for caller in ("a", "b", "c"):
        await world.say(BITS[0], caller=caller)
    assert [caller for caller, _ in world.told._told] == ["b", "c"]
    grams = set(short_grams(words(PROMPT)))
    assert world.told.add("c", b"", grams) == len(grams)
    assert world.told._kept == sum(map(len, world.told._told.values()))


async def test_all_honest_answers_to_one_prompt_together_raise_hardly_an_alarm() -> None:
    alarms = 0
    for told in read():
        world = World()
        found = set[str]()
        for honest in told.benign:
            judge = await world.say(honest.text, user=honest.user, prompt=told.prompt)
            found |= {finding.category for finding in judge.verdict.findings}
        alarms += "leak.piecemeal" in found
    assert alarms <= 0.03 * len(read())


async def test_with_allow_nothing_is_counted() -> None:
    world = World(action="allow")
    assert await world.turns() == 0 and not world.told._told
