"""What is found at which false-positive rate: the public dev sources and the project's own dev set, scored as `scan`
does, with the classifier alone and the index alone beside their fusion.

A *benchmark* is a set of rows that share a threshold: the score above which 1 % (0.1 %) of its own ordinary benign
texts lie. Benign texts that merely use the words of attacks do not set thresholds; how many of them the default policy
lets pass is reported as over-defence accuracy.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.calibration import calibration
from benchmarks.results import ROOT, Options
from service.firewall.policy import role_policies
from service.firewall.prompt import Role
from service.firewall.scan import scan
from service.firewall.text_score import TextScore, TextScorer, TextWindow, WindowRows, length_offset, window_logits
from service.scoring.artifact import BENIGN as BENIGN_NAME
from service.scoring.artifact import Artifact, Calibration, load_artifact
from service.scoring.attack_index import AttackIndex
from service.scoring.encoder import Encoder
from service.settings import Detection
from training.corpus import BENIGN, LABEL_ID, Row, WrittenRow, stable_hash
from training.evaluate import read_rows
from training.metrics import auc, recall_at, share, threshold_at
from training.overlap import decontaminate, drop_overlapping, load_exclusion

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

OWN_DEV = ROOT / "datasets" / "dev"
TRAINED_CORPUS = ROOT / ".runs" / "train" / "corpus"
PREPARED_CORPUS = ROOT / ".runs" / "benchmarks" / "corpus"
PUBLIC, OWN = "public dev sources", "own dev set"
RATES = {"recall_at_1pct": 0.01, "recall_at_0.1pct": 0.001}
# Fewer ordinary benign texts than this do not say where 1 % of them lie.
MIN_ORDINARY = 100
MIN_KIND = 5
QUICK_ROWS = 240
# Kinds of benign rows that use the words of attacks: markers inside the kind's name.
_TRIGGERED = (
    "over_defence",
    "trigger",
    "quote",
    "security_benign",
    "benign_ignore",
    "benign_reveal",
    "benign_forget",
    "benign_system",
    "benign_disregard",
    "benign_override",
    "benign_instructions",
    "benign_memory",
    "benign_pretend",
    "benign_actas",
    "benign_roleplay",
    "benign_devkeys",
    "benign_docnote",
)
_BANDS = ((1, "1 window"), (3, "2-3"), (7, "4-7"), (15, "8-15"), (10**9, "16 and more"))
BAND_NAMES = tuple(label for _, label in _BANDS)
CURVE = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 61)])


class Scored(msgspec.Struct, frozen=True, eq=False):
    """Per row: float64 scores of the fusion, the classifier alone and the index alone; the default policy's action; how
    many windows the text has. Only the order of a column's scores means something."""

    columns: dict[str, Floats]
    action: npt.NDArray[np.str_]
    windows: npt.NDArray[np.int64]


class _Recording(TextScorer):
    """The scorer that serves, which also notes what each of its two halves would have said of each text."""

    def __init__(self, artifact: Artifact, index: AttackIndex) -> None:
        super().__init__(artifact, index)
        found = artifact.manifest.calibration
        fusion = msgspec.structs.replace(found.fusion, similarity=0.0)
        self._alone: Calibration = msgspec.structs.replace(found, fusion=fusion)
        self._benign_label = artifact.manifest.labels.index(BENIGN_NAME)
        self.noted: list[tuple[float, float]] = []

    def score_rows(self, cut: Sequence[TextWindow], rows: WindowRows) -> TextScore:
        scored = super().score_rows(cut, rows)
        if cut:
            alone = window_logits(rows.logits, rows.similarity, self._alone, self._benign_label).max()
            self.noted.append((float(alone) - length_offset(scored.windows, self._alone), float(rows.similarity.max())))
        else:
            self.noted.append((-np.inf, -1.0))
        return scored


class Benchmarks(msgspec.Struct, frozen=True, eq=False):
    """The rows of every benchmark that there are rows for, their scores, and `notes`: what is missing and why."""

    rows: dict[str, list[Row]]
    scored: dict[str, Scored]
    notes: tuple[str, ...]


def measure(options: Options) -> dict[str, Any]:
    """The figures of every benchmark that there are rows for; `notes` says which are missing and why."""
    found = judged(options)
    notes = list(found.notes)
    figures: dict[str, Any] = {}
    borrowed: Floats | None = None
    for name, rows in found.rows.items():
        part, ordinary = found.scored[name], ordinary_benign(rows)
        if ordinary.sum() < MIN_ORDINARY and borrowed is not None:
            notes.append(f"{name}: {ordinary.sum()} ordinary benign texts; thresholds are those of the {PUBLIC}.")
            figures[name] = describe(rows, part, borrowed=borrowed)
            continue
        if name == PUBLIC:
            borrowed = np.stack([part.columns[column][ordinary] for column in part.columns])
        figures[name] = describe(rows, part)
    return {"notes": notes, "benchmarks": figures}


