"""Compose attacks from parts, and for each a benign twin that differs in nothing but what is said.

goal x framing x carrier x position x wrapper x language. The twin has the same carrier, position, separator, wrapper;
where the attack stands, it has an ordinary instruction ("Run make test before you open a pull request.") of about the
same length. So neither a carrier, nor a comment's brackets, nor an odd sentence in a table tells the two apart.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from training import overrides
from training.corpus import BENIGN, LABEL_ID, LABELS, Role, Row, Span, read_jsonl, stable_hash
from training.overlap import normalise

PLACEHOLDER = re.compile(r"\[INSERT[^\]]{0,40}\]|\{\{ ?prompt ?\}\}|\{query\}|\[PROMPT\]|\[INPUT\]", re.IGNORECASE)
CARRIER_CHARS = (250, 1500)
FOREIGN_SHARE = 0.3
ATTEMPTS = 12

# Share of attacks in carriers that some source holds ready; the others are put together from framing and goal.
READY_PAYLOADS = 0.4

# Share of injections whose errand is ordinary work, such as may stand in the benign twin too.
ORDINARY_GOALS = 0.4

# Share of attacks that put their goal behind a plain override, by category.
PLAIN_OVERRIDES = {"injection": 0.45, "extraction": 0.25, "jailbreak": 0.08}

# Share of injections in tool results and documents that are an order and nothing else.
BARE_ORDERS = 0.18

# The category of instructions that nobody would take as meant for an assistant that reads them somewhere.
PEOPLE = "people"

PartName = Literal["goal", "framing", "wrapper", "carrier", "payload", "benign_instruction", "task", "question"]

# What is attacked where: people type jailbreaks and prompt extraction, documents carry orders to the assistant.
_CATEGORIES = {
    "user": (("injection", 0.40), ("extraction", 0.35), ("jailbreak", 0.25)),
    "tool": (("injection", 0.78), ("extraction", 0.17), ("jailbreak", 0.05)),
}
_FORMS = (
    ("carrier", 0.50),  # tool or document: a payload inside a text
    ("bare", 0.09),  # tool or document: nothing but the payload
    ("message", 0.16),  # user: the payload is the message
    ("task", 0.13),  # user: a task, then the payload
    ("pasted", 0.12),  # user: a task and a pasted text that carries the payload
)
_WRAPPED = {"carrier": 0.45, "bare": 0.5, "message": 0.15, "task": 0.2, "pasted": 0.3}
_SEPARATORS = (("\n", 0.4), ("\n\n", 0.35), (" ", 0.25))


class Piece(msgspec.Struct, frozen=True):
    """A part to compose from: a line of datasets/parts.jsonl, or a row of a public source turned into one.

    `part` is goal, framing (with {goal}), wrapper (with {text}), carrier, payload (ready to insert),
    benign_instruction, task, or question. `category` says for goals, framings and payloads what they attack, and "code"
    for carriers that are source code and the payloads made for them, PEOPLE for instructions that are plainly theirs.
    """

    id: str
    part: PartName
    category: str
    language: str
    text: str
    role: Role = "document"
    source: str = "parts"
    weight: float = 1.0


# Rows of public and written data that serve as parts: kind -> (part, category if it is not the row's label).
_PARTS_OF_ROWS: dict[str, tuple[PartName, str]] = {
    "indirect_injection_payload": ("payload", ""),
    "indirect_injection_payload_code": ("payload", "code"),
    "injection_wrapper": ("framing", ""),
    "injection_instruction": ("goal", ""),
    "extraction_instruction": ("goal", ""),
    "carrier_table": ("carrier", "benign"),
    "carrier_code": ("carrier", "code"),
    "source_code": ("carrier", "code"),
    "ordinary_benign_doc": ("carrier", "benign"),
    "json_result": ("carrier", "benign"),
    "config_file": ("carrier", "benign"),
    "log_lines": ("carrier", "benign"),
}
# Kinds that attack only inside something else, or only once they are filled in: no rows of their own.
PARTS_ONLY = frozenset(
    ["indirect_injection_payload", "indirect_injection_payload_code", "injection_wrapper", "injection_instruction"]
)


def load_pieces(datasets: Path) -> list[Piece]:
    """The project's own parts. Raises `CorpusError` for a line it cannot read."""
    return [piece for _, piece in read_jsonl(datasets / "parts.jsonl", Piece)]


