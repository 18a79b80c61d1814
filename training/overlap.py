"""Which texts say the same words: decontamination, duplicates, and train rows that nearly equal dev rows.

Shingles are runs of five words, hashed. The decontamination rule is fixed from outside (the exclusion list holds hashes
made by it), so `normalise` and `shingle_hashes` must not change. Near-duplicates are found with MinHash signatures and
banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", ch. 3) over the same hashes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from training.corpus import BENIGN, Row, stable_hash

Hashes = NDArray[np.uint64]

WORDS = 5
OVERLAP = 0.7
PERMUTATIONS = 48
BAND_ROWS = 3
# Estimated Jaccard: above SAME one of two rows with one label goes, above RELATED no split may part them.
SAME = 0.8
RELATED = 0.5
# Scripts without spaces: a "word" is a clause, so near-duplicates are sought by runs of characters instead.
UNSPACED_WORD_CHARS = 14
CHARS = 6

_NOT_WORD = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """NFKC, case folded, every run of non-alphanumerics one space."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


@lru_cache(maxsize=400_000)
def shingle_hashes(text: str) -> Hashes:
    """uint64 (n_distinct,), sorted: blake2b-64 of each run of five words, or of the whole of a shorter text."""
    normal = normalise(text)
    if not normal:
        return np.empty(0, np.uint64)
    words = normal.split(" ")
    if len(words) < WORDS:
        return np.array([_digest("#short:" + normal)], np.uint64)
    found = {_digest(" ".join(words[start : start + WORDS])) for start in range(len(words) - WORDS + 1)}
    return np.unique(np.fromiter(found, np.uint64, len(found)))


def overlap(texts: Iterable[str], known: Hashes) -> NDArray[np.float64]:
    """float64 (n_texts,): the share of each text's distinct shingles that occur in `known` (sorted, unique)."""
    return np.array([_share(shingle_hashes(text), known) for text in texts], np.float64)


def _share(hashes: Hashes, known: Hashes) -> float:
    if not len(hashes) or not len(known):
        return 0.0
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return float(np.count_nonzero(known[places] == hashes)) / len(hashes)


def load_exclusion(path: Path) -> Hashes:
    """The exclusion list: sorted unique uint64 hashes of held-out shingles. Raises `ValueError` for anything else."""
    known = np.load(path, allow_pickle=False)
    if known.dtype != np.dtype("<u8") or known.ndim != 1:
        raise ValueError(f"{path}: expected a one-dimensional array of uint64, found {known.dtype} {known.shape}")
    return np.asarray(np.unique(known), np.uint64)


def decontaminate(rows: Sequence[Row], exclusion: Path | Hashes | None) -> list[Row]:
    """The rows of which at most 70 % of the shingles are in the exclusion list. Apply it before augmenting: it does
    not see through spacing tricks or substituted letters."""
    if exclusion is None:
        return list(rows)
    known = load_exclusion(exclusion) if isinstance(exclusion, Path) else exclusion
    shares = overlap((row.text for row in rows), known)
    return [row for row, share in zip(rows, shares, strict=True) if share <= OVERLAP]


