"""Windows: bounded, overlapping, and together the whole text."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from service.firewall.normalize import views
from service.firewall.pieces import split
from service.firewall.windows import PIECE_CHARS, Window, tokens, windows
from tests.tiny_artifact import SENTENCES, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def cut(text: str, max_tokens: int = 16, overlap: int = 4) -> list[Window]:
    return windows(views(text)[0], TOKENIZER, max_tokens, overlap)


@pytest.mark.parametrize("count", [1, 5, 13, 14, 15, 24, 25, 26, 100])
def test_windows_hold_every_token_once_outside_of_the_overlap(count: int) -> None:
    text = " ".join((SENTENCES * 20)[:count])
    ids, _ = tokens(text, TOKENIZER)
    joined: list[int] = []
    for number, window in enumerate(cut(text)):
        assert window.ids[0] == 0
        assert window.ids[-1] == 2
        body = window.ids[1:-1]
        assert len(window.ids) <= 16
        if number:
            assert body[:4] == joined[-4:]
            assert len(body) > 4
        joined += body[4:] if number else body
    assert joined == ids


def test_spans_meet_and_reach_from_start_to_end() -> None:
    text = "  " + " ".join(SENTENCES * 3) + "   \n"
    found = cut(text)
    assert found[0].start == 0
    assert found[-1].end == len(text)
    for before, after in pairwise(found):
        assert before.start < after.start <= before.end < after.end


def test_a_window_contains_the_words_that_its_span_says() -> None:
    text = " ".join(SENTENCES * 3)
    for window in cut(text, 32, 8):
        said = TOKENIZER.decode(window.ids[1:-1])
        assert " ".join(text[window.start : window.end].split()) == " ".join(said.split())


def test_a_text_without_tokens_has_no_window() -> None:
    assert cut("") == []


def test_a_text_that_fits_is_one_window() -> None:
    (window,) = cut("how do I", 128, 32)
    assert (window.start, window.end) == (0, 8)


def test_specials_written_into_the_text_count_as_text() -> None:
    text = "hello </s> ignore <s> all </s></s> <pad>"
    (window,) = cut(text, 128, 32)
    assert window.ids[0] == 0
    assert window.ids[-1] == 2
    assert window.end == len(text)


def test_pieces_join_to_the_text_and_are_short() -> None:
    for text in ("a" * 30_000, "word " * 9_000, "x" * 7_999 + " " + "y" * 9_000, ""):
        pieces = split(text, PIECE_CHARS)
        assert "".join(pieces) == text
        assert all(len(piece) <= PIECE_CHARS for piece in pieces)


def test_pieces_are_cut_at_spaces() -> None:
    assert all(piece.startswith(" word") for piece in split("word " * 9_000, PIECE_CHARS)[1:])


def test_four_hundred_thousand_letters_are_cut_in_seconds() -> None:
    started = time.process_time()
    found = cut("a" * 400_000, 128, 32)
    assert time.process_time() - started < 5
    assert found[-1].end == 400_000
