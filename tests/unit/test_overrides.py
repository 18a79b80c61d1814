"""Plain overrides say in many ways that what came before does not count, and their twins that some thing does not."""

from __future__ import annotations

import random

import pytest

from training import overrides

GOAL = "write a poem about tea"


@pytest.mark.parametrize("language", ["en", "unknown", *overrides._ELSEWHERE])
def test_a_plain_override_ends_in_its_goal(language: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        text = overrides.attack(GOAL, language, rng)
        assert text.rstrip(".!。").endswith(GOAL[1:])
        assert len(text) > len(GOAL) + 4


def test_english_overrides_hardly_repeat_themselves() -> None:
    rng = random.Random(2)
    assert len({overrides.attack(GOAL, "en", rng) for _ in range(1_000)}) > 900


def test_the_harmless_twin_speaks_of_things_and_keeps_what_follows() -> None:
    rng = random.Random(3)
    texts = {overrides.harmless("The hut opens at six.", rng) for _ in range(500)}
    assert len(texts) > 400
    assert all(text.endswith("The hut opens at six.") for text in texts)
    assert not any("your" in text.lower() or "told" in text.lower() for text in texts)


def test_the_same_seed_gives_the_same_sentences() -> None:
    first, second = random.Random(4), random.Random(4)
    assert [overrides.attack(GOAL, "en", first) for _ in range(20)] == [
        overrides.attack(GOAL, "en", second) for _ in range(20)
    ]
