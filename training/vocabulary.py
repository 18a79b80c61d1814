"""Which of the base's 250,002 pieces stay: the embedding table is most of a multilingual model's weight.

Kept are the pieces that the corpus uses, every single character (so that no script becomes unknown) and then the most
frequent ones. Unigram keeps its scores, so text is cut as before wherever its pieces survive, and finer elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from training.e5_file import E5

MIN_USES = 2
_CHUNK = 2_000
_SPECIALS = 4  # <s> <pad> </s> <unk>
_SPACE = "\u2581"


def tokenizer(e5: E5, kept: Sequence[int] | None = None) -> Tokenizer:
    """The Unigram tokenizer over all pieces, or over `kept` (ascending ids; the four specials first)."""
    ids = range(len(e5.pieces)) if kept is None else kept
    built = Tokenizer(models.Unigram([(e5.pieces[i], e5.scores[i]) for i in ids], unk_id=e5.unk_id))
    # XLM-R's own rules: its character map is nmt_nfkc, then runs of spaces become one.
    built.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    return built


def prune(e5: E5, texts: Iterable[str], size: int) -> list[int]:
    """The ids of the pieces to keep, ascending, `size` of them."""
    full = tokenizer(e5)
    uses: Counter[int] = Counter()
    stream = iter(texts)
    while chunk := list(islice(stream, _CHUNK)):
        for encoding in full.encode_batch_fast([text[:8_000] for text in chunk], add_special_tokens=False):
            uses.update(encoding.ids)
    kept = set(range(_SPECIALS))
    kept.update(i for i, piece in enumerate(e5.pieces) if len(piece.lstrip(_SPACE)) <= 1)
    used = (i for i, count in uses.most_common() if count >= MIN_USES and i not in kept)
    kept.update(islice(used, max(0, size - len(kept))))
    by_score = sorted(range(_SPECIALS, len(e5.pieces)), key=lambda i: -e5.scores[i])
    for piece in by_score:
        if len(kept) >= size:
            break
        kept.add(piece)
    return sorted(kept)
