"""Windows that teach the encoder what a retold prompt is: a chunk of a prompt beside a reply that tells it, or not.

From every other prompt of `datasets/leakage.jsonl` and those of `datasets/retold.jsonl`, but for a quarter on which the
answers are weighed (`training.retelling`). What does not tell a prompt: the honest replies to it, and what was said,
leaked or honest, to others. The class of one that tells is `extraction`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from service.firewall.retelling import PASSAGE_CHARS
from service.firewall.told_pairs import TELLS, TOLD, Chunk, ReplyPiece, chunks, pair, reply_pieces, shared
from training.corpus import BENIGN, LABELS
from training.encode import origins
from training.leak import FILE, Told, read
from training.windows import NO_ROW, Windows

MORE = FILE.with_name("retold.jsonl")
LABEL = LABELS.index(TELLS)
BEGIN, END = 0, 2
_STRANGERS = 5
"""Replies to other prompts beside each prompt."""
_SURE = 2.0
"""The weight of words that a chunk of a long prompt must share with a reply, or nobody knows which chunk is told."""
_KEPT_OUT = 4


def thirds(most: int | None = None) -> tuple[list[Told], list[Told], list[Told]]:
    """Prompts to train on, to weigh on, and to report on. `most` of each file at most."""
    first, more = read()[:most], read(MORE)[:most]
    learned = first[::2] + more
    kept_out = learned[_KEPT_OUT - 1 :: _KEPT_OUT]
    return [one for one in learned if one not in kept_out], kept_out, first[1::2]


def encode(told: Sequence[Told], tokenizer: Tokenizer, seed: int = 1) -> Windows:
    """Pairs with their labels, `row` NO_ROW."""
    rng = np.random.default_rng(seed)
    first = origins(tokenizer)[TOLD]
    prompts = [chunks(one.prompt, tokenizer) for one in told]
    leaks = [[_pieces(reply.text, tokenizer) for reply in one.leaks] for one in told]
    honest = [[_pieces(reply.text, tokenizer) for reply in one.benign] for one in told]
    ids: list[list[int]] = []
    labels: list[int] = []
    for number, cut in enumerate(tqdm(prompts, desc="told", unit="prompt", mininterval=5)):
        if not cut:
            continue
        for pieces in leaks[number]:
            for piece in pieces:
                chunk = _nearest(cut, piece)
                if len(cut) == 1 or shared(chunk, piece) >= _SURE:
                    ids.append(pair(first, chunk, piece, END))
                    labels.append(LABEL)
        others = [int(other) for other in rng.integers(len(told), size=_STRANGERS) if other != number]
        strange = [said[rng.integers(len(said))] for said in (leaks[other] + honest[other] for other in others) if said]
        for pieces in honest[number] + strange:
            for piece in pieces:
                # Of a long prompt both the chunk that seems told and another one.
                seeming, any_one = _nearest(cut, piece), cut[rng.integers(len(cut))]
                for chunk in [seeming] if any_one is seeming else [seeming, any_one]:
                    ids.append(pair(first, chunk, piece, END))
                    labels.append(BENIGN)
    return Windows(
        ids=np.concatenate([np.asarray(tokens, np.int32) for tokens in ids]),
        starts=np.concatenate([[0], np.cumsum([len(tokens) for tokens in ids])]).astype(np.int64),
        label=np.asarray(labels, np.int64),
        row=np.full(len(ids), NO_ROW, np.int64),
        weight=np.ones(len(ids), np.float32),
        certain=np.ones(len(ids), np.bool_),
    )


def _pieces(text: str, tokenizer: Tokenizer) -> list[ReplyPiece]:
    return reply_pieces(text[:PASSAGE_CHARS], tokenizer)


def _nearest(cut: Sequence[Chunk], piece: ReplyPiece) -> Chunk:
    return max(cut, key=lambda chunk: shared(chunk, piece))