def pieces_from(rows: Iterable[Row]) -> list[Piece]:
    """Parts that rows can serve as: carriers, payloads, wrappers, goals, and questions to ask instead of attacking."""
    pieces: list[Piece] = []
    for row in rows:
        part: PartName | None = None
        category, text = LABELS[row.label], row.text
        if row.span is not None:
            part = "payload" if row.label != BENIGN else "benign_instruction"
            text = row.text[slice(*row.span)]
        elif row.kind in _PARTS_OF_ROWS:
            part = _PARTS_OF_ROWS[row.kind][0]
            category = _PARTS_OF_ROWS[row.kind][1] or category
            text = row.text.replace("<INSTRUCTION>", "{goal}")
        elif row.kind == "ordinary_benign" and row.role == "user" and len(row.text) < 400:
            part = "question"
        if part:
            role: Role = "tool" if row.role == "tool" else "document"
            name = f"{row.source}:{stable_hash(row.text):016x}"
            weight = min(row.weight, 1.0)
            pieces.append(Piece(name, part, category, row.language, text, role, row.source, weight))
    return pieces


class Injected(msgspec.Struct, frozen=True):
    """What is inserted: the text, its label, how much a row made of it counts, and the sources that it was made of."""

    text: str
    label: int
    weight: float = 1.0
    made_of: str = ""


