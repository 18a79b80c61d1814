"""A prompt told in other words: weak signs over a whole passage, weighed together.

No single sign says it. Which of the prompt's telling words (names, numbers, long words) does the reply say that the
user did not, and how much of the reply are they; does it speak of what it was told, may not say or does in secret; does
it refuse? A logistic regression weighs them. Where there is an encoder, a linear reading of the passage's vector,
learned too, says as a fifth sign whether it speaks of what its author was told, in any language. All numbers were
learned by `training.retelling` on one half of the prompts in `datasets/leakage.jsonl` and are reported on the other.
The order of words does not matter, so lists, summaries and retellings that keep some names are found; what keeps none
is not.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.asked import CallPart
from service.firewall.ngrams import words
from service.firewall.sentences import split
from service.firewall.watched import Opening, Sight
from service.scoring.artifact import Retelling
from service.settings import Leakage

Signals = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], Awaitable[tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]]]
"""Vectors float32 (n_windows, dim), L2-normalised, and each row's text."""

# Learned: log of the weight told, its share of the passage, confessions where something is told, refusals.
WEIGHTS = (0.427, 2.587, 6.406, -1.585)
BIAS = -2.049
LIMIT = 1.132
"""The sum from which one honest reply in a hundred of those learned on, at most, raises an alarm."""

_LEAST_WEIGHT = 2.0
LEAST_TOLD = math.log1p(_LEAST_WEIGHT)
"""Below this much of a prompt, two words or so, no tone is read."""
_MAX_PROMPTS = 8
_CACHED_PROMPTS = 256
_MAX_PROMPT_CHARS = 32_768
_INLINE_CHARS = 4_000  # longer texts are weighed in a thread, so that the event loop goes on
_MAX_CHARS = 100_000
"""Of one text of a reply; what comes after is looked at by the judge of protected texts only."""
PASSAGE_CHARS = 800
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
    return Said(_stems(spelled), sum(map(_weight, spelled)), confessions, _REFUSES.search(passage) is not None)


def signals(prompt: Mapping[str, float], typed: Mapping[str, float], passage: str) -> Signals:
    """float64 (4,): the signs in one passage, for a prompt's and a user's `telling` words."""
    return said_in(passage).signs(prompt, typed)


def _stem(word: str) -> str:
    return word if word.isdecimal() or len(word) <= _STEM else word[:_STEM]


def _stems(spelled: Iterable[str]) -> frozenset[str]:
    return frozenset([word if len(word) <= _STEM or word.isdecimal() else word[:_STEM] for word in spelled])


def _weight(word: str) -> float:
    if any(map(str.isdecimal, word)):
        return 2.0
    return min(len(word), 10) / 5 if len(word) >= 4 else 0.0


class RetellingGuard:
    """Opens a watcher for each reply; keeps the words of prompts seen. Without `embed`, or where the artifact has not
    `learned` the tone, the signs by words alone are weighed.
    """

    def __init__(self, settings: Leakage, embed: Embed | None = None, learned: Retelling | None = None) -> None:
        self.settings = settings
        self._reader = (
            ToneReader(embed, learned) if embed is not None and learned is not None and learned.tone else None
        )
        self._prompts: OrderedDict[bytes, dict[str, float]] = OrderedDict()

    def watch(self, opening: Opening) -> RetellingWatcher | None:
        """A watcher for one reply; None where there is no prompt, or nothing is looked for."""
        if self.settings.retelling == "allow" or not opening.prompts:
            return None
        # The request's own texts come last, and are looked at first.
        prompts = [self._telling(text) for text in opening.prompts[::-1][:_MAX_PROMPTS]]
        return RetellingWatcher(self.settings, prompts, opening.user_texts, self._reader)

    def _telling(self, prompt: str) -> dict[str, float]:
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        found = self._prompts.get(key)
        if found is None:
            found = self._prompts[key] = telling(prompt[:_MAX_PROMPT_CHARS])
            while len(self._prompts) > _CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return found


class ToneReader:
    """Reads the tone of passages, and weighs it with the other signs."""

    def __init__(self, embed: Embed, learned: Retelling) -> None:
        self._embed = embed
        self.limit = learned.limit
        self._learned = learned
        self._tone = np.asarray(learned.tone, np.float32)
        self._weights = np.asarray(learned.weights)

    async def tone(self, passage: str) -> float:
        """The highest of the passage's windows. Raises UnavailableError."""
        rows, _ = await self._embed([passage])
        return float((rows @ self._tone).max()) + self._learned.tone_bias if len(rows) else 0.0

    def weigh(self, found: Signals, tone: float) -> float:
        """The signs' sum, a log-odds."""
        return float(np.append(found, tone) @ self._weights) + self._learned.bias


