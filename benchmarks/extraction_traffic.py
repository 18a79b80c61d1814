"""Simulated tenants: ordinary applications, and copying of models as it was published. Written here, no traces.

Extraction, after:
- Carlini et al. 2024, "Stealing Part of a Production Language Model" (arXiv:2403.06634): one prompt under logit biases
  that sweep the vocabulary, with log-probabilities, or by binary search without them.
- Birch et al. 2023, "Model Leeching" (arXiv:2309.10544): a template over the contexts of a question-answering set.
- Krishna et al. 2020, "Thieves on Sesame Street!" (arXiv:1910.12366), and Wallace et al. 2020, "Imitation Attacks and
  Defenses for Black-box Machine Translation Systems" (arXiv:2004.15015): random words, sentences of an encyclopedia.
- Tramèr et al. 2016, "Stealing Machine Learning Models via Prediction APIs" (USENIX Security): labels, confidences.
- Wang et al. 2022, "Self-Instruct" (arXiv:2212.10560), and Taori et al. 2023, "Alpaca": many unlike instructions.
The same over days at a few calls an hour, and over many keys of one tenant.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import msgspec

from benchmarks.extraction_texts import FORMS, TOPICS, Cells
from service.firewall.extraction_observation import Observation, Sampling, signature_of

HOUR_S, DAY_S = 3_600.0, 86_400.0
DAYS = 4
"""Of ordinary traffic; copying begins in the last two."""


class Call(msgspec.Struct, frozen=True, eq=False):
    """One simulated call of a key; `copies` says that it belongs to a copy."""

    key: str
    seen: Observation
    copies: bool


class Tenant(msgspec.Struct, frozen=True, eq=False):
    """A tenant's calls in the order of their times. `style` is the kind of its application, or how it is copied.
    `paces` are the calls of the busiest hour before the first of them, by key, that of the tenant under "": what the
    record holds of a caller whose calls began before the process did.
    """

    name: str
    style: str
    calls: tuple[Call, ...]
    attack: bool
    paces: Mapping[str, float] = {}


class _Caller:
    """Writes the calls of one key."""

    def __init__(self, key: str, chooser: random.Random, cells: Cells, *, copies: bool = False) -> None:
        self.chooser = chooser
        self._key, self._cells, self._copies = key, cells, copies
        self.calls: list[Call] = []

    def call(
        self, at_s: float, form: str, topic: str, sampling: Sampling, *, single: bool = True, text: str = ""
    ) -> None:
        """One call; a given text is one that was sent before."""
        text = text or FORMS[form](self.chooser, topic)
        cell = self._cells.draw(random.Random(text), form, topic)  # the same text lies in the same cell
        self.calls.append(Call(self._key, Observation(at_s, signature_of(text), cell, single, sampling), self._copies))

    def hours(self, per_hour: float, *, daily: bool = True) -> Iterator[float]:
        """Times over all days, by day more than by night where `daily`."""
        peak = self.chooser.uniform(10, 20)
        for hour in range(DAYS * 24):
            rate = per_hour * (math.cos((hour % 24 - peak) / 24 * 2 * math.pi) + 1 if daily else 1.0)
            count = sum(self.chooser.random() < rate / 400 for _ in range(400))
            yield from sorted(hour * HOUR_S + self.chooser.random() * HOUR_S for _ in range(count))

    def topics(self, count: int) -> list[str]:
        """What this caller's texts are about."""
        return self.chooser.sample(sorted(TOPICS), count)


def _chat(caller: _Caller, topics: int, rate: float) -> None:
    about, chooser = caller.topics(topics), caller.chooser
    sampling = Sampling(temperature=chooser.choice([None, 0.7, 1.0]), output_tokens=chooser.choice([None, 800]))
    first = chooser.uniform(0.15, 0.4)  # of all calls, how many begin a conversation
    for at_s in caller.hours(rate):
        topic = chooser.choice(about)
        caller.call(
            at_s, chooser.choice(("question", "question", "task")), topic, sampling, single=chooser.random() < first
        )


def _public_chat(caller: _Caller) -> None:
    """Everybody about everything."""
    _chat(caller, len(TOPICS), caller.chooser.uniform(8, 40))


def _support_bot(caller: _Caller) -> None:
    """A shop's: one topic or two, and the same questions again."""
    _chat(caller, caller.chooser.randint(1, 2), caller.chooser.uniform(5, 30))