@lru_cache(maxsize=1)
def judged(options: Options) -> Benchmarks:
    """All rows and what the artifact says of them; parts that ask one after the other share it."""
    notes: list[str] = []
    rows: dict[str, list[Row]] = {}
    corpus = _corpus(options)
    if corpus is None:
        notes.append(
            "No public data at hand: give --mirror or --corpus, or run `make train` first. Only the own dev set."
        )
    else:
        rows[PUBLIC] = read_rows(corpus / "dev.jsonl")
    if own := own_rows():
        rows[OWN] = _apart(own, corpus, options, notes)
    if options.quick:
        rows = {name: _sample(found, QUICK_ROWS) for name, found in rows.items()}
    everything = [row for found in rows.values() for row in found]
    if not everything:
        return Benchmarks({}, {}, (*notes, "datasets/dev holds no rows."))
    scored = score(options.artifact, everything)
    parts: dict[str, Scored] = {}
    first = 0
    for name, found in rows.items():
        inside = slice(first, first + len(found))
        first += len(found)
        columns = {column: values[inside] for column, values in scored.columns.items()}
        parts[name] = Scored(columns, scored.action[inside], scored.windows[inside])
    return Benchmarks(rows, parts, tuple(notes))


def _corpus(options: Options) -> Path | None:
    """The folder with dev.jsonl: the one named, one prepared now, or that of the last training run."""
    if options.corpus is not None:
        return options.corpus
    if options.mirror is not None:
        from training import prepare

        folder = PREPARED_CORPUS
        if not (folder / "corpus.json").exists():
            arguments = ["--out", str(folder), "--mirror", str(options.mirror)]
            arguments += ["--exclude", str(options.exclude)] if options.exclude else []
            if prepare.main(arguments):
                raise SystemExit(1)
        return folder
    return TRAINED_CORPUS if (TRAINED_CORPUS / "dev.jsonl").exists() else None


def _apart(own: list[Row], corpus: Path | None, options: Options, notes: list[str]) -> list[Row]:
    """The own dev rows without those that the exclusion list names or that training has seen, which `notes` counts."""
    kept = decontaminate(own, load_exclusion(options.exclude)) if options.exclude else own
    trained = corpus / "train.jsonl" if corpus is not None and not options.quick else None
    if trained is not None and trained.exists():
        kept = drop_overlapping(kept, read_rows(trained))
    if len(kept) < len(own):
        notes.append(
            f"{OWN}: {len(own) - len(kept)} of {len(own)} rows left out, being too near to excluded or trained."
        )
    return kept