def drop_overlapping(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The rows of which at most 70 % of the shingles occur anywhere in `others`."""
    pieces = [shingle_hashes(row.text) for row in others]
    known = np.unique(np.concatenate(pieces)) if pieces else np.empty(0, np.uint64)
    return decontaminate(rows, known)


def deduplicate(rows: Sequence[Row]) -> list[Row]:
    """One row per normalised text, then one per cluster of near-duplicates with one label; groups are filled in.

    Of equal rows the heaviest stays, then an attack before a benign one, then the longest. Rows that are merely
    related, whatever their labels, get one `group`.
    """
    order = sorted(rows, key=lambda row: (-row.weight, row.label == BENIGN, -len(row.text), stable_hash(row.text)))
    first: dict[str, Row] = {}
    for row in order:
        # A text without a word (emoji, punctuation) is compared as it stands.
        first.setdefault(normalise(row.text) or row.text.strip(), row)
    kept = list(first.values())
    pairs, similarity = similar_pairs([row.text for row in kept])
    same = similarity >= SAME
    clusters = _Clusters(len(kept))
    for a, b in pairs[same].tolist():
        if kept[a].label == kept[b].label:
            clusters.join(a, b)
    groups = _Clusters(len(kept))
    by_name: dict[str, int] = {}
    for index, row in enumerate(kept):
        if row.group:
            groups.join(by_name.setdefault(row.group, index), index)
    for a, b in pairs.tolist():
        groups.join(a, b)
    names = [
        kept[groups.root(index)].group or f"g{stable_hash(kept[groups.root(index)].text):016x}"
        for index in range(len(kept))
    ]
    # `kept` is in order of preference and a cluster's root is its smallest index, so the root is the row that stays.
    return [
        msgspec.structs.replace(row, group=names[index])
        for index, row in enumerate(kept)
        if clusters.root(index) == index
    ]


def similar_pairs(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of texts with an estimated Jaccard similarity >= `RELATED`: int64 (n_pairs, 2), float64 (n_pairs,).

    Not every pair of a large cluster is listed, but enough of them to connect it.
    """
    filled = [(index, hashes) for index, hashes in enumerate(map(_near_hashes, texts)) if len(hashes)]
    if len(filled) < 2:
        return np.empty((0, 2), np.int64), np.empty(0)
    index = np.array([number for number, _ in filled], np.int64)
    signatures = _signatures([hashes for _, hashes in filled])
    pairs: list[NDArray[np.int64]] = []
    for start in range(0, PERMUTATIONS, BAND_ROWS):
        band = np.ascontiguousarray(signatures[:, start : start + BAND_ROWS])
        keys = band.view(np.dtype((np.void, band.itemsize * BAND_ROWS))).ravel()
        _, bucket = np.unique(keys, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        ranked = bucket[order]
        begins = np.concatenate([[True], ranked[1:] != ranked[:-1]])
        leader = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
        inside = ~begins
        pairs.append(np.stack([leader[inside], order[inside]], axis=1))
        pairs.append(np.stack([order[:-1][inside[1:]], order[1:][inside[1:]]], axis=1))
    unique = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    similarity = (signatures[unique[:, 0]] == signatures[unique[:, 1]]).mean(axis=1)
    related = similarity >= RELATED
    return index[unique[related]], np.asarray(similarity[related], np.float64)


def _near_hashes(text: str) -> Hashes:
    normal = normalise(text)
    if len(normal) <= UNSPACED_WORD_CHARS * max(1, normal.count(" ") + 1) or len(normal) < CHARS * 2:
        return shingle_hashes(text)
    joined = normal.replace(" ", "")
    found = {_digest(joined[start : start + CHARS]) for start in range(len(joined) - CHARS + 1)}
    return np.fromiter(found, np.uint64, len(found))


def _signatures(sets: Sequence[Hashes]) -> NDArray[np.uint32]:
    """uint32 (n_sets, PERMUTATIONS): the smallest hash of every set under each permutation."""
    starts = np.concatenate([[0], np.cumsum([len(hashes) for hashes in sets])[:-1]])
    values = np.concatenate(list(sets))
    random = np.random.default_rng(1997)
    signatures = np.empty((len(sets), PERMUTATIONS), np.uint32)
    for column in range(PERMUTATIONS):
        # Multiply-shift on hashes that are uniform already: the high half of an odd multiple is close to min-wise.
        multiplier = np.uint64(int(random.integers(1, 2**63)) * 2 + 1)
        mixed = ((values ^ (values >> np.uint64(29))) * multiplier) >> np.uint64(32)
        signatures[:, column] = np.minimum.reduceat(mixed, starts).astype(np.uint32)
    return signatures


class _Clusters:
    """Union-find whose root is the smallest index of its cluster."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self._parent[max(a, b)] = min(a, b)