def _summariser(caller: _Caller) -> None:
    """Each night a batch, one document after the other."""
    chooser, about = caller.chooser, caller.topics(caller.chooser.randint(2, 8))
    size = chooser.randint(100, 600)
    sampling = Sampling(temperature=chooser.choice([0.0, 0.2, None]), output_tokens=200)
    for day in range(DAYS):
        for number in range(int(size * chooser.uniform(0.7, 1.4))):
            caller.call(day * DAY_S + 7_200 + number * 4, "summary", chooser.choice(about), sampling)


def _news_batch(caller: _Caller) -> None:
    """The same over everything."""
    size = caller.chooser.randint(100, 600)
    for day in range(DAYS):
        for number in range(int(size * caller.chooser.uniform(0.7, 1.4))):
            topic = caller.chooser.choice(list(TOPICS))
            caller.call(day * DAY_S + 7_200 + number * 4, "summary", topic, Sampling(output_tokens=200))


def _retrieval(caller: _Caller) -> None:
    """A company's documents, asked by its people."""
    about, chooser = caller.topics(caller.chooser.randint(2, 6)), caller.chooser
    sampling = Sampling(temperature=0.0, output_tokens=500)
    for at_s in caller.hours(chooser.uniform(5, 30)):
        caller.call(at_s, "retrieval", chooser.choice(about), sampling, single=chooser.random() < 0.8)


def _evaluation(caller: _Caller) -> None:
    """The same benchmark again and again; two in three read the log-probabilities of one letter."""
    chooser = caller.chooser
    bank = [
        (topic, FORMS["multiple_choice"](chooser, topic)) for topic in TOPICS for _ in range(chooser.randint(5, 20))
    ]
    by_letter = chooser.random() < 0.66
    sampling = Sampling(logprobs=by_letter, temperature=0.0, output_tokens=1 if by_letter else 300)
    for run in range(chooser.randint(2, 6)):
        begun_s = run * DAYS * DAY_S / 6 + chooser.random() * HOUR_S
        for number, (topic, text) in enumerate(bank):
            caller.call(begun_s + number * 2, "multiple_choice", topic, sampling, text=text)


def _ci_bot(caller: _Caller) -> None:
    """Reviews of diffs, and a smoke test every quarter of an hour."""
    chooser, about = caller.chooser, caller.topics(2)
    sampling = Sampling(temperature=0.0, output_tokens=600)
    smoke = FORMS["question"](chooser, about[0])
    for at_s in caller.hours(chooser.uniform(5, 25)):
        caller.call(at_s, "review", chooser.choice(about), sampling)
    for tick in range(DAYS * 96):
        caller.call(tick * 900.0, "question", about[0], Sampling(temperature=0.0, output_tokens=1), text=smoke)
    caller.calls.sort(key=lambda call: call.seen.at_s)


def _classifier(caller: _Caller) -> None:
    """One label each, by a constant bias, half of them with its confidence."""
    chooser, about = caller.chooser, caller.topics(caller.chooser.randint(1, 4))
    bias = chooser.choice([0, chooser.randrange(1, 2**31)])
    sampling = Sampling(logprobs=chooser.random() < 0.5, bias=bias, temperature=0.0, output_tokens=1)
    for at_s in caller.hours(chooser.uniform(5, 40), daily=chooser.random() < 0.5):
        caller.call(at_s, "label", chooser.choice(about), sampling)


def _assistant(caller: _Caller) -> None:
    """A writing aid: single instructions of a team about its own work."""
    chooser, about = caller.chooser, caller.topics(caller.chooser.randint(4, 10))
    for at_s in caller.hours(chooser.uniform(3, 12)):
        form = chooser.choice(("task", "question", "passage"))
        caller.call(at_s, form, chooser.choice(about), Sampling(output_tokens=700), single=chooser.random() < 0.7)


def _shared_key(caller: _Caller) -> None:
    """One key by which many people ask single questions about everything, hundreds an hour."""
    sampling = Sampling(temperature=caller.chooser.choice([None, 0.7]), output_tokens=800)
    first = caller.chooser.uniform(0.6, 1.0)
    for at_s in caller.hours(caller.chooser.uniform(60, 180)):
        topic = caller.chooser.choice(list(TOPICS))
        caller.call(at_s, "question", topic, sampling, single=caller.chooser.random() < first)


def _moderation(caller: _Caller) -> None:
    """Everything that people write somewhere, labelled with its confidence, hundreds an hour."""
    sampling = Sampling(logprobs=True, temperature=0.0, output_tokens=1)
    for at_s in caller.hours(caller.chooser.uniform(60, 180)):
        caller.call(at_s, "label", caller.chooser.choice(list(TOPICS)), sampling)


