"""Registered secrets that could be told: in several words, which a reply may say nearly so, or otherwise.

The exact search of a secret finds it written out, in whatever disguise. One that is a sentence leaves as well where a
word of it is changed, so it is also compared as a prompt is: sentence by sentence, by words and by meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

import msgspec

from service.firewall.fingerprint import Fingerprint
from service.firewall.ngrams import spell
from service.firewall.owners import ProtectedText

_LEAST_WORDS = 5
"""A secret of fewer has no meaning that other words could tell."""
_LONGEST_WORD = 24


class ToldSecrets(msgspec.Struct, frozen=True, eq=False):
    """Those of one group of texts, and their words: no fingerprint where there are none."""

    texts: tuple[ProtectedText, ...] = ()
    prints: tuple[Fingerprint, ...] = ()

    def forget(self, gone: Set[str]) -> None:
        """Texts with these ids are found no longer."""
        for prints in self.prints:
            prints.forget(gone)

    def without(self, gone: Set[str]) -> Iterator[ProtectedText]:
        """The texts but for those with these ids."""
        return (text for text in self.texts if not text.id or text.id not in gone)


def told_secrets(texts: Iterable[ProtectedText]) -> ToldSecrets:
    """Those secrets among these texts that read as words."""
    told = tuple(text for text in texts if text.kind == "secret" and _is_told(text.value))
    return ToldSecrets(told, (Fingerprint(told),) if told else ())


def _is_told(secret: str) -> bool:
    """Whether it is words: no identifier of five parts, no row of numbers, no key in lines."""
    pieces = secret.split()
    if len(pieces) < _LEAST_WORDS and secret.isascii():
        return False
    spoken = "".join([piece for piece in pieces if len(piece) <= _LONGEST_WORD or not piece.isascii()])
    letters = sum(map(str.isalpha, spoken))
    return 2 * letters >= sum(map(len, pieces)) and spell(secret)[1] >= _LEAST_WORDS