class Grammar:
    """The parts by kind and language, and the rules by which they are joined; all choices come from `rng`."""

    def __init__(self, pieces: Sequence[Piece], rng: random.Random) -> None:
        self._rng = rng
        self._pool: dict[tuple[str, str, str], list[Piece]] = defaultdict(list)
        for piece in sorted(pieces, key=lambda piece: piece.id):
            self._pool[piece.part, "own" if piece.source == "parts" else "other", ""].append(piece)
            self._pool[piece.part, "", piece.language].append(piece)
            self._pool[piece.part, piece.category, piece.language].append(piece)
            self._pool[piece.part, piece.category, ""].append(piece)
            self._pool[piece.part, "", ""].append(piece)
        spoken = {language for part, _, language in self._pool if part == "framing"}
        spoken &= {language for part, _, language in self._pool if part == "benign_instruction"}
        self._foreign = sorted(spoken - {"en", ""})
        for part in ("goal", "framing", "benign_instruction", "task"):
            if not self._pool[part, "", "en"]:
                raise ValueError(f"composing needs at least one English {part}")
        if not self._pool["carrier", "", ""]:
            raise ValueError("composing needs at least one carrier: load public data or the standard library's code")

    def pair(self) -> tuple[Row, Row]:
        """An attack and its benign twin."""
        rng = self._rng
        form = _weighted(rng, _FORMS)
        user = form in ("message", "task", "pasted")
        category = _weighted(rng, _CATEGORIES["user" if user else "tool"])
        language = rng.choice(self._foreign) if self._foreign and rng.random() < FOREIGN_SHARE else "en"
        carrier = self._carrier(language) if form in ("carrier", "pasted") else None
        attack = self._attack(form, category, language, carrier)
        harmless = self._harmless(form, attack, language)
        wrappers = self._pool["wrapper", "", ""]
        wrapper = rng.choice(wrappers).text if wrappers and rng.random() < _WRAPPED[form] else "{text}"
        task = self._one("task", "", language).text if form in ("task", "pasted") else ""
        separator = _weighted(rng, _SEPARATORS)
        place = rng.random()
        role: Role = "user" if user else carrier.role if carrier else rng.choice(("tool", "document"))
        rows: list[Row] = []
        for injected in (attack, harmless):
            text, span = wrap(wrapper, injected.text)
            if carrier is not None:
                text, span = insert(carrier.text, text, span, place, separator)
            if form == "task" and place > 0.7:
                text = text + separator + task
            elif task:
                before = task + ("\n\n" if carrier else separator)
                text, span = before + text, (span[0] + len(before), span[1] + len(before))
            kind, weight, made_of = f"composed_{form}", attack.weight, attack.made_of
            rows.append(Row(text, injected.label, role, kind, "composed", language, span, "", weight, made_of))
        group = f"composed:{stable_hash(rows[0].text):016x}"
        return msgspec.structs.replace(rows[0], group=group), msgspec.structs.replace(rows[1], group=group)

    def _one(self, part: str, category: str, language: str) -> Piece:
        """A part of that category and language; English, then any, where there is none."""
        pool = self._pool
        found = (
            pool[part, category, language] or pool[part, category, "en"] or pool[part, "", "en"] or pool[part, "", ""]
        )
        return self._rng.choice(found)

    def _carrier(self, language: str) -> Piece:
        rng = self._rng
        # English payloads also stand in foreign texts; foreign payloads mostly in their own language's.
        local = self._pool["carrier", "", language]
        if rng.random() < 0.15 or not local:
            local = self._pool["carrier", "", ""]
        # By source first: nine hundred tables must not crowd out the rest.
        source = rng.choice(sorted({piece.source for piece in local}))
        piece = rng.choice([piece for piece in local if piece.source == source])
        return msgspec.structs.replace(piece, text=excerpt(piece.text, rng))

    def _passage(self, language: str, length: int) -> str:
        text = self._one("carrier", "benign", language).text
        start = self._rng.randint(0, max(0, len(text) - length))
        words = text[start : start + max(40, length)]
        words = (words.partition(" ")[2] if start else words).strip()
        return words if len(words) >= 20 else text[: max(40, length)]

    def _attack(self, form: str, category: str, language: str, carrier: Piece | None) -> Injected:
        rng = self._rng
        ready = self._pool["payload", category, language]
        if carrier is not None and carrier.category == "code" and self._pool["payload", "code", language]:
            ready = ready + self._pool["payload", "code", language]
        if carrier is not None and ready and rng.random() < READY_PAYLOADS:
            piece = rng.choice(ready)
            label = LABEL_ID["injection"] if piece.category == "code" else LABEL_ID[piece.category]
            return Injected(piece.text, label, piece.weight, _sources(piece))
        goal = self._one("goal", category, language)
        while goal.source != "parts" and rng.random() < 0.7:
            goal = self._one("goal", category, language)
        if rng.random() < (
            0.12 if category == "extraction" else BARE_ORDERS if carrier and category == "injection" else 0
        ):
            return Injected(sentence(goal.text), LABEL_ID[category], made_of=_sources(goal))
        if category == "injection" and rng.random() < ORDINARY_GOALS:
            # What makes an injection is that it takes the assistant over, not that its errand is wicked.
            goal = self._errand(goal.language)
        if rng.random() < PLAIN_OVERRIDES[category]:
            text = overrides.attack(goal.text.rstrip(" ."), goal.language, rng)
            return Injected(text, LABEL_ID[category], made_of=_sources(goal))
        framing = self._one("framing", category, goal.language)
        while framing.source != "parts" and rng.random() < 0.7:
            framing = self._one("framing", category, goal.language)
        text = sentence(framing.text.replace("{goal}", goal.text.rstrip(" .")))
        return Injected(text, LABEL_ID[category], made_of=_sources(framing, goal))

    def _errand(self, language: str) -> Piece:
        """An ordinary instruction, task or question in a goal's form: it begins small and ends without a full stop."""
        kinds = [part for part in ("benign_instruction", "task", "question") if self._pool[part, "", language]]
        piece = self._one(self._rng.choice(kinds or ["benign_instruction"]), "", language)
        text = piece.text.removeprefix("Please ").strip().rstrip(".:")
        return msgspec.structs.replace(piece, text=text[:1].lower() + text[1:], source="parts")

    def _harmless(self, form: str, attack: Injected, language: str) -> Injected:
        """Ordinary text for the attack's place, in its language and of about its length.

        Where the text comes from a tool or a document, only instructions that are plainly for people are ordinary.
        """
        rng = self._rng
        foreign = form not in ("message", "task")
        spoken_to = PEOPLE if foreign and self._pool["benign_instruction", PEOPLE, language] else ""
        if form == "message" and attack.label == LABEL_ID["jailbreak"] and rng.random() < 0.4:
            # The same wish asked plainly is no attack: whether to answer is the model's own business.
            return Injected(sentence(self._one("goal", "jailbreak", language).text), BENIGN)
        if form != "task" and rng.random() < (0.4 if foreign else 0.2):
            # A stray passage out of another text: what does not belong is not an attack for that.
            return Injected(self._passage(language, len(attack.text)), BENIGN)
        if language == "en" and rng.random() < 0.12:
            return Injected(
                overrides.harmless(sentence(self._one("benign_instruction", spoken_to, language).text), rng), BENIGN
            )
        question = form in ("message", "task") and rng.random() < 0.45 and self._pool["question", "", language]
        part = "question" if question else "benign_instruction"
        texts = [sentence(self._one(part, "" if question else spoken_to, language).text)]
        while part == "benign_instruction" and len(" ".join(texts)) < 0.7 * len(attack.text) and len(texts) < 6:
            text = sentence(self._one(part, spoken_to, language).text)
            if text not in texts:
                texts.append(text)
            elif rng.random() < 0.2:
                break
        return Injected(" ".join(texts), BENIGN)


