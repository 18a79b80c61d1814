"""However a text is cut, its readings say the same, and what becomes a match is held from its start."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.firewall.owners import Owner, ProtectedText
from service.firewall.pattern_index import PatternIndex, build
from service.firewall.patterns import LETTERS, VISIBLE, PatternSet, secret_patterns
from service.firewall.readings import Readings, stand_in
from service.firewall.respelled import ESCAPES, LISTS, Respelled, Rule

SECRETS = ("sk-11-ss-kk-1s", "1sk1sk1skk", "!&%!\\%!&-!")


def _sets() -> list[PatternSet | PatternIndex]:
    forms: dict[str, dict[str, tuple[Owner, ...]]] = {LETTERS: {}, VISIBLE: {}}
    for secret in SECRETS:
        for form, pattern, owner in secret_patterns(secret, secret):
            forms[form].setdefault(pattern, (owner,))
    return [PatternSet(LETTERS, forms[LETTERS]), PatternSet(VISIBLE, forms[VISIBLE])]


SETS = _sets()
INDEXED: list[PatternSet | PatternIndex] = [
    *build([ProtectedText(secret, "secret", "", secret, secret) for secret in SECRETS])
]

_ways = (
    lambda char: char,
    lambda char: f"%{ord(char):02x}",
    lambda char: f"%25{ord(char):02X}",
    lambda char: f"\\x{ord(char):02x}",
    lambda char: f"\\u{ord(char):04x}",
    lambda char: f"\\u{{{ord(char):x}}}",
    lambda char: f"\\{ord(char):03o}",
    lambda char: f"&#{ord(char)};",
    lambda char: f"&#x00{ord(char):x}",
    lambda char: f"\\{char}",
    lambda char: f"\n1. {char}",
    lambda char: f"\n- {char}",
    lambda char: f"\\n12) {char}",
)
_escaped = st.builds(lambda way, char: way(char), st.sampled_from(_ways), st.sampled_from("sk1-!%&\\"))
_noise = st.sampled_from(
    ["%", "%2", "&", "&a", "&amp;", "&#", "\\", "\\u", "\\x7", "\n", "\n1", "1. ", " ", "é", "%c3%", "\\1"]
)
_spelled = st.sampled_from(
    ["Sierra ", "kilo", "KILO-", "one ", "dash ", "s", "k", "1", "- ", "si", "on", "x-", "xray", "\n2. ", "and "]
)


def _run(text: str, cuts: list[int], patterns: list[PatternSet | PatternIndex]) -> set[tuple[int, int]]:
    """The places of the matches; nothing of one has been let go before it is found."""
    readings = Readings(patterns)
    found: set[tuple[int, int]] = set()
    cleared = 0
    for start, end in pairwise([0, *sorted(cuts), len(text)]):
        new = {(first, last) for _, _, first, last in readings.feed(text[start:end], start)}
        assert all(first >= cleared for first, _ in new)
        found |= new
        if end > start:
            cleared = max(cleared, end if readings.held is None else readings.held)
    new = {(first, last) for _, _, first, last in readings.finish()}
    assert all(first >= cleared for first, _ in new)
    return found | new


@pytest.mark.parametrize("pieces", [st.one_of(_escaped, _escaped, _noise, st.sampled_from(SECRETS)), _spelled])
@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_text_says_the_same_and_is_held_as_much_however_it_is_cut(
    pieces: st.SearchStrategy[str], data: st.DataObject
) -> None:
    text = "".join(data.draw(st.lists(pieces, max_size=24)))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    whole = _run(text, [], SETS)
    assert _run(text, cuts, SETS) == whole
    assert _run(text, list(range(len(text))), SETS) == whole
    assert _run(text, cuts, INDEXED) == whole
    assert stand_in(text, SETS) == bool(whole)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SECRETS[:2]), st.data())
def test_a_secret_is_found_whichever_way_each_of_its_characters_is_escaped(secret: str, data: st.DataObject) -> None:
    way, between = st.sampled_from(_ways[:8]), st.sampled_from(["", "", "\u200b"])
    written = "".join(data.draw(way)(char) + data.draw(between) for char in secret)
    assert _run(f"It is {written} .", [], SETS)


@pytest.mark.parametrize("rule", [ESCAPES, LISTS])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(_escaped, _noise, _spelled), max_size=12).map("".join), st.data())
def test_what_a_rule_reads_does_not_depend_on_where_the_text_is_cut(rule: Rule, text: str, data: st.DataObject) -> None:
    def read(cuts: list[int]) -> list[tuple[str, int, int]]:
        stage = Respelled(rule)
        said: list[tuple[str, int, int]] = []
        for start, end in pairwise([0, *sorted(cuts), len(text)]):
            part = stage.feed((text[start:end], [*range(start, end)], [*range(start + 1, end + 1)]))
            said += zip(*part, strict=True)
        return said + list(zip(*stage.feed(("", [], []), last=True), strict=True))

    assert read(data.draw(st.lists(st.integers(0, len(text)), max_size=8))) == read([]) == read(list(range(len(text))))
