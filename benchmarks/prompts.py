"""Benign prompts of an exact number of tokens, no two alike: prose put together from everyday sentences."""

from __future__ import annotations

import random

from tokenizers import Tokenizer

_SENTENCES = (
    "The ferry to the island leaves at half past eight and takes about forty minutes when the sea is calm.",
    "My grandmother kept her recipes in a blue tin, and most of them call for more butter than I would dare to use.",
    "We measured the soil moisture in three beds every morning and wrote the numbers on the greenhouse door.",
    "Could you compare the two quotes below and tell me which one includes delivery and assembly?",
    "The train from Lyon was late again, so the choir began its rehearsal without the second tenors.",
    "In the spring quarter our warehouse shipped 4,120 parcels, of which 97 came back with a wrong address.",
    "A good knot holds under load and still comes undone by hand, which is harder than it sounds.",
    "Please write a short note to the parents about Friday's museum visit and the packed lunch they should bring.",
    "The recipe says to let the dough rest overnight; does it matter if the kitchen is colder than usual?",
    "She repaired the clock with a spring from an old typewriter and it has kept good time ever since.",
    "Explain to a ten-year-old why the moon seems larger when it is close to the horizon.",
    "Our library opens at ten, closes at six, and lends out telescopes as well as books.",
    "The second chapter compares how bees and ants divide labour, with a table on page 48.",
    "After the storm the path along the river was covered with leaves, branches and one red umbrella.",
    "List five vegetables that grow well in partial shade and say when each of them should be sown.",
    "The invoice for March shows a discount of 12 percent that was not part of the offer of 3 February.",
)


def prompt(tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """A text of exactly so many tokens, specials not counted. Raises ValueError where none comes out."""
    chooser = random.Random(seed)
    for _ in range(50):
        text = f"Note {chooser.randrange(10**6)}:"
        while _count(tokenizer, text) < tokens:
            text += " " + chooser.choice(_SENTENCES)
        # Cut at a token's end and count again: a word's end may be divided in another way than its middle.
        encoding = tokenizer.encode(text, add_special_tokens=False)
        for number in range(tokens - 1, min(tokens + 8, len(encoding.offsets))):
            cut = text[: encoding.offsets[number][1]].rstrip()
            if _count(tokenizer, cut) == tokens:
                return cut
    raise ValueError(f"no prompt of {tokens} tokens")


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)
