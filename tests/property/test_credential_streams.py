"""However a stream is cut: nothing of a credential is cleared, and the same is found."""

from __future__ import annotations

import asyncio
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.credential_cases import harmless, samples
from service.firewall.credentials import CredentialScanner
from service.firewall.protected import ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.settings import Leakage

SAMPLES = list(samples(random.Random(11)))
CLEAN = (
    "Sure - the token is a word, see https://example.com:8080/a-key_1 or sk-live; pat, re_ 12:AA. <b>key-</b> \n-- eyJ "
)
BITS = ["password", " = ", '"', "is", "://", "@", ":", "sk-", "eyJ", "-----BEGIN ", "ghp_", ".", "AKIA", "\\n"]
PROTECTION = ProtectedTexts().for_request("t")


async def _marks(chunks: list[str]) -> tuple[int, bool]:
    judge = ReplyJudge(PROTECTION, Leakage(stream="exact", credentials="block"), lambda text: "")
    mark = 0
    for chunk in chunks:
        await judge.feed("c", chunk)
        mark = max(mark, judge.cleared("c"))
    await judge.finish()
    return max(mark, judge.cleared("c")), judge.blocked


@pytest.mark.parametrize("sample", SAMPLES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(SAMPLES)])
def test_no_byte_of_a_credential_leaves_at_any_split_point(sample: tuple[str, str, str, str]) -> None:
    _, before, credential, behind = sample
    text = before + credential + behind

    async def run() -> None:
        points = range(1, len(text)) if len(text) < 400 else range(1, len(text), 7)
        for chunks in [[text[:at], text[at:]] for at in points] + [list(text)]:
            mark, blocked = await _marks(chunks)
            assert blocked and mark <= len(before), chunks[0]

    asyncio.run(run())


WRITTEN = {
    "markdown": lambda token: re.sub(r"([_-])", r"\\\1", token),
    "entity": lambda token: f"{token[:3]}&#{ord(token[3])};{token[4:]}",
    "percent": lambda token: f"%{ord(token[0]):02x}{token[1:]}",
    "json": lambda token: f"{token[:9]}\\u{ord(token[9]):04x}{token[10:]}",
    "zero width": lambda token: f"{token[:6]}\u200b{token[6:]}",
    "wide": lambda token: "".join(chr(ord(char) + 0xFEE0) for char in token),
}


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("format_name", ["github token", "json web token"])
async def test_no_byte_of_a_token_with_escapes_in_it_leaves(way: str, format_name: str) -> None:
    _, _, token, _ = next(sample for sample in SAMPLES if sample[0] == format_name)
    text = f"Well: {WRITTEN[way](token)} and so on."
    for chunks in [[text[:at], text[at:]] for at in range(1, len(text), 3)] + [[text], list(text)]:
        mark, blocked = await _marks(chunks)
        assert blocked and mark <= len("Well: "), chunks[0]


@pytest.mark.parametrize("sample", SAMPLES[:8], ids=[name for name, *_ in SAMPLES[:8]])
async def test_a_credential_that_ends_with_its_channel_is_found_there(sample: tuple[str, str, str, str]) -> None:
    _, before, credential, _ = sample
    judge = ReplyJudge(PROTECTION, Leakage(stream="exact", credentials="block"), lambda text: "")
    await judge.feed("c", before + credential)
    assert judge.cleared("c") <= len(before)
    await judge.end("c")
    assert judge.blocked and judge.cleared("c") <= len(before)


def _covered(chunks: list[str]) -> set[int]:
    scanner, found, at = CredentialScanner(), [], 0
    for chunk in chunks:
        found += scanner.feed(chunk, at)
        at += len(chunk)
    return {place for sight in found + scanner.finish() for place in range(sight.start, sight.end)}


texts = st.lists(
    st.one_of(
        st.sampled_from(["".join(sample[1:]) for sample in SAMPLES] + [text for _, text in harmless(random.Random(1))]),
        st.text(max_size=20),
        st.sampled_from(BITS),
    ),
    max_size=6,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(st.integers(0, 10_000), max_size=12))
def test_what_is_found_does_not_depend_on_the_cuts(text: str, points: list[int]) -> None:
    edges = [0, *sorted(point % (len(text) + 1) for point in points), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert _covered(chunks) == _covered([text])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.sampled_from(["redact", "block"]))
def test_clean_text_leaves_as_it_came_character_by_character(noise: str, action: str) -> None:
    reply = CLEAN + noise + CLEAN[::-1]

    async def run() -> str:
        judge = ReplyJudge(PROTECTION, Leakage(stream="exact", credentials=action, exfiltration="flag"), str.upper)  # type: ignore[arg-type]
        sent, rendered = "", 0
        for char in reply:
            await judge.feed("c", char)
            sent, rendered = sent + judge.render("c", rendered, judge.cleared("c")), judge.cleared("c")
            state = judge._channels["c"]
            assert state.end - state.base < 4_096
        await judge.finish()
        return sent + judge.render("c", rendered, judge.cleared("c"))

    assert asyncio.run(run()) == reply
