"""What simulated callers write: a small grammar over everyday topics, and cells of the embedding space for it.

Every call writes a text of its own. Encoding each would take hours, so a text's cell is drawn from those of some texts
of the same form and topic that were encoded with the shipped model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np

from service.scoring.artifact import Artifact
from service.scoring.attack_index import AttackIndex
from service.scoring.cells import CoarseCells
from service.scoring.encoder import Encoder

TOPICS: Mapping[str, str] = {
    "kitchen": (
        "sourdough,cast-iron pans,lentil stew,pickled onions,pressure cookers,rice pudding,olive oil,oven racks"
    ),
    "garden": (
        "tomato seedlings,compost heaps,pear trees,slugs,drip irrigation,clay soil,hedge cuttings,greenhouse glass"
    ),
    "health": "iron tablets,knee pain,sleep apnoea,blood pressure,hay fever,physiotherapy,vaccines,contact lenses",
    "law": "rental deposits,notice periods,wills,small claims,trade marks,parking fines,consumer returns,contracts",
    "astronomy": "neutron stars,lunar eclipses,Saturn's rings,dark matter,comets,telescopes,redshift,solar flares",
    "history": (
        "the Hanseatic League,Roman roads,the printing press,the Silk Road,medieval guilds,steam engines,canals"
    ),
    "music": "cello bows,minor scales,sight reading,fugues,drum tuning,choir warm-ups,jazz chords,opera overtures",
    "sport": (
        "marathon pacing,backhand grips,offside rules,rowing stroke rate,climbing ropes,cricket fields,judo throws"
    ),
    "finance": "index funds,mortgage rates,pension transfers,double-entry books,exchange rates,bond yields,invoices",
    "chemistry": "titration,noble gases,catalysts,buffer solutions,polymer chains,redox reactions,molar mass,enzymes",
    "travel": (
        "night trains,visa forms,hand luggage,island ferries,travel insurance,hostels,time zones,border crossings"
    ),
    "cars": (
        "brake pads,winter tyres,hybrid batteries,timing belts,parking sensors,diesel filters,clutch wear,axle noise"
    ),
    "python": (
        "list comprehensions,asyncio tasks,type hints,virtual environments,decorators,pickling,unit tests,generators"
    ),
    "databases": (
        "foreign keys,query plans,replication lag,partial indexes,deadlocks,backups,migrations,connection pools"
    ),
    "networks": (
        "DNS records,TLS certificates,packet loss,load balancers,IPv6 prefixes,firewall rules,proxies,routing"
    ),
    "art": "watercolour paper,linocuts,perspective drawing,oil glazes,fresco repair,charcoal,picture frames,pigments",
    "animals": "barn owls,hedgehogs,sheepdogs,goldfish,honey bees,bats,stray cats,sea otters",
    "weather": "cold fronts,hail,fog banks,monsoons,jet streams,rain gauges,heat waves,lightning",
    "schools": (
        "fractions,spelling tests,school trips,essay plans,reading lists,exam stress,homework clubs,lab safety"
    ),
    "housing": "damp walls,roof insulation,boilers,window frames,floor joists,fuse boxes,gutter leaks,door locks",
    "shop": (
        "late parcels,gift cards,refund requests,wrong sizes,voucher codes,order tracking,broken seals,stock levels"
    ),
    "work": (
        "job interviews,shift plans,performance reviews,meeting notes,remote teams,onboarding,sick leave,overtime"
    ),
    "language": "French verbs,German cases,loan words,English articles,phonetics,idioms,dictation,translation",
    "mathematics": "prime numbers,matrix inverses,integrals,probability trees,knots,graph colouring,limits,sets",
}


def _cut(written: str, at: str = "|") -> tuple[str, ...]:
    return tuple(written.split(at))


_SETTINGS = _cut(
    "in a small flat,on a tight budget,before the weekend,for a beginner,after a long winter,with two children,"
    "in Norway,by the sea,without special tools,for a team of nine,in one afternoon,since last March,at high altitude,"
    "for an older relative,during the holidays,under time pressure",
    ",",
)
_OPENERS = _cut(
    "|Hi, |Hello there, |quick question: |So |Hey, |I was wondering, |ok |One more thing, |My neighbour asked me |"
    "Sorry to bother you, |Good morning. |Actually, |Um, |For a friend: |Just checking, ",
)
_QUESTIONS = _cut(
    "how do I choose {n} {s}?|what goes wrong with {n} {s}?|is it worth paying more for {n} {s}?|"
    "why are {n} so difficult {s}?|can you compare {n} and {m} {s}?|which is better {s}, {n} or {m}?|"
    "what should I know about {n} {s}?|who usually deals with {n} {s}?|when did people start to care about {n}?|"
    "how long do {n} last {s}?|do {n} have anything to do with {m}?|where can I read more on {n} {s}?"
)
_TASKS = _cut(
    "Write a short guide to {n} {s}.|List five facts about {n} and {m}.|Explain {n} to somebody who only knows {m}.|"
    "Compose a poem on {n} {s}.|Give three arguments against {n} {s}.|Draft an email about {n} {s}.|"
    "Invent a riddle whose answer is {n}.|Summarise what is known of {n} {s}.|Rewrite this more politely: {n} again!|"
    "Make a table of {n} against {m}.|Describe a day with {n} {s}.|Plan a lesson about {n} {s}.|"
    "Name common mistakes with {n} {s}.|Turn this into a headline: {n} and {m} {s}.|Define {n} in one sentence."
)
_SENTENCES = _cut(
    "Many people first meet {n} {s}, and few forget it.|The oldest report on {n} mentions {m} as well.|"
    "In {y} the price of {n} rose by {d} percent.|Experts on {m} disagree about {n}.|"
    "Where {n} fail, {m} often follow {s}.|A survey of {d} households found {n} in most of them.|"
    "It took until {y} before {n} were properly described.|Nobody had expected {n} to matter {s}.|"
    "The report calls {m} a cause of {n}, though only {s}.|Since {y} the rules for {n} have changed twice."
)
_NAMES = {name: tuple(words.split(",")) for name, words in TOPICS.items()}
_VOCABULARY = tuple(
    sorted({word for words in TOPICS.values() for word in words.replace(",", " ").split()})
    + " ".join((*_SETTINGS, *_QUESTIONS, *_TASKS, *_SENTENCES)).replace("{", " ").replace("}", " ").split()
)


def _fill(form: str, chooser: random.Random, topic: str) -> str:
    one, other = chooser.sample(_NAMES[topic], 2)
    filled = form.replace("{n}", one).replace("{m}", other).replace("{s}", chooser.choice(_SETTINGS))
    return filled.replace("{y}", str(chooser.randrange(1700, 2024))).replace("{d}", str(chooser.randrange(3, 98)))


def question(chooser: random.Random, topic: str) -> str:
    """As people ask."""
    more = " " + _fill(chooser.choice(_SENTENCES), chooser, topic) if chooser.random() < 0.4 else ""
    return chooser.choice(_OPENERS) + _fill(chooser.choice(_QUESTIONS), chooser, topic) + more


def task(chooser: random.Random, topic: str) -> str:
    """An instruction without an input, as self-instruct makes them."""
    return _fill(chooser.choice(_TASKS), chooser, topic)


def passage(chooser: random.Random, topic: str) -> str:
    """Some sentences, as in an encyclopedia."""
    return " ".join(_fill(form, chooser, topic) for form in chooser.sample(_SENTENCES, chooser.randint(2, 5)))


def nonsense(chooser: random.Random, topic: str) -> str:
    """Words in a row that mean nothing."""
    del topic
    return " ".join(chooser.choice(_VOCABULARY) for _ in range(chooser.randint(8, 24)))


def summary(chooser: random.Random, topic: str) -> str:
    """A batch summariser's prompt."""
    return f"Summarise the text below in two sentences for our newsletter.\n\n{passage(chooser, topic)}"


