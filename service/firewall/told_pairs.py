"""A prompt and a reply side by side in one window, for the encoder to say whether the one tells the other.

    told  chunk of the prompt  end  piece of the reply  end

Such a window begins with a token of its own, as foreign text does (`Manifest.origins`), and then the encoder's class
`extraction` means: the reply tells what stands in the chunk. It was trained to that by `training.told`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.sanitise import sanitise
from service.firewall.telling import Said, said_in, telling
from service.firewall.windows import windows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOLD = "told"
"""The name of the first token in `Manifest.origins`."""
TELLS = "extraction"
"""The class of a pair in which the reply tells the prompt."""
CHUNK_TOKENS, PIECE_TOKENS = 126, 96
_CHUNK_OVERLAP, _PIECE_OVERLAP = 32, 24
MOST_PAIRS = 4
"""Of one passage, those that share most words: each costs the encoder about two windows of text."""


class Chunk(msgspec.Struct, frozen=True):
    """A stretch of a prompt: its tokens without specials, and its telling words."""

    ids: list[int]
    words: dict[str, float]


class ReplyPiece(msgspec.Struct, frozen=True):
    """A stretch of a reply: its tokens without specials, and what stands in it."""

    ids: list[int]
    said: Said


def chunks(prompt: str, tokenizer: Tokenizer) -> list[Chunk]:
    """The whole prompt in overlapping stretches."""
    return [Chunk(ids, telling(text)) for ids, text in _cut(prompt, tokenizer, CHUNK_TOKENS, _CHUNK_OVERLAP)]


def reply_pieces(passage: str, tokenizer: Tokenizer) -> list[ReplyPiece]:
    """The whole passage in overlapping stretches."""
    return [ReplyPiece(ids, said_in(text)) for ids, text in _cut(passage, tokenizer, PIECE_TOKENS, _PIECE_OVERLAP)]


def pair(first: int, chunk: Chunk, piece: ReplyPiece, end: int) -> list[int]:
    """The window of both; `first` is the token of TOLD, `end` the one after a text."""
    return [first, *chunk.ids, end, *piece.ids, end]


def shared(chunk: Chunk, piece: ReplyPiece) -> float:
    """The weight of the chunk's telling words that the piece says."""
    return sum(weight for stem, weight in chunk.words.items() if stem in piece.said.stems)


def closest(prompt: Sequence[Chunk], passage: Sequence[ReplyPiece], most: int = MOST_PAIRS) -> list[tuple[int, int]]:
    """The pairs (chunk, piece) that share most, by their places; the earlier ones where they share alike."""
    pairs = [(number, place) for place in range(len(passage)) for number in range(len(prompt))]
    return sorted(pairs, key=lambda at: -shared(prompt[at[0]], passage[at[1]]))[:most]


def tells(logits: npt.NDArray[np.float32], tells: int, benign: int) -> float:
    """The log-odds that one of the pairs tells: logits float32 (n, labels), the places of both classes."""
    return float((logits[:, tells] - logits[:, benign]).max())


def _cut(text: str, tokenizer: Tokenizer, most: int, overlap: int) -> list[tuple[list[int], str]]:
    view = sanitise(text)
    cut = windows(view, tokenizer, most + 2, overlap)
    return [(window.ids[1:-1], view.text[window.start : window.end]) for window in cut]
