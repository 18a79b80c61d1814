import random
from pathlib import Path

import pytest

from service.errors import RunawayReply
from service.tenancy.runaway import (
    COUNTED_SPAN_CHARS,
    MARGIN_TOKENS,
    PERIOD_CHARS,
    SPAN_CHARS,
    RunawayWatch,
    repeats,
    repeats_counting,
)


class Words:
    def __init__(self):
        self.calls = 0

    async def __call__(self, texts):
        self.calls += 1
        return sum(len(text.split()) for text in texts)


@pytest.mark.parametrize("length", [1, 2, 7, 63, 64, 65, 200, PERIOD_CHARS])
def test_a_piece_of_any_length_again_and_again_is_a_repetition(length):
    piece = "".join(chr(97 + i * i % 23) for i in range(length - 1)) + "."
    assert repeats((piece * SPAN_CHARS)[-SPAN_CHARS:])
    assert not repeats((piece * SPAN_CHARS)[-SPAN_CHARS:][:-1] + "!")
    assert not repeats((piece * SPAN_CHARS)[: SPAN_CHARS - 1])


def test_a_longer_piece_is_none():
    piece = "".join(f"{n:04}" for n in range(PERIOD_CHARS // 4 + 1))
    assert not repeats((piece * SPAN_CHARS)[-SPAN_CHARS:])


async def test_text_is_counted_only_where_it_could_be_too_much():
    words = Words()
    watch = RunawayWatch(1_000, words)
    for number in range(100):
        await watch.take([("c", f"word{number} ")])
    assert words.calls == 0


async def test_the_bound_is_that_of_all_channels_together():
    watch = RunawayWatch(100, Words())
    with pytest.raises(RunawayReply):
        for number in range(125 + MARGIN_TOKENS + 5):
            await watch.take([(f"choices/{number % 4}/content", f"word{number} ")])
            last = number
    # The first of each of the four channels may be something whole, and is not counted.
    assert last == 4 + 125 + MARGIN_TOKENS - 1


async def test_texts_that_come_whole_are_not_counted():
    watch = RunawayWatch(10, Words())
    for number in range(50):
        await watch.take([(f"content/{number}/found", "what a search has found " * 50)])


async def test_what_is_no_new_text_is_not_counted():
    watch = RunawayWatch(10, Words())
    for number in range(1_000):
        await watch.take([("reply/id=", f"a{number} b c"), ("=choices/0", "said again"), ("choices/0#logprobs", "x y")])


@pytest.mark.parametrize(
    "item",
    [
        "{}. foo ",
        "{}. the same words but for the number\n",
        "Step {} of 10: Repeat the step before, then go on with the next one.\n\n",
        "{}、好的，我明白了。",
        "user{}\n",
    ],
)
async def test_the_same_words_with_a_counter_between_are_cut_once_they_are_many(item):
    """A counter does not make a loop new; a tenth of the span is still a list."""
    short, watch = RunawayWatch(None, Words()), RunawayWatch(None, Words())
    for number in range(COUNTED_SPAN_CHARS // 10 // len(item)):
        await short.take([("c", item.format(number))])
    with pytest.raises(RunawayReply, match="repeats"):
        for number in range(COUNTED_SPAN_CHARS):
            await watch.take([("c", item.format(number))])


def test_a_counter_may_go_down_and_items_may_take_turns():
    down = "".join(f"{9_000 - number} more to go! " for number in range(3_000))
    assert repeats_counting(down[-COUNTED_SPAN_CHARS:])
    turns = "".join(f"{number}. {('yes, dear', 'no')[number % 2]}. " for number in range(6_000))
    assert repeats_counting(turns[-COUNTED_SPAN_CHARS:])


CHANCE = random.Random(7)
SOURCE = (Path(__file__).parents[2] / "service/gateway.py").read_text(encoding="utf-8")
HONEST = {
    "a numbered list": "".join(f"{n}. {' '.join(CHANCE.sample(SOURCE.split(), 6))}\n" for n in range(2_000)),
    "a CSV of measurements": "".join(f"{n},2024-01-{n % 28 + 1:02},{CHANCE.randint(0, 99)},ok\n" for n in range(4_000)),
    "a CSV of ratings": "".join(f"{n},{CHANCE.randint(1, 5)},{CHANCE.randint(1, 5)},good\n" for n in range(4_000)),
    "rows that say yes or no": "".join(f"{n},{CHANCE.choice(('yes', 'no'))}\n" for n in range(9_000)),
    "rows of which one in fifty says no": "".join(
        f"{n},{'no' if CHANCE.random() < 0.02 else 'yes'}\n" for n in range(9_000)
    ),
    "a table": "".join(
        f"| {n} | {CHANCE.choice(('open', 'closed'))} | {CHANCE.choice(('low', 'high'))} |\n" for n in range(3_000)
    ),
    "a table in HTML": "".join(f"<tr><td>{n}</td><td>{CHANCE.choice('abc')}</td></tr>\n" for n in range(3_000)),
    "code": SOURCE * 3,
    "cases of a switch": "".join(f"    case {n}: return names[{CHANCE.randint(0, 500)}];\n" for n in range(3_000)),
    "rows to insert": "".join(f"INSERT INTO t VALUES ({n}, 'user{n}', 'user{n}@example.com');\n" for n in range(2_000)),
    "a matrix": "\n".join(" ".join(CHANCE.choice("01") for _ in range(50)) for _ in range(500)),
    "the numbers themselves": "".join(f"{n}\n" for n in range(9_000)),
    "an essay between short items": "".join(f"{n}: ok\n" for n in range(3_000)) + SOURCE + "3000: ok\n",
}
BOTTLES = (
    "{0} bottles of beer on the wall, {0} bottles of beer.\n"
    "Take one down and pass it around, {1} bottles of beer on the wall.\n\n"
)
VERSE = "And {} came down to the {}, and the {} was {} as the sea;\n"
HONEST["a song that counts down"] = "".join(BOTTLES.format(n, n - 1) for n in range(999, 0, -1))
HONEST["a poem with a refrain"] = "".join(
    f"{n}\n" + VERSE.format(*CHANCE.sample(sorted(set(SOURCE.split())), 4)) + "Row, row, my love, and come to me!\n" * 3
    for n in range(400)
)


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_what_says_something_is_not_cut_however_alike_its_rows_are(text):
    """Of every place in the text, the tail before it is looked at, as while it streams."""
    for end in range(4_096, len(text) + 4_096, 4_096):
        tail = text[:end][-COUNTED_SPAN_CHARS:]
        assert not repeats_counting(tail)


async def test_repetition_in_one_of_two_channels_is_seen():
    watch = RunawayWatch(None, Words())
    with pytest.raises(RunawayReply, match="repeats"):
        for number in range(SPAN_CHARS):
            await watch.take([("a", "again "), ("b", f"word{number} ")])
