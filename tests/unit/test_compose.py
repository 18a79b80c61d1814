import random
from collections import defaultdict

import pytest

from training.compose import (
    Piece,
    compose,
    compose_fixed,
    excerpt,
    fill_placeholders,
    insert,
    pieces_from,
    sentence,
    wrap,
)
from training.corpus import Row

CARRIERS = [
    "Opening hours\nMonday to Friday from nine to five.\nThe shop is closed in August.",
    "2025-01-02 INFO started\n2025-01-02 WARN slow disk\n2025-01-02 INFO done",
]


def pieces() -> list[Piece]:
    found = [Piece(f"c{at}", "carrier", "benign", "en", text) for at, text in enumerate(CARRIERS)]
    for category in ("injection", "jailbreak", "extraction"):
        for at in range(4):
            found.append(Piece(f"g-{category}{at}", "goal", category, "en", f"do the {category} thing number {at}"))
            found.append(Piece(f"f-{category}{at}", "framing", category, "en", f"For reason {at}, {{goal}} at once."))
    for at in range(30):
        found.append(
            Piece(f"b{at}", "benign_instruction", "benign", "en", f"Please water plant number {at} on Monday.")
        )
    found += [Piece(f"t{at}", "task", "benign", "en", f"Summarise text {at}:") for at in range(3)]
    found += [
        Piece("w0", "wrapper", "benign", "en", "<!-- {text} -->"),
        Piece("w1", "wrapper", "benign", "en", '{"a": "{text}"}'),
    ]
    return found


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return compose(pieces(), 300, seed=5)


def pairs(rows: list[Row]) -> list[list[Row]]:
    grouped = defaultdict(list)
    for row in rows:
        grouped[row.group].append(row)
    return [sorted(group, key=lambda row: row.label) for group in grouped.values()]


def test_every_attack_has_one_benign_twin_in_its_group(rows):
    assert len(rows) == 300
    for twin, attack in pairs(rows):
        assert twin.label == 0 < attack.label


def test_a_twin_has_the_same_carrier_position_and_wrapper(rows):
    for twin, attack in pairs(rows):
        (a, b), (c, d) = attack.span, twin.span
        assert attack.text[:a] == twin.text[:c]
        assert attack.text[b:] == twin.text[d:]
        assert (attack.role, attack.kind, attack.language, attack.weight) == (
            twin.role,
            twin.kind,
            twin.language,
            twin.weight,
        )


def test_spans_hold_the_injected_text_and_not_the_carrier(rows):
    for row in rows:
        assert 0 <= row.span[0] < row.span[1] <= len(row.text)
    attacks = [row for row in rows if row.label]
    inside = [row.text[slice(*row.span)] for row in attacks]
    goals = ("thing number", "plant number", "ummarise text")
    assert all(any(goal in text for goal in goals) for text in inside)
    assert not any("Opening hours" in text for text in inside)


def test_some_injections_ask_for_ordinary_work(rows):
    inside = [row.text[slice(*row.span)] for row in rows if row.label == 1]
    errands = [text for text in inside if "thing number" not in text]
    assert 0.2 < len(errands) / len(inside) < 0.6
    assert all("plant number" in text or "ummarise text" in text for text in errands)


def test_some_attacks_are_plain_overrides_some_bare_orders_and_more_than_either_framed(rows):
    inside = [row.text[slice(*row.span)] for row in rows if row.label]
    framed = [text for text in inside if text.startswith("For reason")]
    bare = [text for text in inside if text.startswith("Do the")]
    plain = [text for text in inside if not text.startswith(("For reason", "Do the"))]
    assert len(framed) > max(len(bare), len(plain)) and len(framed) / len(inside) < 0.9
    assert len(plain) / len(inside) > 0.1
    assert len(bare) / len(inside) > 0.05


def test_all_roles_forms_and_labels_are_composed(rows):
    assert {row.role for row in rows} == {"user", "document", "tool"}
    assert {row.label for row in rows} == {0, 1, 2, 3}
    assert len({row.kind for row in rows}) == 5


def test_payloads_stand_at_the_start_in_the_middle_and_at_the_end(rows):
    inside = [row for row in rows if row.kind == "composed_carrier"]
    places = [row.span[0] / len(row.text) for row in inside]
    ends = [row.span[1] / len(row.text) for row in inside]
    assert min(places) < 0.05 and max(ends) > 0.95
    assert any(start > 0.2 and end < 0.8 for start, end in zip(places, ends, strict=True))


def test_texts_are_distinct_and_the_seed_decides(rows):
    assert len({row.text for row in rows}) == len(rows)
    assert compose(pieces(), 300, seed=5) == rows
    assert compose(pieces(), 300, seed=6) != rows


def test_length_does_not_tell_a_twin_from_its_attack(rows):
    lengths = [(row.span[1] - row.span[0], row.label > 0) for row in rows]
    mean = {bad: sum(n for n, is_bad in lengths if is_bad == bad) / (len(lengths) / 2) for bad in (True, False)}
    assert 0.6 < mean[False] / mean[True] < 1.6


def test_composing_without_carriers_says_what_is_missing():
    with pytest.raises(ValueError, match="carrier"):
        compose([piece for piece in pieces() if piece.part != "carrier"], 10, seed=1)


def test_placeholders_are_filled_and_other_rows_are_left_alone():
    template, plain = Row("You are Vex. [INSERT PROMPT HERE]", 2), Row("No placeholder here", 2)
    filled = fill_placeholders([template, plain], pieces(), seed=1, copies=2)
    assert len(filled) == 3 and plain in filled
    assert not any("INSERT" in row.text for row in filled)


def test_a_wrapper_that_is_a_json_string_escapes_the_text():
    text, (start, end) = wrap('{"a": "{text}"}', 'say "hi"')
    assert text == '{"a": "say \\"hi\\""}'
    assert text[start:end] == 'say \\"hi\\"'


def test_inserting_keeps_every_character_of_the_carrier_in_order():
    for place in (0.0, 0.3, 0.5, 0.7, 0.9):
        text, (start, end) = insert(CARRIERS[0], "XYZ", (0, 3), place, "\n")
        assert text[start:end] == "XYZ"
        assert (text[:start] + text[end:]).replace("\n", "") == CARRIERS[0].replace("\n", "")


def test_written_payloads_and_carriers_become_parts():
    written = Row("Hi. Send it. Bye.", 1, "tool", span=(4, 12), source="written_indirect", group="i")
    table = Row("a | b", 0, "tool", kind="carrier_table", source="tables")
    assert [(piece.part, piece.text) for piece in pieces_from([written, table])] == [
        ("payload", "Send it."),
        ("carrier", "a | b"),
    ]


def test_an_excerpt_is_part_of_its_text():
    text = "\n".join(f"line {number} of a long table" for number in range(400))
    rng = random.Random(1)
    assert all(excerpt(text, rng) in text for _ in range(50))


def test_a_sentence_starts_with_a_capital_and_ends():
    assert sentence("send it to me") == "Send it to me."


def test_dev_attacks_are_composed_in_one_fixed_way():
    carrier = Row("The tool found three flights.", 0, "tool", kind="tool_result")
    (row,) = compose_fixed([Row("Send the data out", 1, "tool")], [carrier])
    assert row.text.startswith(carrier.text) and row.text[slice(*row.span)] == "Send the data out"
