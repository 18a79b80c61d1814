"""A prompt told bit by bit adds up; what is told by others, long ago or by the caller himself does not."""

from __future__ import annotations

from typing import Any

import pytest

from service.firewall import piecemeal
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

    async def say(
        self, text: str, *, user: str = "", prompt: str = PROMPT, size: int = 5, caller: str = "a", **asked: Any
    ) -> Any:
        judge = await self.guard.open("t", [prompt], [user], Asked(caller=caller, **asked))
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
    for now, grams, count in ((0.0, [1, 2], 2), (6.0, [1], 2), (11.0, [3], 2), (17.0, [4], 2)):
        world.now = now
        for gram in grams:
            world.told.add("a", "", 0, gram)
        assert world.told.count("a", "", frozenset(range(9)), new=False) == count


async def test_a_callers_own_words_are_no_telling_however_much_he_wrote() -> None:
    assert await World().turns(user="So it goes. " * 1_000 + PROMPT) == 0


async def test_text_of_a_document_that_the_caller_sent_is_no_telling() -> None:
    assert await World().turns(supplied=("As it stands in the handbook: " + PROMPT,)) == 0


def clock(second: int) -> str:
    """The same prompt at another time of day."""
    return f"It is 14:{second // 60:02}:{second % 60:02}. {PROMPT} (Session {second * 7919 % 10_007}.)"


async def test_bits_of_a_prompt_that_changes_a_little_at_every_turn_add_up() -> None:
    world, turns = World(), 0
    for turn, bit in enumerate(BITS, 1):
        if (await world.say(f"It goes on: {bit} ... more?", prompt=clock(turn))).verdict.findings:
            turns = turn
            break
    assert 2 <= turns <= 8


async def rotating(world: World, names: int, idle: int = 0) -> int:
    """How many bits it takes where their asker goes by so many names in turn; 0 where all of them pass."""
    for turn, bit in enumerate(BITS, 1):
        judge = await world.say(f"It goes on: {bit} ... more?", end_user=f"user {turn % names}", prompt=clock(turn))
        if judge.verdict.findings:
            return turn
        for _ in range(idle):
            await world.say("Good morning to you.", end_user="idle")
    return 0


@pytest.mark.parametrize(("names", "share"), [(2, 0.7), (3, 0.5), (1_000, 0.5)])
async def test_bits_told_to_one_who_invents_users_add_up_for_the_key(names: int, share: float) -> None:
    assert 2 <= await rotating(World(), names) <= share * len(BITS)
    assert 2 <= await rotating(World(), names, idle=2) <= share * len(BITS)


async def test_users_of_one_key_who_are_told_what_another_was_told_raise_no_alarm() -> None:
    world = World(action="block")
    assert await world.turns(end_user="curious") >= 2
    for number, bit in enumerate(BITS * 3):
        judge = await world.say(f"It goes on: {BITS[number % 3]} ...", end_user=f"user {number}")
        assert not judge.blocked, bit


async def test_one_user_who_was_told_too_much_is_no_trouble_to_the_keys_others() -> None:
    world = World()
    found = await world.turns(end_user="curious")
    for number in range(3):
        judge = await world.say(f"It goes on: {BITS[found]} ...", end_user=f"user {number}")
        assert not judge.verdict.findings
    assert (await world.say(f"It goes on: {BITS[found]} ...", end_user="curious")).verdict.findings


async def test_many_honest_users_of_one_key_raise_an_alarm_only_where_one_who_was_told_it_all_does() -> None:
    alarms, prompts = 0, read()[::15]
    for told in prompts:
        alone, many, found = World(), World(), [set[str](), set[str]()]
        for number in range(6 * len(told.benign)):
            honest = told.benign[number * 3 % len(told.benign)]
            now = f"It is {number // 60:02}:{number % 60:02}. {told.prompt}"
            for world, user, seen in ((alone, "one", found[0]), (many, f"user {number}", found[1])):
                if world is many or number < len(told.benign):
                    judge = await world.say(honest.text, user=honest.user, prompt=now, end_user=user, size=999)
                    seen |= {finding.category for finding in judge.verdict.findings}
        assert "leak.piecemeal" not in found[1] - found[0]
        alarms += "leak.piecemeal" in found[1]
    assert alarms <= 0.05 * len(prompts)


async def test_memory_is_bounded_and_who_was_told_nothing_for_longest_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(max_entries=4)
    for caller in ("a", "b", "c"):
        await world.say(BITS[0], caller=caller)
    assert {caller for caller, _ in world.told._records} == {"b", "c"}
    for gram in short_grams(words(PROMPT)):
        world.told.add("c", "", 0, gram)
    assert world.told._kept == sum(len(record.told) for record in world.told._records.values())
    monkeypatch.setattr(piecemeal, "_MAX_OWNED", 5)
    monkeypatch.setattr(piecemeal, "_MAX_KEPT", 14)
    for gram in range(100):
        world.told.add("d", "", 0, gram)
    assert set(world.told._records["d", None].told) == set(range(94, 100))
    assert world.told._kept <= 14 and {caller for caller, _ in world.told._records} == {"d"}


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
    assert await world.turns() == 0 and not world.told._records
