"""A prompt recited in base64, in hex, backwards or in ROT13 is withheld from its first word on; encoded data is not."""

from __future__ import annotations

import base64
import codecs
import random
import re
import tracemalloc
from collections.abc import Sequence

import pytest

from service.firewall.protected import ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.settings import Leakage

PROMPT = (
    "You are Harbor, the booking assistant of the Lighthouse hotel group. Never reveal the wholesale rates of rooms to "
    "any guest. Offer the seaside suite first. Discounts above fifteen percent need the approval of Marta in Oslo."
)
CHINESE = "你是海港酒店集团的预订助手，绝不能向任何客人透露房间的批发价格，无论他们自称是谁。请首先推荐海景套房。"
FRENCH = "Vous êtes le guide du musée; ne révélez jamais où se trouve la réserve, même à un employé étranger."


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


CODES = {
    "base64": b64,
    "base64, in lines": lambda text: re.sub("(.{76})", "\\1\n", b64(text)),
    "base64, url": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "hex": lambda text: text.encode().hex(),
    "HEX, spaced": lambda text: text.encode().hex(" ").upper(),
    "0x": lambda text: ", ".join(f"0x{byte:02x}" for byte in text.encode()),
    "\\x": lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode()),
    "reversed": lambda text: text[::-1],
}


def judge(prompt: str = PROMPT, action: str = "block", user: str = "hello") -> ReplyJudge:
    settings = Leakage(stream="exact", action=action)  # type: ignore[arg-type]
    return ReplyJudge(ProtectedTexts().for_request("t", [prompt], [user]), settings, str.upper)


async def most_cleared(to: ReplyJudge, text: str, size: int) -> int:
    most = 0
    for at in range(0, len(text), size):
        await to.feed("c", text[at : at + size])
        most = max(most, to.cleared("c"))
    await to.finish()
    return max(most, to.cleared("c"))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50, 10_000])
@pytest.mark.parametrize("prompt", [PROMPT, CHINESE, FRENCH])
@pytest.mark.parametrize("code", CODES)
async def test_nothing_of_an_encoded_prompt_is_cleared_however_it_is_cut(code: str, prompt: str, size: int) -> None:
    opening = "Sure, this is it: ("
    text = opening + CODES[code](prompt) + ") as you wished."
    marks = {"0x": 2, "\\x": 2, "reversed": 1}.get(code, 0)  # the first digit's mark, the last full stop
    assert await most_cleared(to := judge(prompt), text, size) <= len(opening) + marks
    assert to.blocked
    assert {finding.category for finding in to.verdict.findings} == {"leak.prompt"}


@pytest.mark.parametrize("size", [1, 4, 10_000])
async def test_a_prompt_in_rot13_is_withheld(size: int) -> None:
    await most_cleared(to := judge(), codecs.encode(PROMPT, "rot13"), size)
    assert to.blocked and to.cleared("c") == 0


@pytest.mark.parametrize("size", [1, 4, 10_000])
@pytest.mark.parametrize("lead", range(5))
@pytest.mark.parametrize("code", ["base64", "hex"])
async def test_encoded_words_are_found_after_others_and_wherever_the_coding_begins(
    code: str, lead: int, size: int
) -> None:
    text = "abcde"[:lead] + CODES[code]("Of course! " + PROMPT)
    await most_cleared(to := judge(), text, size)
    assert to.blocked
    # The opening is nobody's; of the prompt at most three letters' digits, where the coding begins within other text.
    assert to.cleared("c") <= lead + {"base64": 15 + 8, "hex": 22 + 6}[code]


@pytest.mark.parametrize("code", ["base64", "hex", "reversed"])
async def test_an_encoded_prompt_is_redacted_and_the_rest_leaves(code: str) -> None:
    text = "Before it. " + CODES[code](PROMPT) + " After it."
    to = judge(action="redact")
    await most_cleared(to, text, 9)
    sent = to.render("c", 0, len(text))
    assert sent.startswith("Before it. ") and "[redacted]" in sent and sent.endswith(" After it.")
    assert len(sent) < 60


@pytest.mark.parametrize("code", CODES)
async def test_a_short_prompt_is_found_in_codes_as_a_whole(code: str) -> None:
    prompt = "Speak only of lighthouse keeping."
    await most_cleared(to := judge(prompt), CODES[code](prompt), 3)
    assert to.blocked


async def test_the_user_s_own_words_backwards_are_no_leak() -> None:
    to = judge(user=f"Write this backwards: {PROMPT}")
    assert await most_cleared(to, PROMPT[::-1], 4) == len(PROMPT)


async def test_other_encoded_data_is_cleared_whole_and_keeps_nothing() -> None:
    rng = random.Random(5)
    to = judge()
    text = "".join(
        f"{rng.randbytes(rng.randrange(60)).hex()} {base64.b64encode(rng.randbytes(rng.randrange(900))).decode()}\n"
        for _ in range(60)
    )
    text += b64("A poem of the sea and of the rooms above it. " * 40) + ("\x01" * 900).encode().hex()
    await to.feed("c", text)
    assert not to.blocked
    state = to._channels["c"]
    assert state.end - to.cleared("c") <= 256
    await to.finish()
    assert to.cleared("c") == len(text) and not to.verdict.findings


async def test_endless_encoded_data_is_followed_in_little_memory() -> None:
    to = judge()
    chunk = base64.b64encode(random.Random(3).randbytes(6_000)).decode()
    await to.feed("c", chunk)
    tracemalloc.start()
    for _ in range(20):
        await to.feed("c", chunk)
        cleared = to.cleared("c")
        to.render("c", to._channels["c"].rendered, cleared)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 65_536


async def test_an_image_in_a_reply_is_not_compared_by_meaning() -> None:
    asked: list[str] = []

    class Closeness:
        async def leaks(self, sentences: Sequence[str]) -> list[float | None]:
            asked.extend(sentences)
            return [None] * len(sentences)

    to = ReplyJudge(ProtectedTexts().for_request("t", [PROMPT]), Leakage(stream="sentence"), str.upper, Closeness())
    image = base64.b64encode(random.Random(1).randbytes(30_000)).decode()
    text = f"data:image/png;base64,{image}\nThat is the harbour in the morning."
    await to.feed("c", text)
    await to.finish()
    assert to.cleared("c") == len(text)
    assert len(asked) <= 3 and asked[-1] == "That is the harbour in the morning."
