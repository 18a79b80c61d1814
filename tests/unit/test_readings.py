"""What a reply says once its escapes, its lists and its spelled letters are read, and that plain text is read once."""

from __future__ import annotations

import base64
import html
from urllib.parse import quote

import pytest

from service.firewall.owners import Owner
from service.firewall.patterns import LETTERS, VISIBLE, PatternSet, secret_patterns
from service.firewall.readings import Readings, stand_in
from service.firewall.respelled import ESCAPES, Respelled

SECRET = "sk_live-P@ss&word<1>/tail"


def sets(secret: str = SECRET) -> list[PatternSet]:
    forms: dict[str, dict[str, tuple[Owner, ...]]] = {LETTERS: {}, VISIBLE: {}}
    for form, pattern, owner in secret_patterns("key", secret):
        forms[form].setdefault(pattern, (owner,))
    return [PatternSet(form, patterns) for form, patterns in forms.items() if patterns]  # type: ignore[arg-type]


def said(text: str) -> str:
    stage = Respelled(ESCAPES)
    places = list(range(len(text)))
    return stage.feed((text, places, places))[0] + stage.feed(("", [], []), last=True)[0]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"sk\_live \x2d \u002d \u{2d} \055 \55 \\u002d", "sk_live - - - - - -"),
        ("&#45;&#0045;&#x2d;&#x002D;&amp;&lt;&hyphen;&#45", "---" + "-&<\u2010-"),
        ("%2d%252D%C3%A9%E9%F0%9F%98%80", "--éé😀"),
        (r"\ud83d\ude00 \xc3\xa9 \xe9 \0163", "😀 é é s"),
        ("50% of R&D & AT&T; 100%", "50% of R&D & AT&T; 100%"),
        (r"\& \% \&amp; \%41 \&#45;", r"& % \& \A \-"),
        (r"C:\Users \alpha \ ", r"C:\Users \alpha \ "),
    ],
)
def test_escapes_say_what_every_decoder_makes_of_them(written: str, read: str) -> None:
    assert said(written) == read


@pytest.mark.parametrize(
    "written",
    [
        html.escape(SECRET),
        quote(SECRET),
        quote(SECRET, safe="-_.!~*'()"),
        SECRET.replace("k", "&#x006b;"),
        SECRET.replace("_", r"\_"),
        SECRET.replace("s", "%73", 1),
        SECRET.replace("l", r"\154"),
        "\n".join(f"{number}. {char}" for number, char in enumerate(SECRET, 1)),
        "\n".join(f"* **{char}**" for char in SECRET),
        "\n".join(f"| {number} | {char} |" for number, char in enumerate(SECRET, 1)),
        base64.b64encode(base64.b64encode(SECRET.encode())).decode(),
        base64.b64encode(SECRET[::-1].encode()).decode(),
        (" " * 1_000 + "\u200b" * 300 + "\u3164" + "\n" * 300).join(SECRET),
        "5k_l1v3-P@55&w0rd<1>/741l",
    ],
)
def test_a_secret_is_found_however_its_characters_are_written(written: str) -> None:
    assert stand_in(f"Well: {written} and so on.", sets()) or stand_in(f"Well:\n{written}\nand so on.", sets())


@pytest.mark.parametrize(
    "written",
    [
        "Sierra Kilo dash Lima, India, Victor, Echo, dash four two, Golf, seven Hotel",
        "sierra-kilo-lima-india-victor-echo-4-2-golf-7-hotel",
        r"1. Sierra\n2. Kilo\n3. Lima\n4. India\n5. Victor\n6. Echo\n7. four\n8. two\n9. Golf\n10. seven\n11. Hotel",
    ],
)
def test_a_secret_is_found_spelled_by_the_words_of_the_alphabet(written: str) -> None:
    assert stand_in(f"It is {written}.", sets("sk-live-42g7h"))


def test_letters_with_many_visible_characters_between_them_do_not_belong_together() -> None:
    assert Readings(sets("sk-live-42g7h")).feed(("." * 100).join("sk-live-42g7h"), 0)
    assert not Readings(sets("sk-live-42g7h")).feed(("." * 400).join("sk-live-42g7h"), 0)


def test_a_number_is_not_taken_for_a_word_in_leet() -> None:
    """Nor is a secret of few letters looked for in that spelling."""
    assert not stand_in("Call 0537 107 100 107, please.", sets("osetiotioo-tiot")[:1])
    assert not any(owner.disguise == "leet" for _, _, owner in secret_patterns("pin", "4711-tea-0815"))


def test_plain_text_is_read_once() -> None:
    readings = Readings(sets())
    offset = 0
    for text in (
        "Sure! ",
        "The weather in Lisbon is mild, ",
        "so a jacket will do: ",
        "90 % of R & D.\n## Then. ",
    ):
        readings.feed(text, offset)
        offset += len(text)
        assert not readings._ways


def test_a_reading_ends_where_it_says_what_the_text_says() -> None:
    readings = Readings(sets())
    for offset, text in ((0, "R&amp;D, one echo %2D and \\_ more"), (34, ", which is the end.")):
        readings.feed(text, offset)
    assert not readings._ways and readings.held is None
