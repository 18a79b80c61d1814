"""What counts as a leak of a prompt, what does not, and what happens when the guard cannot judge."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.credential_cases import samples
from service.errors import DeadlineExceeded, GuardFailed, Overloaded
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.sentences import MAX_SENTENCE_CHARS, SentenceSplitter, split
from service.scoring.artifact import Calibration
from service.scoring.encoder import Encoded
from service.settings import Leakage

PROMPT = (
    "You are Harbor, the booking assistant of the Lighthouse hotel group. Never reveal the wholesale rates of rooms to "
    "any guest. Offer the seaside suite first. Discounts above fifteen percent need the approval of Marta in Oslo."
)
CHANNEL = "choices/0/content"


class WordTokens:
    """A tokenizer of words: the id is the word's hash."""

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Any]:
        return [
            SimpleNamespace(ids=[_word(w) for w in text.lower().replace(".", " ").replace(",", " ").split()])
            for text in texts
        ]


def _word(word: str) -> int:
    return 10 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:3]) % 5_000


class BagOfWords:
    """Encodes windows as hashed bags of words: the same words in any order are the same sentence."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, ...]] = []
        self.failure: Exception | None = None

    async def encode(self, ids: Sequence[Sequence[int]], deadline_s: float) -> Encoded:
        if self.failure is not None:
            raise self.failure
        self.windows += [tuple(window) for window in ids]
        vectors = np.zeros((len(ids), 384), np.float32)
        for row, window in enumerate(ids):
            for token in window[1:-1]:
                rng = np.random.default_rng(token)
                vectors[row] += rng.standard_normal(384).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return Encoded(np.zeros((len(ids), 4), np.float32), vectors)


ARTIFACT: Any = SimpleNamespace(
    tokenizer=WordTokens(),
    manifest=SimpleNamespace(max_tokens=128, cls_id=0, sep_id=2, embedding_dim=384, calibration=Calibration()),
)


def guard(batcher: BagOfWords | None = None, *, texts: Sequence[ProtectedText] = (), **settings: str) -> LeakageGuard:
    return LeakageGuard(
        Leakage(**settings),  # type: ignore[arg-type]
        ProtectedTexts(texts),
        batcher or BagOfWords(),
        ARTIFACT,
        digest=lambda text: "keyed:" + hashlib.sha256(text.encode()).hexdigest()[:8],
    )


async def reply(
    to: LeakageGuard,
    text: str,
    *,
    system: Sequence[str] = (PROMPT,),
    user: Sequence[str] = (),
    size: int = 7,
    asked: Asked | None = None,
) -> Any:
    judge = await to.open("t", system, user, asked)
    for at in range(0, len(text), size):
        await judge.feed(CHANNEL, text[at : at + size])
    await judge.finish()
    return judge


async def test_a_verbatim_run_of_the_system_prompt_is_blocked_and_told_by_place_and_keyed_hash() -> None:
    text = "Of course! You are Harbor, the booking assistant of the Lighthouse hotel group. Bye."
    judge = await reply(guard(stream="exact"), text)
    assert judge.blocked and judge.verdict.action == "block"
    (finding,) = judge.verdict.findings
    assert (finding.category, finding.pointer, finding.start) == ("leak.prompt", CHANNEL, len("Of course! "))
    assert text[finding.start : finding.end].split()[:3] == ["You", "are", "Harbor,"]
    assert finding.digest.startswith("keyed:") and "Harbor" not in repr(finding)
    assert judge.cleared(CHANNEL) <= finding.start


@pytest.mark.parametrize(
    "text",
    [
        "Hm. The booking assistant of the Lighthouse hotel speaks. And so on.",
        "Reveal the wholesale rates of rooms to people?",
    ],
)
async def test_a_near_verbatim_sentence_is_blocked_in_sentence_mode(text: str) -> None:
    judge = await reply(guard(stream="sentence"), text)
    assert judge.blocked
    assert judge.verdict.findings[0].score >= 0.6


async def test_a_sentence_of_the_same_meaning_is_blocked_before_any_of_it_is_cleared() -> None:
    text = "Hello there, friend. Marta in Oslo need approval the of fifteen percent above discounts. And more."
    judge = await reply(guard(stream="sentence"), text)
    assert judge.blocked
    assert judge.cleared(CHANNEL) <= len("Hello there, friend. ")
    (finding,) = judge.verdict.findings
    assert finding.score >= 0.9 and "meaning" in finding.detail


async def test_exact_mode_does_not_ask_the_encoder() -> None:
    batcher = BagOfWords()
    judge = await reply(
        guard(batcher, stream="exact"), "Marta in Oslo need approval the of fifteen percent above discounts."
    )
    assert not judge.blocked and batcher.windows == []


async def test_text_that_the_user_typed_is_no_leak() -> None:
    user = ["What do you make of this? " + PROMPT]
    for text in (PROMPT, "Marta in Oslo need approval the of fifteen percent above discounts."):
        judge = await reply(guard(stream="sentence"), text, user=user)
        assert not judge.blocked and judge.cleared(CHANNEL) == len(text)


async def test_what_the_user_typed_does_not_excuse_the_rest() -> None:
    judge = await reply(guard(stream="exact"), PROMPT, user=["Never reveal the wholesale rates of rooms to any guest."])
    assert judge.blocked


HANDBOOK = "Handbook, page 4.\n" + "Rooms are cleaned at noon. " * 300 + "\n" + PROMPT + " Towels are on the shelf."


@pytest.mark.parametrize(
    "text",
    [
        "You are Harbor, the booking assistant of the Lighthouse hotel group. Bye.",
        "Hm. The booking assistant of the Lighthouse hotel speaks. And so on.",
        "Marta in Oslo need approval the of fifteen percent above discounts.",
    ],
)
async def test_a_document_that_says_what_the_prompt_says_may_be_repeated(text: str) -> None:
    judge = await reply(guard(stream="sentence"), text, asked=Asked(supplied=("Nothing.", HANDBOOK)))
    assert not judge.verdict.findings and judge.cleared(CHANNEL) == len(text)
    assert (await reply(guard(stream="sentence"), text, asked=Asked(results=(HANDBOOK,)))).blocked


async def test_a_document_excuses_no_more_of_the_prompt_than_it_holds_and_no_credential() -> None:
    held = Asked(supplied=("Never reveal the wholesale rates of rooms to any guest.",))
    assert (await reply(guard(stream="sentence"), PROMPT, asked=held)).blocked
    _, before, credential, behind = next(iter(samples(random.Random(7))))
    text = before + credential + behind
    judge = await reply(guard(stream="exact"), text, asked=Asked(supplied=(text,), results=(text,)))
    assert {finding.category for finding in judge.verdict.findings} == {"leak.credential"}


SECRET = "The merger with Northwind closes on the second Friday of March under the name Blue Heron."


@pytest.mark.parametrize(
    "text",
    [
        "Well, the merger with Northwind closes on the first Friday of March under the name Blue Heron. More?",
        "Of March Friday second the on Blue Heron name the under Northwind with merger closes the. More?",
    ],
)
async def test_a_secret_of_several_words_is_found_when_it_is_told_nearly_or_otherwise(text: str) -> None:
    texts = [ProtectedText("merger", "secret", "t", SECRET)]
    judge = await reply(guard(stream="sentence", texts=texts), text, system=())
    assert judge.blocked and {finding.category for finding in judge.verdict.findings} == {"leak.prompt"}
    assert not (await reply(guard(stream="sentence"), text, system=())).blocked
    assert not (await reply(guard(stream="sentence", texts=texts), text, system=(), user=[text])).blocked
    judge = await reply(guard(stream="sentence", texts=texts), SECRET, system=(), user=[SECRET])
    assert judge.verdict.findings[0].category == "leak.secret"


async def test_another_tenants_secret_is_compared_with_no_sentence() -> None:
    texts = [ProtectedText("merger", "secret", "other", SECRET)]
    near = SECRET.replace("second", "first")
    assert not (await reply(guard(stream="sentence", texts=texts), near, system=())).verdict.findings


async def test_a_long_user_text_is_compared_without_holding_the_loop() -> None:
    user = ["filler words go here " * 5_000 + PROMPT]
    judge = await reply(guard(stream="sentence"), PROMPT, user=user)
    assert not judge.blocked


async def test_a_generic_sentence_is_no_leak_even_where_the_prompt_has_it() -> None:
    prompt = "Thank you for your message. " + PROMPT
    judge = await reply(guard(stream="sentence"), "Thank you for your message.", system=[prompt])
    assert not judge.blocked


async def test_an_answer_on_topic_is_cleared_whole() -> None:
    text = (
        "We have three rooms free in June. The seaside suite has a balcony; breakfast is served from seven to ten. "
        "I cannot tell you our wholesale rates. Would you like me to book one of them for you?"
    )
    judge = await reply(guard(stream="sentence"), text)
    assert judge.verdict.findings == () and judge.cleared(CHANNEL) == len(text)


async def test_a_short_prompt_is_found_as_a_whole_only() -> None:
    prompt = "Speak only of lighthouse keeping."
    assert (await reply(guard(stream="exact"), "My rule: speak ONLY of light-house keeping!", system=[prompt])).blocked
    assert not (await reply(guard(stream="exact"), "Speak only of lighthouse lamps.", system=[prompt])).blocked
    assert not (await reply(guard(stream="exact"), prompt, system=[prompt], user=[prompt])).blocked


async def test_a_registered_prompt_is_found_by_its_name_for_its_tenant() -> None:
    texts = [ProtectedText("house rules", "prompt", "t", PROMPT)]
    judge = await reply(guard(texts=texts, stream="exact"), PROMPT, system=())
    assert "house rules" in judge.verdict.findings[0].detail
    elsewhere = await guard(texts=texts, stream="exact").open("other", (), ())
    await elsewhere.feed(CHANNEL, PROMPT)
    assert elsewhere.verdict.findings[0].category == "cross_tenant"


async def test_a_secret_is_a_leak_even_if_the_user_typed_it() -> None:
    texts = [ProtectedText("door code", "secret", "", "9f8A-7b6C-5d4E")]
    judge = await reply(guard(texts=texts), "It is 9f8A-7b6C-5d4E.", system=(), user=["Is it 9f8A-7b6C-5d4E?"])
    assert judge.verdict.findings[0].category == "leak.secret"


async def test_redaction_replaces_runs_and_sentences_and_lets_the_rest_leave() -> None:
    text = (
        "Fine. You are Harbor, the booking assistant of the Lighthouse hotel group. Well then. "
        "Marta in Oslo need approval the of fifteen percent above discounts. Good bye."
    )
    judge = await reply(guard(stream="sentence", action="redact"), text)
    sent = judge.render(CHANNEL, 0, judge.cleared(CHANNEL))
    assert not judge.blocked and judge.verdict.action == "redact"
    assert sent.startswith("Fine.") and sent.endswith("Good bye.") and "Well then." in sent
    for word in ("Harbor", "Lighthouse", "Marta", "fifteen"):
        assert word not in sent
    assert sent.count("[redacted]") == 2


async def test_flagging_records_the_leak_and_holds_nothing() -> None:
    judge = await guard(stream="sentence", action="flag").open("t", [PROMPT], ())
    for chunk in (PROMPT[:30], PROMPT[30:]):
        await judge.feed(CHANNEL, chunk)
    assert judge.cleared(CHANNEL) == len(PROMPT)
    await judge.finish()
    assert not judge.blocked and judge.verdict.action == "flag"
    assert judge.render(CHANNEL, 0, len(PROMPT)) == PROMPT


async def test_a_leak_told_a_thousand_times_keeps_the_record_small() -> None:
    texts = [ProtectedText("door code", "secret", "", "9f8A-7b6C-5d4E")]
    judge = await reply(guard(texts=texts, action="redact"), "It is 9f8A-7b6C-5d4E, yes. " * 1_000, size=1_000)
    assert len(judge.verdict.findings) <= 64
    assert judge.render(CHANNEL, 0, judge.cleared(CHANNEL)).count("[redacted]") == 1_000


async def test_buffering_clears_nothing_before_the_end_and_all_of_a_clean_reply_then() -> None:
    judge = await guard(stream="buffer").open("t", [PROMPT], ())
    await judge.feed(CHANNEL, "A clean sentence about boats. Another one.")
    assert judge.cleared(CHANNEL) == 0
    await judge.finish()
    assert judge.cleared(CHANNEL) == 42


@pytest.mark.parametrize("failure", [Overloaded("full"), DeadlineExceeded("late"), ValueError("broken")])
async def test_a_failing_encoder_fails_closed_by_default(failure: Exception) -> None:
    batcher = BagOfWords()
    batcher.failure = failure
    judge = await guard(batcher, stream="sentence").open("t", [PROMPT], ())
    with pytest.raises((Overloaded, DeadlineExceeded, GuardFailed)):
        await judge.feed(CHANNEL, "This is a whole sentence about boats. And")
    assert judge.blocked and judge.cleared(CHANNEL) == 0
    assert judge.verdict.unjudged == ("leakage",)


async def test_a_failing_encoder_may_be_passed_over_by_policy_but_words_are_still_compared() -> None:
    batcher = BagOfWords()
    batcher.failure = Overloaded("full")
    to = guard(batcher, stream="sentence", on_error="allow")
    judge = await reply(to, "This is a whole sentence about boats. And one more is here.")
    assert judge.verdict.unjudged == ("leakage",) and not judge.blocked
    assert judge.cleared(CHANNEL) == len("This is a whole sentence about boats. And one more is here.")
    assert (await reply(to, PROMPT)).blocked


async def test_a_prompt_is_encoded_once_for_a_conversation_and_again_after_a_failure() -> None:
    batcher = BagOfWords()
    to = guard(batcher, stream="sentence")
    for _ in range(3):
        await reply(to, "We have three rooms free in June.")
    prompt_sentence = (0, *(_word(w) for w in ("offer", "the", "seaside", "suite", "first")), 2)
    assert batcher.windows.count(prompt_sentence) == 1

    batcher.failure = Overloaded("full")
    other = [PROMPT + " Say nothing of the cellar under the tower."]
    with pytest.raises(Overloaded):
        await reply(to, "We have three rooms free in June.", system=other)
    batcher.failure = None
    assert not (await reply(to, "We have three rooms free in June.", system=other)).blocked


async def test_others_get_their_turn_while_a_whole_reply_is_judged() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    judge = await guard(stream="exact").open("t", [PROMPT], ())
    task = asyncio.create_task(other())
    await judge.feed(CHANNEL, "words and words " * 20_000)
    task.cancel()
    assert turns >= 20


async def test_text_after_the_end_and_text_rendered_twice_are_programming_errors() -> None:
    judge = await reply(guard(stream="exact"), "Hello there.")
    assert judge.render(CHANNEL, 0, 5) == "Hello"
    with pytest.raises(ValueError, match="rendered"):
        judge.render(CHANNEL, 0, 5)
    with pytest.raises(RuntimeError):
        await judge.feed(CHANNEL, "more")


@pytest.mark.parametrize("size", [1, 2, 3, 1_000])
def test_sentences_end_at_the_same_places_whatever_the_chunking(size: int) -> None:
    text = 'It costs 3.14 at example.com. "Really?" she asked.\nЯ тут! 今天很好。明天呢？' + "x" * 900 + ". End"
    splitter = SentenceSplitter()
    for at in range(0, len(text), size):
        splitter.feed(text[at : at + size])
    splitter.finish()
    spans = splitter.pop()
    pieces = [text[start:end] for start, end in spans]
    assert "".join(pieces) == text
    assert [p.strip() for p in pieces if p.strip()][:6] == [
        "It costs 3.14 at example.com.",
        '"Really?"',
        "she asked.",
        "Я тут!",
        "今天很好。",
        "明天呢？",
    ]
    assert max(map(len, pieces)) <= MAX_SENTENCE_CHARS
    assert split(text)[-1] == "End"


async def test_the_judge_works_without_an_encoder(tmp_path: Path) -> None:
    to = LeakageGuard(Leakage(), ProtectedTexts(), None, None, digest=str.upper)
    assert (await reply(to, PROMPT)).blocked
    assert not (await asyncio.wait_for(reply(to, "Nothing to see here, move on."), 5)).blocked
