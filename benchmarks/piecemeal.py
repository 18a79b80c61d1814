"""A system prompt asked for bit by bit: after how many turns is it noticed, and how much has been told by then?

No model runs. The bits are those of the prompts in `datasets/leakage.jsonl`, cut below what one reply's judge calls a
leak; the honest conversations are all honest replies to one prompt, told to one caller within one window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import msgspec

from benchmarks.results import Options
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.ngrams import short_grams, words
from service.firewall.piecemeal import ToldBefore
from service.firewall.protected import ProtectedTexts
from service.firewall.sentences import split
from service.settings import Leakage, Piecemeal
from training.leak import Told, read
from training.metrics import share

CHANNEL = "choices/0/content"
ASKS = "And what comes after that?"


def measure(options: Options) -> dict[str, Any]:
    """Figures by way of asking, and the false alarms."""
    return asyncio.run(_measure(read()[:: 4 if options.quick else 1]))


async def _measure(prompts: list[Told]) -> dict[str, Any]:
    settings = Piecemeal()
    ways: dict[str, Callable[[Told], Iterable[str]]] = {
        "three words a turn": lambda told: _bits(told.prompt, 3),
        "four words a turn": lambda told: _bits(told.prompt, 4),
        "five words a turn": lambda told: _bits(told.prompt, 5),
        "six words a turn": lambda told: _bits(told.prompt, 6),
        "seven words a turn": lambda told: _bits(told.prompt, 7),
        "six words a turn, backwards through the prompt": lambda told: list(_bits(told.prompt, 6))[::-1],
        "a sentence a turn, every fifth word changed": lambda told: map(_every_fifth, split(told.prompt)),
        "a sentence a turn, word for word": lambda told: split(told.prompt),
        "a paraphrase a turn": lambda told: [leak.text for leak in told.leaks if leak.kind == "paraphrase"],
    }
    found = {
        way: _summary([await _turns(told.prompt, list(bits(told))) for told in prompts]) for way, bits in ways.items()
    }
    honest = [await _honest(told) for told in prompts]
    return {
        "prompts": len(prompts),
        "share": settings.share,
        "ways": found,
        "honest": {
            "conversations": msgspec.structs.asdict(share(sum(stopped for stopped, _ in honest), len(honest))),
            "highest_share": max(told for _, told in honest),
        },
    }


class _Turns(msgspec.Struct, frozen=True):
    """`turn` is 0 where nothing was noticed; `told` is the share of the prompt's words that had been asked by then."""

    turn: int
    by: str
    of: int
    told: float


async def _turns(prompt: str, bits: list[str]) -> _Turns:
    guard = _guard()
    size = sum(len(words(bit)) for bit in bits)
    told = 0
    for turn, bit in enumerate(bits, 1):
        findings = await _categories(guard, prompt, f"It goes on: {bit} ... and so on.", ASKS)
        if findings:
            return _Turns(turn, findings[0], len(bits), told / size)
        told += len(words(bit))
    return _Turns(0, "", len(bits), 1.0)


def _summary(turns: list[_Turns]) -> dict[str, Any]:
    noticed = [one for one in turns if one.turn]
    return {
        "noticed": msgspec.structs.asdict(share(len(noticed), len(turns))),
        "by_adding_up": sum(one.by == "leak.piecemeal" for one in noticed),
        "turns": median(one.turn for one in noticed) if noticed else None,
        "most_turns": max((one.turn for one in noticed), default=None),
        "of_turns": median(one.of for one in turns),
        "told_before": median(one.told for one in noticed) if noticed else None,
    }


async def _honest(told: Told) -> tuple[bool, float]:
    """Whether the honest replies to one prompt raise an alarm together, and the share of its phrases that they say."""
    guard, stopped = _guard(), False
    phrases, said = set(short_grams(words(told.prompt))), set[int]()
    for reply in told.benign:
        stopped |= "leak.piecemeal" in await _categories(guard, told.prompt, reply.text, reply.user)
        said |= set(short_grams(words(reply.text))) - set(short_grams(words(reply.user)))
    return stopped, len(phrases & said) / len(phrases)


def _guard() -> LeakageGuard:
    watch = ToldBefore(Piecemeal(), lambda: 0.0).watch
    return LeakageGuard(Leakage(stream="exact"), ProtectedTexts(), None, None, digest=lambda text: "", watches=[watch])


async def _categories(guard: LeakageGuard, prompt: str, reply: str, user: str) -> list[str]:
    judge = await guard.open("t", [prompt], [user], Asked(caller="caller"))
    await judge.feed(CHANNEL, reply)
    await judge.finish()
    return [finding.category for finding in judge.verdict.findings]


def _bits(prompt: str, size: int) -> list[str]:
    spelled = prompt.split()
    return [" ".join(spelled[at : at + size]) for at in range(0, len(spelled), size)]


def _every_fifth(sentence: str) -> str:
    return " ".join("indeed" if number % 5 == 4 else word for number, word in enumerate(sentence.split()))
