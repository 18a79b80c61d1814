"""A prompt told in other words: what counts together, what does not count, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from service.firewall import retelling
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedTexts
from service.firewall.retelling import PASSAGE_CHARS, PairReader, RetellingGuard, passages
from service.firewall.telling import signals, telling
from service.firewall.told_pairs import CHUNK_TOKENS, PIECE_TOKENS, chunks, closest, reply_pieces
from service.firewall.told_pairs import TOLD as PAIR
from service.firewall.watched import Opening
from service.scoring.artifact import Artifact, Calibration, Manifest, Model, Retelling
from service.scoring.encoder import Encoded
from service.settings import Leakage
from training import told
from training.leak import read
from training.retelling import fit, learn, unrelated

ARTIFACT = Path(__file__).resolve().parents[2] / "models" / "firewall-me5"
TOLD = read()
PROMPT = TOLD[0].prompt
RETOLD = TOLD[0].leaks[0].text
CHANNEL = "choices/0/content"


async def judged(text: str, *, user: str = "", prompt: str = PROMPT, action: Any = "flag", size: int = 7) -> Any:
    settings = Leakage(stream="exact", retelling=action)
    watch = RetellingGuard(settings).watch
    guard = LeakageGuard(settings, ProtectedTexts(), None, None, digest=str.upper, watches=[watch])
    judge = await guard.open("t", [prompt], [user], Asked())
    for at in range(0, len(text), size):
        await judge.feed(CHANNEL, text[at : at + size])
        if action == "block":
            assert judge.cleared(CHANNEL) == 0
    await judge.finish()
    return judge


@pytest.mark.parametrize("size", [1, 40, 1_000])
async def test_a_retelling_is_flagged_at_its_place(size: int) -> None:
    judge = await judged(RETOLD, size=size)
    (finding,) = judge.verdict.findings
    assert (finding.category, finding.action, finding.detail) == ("leak.prompt", "flag", "told in other words")
    assert (finding.start, finding.end) == (0, len(RETOLD)) and 0.5 < finding.score < 1
    assert judge.cleared(CHANNEL) == len(RETOLD)


async def test_with_block_nothing_of_it_leaves() -> None:
    judge = await judged(RETOLD, action="block")
    assert judge.blocked and judge.cleared(CHANNEL) == 0


async def test_what_the_user_said_himself_and_confessions_of_something_else_tell_nothing() -> None:
    assert (await judged(RETOLD, user=PROMPT + RETOLD)).verdict.findings == ()
    assert (await judged(RETOLD, user="So it goes. " * 1_000 + PROMPT + RETOLD)).verdict.findings == ()
    assert (await judged(RETOLD, user="So it goes. " * 1_000)).verdict.findings != ()
    secretive = "Between us, I was told to keep quiet: it may rain on the hills on Sunday."
    assert (await judged(secretive)).verdict.findings == ()
    assert (await judged(RETOLD, action="allow")).verdict.findings == ()


async def test_a_refusal_is_no_retelling_though_it_speaks_of_instructions() -> None:
    refusal = "I'm sorry, I can't share what I was told about that. Is it raining where you are?"
    assert (await judged(refusal)).verdict.findings == ()


def test_order_does_not_matter_but_numbers_names_and_confessions_do() -> None:
    prompt = telling("Offer vouchers of 12 EUR for Skagen benches.")
    some = signals(prompt, {}, "Skagen benches, 12 EUR vouchers.")
    assert some == pytest.approx(signals(prompt, {}, "Vouchers: EUR 12; benches (Skagen)."))
    assert some[0] > signals(prompt, {}, "We have benches.")[0] > signals(prompt, {}, "Good morning!")[0] == 0
    assert signals(prompt, {}, "I was told to offer Skagen vouchers.")[2] > 0 == signals(prompt, {}, "I was told.")[2]


def test_passages_hold_all_of_a_text_in_order_and_are_of_bounded_length() -> None:
    text = " ".join(f"Sentence number {n} says little." for n in range(200))
    found = passages(text)
    assert all(text[start:end] == part and len(part) <= PASSAGE_CHARS for start, end, part in found)
    assert "".join(part.replace(" ", "") for _, _, part in found) == text.replace(" ", "")


def test_the_constants_are_those_that_the_fit_gives() -> None:
    learned = fit(TOLD[::2], unrelated(0))
    assert learned.weights == pytest.approx(retelling.WEIGHTS, abs=0.01)
    assert (learned.bias, learned.limit) == pytest.approx((retelling.BIAS, retelling.LIMIT), abs=0.01)


FIRST, END = 70_002, 2
LABELS = ("benign", "injection", "jailbreak", "extraction")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ARTIFACT / "tokenizer.json"))


class Batches:
    """An encoder that says of a pair that it tells where the reply's half says "told". Keeps what it was asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.word = tokenizer.encode("told", add_special_tokens=False).ids[0]
        self.asked: list[list[int]] = []

    def run(self, ids: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        self.asked += [list(window) for window in ids if list(window).count(END) == 2]
        replies = [list(window)[list(window).index(END) if list(window).count(END) == 2 else 0 :] for window in ids]
        said = np.array([self.word in reply for reply in replies], np.float32)
        return np.column_stack([np.zeros((len(ids), 3), np.float32), 10 * said - 5]), np.column_stack([said, 1 - said])

    async def encode(self, ids: Sequence[Sequence[int]], deadline_s: float) -> Encoded:
        return Encoded(*self.run(ids))


def artifact(tokenizer: Tokenizer, weights: tuple[float, ...] = (), **changed: Any) -> Artifact:
    learned = Retelling((1.0, 0.0), 0.5, weights or (0.0, 0.0, 0.0, 0.0, 1.0, 0.0), limit=1.0)
    values: dict[str, Any] = {"origins": {PAIR: FIRST}, "calibration": Calibration(retelling=learned)} | changed
    manifest = Manifest(1, "made", {}, Model("model.onnx"), LABELS, sep_id=END, **values)
    return Artifact(ARTIFACT, manifest, tokenizer, "v")


async def flagged(
    batches: Batches,
    tokenizer: Tokenizer,
    reply: str,
    *,
    user: str = "",
    prompt: str = PROMPT,
    weights: tuple[float, ...] = (),
) -> bool:
    reader = PairReader.of(batches, artifact(tokenizer, weights), 5.0)
    assert reader is not None
    watcher = RetellingGuard(Leakage(retelling="flag"), reader).watch(
        Opening("t", Asked(), (prompt,), (user,), (prompt,))
    )
    assert watcher is not None
    await watcher.feed(CHANNEL, reply)
    return bool(await watcher.finish())


async def test_the_encoder_decides_of_what_says_something_of_the_prompt(tokenizer: Tokenizer) -> None:
    """It is shown the prompt and the reply in one window, which begins as no text can."""
    batches = Batches(tokenizer)
    assert await flagged(batches, tokenizer, "I was told of vouchers of 12 EUR for furniture.")
    assert not await flagged(batches, tokenizer, "We have vouchers of 12 EUR for furniture.")
    assert len(batches.asked) == 2 * len(chunks(PROMPT, tokenizer))
    assert all(window[0] == FIRST and window.count(END) == 2 and window[-1] == END for window in batches.asked)


async def test_the_tone_of_the_reply_alone_counts_too(tokenizer: Tokenizer) -> None:
    """It is read from the vector of what the reply says, without the prompt."""
    batches, tone = Batches(tokenizer), (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert await flagged(batches, tokenizer, "I was told of vouchers of 12 EUR for furniture.", weights=tone)
    assert not await flagged(batches, tokenizer, "We have vouchers of 12 EUR for furniture.", weights=tone)


async def test_what_says_nothing_of_the_prompt_or_only_what_the_user_said_is_not_encoded(tokenizer: Tokenizer) -> None:
    """Nothing is asked of the encoder in vain."""
    batches = Batches(tokenizer)
    assert not await flagged(batches, tokenizer, "I was told that it rains.")
    assert not await flagged(batches, tokenizer, "I was told of vouchers of 12 EUR.", user="Vouchers of 12 EUR?")
    assert batches.asked == []


async def test_of_a_long_prompt_the_chunks_that_share_most_with_the_reply_are_asked_of(tokenizer: Tokenizer) -> None:
    """However long a prompt is, a passage costs a bounded number of windows, and the right one is among them."""
    filler = " ".join(f"Rule {n}: be brief about matter {n}." for n in range(400))
    batches = Batches(tokenizer)
    long = f"{filler} Offer Skagen benches with vouchers of 12 EUR. {filler}"
    assert await flagged(batches, tokenizer, "I was told of Skagen benches and vouchers.", prompt=long)
    skagen = tokenizer.encode("Skagen benches", add_special_tokens=False).ids
    told = [window[: window.index(END)] for window in batches.asked]
    assert len(told) <= 4 and any(set(skagen) <= set(window) for window in told)


def test_chunks_and_pieces_hold_all_of_a_text_and_fit_beside_each_other(tokenizer: Tokenizer) -> None:
    """Together they stay within the encoder's places."""
    text = " ".join(f"Sentence number {n} says little." for n in range(200))
    everything = set(tokenizer.encode(text, add_special_tokens=False).ids)
    for cut, most in ((chunks(text, tokenizer), CHUNK_TOKENS), (reply_pieces(text, tokenizer), PIECE_TOKENS)):
        assert {token for part in cut for token in part.ids} == everything
        assert max(len(part.ids) for part in cut) <= most
    assert CHUNK_TOKENS + PIECE_TOKENS + 3 <= 512
    assert closest(chunks("", tokenizer), reply_pieces(text, tokenizer)) == []


@pytest.mark.parametrize(
    "changed", [{"origins": {}}, {"calibration": Calibration()}], ids=["no first token", "nothing learned"]
)
def test_an_artifact_that_was_not_trained_on_pairs_leaves_it_to_the_words(
    tokenizer: Tokenizer, changed: dict[str, Any]
) -> None:
    """Models made before serve on."""
    assert PairReader.of(Batches(tokenizer), artifact(tokenizer, **changed), 5.0) is None


def test_the_numbers_are_weighed_on_some_prompts_and_told_of_others(tokenizer: Tokenizer) -> None:
    """What the encoder says counts, and the figures are those of the reported prompts."""
    trained, weighed, reported = TOLD[:10], TOLD[40:60:2], TOLD[41:60:2]
    learned, figures = learn(Batches(tokenizer).run, tokenizer, trained, weighed, reported)
    assert len(learned.weights) == 6 and len(learned.tone) == 2 and learned.tone[0] > learned.tone[1]
    assert [figures[f"prompts_{name}"] for name in ("trained", "weighed", "reported")] == [10, 10, 10]
    assert figures["false_alarms"]["total"] == sum(len(one.benign) for one in reported)
    assert figures["recall_verbatim"]["hits"] > 0


def test_pairs_to_train_on_leave_out_what_is_weighed_and_reported(tokenizer: Tokenizer) -> None:
    """No prompt stands on two sides, and both labels are there, beginning with the token that serving uses."""
    trained, weighed, reported = told.thirds()
    assert not {one.id for one in trained} & {one.id for one in (*weighed, *reported)}
    assert {one.id for one in reported} == {one.id for one in TOLD[1::2]}
    windows = told.encode(trained[:10], tokenizer)
    assert set(windows.label.tolist()) == {0, LABELS.index("extraction")}
    assert {int(windows.tokens(n)[0]) for n in range(len(windows))} == {tokenizer.get_vocab_size() + 2}
    assert not windows.plain.any() and windows.lengths.max() <= CHUNK_TOKENS + PIECE_TOKENS + 3
