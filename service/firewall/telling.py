"""The words by which a prompt is told, whatever their order: which say something, and what is said around them.

Names, numbers and long words have few synonyms, so they survive rewording. Beside them stands how one speaks of orders:
what one was told, may not say or does in secret, or refuses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.ngrams import words

Signals = npt.NDArray[np.float64]

_STEM = 5
_ENOUGH = 4.0  # weight told from which a confession counts in full: two or three words
_MAX_CONFESSIONS = 3

_CONFESSES = re.compile(
    r"""\b(?:
    i(?:'m|\ am|\ was|'ve\ been|\ have\ been|\ had\ been)\ (?:also\ |only\ |not\ |just\ )*
        (?:to\b|told|instructed|asked|meant|supposed|permitted|allowed|ordered|forbidden|expected|under\ orders)
    |i\ (?:also\ |only\ )?(?:mustn't|must\ not|shouldn't|should\ not|may\ only|may\ not|have\ to\ (?:keep|hide|say)
        |am\ not\ to|must\ (?:always|never|keep|leave)|never\ (?:mention|offer|suggest|bring)|only\ admit
        |keep\ (?:it|that|quiet|silent|secret|them))
    |(?:i'm|we're|you're)\ (?:not\ )?supposed
    |(?:they|my\ bosses|the\ firm|the\ company)
        (?:\ want|'d\ rather|\ would\ rather|\ had|\ told|\ asked|\ make|\ prefer)s?\ (?:me|i\b|us)
    |had\ me\b|order(?:s|ed)?\ (?:are|me)\ to|my\ (?:instructions|orders|rules|brief)\ (?:say|are|is|tell|read)
    |(?:all|what)\ i(?:'m|\ am)
    |quietly|secretly|silently|unofficially|off\ the\ record|between\ (?:us|you\ and\ me)
    |without\ (?:telling|showing|you|their|them)|behind\ the\ scenes|in\ confidence|confidential(?:ly)?\ :
    |keep\ (?:quiet|silent|mum)|stay\ silent|keep\ (?:it|that|this|the\ \w+)\ from|hush|fib|hide|hid
    |no\ one\ (?:lets|tells|may)|aren't\ supposed|meant\ to\ stay|stays?\ internal|unless\ they
    |only\ if\ (?:you|they|asked)|never\ (?:of\ my|by\ my|myself)|wave\ it\ off
    |soll(?:\ ich)?|darf\ ich|ich\ darf|ich\ muss|verschweig\w*|heimlich|vertraulich|intern
    |nur\ auf\ (?:direkte\ )?nachfrage|vorschieb\w*|nicht\ verraten|erwähne
    |debo|tengo\ que|me\ (?:piden|han\ (?:dicho|pedido))|en\ silencio|excusa|sin\ (?:decir|ofrecer)\w*|no\ debo|oculto
    |callar\w*|je\ (?:dois|tais|ne\ dois|peux|n'offre)|en\ (?:cachette|confidentiel)|sans\ (?:le\ )?dire
    |devo|não\ posso|non\ devo
    )(?!\w)|保密|不能(?:谈|说|告诉)|我就说|我可以|我只能""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSES = re.compile(
    r"\b(?:i(?:'m| am)? (?:can't|cannot|not able to|don't) (?:share|discuss|disclose|tell|give|comment|go into|speak|"
    r"explain|quote|say|pass|talk|translate|recommend|predict)|nicht (?:nennen|geben)|"
    r"no (?:lo )?puedo (?:compartir|decir))",
    re.IGNORECASE,
)


def telling(text: str) -> dict[str, float]:
    """The weight of each word that tells something, by its beginning: endings change in other words and tenses."""
    found: dict[str, float] = {}
    for token in words(text):
        if weight := _weight(token.word):
            found.setdefault(_stem(token.word), weight)
    return found


class Said(msgspec.Struct, frozen=True):
    """What stands in one passage, read once for all prompts: its words' beginnings, their weight, its phrases."""

    stems: frozenset[str]
    weight: float
    confessions: int
    refuses: bool

    def signs(self, prompt: Mapping[str, float], typed: Mapping[str, float]) -> Signals:
        """float64 (4,): the signs for a prompt's and a user's `telling` words."""
        told = sum(weight for stem, weight in prompt.items() if stem in self.stems and stem not in typed)
        return np.array(
            [
                math.log1p(told),
                told / max(self.weight, 1.0),
                self.confessions * min(told / _ENOUGH, 1.0),
                float(self.refuses),
            ]
        )


def said_in(passage: str) -> Said:
    """Read a passage."""
    spelled = [token.word for token in words(passage)]
    confessions = min(sum(1 for _ in _CONFESSES.finditer(passage)), _MAX_CONFESSIONS)
    return Said(stems_of(spelled), sum(map(_weight, spelled)), confessions, _REFUSES.search(passage) is not None)


def signals(prompt: Mapping[str, float], typed: Mapping[str, float], passage: str) -> Signals:
    """float64 (4,): the signs in one passage, for a prompt's and a user's `telling` words."""
    return said_in(passage).signs(prompt, typed)


def _stem(word: str) -> str:
    return word if word.isdecimal() or len(word) <= _STEM else word[:_STEM]


def stems_of(spelled: Iterable[str]) -> frozenset[str]:
    """The beginnings of all words, as `telling` has them; spelled out, for it is done to every piece of a stream."""
    return frozenset([word if len(word) <= _STEM or word.isdecimal() else word[:_STEM] for word in spelled])


def _weight(word: str) -> float:
    if any(map(str.isdecimal, word)):
        return 2.0
    return min(len(word), 10) / 5 if len(word) >= 4 else 0.0
