"""A mark in the system text: nobody can guess it, and no reply holds it, however it is written."""

from __future__ import annotations

import base64
import codecs
import hashlib
from typing import Any, Literal

import pytest

from service.firewall.asked import Asked
from service.firewall.canary import Canaries, patterns, sentence
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedTexts
from service.settings import Canary, Leakage

CHANNEL = "choices/0/content"


def keyed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16, key=b"k").hexdigest()


def mark_of(mode: Literal["off", "request", "day"], tenant: str, request_id: str, now: float = 0.0) -> str:
    return Canaries(Canary(mode=mode), keyed, lambda: now).mark(tenant, request_id)


MARK = mark_of("request", "t", "req_1")


async def judged(text: str, *, action: Any = "block", size: int = 3, **settings: Any) -> Any:
    guard = LeakageGuard(Leakage(**settings), ProtectedTexts(), None, None, digest=str.upper, canary=action)
    judge = await guard.open("t", ["You are Wren."], [], Asked(canary=MARK))
    for at in range(0, len(text), size):
        await judge.feed(CHANNEL, text[at : at + size])
    await judge.finish()
    return judge


def test_a_mark_has_eighty_bits_and_is_new_for_each_request() -> None:
    assert len(base64.b32decode(MARK.upper())) * 8 >= 64
    assert len({mark_of("request", "t", f"req_{n}") for n in range(500)}) == 500
    assert MARK in sentence(MARK)


def test_a_mark_of_the_day_lasts_a_day_and_is_another_for_each_tenant() -> None:
    noon = mark_of("day", "t", "a", 43_200.0)
    assert noon == mark_of("day", "t", "b", 86_399.0)
    assert len({noon, mark_of("day", "t", "a", 86_400.0), mark_of("day", "u", "a", 43_200.0)}) == 3


def test_there_is_no_mark_where_none_is_wanted() -> None:
    assert mark_of("off", "t", "a") == "" and patterns("") == ()


WRITTEN = {
    "exact": MARK,
    "capitals": MARK.upper(),
    "spaced": " ".join(MARK),
    "hyphens": "-".join(MARK[at : at + 4] for at in range(0, 16, 4)),
    "wide": "".join(chr(ord(char) + 0xFEE0) for char in MARK),
    "reversed": MARK[::-1],
    "rot13": codecs.encode(MARK, "rot13"),
    "hex": MARK.encode().hex(),
    "base64": base64.b64encode(f"x{MARK}".encode()).decode(),
    "base32": base64.b32encode(f"xy{MARK}".encode()).decode(),
    "escaped": "".join(f"\\u{ord(char):04x}" for char in MARK),
    "codes": ", ".join(str(ord(char)) for char in MARK),
}


@pytest.mark.parametrize("disguise", WRITTEN)
@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.parametrize("stream", ["exact", "sentence", "buffer"])
async def test_no_part_of_a_mark_leaves_in_any_disguise(disguise: str, size: int, stream: str) -> None:
    text = f"Gladly: {WRITTEN[disguise]} and so on."
    judge = await judged(text, size=size, stream=stream)
    assert judge.blocked
    # A code by groups of bytes begins with characters that depend on what stands before the mark as well.
    assert judge.cleared(CHANNEL) <= text.index(WRITTEN[disguise]) + (4 if disguise.startswith("base") else 1)
    assert {f.category for f in judge.verdict.findings} == {"leak.canary"}


async def test_a_mark_has_its_own_action_also_where_leaks_are_only_flagged() -> None:
    text = f"It says {MARK}, I believe."
    judge = await judged(text, action="redact")
    assert judge.render(CHANNEL, 0, len(text)) == "It says [redacted], I believe."
    flagged = LeakageGuard(Leakage(action="flag"), ProtectedTexts(), None, None, digest=str.upper)
    held = await flagged.open("t", ["You are Wren."], [], Asked(canary=MARK))
    await held.feed(CHANNEL, f"It says {MARK[:-1]}")
    assert held.cleared(CHANNEL) <= len("It says ")


async def test_a_mark_in_a_reply_that_comes_whole_is_found_as_well() -> None:
    guard = LeakageGuard(Leakage(stream="exact"), ProtectedTexts(), None, None, digest=str.upper)
    judge = await guard.open("t", ["You are Wren."], [], Asked(canary=MARK))
    await judge.feed(CHANNEL, f"It says {MARK}.", last=True)
    assert judge.blocked
    judge = await guard.open("t", ["You are Wren."], [], Asked(canary=MARK))
    assert await judge.whole("headers/x-note", MARK.upper()) == "" and judge.blocked


async def test_a_text_with_another_mark_is_no_leak() -> None:
    assert (await judged(f"It says {mark_of('request', 't', 'req_2')}.")).verdict.findings == ()