class RetellingWatcher:
    """Follows one reply (`watched.Watcher`). With `block` a text waits for its end: what tells is the whole of it."""

    guard = "retelling"

    def __init__(
        self,
        settings: Leakage,
        prompts: Sequence[Mapping[str, float]],
        user_texts: Sequence[str],
        reader: ToneReader | None = None,
    ) -> None:
        self._settings = settings
        self._prompts = prompts
        self._user_texts = user_texts
        self._reader = reader
        self._limit = LIMIT if reader is None else reader.limit
        self._texts: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}
        self._ended: set[str] = set()

    @cached_property
    def _typed(self) -> dict[str, float]:
        return {stem: weight for text in self._user_texts for stem, weight in telling(text).items()}

    def held(self, channel: str, end: int) -> int:
        """All of a text that has not ended, with `block`."""
        waits = self._settings.retelling == "block" and channel in self._texts and channel not in self._ended
        return 0 if waits else end

    def clears(self, channel: str, spelled: Sequence[str]) -> bool:
        """Whether its words tell nothing, or too little, of any prompt that the user did not say."""
        if "#" in channel:
            return True
        stems = _stems(spelled)
        if not self._says(stems, frozenset()):
            return True
        is_long = sum(map(len, self._user_texts)) > _INLINE_CHARS
        return not is_long and not self._says(stems, self._typed.keys())

    def _says(self, stems: Set[str], typed: Set[str]) -> bool:
        """Whether a text with these words could tell a prompt."""
        told = (sum(map(prompt.__getitem__, (prompt.keys() & stems) - typed)) for prompt in self._prompts)
        return any(told) if self._reader is None else any(weight >= _LEAST_WEIGHT for weight in told)

    async def called(self, parts: Sequence[CallPart]) -> list[Sight]:
        """Nothing: the channels say it."""
        del parts
        return []

    async def feed(self, channel: str, text: str) -> list[Sight]:
        """Keep the text. Repeated forms of another (`#`) say nothing new."""
        size = self._sizes.get(channel, 0)
        if "#" not in channel and size < _MAX_CHARS:
            self._texts.setdefault(channel, []).append(text)
            self._sizes[channel] = size + len(text)
        return []

    async def end(self, channel: str) -> list[Sight]:
        """Weigh the text's passages."""
        if channel in self._ended or channel not in self._texts:
            return []
        self._ended.add(channel)
        text = "".join(self._texts.pop(channel))
        is_long = len(text) + sum(map(len, self._user_texts)) > _INLINE_CHARS
        suspects = await asyncio.to_thread(self._suspects, text) if is_long else self._suspects(text)
        found: list[Sight] = []
        for start, end, passage, signs in suspects:
            if (total := await self._sum(passage, signs)) >= self._limit:
                score = 1.0 / (1.0 + math.exp(-total))
                action = self._settings.retelling
                found.append(Sight("leak.prompt", action, channel, start, end, passage, "told in other words", score))
        return found

    async def finish(self) -> list[Sight]:
        """Weigh the passages of all texts."""
        return [sight for channel in list(self._texts) for sight in await self.end(channel)]

    def _suspects(self, text: str) -> list[tuple[int, int, str, list[Signals]]]:
        """The passages that may tell a prompt, with their signs for each."""
        found: list[tuple[int, int, str, list[Signals]]] = []
        for start, end, passage in passages(text):
            said = said_in(passage)
            if not self._may_tell([said.signs(prompt, {}) for prompt in self._prompts]):
                continue
            # What the user typed can only lower them.
            signs = [said.signs(prompt, self._typed) for prompt in self._prompts]
            if self._may_tell(signs):
                found.append((start, end, passage, signs))
        return found

    def _may_tell(self, signs: Sequence[Signals]) -> bool:
        """Whether the words tell; where the tone is still to be read, whether they say enough of a prompt at all."""
        if self._reader is None:
            return any(weigh(each) >= LIMIT for each in signs)
        return any(each[0] >= LEAST_TOLD for each in signs)

    async def _sum(self, passage: str, signs: Sequence[Signals]) -> float:
        """The log-odds for the prompt that is told most. Raises UnavailableError."""
        if self._reader is None:
            return max(map(weigh, signs))
        tone = await self._reader.tone(passage)
        return max(self._reader.weigh(each, tone) for each in signs)


def weigh(found: Signals) -> float:
    """The signs' sum, a log-odds."""
    return float(found @ np.asarray(WEIGHTS)) + BIAS


def passages(text: str) -> list[tuple[int, int, str]]:
    """(start, end, text) of pieces of whole sentences, up to PASSAGE_CHARS each where sentences are shorter."""
    found: list[tuple[int, int, str]] = []
    start = end = 0
    for sentence in split(text):
        at = text.find(sentence, end)
        last = (at if at >= 0 else end) + len(sentence)
        if last - start > PASSAGE_CHARS and end > start:
            found.append((start, end, text[start:end]))
            start = end
        end = last
    if end > start:
        found.append((start, end, text[start:end]))
    return found
