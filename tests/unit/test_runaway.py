import pytest

from service.errors import RunawayReply
from service.tenancy.runaway import MARGIN_TOKENS, PERIOD_CHARS, SPAN_CHARS, RunawayWatch, repeats


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


async def test_a_long_list_is_no_repetition():
    watch = RunawayWatch(None, Words())
    for number in range(2_000):
        await watch.take([("c", f"{number}. the same words but for the number\n")])


async def test_repetition_in_one_of_two_channels_is_seen():
    watch = RunawayWatch(None, Words())
    with pytest.raises(RunawayReply, match="repeats"):
        for number in range(SPAN_CHARS):
            await watch.take([("a", "again "), ("b", f"word{number} ")])