def _launch(caller: _Caller) -> None:
    """A public chat that many come to from its third day on."""
    _public_chat(caller)
    calls, more = caller.calls, caller.chooser.uniform(4, 10)
    caller.calls = []
    _chat(caller, len(TOPICS), caller.chooser.uniform(8, 40) * more)
    caller.calls = [
        *(call for call in calls if call.seen.at_s < 2 * DAY_S),
        *(call for call in caller.calls if call.seen.at_s >= 2 * DAY_S),
    ]


def _occasional_batch(caller: _Caller) -> None:
    """A writing aid, and twice in the four days a batch that its key never made before."""
    _assistant(caller)
    chooser = caller.chooser
    for form in chooser.sample(("summary", "label", "reading", "review"), 2):
        about, begun_s = caller.topics(chooser.randint(1, 6)), chooser.uniform(0.5, DAYS - 0.5) * DAY_S
        sampling = Sampling(temperature=chooser.choice([0.0, None]), output_tokens=chooser.choice([1, 200, None]))
        gap_s = chooser.uniform(1, 10)
        for number in range(chooser.randint(80, 500)):
            caller.call(begun_s + number * gap_s, form, chooser.choice(about), sampling)


APPLICATIONS: Mapping[str, Callable[[_Caller], None]] = {
    "public chat": _public_chat,
    "support bot": _support_bot,
    "batch summariser": _summariser,
    "retrieval": _retrieval,
    "evaluation runs": _evaluation,
    "CI bot": _ci_bot,
    "classifier": _classifier,
    "writing aid": _assistant,
}
"""Within these a copy is hidden."""

RESTARTED = ("shared key, after a restart", "news batch, after a restart", "moderation, after a restart")
BENIGN: Mapping[str, Callable[[_Caller], None]] = {
    **APPLICATIONS,
    "occasional batch": _occasional_batch,
    "launch of a chat": _launch,
    **dict(zip(RESTARTED, (_shared_key, _news_batch, _moderation), strict=True)),
}

INDISTINCT = "evaluation runs"
"""Ordinary, and yet the very traffic of a copy while a set is run for the first time: their keys are to be exempt, and
no threshold is learned from them.
"""


def _pace(caller: _Caller, begun_s: float, most: int) -> Iterator[float]:
    """A machine's: some hundred to some thousand calls an hour."""
    gap_s = HOUR_S / caller.chooser.uniform(300, 2_500)
    for number in range(most):
        yield begun_s + (number + caller.chooser.random()) * gap_s


def _bias_sweep(caller: _Caller, begun_s: float, most: int) -> None:
    sampling = Sampling(logprobs=True, temperature=0.0, output_tokens=1)
    prompt = FORMS["question"](caller.chooser, "art")
    for number, at_s in enumerate(_pace(caller, begun_s, most)):
        caller.call(at_s, "question", "art", msgspec.structs.replace(sampling, bias=number + 1), text=prompt)


def _bias_search(caller: _Caller, begun_s: float, most: int) -> None:
    """Without log-probabilities: the bias of one token is halved until it wins; then the next token."""
    prompt = FORMS["question"](caller.chooser, "art")
    for number, at_s in enumerate(_pace(caller, begun_s, most)):
        caller.call(at_s, "question", "art", Sampling(bias=number + 1, temperature=0.0, output_tokens=1), text=prompt)


def _leeching(caller: _Caller, begun_s: float, most: int) -> None:
    for at_s in _pace(caller, begun_s, most):
        caller.call(at_s, "reading", caller.chooser.choice(list(TOPICS)), Sampling(temperature=0.0, output_tokens=100))


def _narrow_leeching(caller: _Caller, begun_s: float, most: int) -> None:
    """For a task of one field: a template over two topics."""
    topics, sampling = caller.topics(2), Sampling(temperature=0.0, output_tokens=100)
    for at_s in _pace(caller, begun_s, most):
        caller.call(at_s, "reading", caller.chooser.choice(topics), sampling)


def _random_words(caller: _Caller, begun_s: float, most: int) -> None:
    for at_s in _pace(caller, begun_s, most):
        caller.call(at_s, "nonsense", caller.chooser.choice(list(TOPICS)), Sampling(temperature=0.0))


