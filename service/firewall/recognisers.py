"""Presidio's recognisers of patterns, used directly: no engine around them, no language model, no network.

Source: Microsoft Presidio, `presidio_analyzer.predefined_recognizers` (MIT). What Presidio leaves to its engine is done
here: words before a datum make it surer, as `LemmaContextAwareEnhancer` does by a language model. One thing is done
otherwise. A checksum of one digit holds for every tenth number, so for a bare number that says little: where neither
a separator nor a letter nor a word before it says what it is, it is `BARE_SCORE` sure.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from service.errors import ConfigError, GuardFailed
from service.firewall.personal import Spotted

ENTITIES = (
    "CREDIT_CARD",
    "CRYPTO",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MEDICAL_LICENSE",
    "PHONE_NUMBER",
    "AU_MEDICARE",
    "AU_TFN",
    "CA_SIN",
    "DE_TAX_ID",
    "DE_SOCIAL_SECURITY",
    "ES_NIE",
    "ES_NIF",
    "FI_PERSONAL_IDENTITY_CODE",
    "IN_AADHAAR",
    "IN_PAN",
    "IT_FISCAL_CODE",
    "KR_RRN",
    "PL_PESEL",
    "SE_PERSONNUMMER",
    "SG_NRIC_FIN",
    "TH_TNIN",
    "TR_NATIONAL_ID",
    "UK_NHS",
    "UK_NINO",
    "US_ITIN",
    "US_MBI",
    "US_PASSPORT",
    "US_SSN",
    "ZA_ID_NUMBER",
)
"""What is looked for where nothing else is asked for, by Presidio's names."""
CONTEXT_GAIN = 0.35
"""Presidio's `context_similarity_factor`."""
BARE_SCORE = 0.45
INTERNATIONAL_SCORE = 0.75
"""Of a telephone number that begins with its country's code: its digits are in the numbering plan of that country."""
_TIMEOUT_S = 1.0  # for one pattern in one window, which takes microseconds
_TELLING_BARE = frozenset({"CREDIT_CARD"})  # their first digits and their length say something as well
_WORD_PARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|[_\W]+")


class Recognisers:
    """The recognisers of some entities, without any of `ENTITIES`. Raises ConfigError for a name that has none."""

    def __init__(self, entities: Sequence[str], score: float) -> None:
        self._score = score
        known = available()
        self._all = []
        for entity in dict.fromkeys(entities or ENTITIES):
            if entity not in known:
                raise ConfigError(f"pii.entities: there is no {entity!r}; there are {', '.join(sorted(known))}")
            made = known[entity]()
            self._all.append((entity, made, _context_of(made), _finder_of(made)))

    def __call__(self, window: str, before: str) -> list[Spotted]:
        """What may stand in a window (`personal.Recognise`). Raises GuardFailed where a pattern takes too long."""
        found: list[Spotted] = []
        # Names of members are words as well: `customerPhone`, `tax_id`.
        said = _WORD_PARTS.sub(" ", before + window)
        for entity, recogniser, context, find in self._all:
            hits = find(recogniser, window)
            if not hits:
                continue
            hinted: bool | None = None
            for start, end, score in hits:
                sure = _weighed(entity, window[start:end], score)
                if sure < self._score and sure + CONTEXT_GAIN >= self._score:
                    if hinted is None:
                        hinted = context is not None and context.search(said) is not None
                    sure = min(sure + CONTEXT_GAIN, 1.0) if hinted else sure
                if sure >= self._score:
                    found.append(Spotted(entity, start, end, sure))
        return found


@cache
def available() -> Mapping[str, Callable[[], Any]]:
    """By the names of what they find, those of Presidio's recognisers that need nothing but the text.

    Raises ConfigError where Presidio is not installed.
    """
    try:
        from presidio_analyzer import PatternRecognizer, predefined_recognizers
        from presidio_analyzer.predefined_recognizers import EmailRecognizer, PhoneRecognizer
        from tldextract import TLDExtract
    except ImportError as error:
        raise ConfigError(f'pii.enabled: needs the extra "pii" ({error.name} is not installed)') from None
    # Some of its messages quote the text.
    logger = logging.getLogger("presidio-analyzer")
    logger.disabled = True
    # The list that it comes with: by default it would fetch a newer one, in the middle of a request.
    suffixes = TLDExtract(suffix_list_urls=(), cache_dir=None)

    class _Email(EmailRecognizer):  # type: ignore[misc, unused-ignore]
        def validate_result(self, pattern_text: str) -> bool:
            return bool(suffixes(pattern_text).fqdn)

    found: dict[str, Callable[[], Any]] = {}
    for _, made in inspect.getmembers(predefined_recognizers, inspect.isclass):
        if made is PhoneRecognizer:
            found["PHONE_NUMBER"] = partial(made, leniency=1)
        elif issubclass(made, PatternRecognizer) and (entity := _entity_of(made)):
            found[entity] = made
    found["EMAIL_ADDRESS"] = _Email
    return found


def _entity_of(made: type[Any]) -> str:
    parameters = inspect.signature(made.__init__).parameters.values()
    named = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    entity = named.get("supported_entity")
    return entity if isinstance(entity, str) else ""


_Hit = tuple[int, int, float]


def _finder_of(recogniser: Any) -> Callable[[Any, str], list[_Hit]]:
    from presidio_analyzer import PatternRecognizer

    return _by_patterns if type(recogniser).analyze is PatternRecognizer.analyze else _by_itself


def _by_itself(recogniser: Any, window: str) -> list[_Hit]:
    return [(hit.start, hit.end, hit.score) for hit in recogniser.analyze(window, recogniser.supported_entities)]


def _by_patterns(recogniser: Any, window: str) -> list[_Hit]:
    """What `PatternRecognizer.analyze` does, without the explanations that it writes for every match, and without going
    on as if nothing had been when a pattern takes too long.
    """
    import regex

    found: list[_Hit] = []
    flags = recogniser.global_regex_flags
    for pattern in recogniser.patterns:
        if not pattern.compiled_regex or pattern.compiled_with_flags != flags:
            pattern.compiled_with_flags = flags
            pattern.compiled_regex = regex.compile(pattern.regex, flags=flags)
        try:
            matches = [match.span() for match in pattern.compiled_regex.finditer(window, timeout=_TIMEOUT_S)]
        except TimeoutError:
            raise GuardFailed("Personal data could not be looked for.") from None
        for start, end in matches:
            text = window[start:end]
            valid = recogniser.validate_result(text) if text else False
            if valid is False or recogniser.invalidate_result(text):
                continue
            found.append((start, end, 1.0 if valid else pattern.score))
    return found


def _weighed(entity: str, text: str, score: float) -> float:
    if entity == "PHONE_NUMBER":
        return max(score, INTERNATIONAL_SCORE) if text.startswith("+") else score
    if text.isdecimal() and entity not in _TELLING_BARE:
        return min(score, BARE_SCORE)
    return score


def _context_of(recogniser: Any) -> re.Pattern[str] | None:
    words = sorted({_WORD_PARTS.sub(" ", word).strip() for word in recogniser.context or ()} - {""})
    if not words:
        return None
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)
