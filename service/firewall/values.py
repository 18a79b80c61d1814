"""Texts that are complete when they are judged: the ids, names and constants of every reply, and whole ASCII texts.

Judging one as a text that may grow costs a tenth of a millisecond and more. Nearly all can be cleared at a glance: no
registered pattern stands in them, and they have too few of a prompt's words, plain or encoded, to tell anything of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.firewall.encoded_runs import may_hold
from service.firewall.fingerprint import Fingerprint, may_run
from service.firewall.ngrams import ascii_words, words
from service.firewall.pattern_index import PatternIndex
from service.firewall.patterns import PatternSet
from service.firewall.readings import stand_in

MAX_CHARS = 128
_VALUE = re.compile("[!-~]*")
_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# With so many words a value is compared by its meaning, as a sentence is.
_SENTENCE_WORDS = 4
# Fewer words of a prompt make neither a run nor a near-verbatim sentence; the last word of a code may be cut off.
_PROMPT_WORDS = 5


def surely_clean(
    text: str, patterns: Sequence[PatternSet | PatternIndex], prints: Sequence[Fingerprint], *, by_meaning: bool
) -> bool:
    """Whether a value that is complete in itself holds nothing protected. False is no finding: judge it as a text.

    `by_meaning`: sentences are compared by their meaning, so a value that might be one is not cleared.
    """
    if len(text) > MAX_CHARS or not _VALUE.fullmatch(text):
        return False
    if stand_in(text, patterns):
        return False
    spelled = words(text)
    if by_meaning and len(spelled) >= _SENTENCE_WORDS and len(words(_UUID.sub("", text))) >= _SENTENCE_WORDS:
        return False
    if any(p.wide or sum(token.word in p.singles for token in spelled) >= _PROMPT_WORDS for p in prints):
        return False
    return not may_hold(text, prints, _PROMPT_WORDS)


def surely_clean_text(text: str, patterns: Sequence[PatternSet | PatternIndex], prints: Sequence[Fingerprint]) -> bool:
    """The same for a whole text of any length, where meanings are not compared. In doubt False."""
    spelled = ascii_words(text)
    if spelled is None or any(p.wide or may_run(spelled, p) for p in prints):
        return False
    if stand_in(text, patterns):
        return False
    return not may_hold(text, prints, _PROMPT_WORDS)