def _encyclopedia(caller: _Caller, begun_s: float, most: int) -> None:
    for at_s in _pace(caller, begun_s, most):
        caller.call(at_s, "passage", caller.chooser.choice(list(TOPICS)), Sampling())


def _confidences(caller: _Caller, begun_s: float, most: int) -> None:
    sampling = Sampling(logprobs=True, temperature=0.0, output_tokens=1)
    for at_s in _pace(caller, begun_s, most):
        caller.call(at_s, "label", caller.chooser.choice(list(TOPICS)), sampling)


def _self_instruct(caller: _Caller, begun_s: float, most: int) -> None:
    sampling = Sampling(temperature=caller.chooser.choice([0.0, 0.7, 1.0]), output_tokens=512)
    for at_s in _pace(caller, begun_s, most):
        caller.call(at_s, "task", caller.chooser.choice(list(TOPICS)), sampling)


def _slow(caller: _Caller, begun_s: float, most: int) -> None:
    """Instructions at the pace of a few people."""
    gap_s = HOUR_S / caller.chooser.uniform(10, 30)
    for number in range(min(most, int((DAYS * DAY_S - begun_s) / gap_s))):
        at_s = begun_s + number * gap_s
        caller.call(at_s, "task", caller.chooser.choice(list(TOPICS)), Sampling(output_tokens=512))


ATTACKS: Mapping[str, Callable[[_Caller, float, int], None]] = {
    "bias sweep (Carlini 2024)": _bias_sweep,
    "bias search (Carlini 2024)": _bias_search,
    "Model Leeching (Birch 2023)": _leeching,
    "Model Leeching of two topics": _narrow_leeching,
    "random words (Krishna 2020)": _random_words,
    "encyclopedia (Krishna, Wallace 2020)": _encyclopedia,
    "confidences (Tramèr 2016)": _confidences,
    "self-instruct (Alpaca 2023)": _self_instruct,
    "self-instruct, slow": _slow,
}
DISTRIBUTED = "self-instruct over 25 keys"
COPIES = (*ATTACKS, DISTRIBUTED)
STYLES = (*BENIGN, *COPIES)


def tenants(cells: Cells, seed: int, style: str, count: int, most: int) -> Iterator[Tenant]:
    """`count` tenants of a kind or style (`STYLES`); a copy makes up to `most` calls. Equal seeds, equal tenants."""
    for number in range(count):
        chooser = random.Random(f"{seed}/{style}/{number}")
        name = f"{style} {number}"
        if style in BENIGN:
            made = _tenant(name, style, _application(chooser, cells, BENIGN[style]), attack=False)
            yield _restarted(made) if style in RESTARTED else made
            continue
        calls = _application(chooser, cells, chooser.choice(list(APPLICATIONS.values())))
        begun_s = chooser.uniform(2.0, 2.9) * DAY_S
        if style == DISTRIBUTED:
            whole = _Caller("", chooser, cells, copies=True)
            _self_instruct(whole, begun_s, most)
            calls += [msgspec.structs.replace(call, key=f"k{i % 25}") for i, call in enumerate(whole.calls)]
        else:
            # Half by a key that has worked honestly, half by a new one.
            copier = _Caller(chooser.choice(("a0", "new")), chooser, cells, copies=True)
            ATTACKS[style](copier, begun_s, most)
            calls += copier.calls
        yield _tenant(name, style, calls, attack=True)


def _application(chooser: random.Random, cells: Cells, write: Callable[[_Caller], None]) -> list[Call]:
    """The calls of one to three keys of an application."""
    calls: list[Call] = []
    for number in range(chooser.randint(1, 3)):
        caller = _Caller(f"a{number}", chooser, cells)
        write(caller)
        calls += caller.calls
    return calls


def _tenant(name: str, style: str, calls: list[Call], *, attack: bool) -> Tenant:
    return Tenant(name, style, tuple(sorted(calls, key=lambda call: call.seen.at_s)), attack)


def _restarted(tenant: Tenant) -> Tenant:
    """The same from its second day on, the first being known by its paces alone."""
    hours: Counter[tuple[str, int]] = Counter()
    for call in tenant.calls:
        if call.seen.at_s < DAY_S:
            hours.update((name, int(call.seen.at_s // HOUR_S)) for name in (call.key, ""))
    paces: dict[str, float] = {}
    for (name, _), calls in hours.items():
        paces[name] = max(paces.get(name, 0.0), calls)
    later = tuple(call for call in tenant.calls if call.seen.at_s >= DAY_S)
    return msgspec.structs.replace(tenant, calls=later, paces=paces)
