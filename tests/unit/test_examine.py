"""What the corpus gives away is found where it is there, and not where it is not."""

from __future__ import annotations

import random

from training import examine
from training.corpus import Row

WORDS = [
    *("tea", "boat", "lamp", "river", "stone", "clock", "paper", "window"),
    *("garden", "train", "cloud", "violin", "bread", "salt", "horse"),
]


def _rows(rng: random.Random, *, longer: int = 0, shouting: bool = False) -> list[Row]:
    rows = []
    for number in range(300):
        attack = number % 2
        text = " ".join(rng.choices(WORDS, k=rng.randint(8, 20) + longer * attack))
        rows.append(Row(text + ("!" if shouting and attack else "."), attack, span=(0, 12)))
    return rows


def test_attacks_that_are_longer_are_found_by_length_alone() -> None:
    rng = random.Random(1)
    assert examine.leak(_rows(rng, longer=30), _rows(rng, longer=30), examine.length_features) > 0.95
    assert examine.leak(_rows(rng), _rows(rng), examine.length_features) < 0.65


def test_attacks_that_shout_are_found_by_punctuation_alone() -> None:
    rng = random.Random(2)
    assert examine.leak(_rows(rng, shouting=True), _rows(rng, shouting=True), examine.punctuation_features) > 0.95
    assert examine.leak(_rows(rng), _rows(rng), examine.punctuation_features) < 0.65


def test_the_carrier_is_what_stands_outside_the_span() -> None:
    inside = examine.carrier_features(Row("please wire money. The tea is ready.", 1, span=(0, 18)))
    assert inside == examine.carrier_features(Row("The tea is ready.", 0, span=(0, 0)))


def test_repeated_texts_have_few_distinct_runs() -> None:
    one = Row("a boat on the river at night", 0)
    assert examine.distinct_runs([one]) == 1.0
    assert examine.distinct_runs([one] * 4) == 0.25