def retrieval(chooser: random.Random, topic: str) -> str:
    """A retrieval chain's prompt."""
    found = "\n---\n".join(passage(chooser, topic) for _ in range(2))
    asked = question(chooser, topic)
    return f"Answer from the context only. Say so if it is not there.\n\nContext:\n{found}\n\nQuestion: {asked}"


def multiple_choice(chooser: random.Random, topic: str) -> str:
    """An evaluation's item."""
    options = "\n".join(
        f"{letter}. {name}" for letter, name in zip("ABCD", chooser.sample(_NAMES[topic], 4), strict=True)
    )
    stem = _fill(chooser.choice(_SENTENCES), chooser, topic)
    return f"The following is a multiple choice question about {topic}.\n\n{stem} Which?\n{options}\nAnswer:"


def reading(chooser: random.Random, topic: str) -> str:
    """Context and question in a template that asks for JSON, as Model Leeching queries a target."""
    asked = _fill(chooser.choice(_QUESTIONS), chooser, topic)
    return (
        'You answer reading questions. Reply as JSON {"answer": …, "index": …} with a span of the context.\n'
        f"Context: {passage(chooser, topic)}\nQuestion: {asked}"
    )


def label(chooser: random.Random, topic: str) -> str:
    """A classifier's prompt."""
    return f"Classify the message as complaint, question or praise. One word.\n\nMessage: {question(chooser, topic)}"


def review(chooser: random.Random, topic: str) -> str:
    """A CI bot's prompt."""
    lines = "\n".join(
        f"{sign} {_fill(chooser.choice(_SENTENCES), chooser, topic)}" for sign in chooser.choices("+-", k=4)
    )
    return f"Review this diff. Point out bugs only.\n\ndiff --git a/{chooser.randrange(10**6):x}.py\n{lines}"


FORMS: Mapping[str, Callable[[random.Random, str], str]] = {
    form.__name__: form
    for form in (question, task, passage, nonsense, summary, retrieval, multiple_choice, reading, label, review)
}


class Cells:
    """The cells of each form and topic: those of `each` texts that were encoded."""

    def __init__(self, artifact: Artifact, each: int) -> None:
        encoder, cells = Encoder(artifact), CoarseCells(AttackIndex(artifact).vectors())
        chooser = random.Random(11)
        self._known: dict[tuple[str, str], list[int]] = {}
        manifest = artifact.manifest
        for name, form in FORMS.items():
            texts = [form(chooser, topic) for topic in TOPICS for _ in range(each)]
            encodings = artifact.tokenizer.encode_batch(texts, add_special_tokens=False)
            # The first window, as the guard takes it.
            ids = [
                [manifest.cls_id, *encoding.ids[: manifest.max_tokens - 2], manifest.sep_id] for encoding in encodings
            ]
            found = cells.of(
                np.concatenate([encoder.encode(ids[at : at + 256]).vectors for at in range(0, len(ids), 256)])
            )
            for number, topic in enumerate(TOPICS):
                self._known[name, topic] = found[number * each : (number + 1) * each].tolist()

    def draw(self, chooser: random.Random, form: str, topic: str) -> int:
        """The cell of such a text."""
        return chooser.choice(self._known[form, topic])