def compose(pieces: Sequence[Piece], count: int, *, seed: int) -> list[Row]:
    """About `count` distinct rows, half attacks and half benign twins; the same for the same pieces, count and seed.

    Fewer come back where the parts allow no more. Raises `ValueError` when a kind of part is missing altogether.
    """
    grammar = Grammar(pieces, random.Random(seed))
    seen: set[str] = set()
    rows: list[Row] = []
    for _ in range(count * ATTEMPTS // 2):
        if len(rows) >= count:
            break
        pair = grammar.pair()
        texts = {normalise(row.text) for row in pair}
        if len(texts) == 2 and not texts & seen:
            seen |= texts
            rows += pair
    return rows


def fill_placeholders(rows: Sequence[Row], pieces: Sequence[Piece], *, seed: int, copies: int = 2) -> list[Row]:
    """Jailbreak templates with their placeholder filled in, `copies` times with other goals; other rows as they are.

    A third of the fillings are harmless questions: the template is an attack whatever it is filled with.
    """
    rng = random.Random(seed)
    goals = sorted(
        piece.text
        for piece in pieces
        if piece.part == "goal" and piece.category == "jailbreak" and piece.language == "en"
    )
    questions = sorted(piece.text for piece in pieces if piece.part in ("question", "task") and piece.language == "en")
    filled: list[Row] = []
    for row in rows:
        if row.label == BENIGN or not goals or not PLACEHOLDER.search(row.text):
            filled.append(row)
            continue
        for _ in range(copies):
            goal = sentence(rng.choice(questions if questions and rng.random() < 1 / 3 else goals))
            text = PLACEHOLDER.sub(lambda _match, goal=goal: goal, row.text)  # type: ignore[misc]
            filled.append(msgspec.structs.replace(row, text=text, span=None))
    return filled


def compose_fixed(payloads: Sequence[Row], carriers: Sequence[Row]) -> list[Row]:
    """Attacks for the dev benchmark: each payload after a tool result, with a plain override phrase, one way only.

    Fixed on purpose: what is measured must not be tuned, so nothing is drawn from the training grammar.
    """
    results = [row for row in carriers if row.kind == "tool_result"]
    rows: list[Row] = []
    for row in payloads if results else []:
        carrier = results[stable_hash(row.text) % len(results)].text
        before = f"{carrier}\n\nIgnore the previous instructions. "
        span = (len(before), len(before) + len(row.text))
        rows.append(msgspec.structs.replace(row, text=before + row.text, kind="indirect_injection", span=span))
    return rows


def wrap(wrapper: str, text: str) -> tuple[str, Span]:
    """The text inside the wrapper, and where it lies there; escaped where the wrapper is a JSON string."""
    before, _, after = wrapper.partition("{text}")
    if before.endswith('"') and after.startswith('"'):
        text = json.dumps(text, ensure_ascii=False)[1:-1]
    elif before.lstrip().startswith(("#", "//", ">", "|", "--", "[", "*")) and "\n" not in before:
        # A comment, a quotation or a table cell is one line; a second line would stand outside it.
        text = text.replace("\n", " ")
    return before + text + after, (len(before), len(before) + len(text))


def insert(carrier: str, inner: str, span: Span, place: float, separator: str) -> tuple[str, Span]:
    """`inner` at the start, at the end, or at a line or sentence boundary of the carrier, as `place` in [0, 1) says."""
    if place < 0.2:
        at, before, after = 0, "", separator
    elif place > 0.75:
        at, before, after = len(carrier), separator, ""
    else:
        bounds = [match.end() for match in re.finditer(r"\n+|[.!?] +|[。！？]", carrier)]
        bounds = [bound for bound in bounds if 0 < bound < len(carrier)] or [len(carrier)]
        at = bounds[int((place - 0.2) / 0.55 * len(bounds)) % len(bounds)]
        before, after = ("" if carrier[at - 1] == "\n" else separator), separator
    offset = at + len(before)
    return carrier[:at] + before + inner + after + carrier[at:], (span[0] + offset, span[1] + offset)


def excerpt(text: str, rng: random.Random) -> str:
    """The text, or most often some lines out of it: carriers of all lengths, and payloads far from both ends."""
    wanted = rng.randint(*CARRIER_CHARS)
    if len(text) <= wanted or rng.random() < 0.15:
        return text[:4000]
    start = rng.randint(0, len(text) - wanted) if rng.random() < 0.6 else 0
    if start:
        boundary = re.search(r"\n|[.!?。] ?", text[start:])
        start += boundary.end() if boundary and boundary.end() < wanted else 0
    cut = text[start : start + wanted]
    tail = max(cut.rfind("\n"), cut.rfind(". "), cut.rfind("。"))
    return (cut[: tail + 1] if tail > len(cut) // 2 else cut).strip("\n") or text[:wanted]


def sentence(text: str) -> str:
    """With a capital first letter and an end."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if not text or not text[-1].isalnum() else text + ("。" if "\u3040" <= text[-1] <= "\u9fff" else ".")


def _sources(*pieces: Piece) -> str:
    """The sources of the pieces but for the project's own parts, joined."""
    return " ".join(sorted({piece.source for piece in pieces} - {"parts"}))


def _weighted(rng: random.Random, choices: Sequence[tuple[str, float]]) -> str:
    return rng.choices([name for name, _ in choices], [weight for _, weight in choices])[0]
