"""Cutting a view into the windows that the encoder reads: overlapping, of bounded length, nothing left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from service.firewall.normalize import View
from service.firewall.pieces import split

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The Unigram tokeniser's time grows faster than the text where no space breaks it; pieces keep it linear.
PIECE_CHARS = 8_000


class Window(msgspec.Struct, frozen=True):
    """At most `max_tokens` token ids with the specials in place; [start, end) in characters of the view."""

    ids: list[int]
    start: int
    end: int


class WindowFormat(msgspec.Struct, frozen=True):
    """How the encoder wants its windows. `max_tokens` counts the two specials, `overlap` does not."""

    max_tokens: int = 128
    overlap: int = 32
    cls_id: int = 0
    sep_id: int = 2


def windows(
    view: View, tokenizer: Tokenizer, max_tokens: int = 128, overlap: int = 32, *, cls_id: int = 0, sep_id: int = 2
) -> list[Window]:
    """Cut a view into windows that together hold all of its tokens in order.

    Neighbours share `overlap` tokens. The spans meet or overlap and run from 0 to len(view.text). A text without tokens
    (empty, only spaces) gives no window. Characters unknown to the vocabulary become the unknown token and count too.
    """
    ids, ends = tokens(view.text, tokenizer)
    if not ids:
        return []
    body = max_tokens - 2
    step = body - overlap
    count = max(1, -(-(len(ids) - overlap) // step))
    cut = []
    for number in range(count):
        first = number * step
        last = min(first + body, len(ids))
        # From the end of the token before: spaces between tokens belong to somebody, so that spans have no holes.
        start = ends[first - 1] if first else 0
        end = ends[last - 1] if last < len(ids) else len(view.text)
        cut.append(Window([cls_id, *ids[first:last], sep_id], start, end))
    return cut


def tokens(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids without specials, and for each the offset in characters where it ends (monotone)."""
    ids: list[int] = []
    ends: list[int] = []
    offset = 0
    highest = 0
    pieces = split(text, PIECE_CHARS)
    for piece, encoding in zip(pieces, tokenizer.encode_batch(pieces, add_special_tokens=False), strict=True):
        ids += encoding.ids
        for _, end in encoding.offsets:
            highest = max(highest, offset + end)
            ends.append(highest)
        offset += len(piece)
    return ids, ends
