"""The compact index says what the automaton says, match by match and held character by held character."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from service.firewall.owners import Owner, ProtectedText
from service.firewall.pattern_index import build
from service.firewall.patterns import DISGUISES, LETTERS, VISIBLE, Form, PatternSet, Projector, secret_patterns

ALPHABET = st.sampled_from("ab1-$éЖ漢")
VALUES = st.lists(st.text(ALPHABET, min_size=8, max_size=40), min_size=1, max_size=8, unique=True)


def both(values: list[str]) -> dict[Form, tuple[object, object]]:
    secrets = [ProtectedText(f"s{number}", "secret", "", value, f"id{number}") for number, value in enumerate(values)]
    patterns: dict[Form, dict[str, tuple[Owner, ...]]] = {LETTERS: {}, VISIBLE: {}}
    for secret in secrets:
        for form, pattern, owner in secret_patterns(secret.name, secret.value):
            patterns[form].setdefault(pattern, (owner,))
    made = {index.form: index for index in build(secrets)}
    assert set(made) == {form for form, found in patterns.items() if found}
    return {form: (PatternSet(form, patterns[form]), made[form]) for form in made}


@settings(max_examples=150, deadline=None)
@given(VALUES, st.data())
def test_the_index_finds_and_holds_what_the_automaton_does_however_the_text_is_cut(
    values: list[str], data: st.DataObject
) -> None:
    pieces = st.one_of(st.sampled_from(values), st.text(ALPHABET, max_size=6), st.sampled_from(values).map(str.upper))
    pieces |= st.sampled_from(values).map(lambda value: value.encode().hex())
    pieces |= st.sampled_from(values).map(lambda value: value[:-2])
    pieces |= st.builds(lambda value, way: way[1](value), st.sampled_from(values), st.sampled_from(DISGUISES))
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    for form, (automaton, index) in both(values).items():
        projector, first, second = Projector(form), automaton.tracker(), index.tracker()  # type: ignore[attr-defined]
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            letters, offsets = projector.feed(text[start:end], start)
            expected = {(begin, last) for _, begin, last in first.feed(letters, list(offsets))}
            assert {(begin, last) for _, begin, last in second.feed(letters, list(offsets))} == expected
            assert second.held == first.held


def test_secrets_that_begin_alike_for_long_are_told_apart() -> None:
    values = [f"sk-live-{'x' * 60}-{number:04d}" for number in range(300)]
    for automaton, index in both(values).values():
        rng = random.Random(7)
        for value in rng.sample(values, 20):
            text = "".join(c for c in value if c.isalnum())
            found = index.tracker().feed(text, list(range(len(text))))  # type: ignore[attr-defined]
            assert len(found) == len(automaton.tracker().feed(text, list(range(len(text))))) == 1  # type: ignore[attr-defined]
