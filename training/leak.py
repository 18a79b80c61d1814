"""The limit of the leak check: how near to a system prompt's sentence a reply's sentence may come.

Learned on one half of the prompts in `datasets/leakage.jsonl` and reported on the other. Near-verbatim leaks are found
word by word; the limit is for what is told in other words or another language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.leakage import GENERIC, MARGIN, telling_sentences
from training.metrics import share, threshold_at

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]

FILE = Path(__file__).resolve().parents[1] / "datasets" / "leakage.jsonl"
# One false alarm in a hundred honest replies.
RATE = 0.01
# The comparison of sentences may block, and beside the words it finds next to nothing: it is given a tenth of that.
SENTENCE_RATE = 0.001
FLOOR = 0.80
_WORD_FOR_WORD = ("verbatim", "partial", "edited", "list")


class Leak(msgspec.Struct, frozen=True):
    """A reply that tells the prompt."""

    kind: str
    text: str


class Honest(msgspec.Struct, frozen=True):
    """A reply that does not, with what the user had written."""

    kind: str
    text: str
    user: str = ""


class Told(msgspec.Struct, frozen=True):
    """One system prompt with replies of both kinds."""

    id: str
    prompt: str
    leaks: tuple[Leak, ...]
    benign: tuple[Honest, ...]


def read(path: Path = FILE) -> list[Told]:
    """The written prompts and replies."""
    return list(msgspec.json.Decoder(Told).decode_lines(path.read_bytes()))


def fit_leak(embed: Embed, told: Sequence[Told]) -> tuple[float, dict[str, Any]]:
    """The limit, and what it does on the prompts that it was not learned on.

    `embed` gives float32 (n, dim), L2-normalised, one row a sentence.
    """
    generic = embed(GENERIC)
    scored = [_scores(one, embed, generic) for one in told]
    learned = [pair for number, one in enumerate(scored) if number % 2 == 0 for pair in one]
    rest = [pair for number, one in enumerate(scored) if number % 2 for pair in one]
    honest = np.asarray([score for kind, leak, score in learned if not leak])
    # Half a step above the alarm that is just too many, so that an equal score does not raise it again.
    limit = max(FLOOR, float(np.nextafter(np.float32(threshold_at(honest, SENTENCE_RATE)), np.float32(2.0))))
    figures: dict[str, Any] = {"limit": limit, "prompts_learned": len(told[::2]), "prompts_reported": len(told[1::2])}
    for kind in sorted({kind for kind, leak, _ in rest if leak}):
        hits = [score >= limit for name, leak, score in rest if leak and name == kind]
        figures[f"recall_{kind}"] = msgspec.structs.asdict(share(sum(hits), len(hits)))
    alarms = [score >= limit for _, leak, score in rest if not leak]
    figures["false_alarms"] = msgspec.structs.asdict(share(sum(alarms), len(alarms)))
    figures["word_for_word_kinds"] = list(_WORD_FOR_WORD)
    return limit, figures


def _scores(one: Told, embed: Embed, generic: Vectors) -> list[tuple[str, bool, float]]:
    """(kind, leaks, the highest similarity of one of its sentences that nothing excuses) of each reply."""
    prompt = embed(telling_sentences(one.prompt))
    found: list[tuple[str, bool, float]] = []
    replies: list[Leak | Honest] = [*one.leaks, *one.benign]
    for reply in replies:
        sentences = telling_sentences(reply.text)
        if not sentences:
            continue
        rows = embed(sentences)
        nearest = (rows @ prompt.T).max(axis=1)
        typed = telling_sentences(reply.user) if isinstance(reply, Honest) else []
        harmless = np.concatenate([generic, embed(typed)]) if typed else generic
        told = nearest[nearest - (rows @ harmless.T).max(axis=1) >= MARGIN]
        found.append((reply.kind, isinstance(reply, Leak), float(told.max(initial=0.0))))
    return found