def own_rows(folder: Path = OWN_DEV) -> list[Row]:
    """The project's own dev set: `WrittenRow`s, by file. Raises msgspec.DecodeError for what it cannot read."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.jsonl")):
        for item in msgspec.json.Decoder(WrittenRow).decode_lines(path.read_bytes()):
            label = LABEL_ID[item.label]
            # "explicit_pay", "subtle_rank": how an injection is put matters more here than what it wants.
            kind = item.family.partition("_")[0] if item.family.startswith(("explicit_", "subtle_")) else item.family
            rows.append(Row(item.text, label, item.role, kind, f"own_{path.stem}", item.language))
    return rows


def _sample(rows: list[Row], count: int) -> list[Row]:
    return sorted(rows, key=lambda row: stable_hash("benchmark", row.text))[:count]


def score(folder: Path, rows: Sequence[Row]) -> Scored:
    """Score rows through the code that serves, with the default policy."""
    artifact = load_artifact(folder)
    scorer = _Recording(artifact, AttackIndex(artifact))
    policies = role_policies(Detection(), artifact.manifest)
    fused: list[float] = []
    action: list[str] = []
    windows: list[int] = []
    roles = get_args(Role)
    texts = ((row.text, cast(Role, row.role if row.role in roles else "user")) for row in rows)
    for number, found in enumerate(scan(texts, scorer, Encoder(artifact), policies), 1):
        fused.append(found.score.logit)
        action.append(found.verdict.action)
        windows.append(found.score.windows)
        if number % 250 == 0:
            print(f"\r  scored {number}/{len(rows)}", end="", file=sys.stderr, flush=True)
    print(f"\r  scored {len(rows)}/{len(rows)}", file=sys.stderr)
    classifier, index = np.asarray(scorer.noted, np.float64).reshape(-1, 2).T
    columns = {"fused": np.asarray(fused, np.float64), "classifier alone": classifier, "index alone": index}
    return Scored(columns, np.asarray(action, np.str_), np.asarray(windows, np.int64))


def ordinary_benign(rows: Sequence[Row]) -> Mask:
    """Bool (rows,): benign texts that do not use the words of attacks. They set the thresholds."""
    return np.asarray([row.label == BENIGN and not is_triggered(row.kind) for row in rows], np.bool_)


def is_triggered(kind: str) -> bool:
    """Whether benign rows of this kind use the words of attacks."""
    return any(marker in kind for marker in _TRIGGERED)


def describe(rows: Sequence[Row], scored: Scored, *, borrowed: Floats | None = None) -> dict[str, Any]:
    """The figures of one benchmark. `borrowed` float64 (columns, n) stands in for its own ordinary benign scores."""
    benign: Mask = np.asarray([row.label == BENIGN for row in rows], np.bool_)
    ordinary = ordinary_benign(rows)
    scores = scored.columns["fused"]
    base = {
        column: borrowed[number] if borrowed is not None else values[ordinary]
        for number, (column, values) in enumerate(scored.columns.items())
    }
    if not len(base["fused"]):
        base = {column: values[benign] for column, values in scored.columns.items()}

    def entry(inside: Mask) -> dict[str, Any]:
        return _entry(inside, benign, scores, scored.action, base["fused"])

    figures: dict[str, Any] = {
        "attacks": int((~benign).sum()),
        "benign": int(benign.sum()),
        "ordinary_benign": len(base["fused"]),
        "borrowed": borrowed is not None,
        "all": entry(np.ones(len(rows), np.bool_)),
        "over_defence": _passed(benign & ~ordinary, scored.action),
        "calibration": calibration(scores, ~benign),
        "methods": {},
        "curves": {},
    }
    for column, values in scored.columns.items():
        attacks = values[~benign]
        if not len(attacks) or not len(base[column]):
            continue
        figures["methods"][column] = {
            "auc": auc(attacks, base[column]),
            **{name: _plain(recall_at(attacks, base[column], rate)) for name, rate in RATES.items()},
        }
        figures["curves"][column] = [[float(rate), recall_beyond(attacks, base[column], rate)] for rate in CURVE]
    kinds = _kinds(rows)
    axes: dict[str, Callable[[int], str]] = {
        "kinds": lambda i: kinds[i],
        "sources": lambda i: rows[i].source,
        "roles": lambda i: rows[i].role,
        "languages": lambda i: rows[i].language or "unknown",
        "lengths": lambda i: band(int(scored.windows[i])),
    }
    for axis, name in axes.items():
        places = np.asarray([name(i) for i in range(len(rows))], np.str_)
        order = BAND_NAMES if axis == "lengths" else tuple(sorted(set(places.tolist())))
        figures[axis] = {value: entry(places == value) for value in order if (places == value).any()}
    return figures


def _kinds(rows: Sequence[Row]) -> list[str]:
    """Each row's source and kind; kinds of a few texts are put together, since a share of three says nothing."""
    names = [f"{row.source}/{row.kind}" for row in rows]
    count = Counter(names)
    return [
        name
        if count[name] >= MIN_KIND
        else f"{row.source}/other {'benign texts' if row.label == BENIGN else 'attacks'}"
        for name, row in zip(names, rows, strict=True)
    ]


def _entry(inside: Mask, benign: Mask, scores: Floats, action: npt.NDArray[np.str_], base: Floats) -> dict[str, Any]:
    attacks, peaceful = inside & ~benign, inside & benign
    found: dict[str, Any] = {"attacks": int(attacks.sum()), "benign": int(peaceful.sum())}
    if attacks.any():
        found |= (
            {name: _plain(recall_at(scores[attacks], base, rate)) for name, rate in RATES.items()} if len(base) else {}
        )
        found["flagged"] = _plain(share(int((action[attacks] != "allow").sum()), int(attacks.sum())))
        found["blocked"] = _plain(share(int((action[attacks] == "block").sum()), int(attacks.sum())))
    if peaceful.any():
        found["passed"] = _passed(peaceful, action)
        found["blocked_benign"] = _plain(share(int((action[peaceful] == "block").sum()), int(peaceful.sum())))
    if attacks.any() and peaceful.any():
        found["auc"] = auc(scores[attacks], scores[peaceful])
    return found


def _passed(inside: Mask, action: npt.NDArray[np.str_]) -> dict[str, Any]:
    """Texts that the default policy neither flags nor blocks."""
    return _plain(share(int((action[inside] == "allow").sum()), int(inside.sum())))


def recall_beyond(attacks: Floats, base: Floats, rate: float) -> float:
    """The point of a curve: recall where this share of `base` lies above the threshold."""
    # At rate 1 everything passes the threshold, the lowest benign score itself included.
    return 1.0 if rate >= 1 else float((attacks > threshold_at(base, rate)).mean())


def band(windows: int) -> str:
    """The length band of a text of so many windows."""
    return next(label for most, label in _BANDS if windows <= most)


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.structs.asdict(value)
    return found
