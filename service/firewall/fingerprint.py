"""Long runs of prompts' words in a reply, found as the words come.

After Manber, "Finding similar files in a large file system" (1994), without the sampling: every row of words is kept
(`word_index`), so no run slips between two samples.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence, Set

import msgspec
import numpy as np

from service.firewall.ngrams import SHORT, Token, short_grams, spell
from service.firewall.owners import MAX_SHARING, Owner, Owners, ProtectedText
from service.firewall.word_index import WordIndex

# A run of this weight is a leak: eight words, or sixteen characters of a script without spaces.
RUN_WEIGHT = 8.0
_LONG = 8
# A near-verbatim sentence: this share of its 4-grams stand in the prompt, three at the least.
_NEAR_SHARE = 0.6
_NEAR_HITS = 3
_NEAR_WEIGHT = 6.0

# A prompt, and its disguises by letters; those by bytes are undone in the reply (`EncodedRuns`). The plain one comes
# last: where several hold a run, it gives the name.
_WAYS: tuple[tuple[str, Callable[[str], str]], ...] = (
    (", reversed", lambda text: text[::-1]),
    (", rot13", lambda text: codecs.encode(text, "rot13")),
    ("", lambda text: text),
)


class Fingerprint:
    """The words of one or of very many prompts, and the rows in which they stand."""

    def __init__(self, prompts: Sequence[ProtectedText]) -> None:
        self._prompts = prompts
        self.wide = False
        """There are words of other letters than ASCII."""
        self._index = WordIndex(self._ways())
        self.singles = self._index.words
        self.heads = self._index.heads
        self.size = len(self._index)  # words of all of them
        tenants = {tenant: number for number, tenant in enumerate({text.tenant: None for text in prompts})}
        self._tenants = np.fromiter((tenants[text.tenant] for text in prompts), np.intp, len(prompts))
        self._lasts = np.full(len(tenants), -1, np.intp)
        self._live = np.ones(len(prompts), np.bool_)
        self._whole = True

    def _ways(self) -> Iterator[list[str]]:
        for prompt in self._prompts:
            for _, write in _WAYS:
                spelled, _ = spell(write(prompt.value))
                if not (self.wide or prompt.value.isascii()):
                    self.wide = not all(map(str.isascii, spelled))
                yield spelled

    def forget(self, gone: Set[str]) -> None:
        """Prompts with these ids are found no longer; what is held may still be held for their sake."""
        self._live = np.fromiter((text.id not in gone for text in self._prompts), np.bool_, len(self._prompts))
        self._whole = bool(self._live.all())

    def stands(self, row: Sequence[int]) -> bool:
        """Whether words of these numbers, eight at the most, stand in a row in a prompt, or did in a forgotten one."""
        return self._index.stands(row)

    def owners(self, row: Sequence[int]) -> Owners:
        """Whose prompts the row stands in; of each tenant the last one."""
        texts = self._index.texts_with(row)
        if len(texts) == 1:
            at = int(texts[0])
            return (self._owner(at),) if self._live[at // len(_WAYS)] else ()
        if not len(texts):
            return ()
        found = np.sort(texts)
        found = found[self._live[found // len(_WAYS)]]
        lasts = self._lasts.copy()
        lasts[self._tenants[found // len(_WAYS)]] = found  # of several of one tenant the last stays
        numbers = np.sort(lasts[lasts >= 0]).tolist()
        if len(numbers) > MAX_SHARING:
            return (msgspec.structs.replace(self._owner(numbers[-1]), tenant=""),)
        return tuple(map(self._owner, numbers))

    def _owner(self, text: int) -> Owner:
        prompt, (how, _) = self._prompts[text // len(_WAYS)], _WAYS[text % len(_WAYS)]
        return Owner(prompt.name + how, "prompt", "verbatim", prompt.tenant)

    def overlap(self, tokens: Sequence[Token], typed: Set[int]) -> tuple[Owners, float]:
        """(owners of the prompt, share of the 4-grams that stand in it), or ((), 0.0) where that is no near-verbatim
        copy.

        4-grams in `typed` are the user's own words and count as not in the prompt.
        """
        if sum(token.weight for token in tokens) < _NEAR_WEIGHT:
            return (), 0.0
        numbers = [self.singles.get(token.word) for token in tokens]
        hits: list[list[int]] = []
        grams = short_grams(tokens)
        for at, gram in enumerate(grams):
            row = [number for number in numbers[at : at + SHORT] if number is not None]
            if len(row) == SHORT and gram not in typed and self._lives(row):
                hits.append(row)
        if len(hits) < _NEAR_HITS or len(hits) < _NEAR_SHARE * len(grams):
            return (), 0.0
        return self.owners(hits[0]), len(hits) / len(grams)

    def _lives(self, row: Sequence[int]) -> bool:
        return self.stands(row) if self._whole else bool(self.owners(row))


def may_run(spelled: Sequence[str], prints: Fingerprint) -> bool:
    """Whether so many words of the prompt stand in a row that they may be a run of it."""
    run = 0
    for word in spelled:
        run = run + 1 if word in prints.singles else 0
        if run >= _LONG:
            return True
    return False


class RunTracker:
    """Follows one text's words through a fingerprint.

    A run is over-estimated from 2-, 4- and 8-grams, never under-estimated: what may become a match is held.
    """

    def __init__(self, prints: Fingerprint) -> None:
        self._prints = prints
        self._run: list[Token] = []
        self._numbers: list[int] = []

    def feed(self, tokens: Sequence[Token]) -> list[tuple[Owners, int, int]]:
        """(owners, start, end) of the runs that these words complete or extend."""
        found: list[tuple[Owners, int, int]] = []
        prints, run, numbers = self._prints, self._run, self._numbers
        for token in tokens:
            number = prints.singles.get(token.word)
            if number is None:
                run.clear()
                numbers.clear()
                continue
            run.append(token)
            numbers.append(number)
            kept = len(run)
            owners = prints.owners(numbers[-_LONG:]) if kept >= _LONG else ()
            if not owners:
                kept = self._length()
            elif sum(t.weight for t in run) >= RUN_WEIGHT:
                found.append((owners, run[0].start, token.end))
                # Sixteen tokens weigh enough by themselves: the run's head is told and need not be kept.
                kept = 2 * _LONG
            del run[:-kept], numbers[:-kept]
        return found

    def held(self, partial: tuple[str, int] | None) -> int | None:
        """The start of the run that may still become a match; None where there is none."""
        if partial is not None:
            if partial[0] not in self._prints.heads:
                return None
            return self._run[0].start if self._run else partial[1]
        return self._run[0].start if self._run else None

    def _length(self) -> int:
        """How many of the last words may stand in a row in the prompt; at least 1, fewer than `_LONG`.

        Words before the last were found to be such a run already.
        """
        numbers = self._numbers
        size = min(len(numbers), _LONG - 1)
        if size >= SHORT:
            if self._prints.stands(numbers[-SHORT:]):
                return size
            size = SHORT - 1
        if size >= 2:
            return size if self._prints.stands(numbers[-2:]) else 1
        return 1
