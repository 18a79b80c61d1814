"""Build the corpus: `python -m training.prepare --out DIR [--mirror DIR] [--exclude NPY] [--data FILE]`.

    read ─▶ decontaminate ─▶ deduplicate ─▶ drop what dev holds ─▶ cap ─▶ split ─▶ compose ─▶ filter again ─▶ augment

Writes train.jsonl, calib.jsonl and dev.jsonl (a `Row` a line) and corpus.json (what went in, what was dropped and why),
aside first and renamed at the end. The same inputs, seed and Python give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from training.augment import augment
from training.code_rows import code_rows
from training.compose import PARTS_ONLY, Piece, compose, compose_fixed, fill_placeholders, load_pieces, pieces_from
from training.corpus import (
    BENIGN,
    LABELS,
    CorpusError,
    Row,
    cap,
    load_user,
    load_written,
    spare,
    split,
    stable_hash,
    tidy,
)
from training.overlap import decontaminate, deduplicate, drop_overlapping, load_exclusion, normalise
from training.sources import Catalogue, SourceError, load_catalogue, read_source

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
CACHE = Path.home() / ".cache" / "semantic-firewall" / "sources"
# Of easy sources most rows are left over by the cap. Some of them make calibration's benign side larger, because a
# false-positive rate of 0.1 % needs thousands of benign texts.
SPARE_PER_KIND = 400
# More composed rows than this would drown the calibration's real ones.
CALIB_COMPOSED = 1_500
# Options that decide what the data are; paths of this machine stay out of the report.
_RECORDED = ("composed", "augment_share", "calib_share", "limit", "offline_written_only", "seed")
# Typical share of the time by step, for the estimate of what is left.
_STEPS = {"read": 8, "decontaminate": 30, "deduplicate": 22, "split": 3, "compose": 20, "augment": 7, "write": 10}


class Progress:
    """Says what begins, how long it has run and about how long it still takes; keeps the timings for the report."""

    def __init__(self) -> None:
        self._begun = self._step_begun = time.monotonic()
        self._step = ""
        self.timings_s: dict[str, float] = {}

    def begin(self, step: str, remark: str = "") -> None:
        """End the step before and announce the next one."""
        self.end()
        self._step, self._step_begun = step, time.monotonic()
        names = list(_STEPS)
        done = sum(_STEPS[name] for name in names[: names.index(step)])
        elapsed = time.monotonic() - self._begun
        left = f", about {elapsed * (100 - done) / done:.0f} s left" if done else ""
        print(f"[{names.index(step) + 1}/{len(names)}] {step} ({elapsed:.0f} s{left}) {remark}", flush=True)

    def end(self) -> None:
        """End the step that runs."""
        if self._step:
            self.timings_s[self._step] = round(time.monotonic() - self._step_begun, 2)


def read_public(
    catalogue: Catalogue, *, cache: Path, mirror: Path | None, limit: int
) -> tuple[list[Row], list[Row], dict[str, dict[str, Any]]]:
    """(train rows, dev rows, what was used or skipped). A filtered source without a mirror is skipped and reported;
    everything else that is wrong with a source raises `SourceError`."""
    train: list[Row] = []
    dev: list[Row] = []
    report: dict[str, dict[str, Any]] = {}
    for source in catalogue.source:
        entry: dict[str, Any] = {
            "split": source.split,
            "licence": source.licence.spdx,
            "commit": source.commit or source.package,
        }
        report[source.name] = entry
        if source.filtered and mirror is None:
            entry["skipped"] = "filtered copy: only a mirror has it (--mirror)"
            print(f"    skipped {source.name}: {entry['skipped']}", flush=True)
            continue
        rows = tidy(read_source(source, catalogue, cache=cache, mirror=mirror))
        rows = _limited(rows, limit)
        entry["read"] = len(rows)
        (train if source.split == "train" else dev).extend(rows)
    return train, dev, report


def _limited(rows: list[Row], limit: int) -> list[Row]:
    """At most `limit` rows a source, chosen by a hash; 0 means all."""
    if not limit:
        return rows
    ordered = sorted(rows, key=lambda row: stable_hash("limit", row.text))
    found: Counter[str] = Counter()
    kept: list[Row] = []
    for row in ordered:
        found[row.source] += 1
        if found[row.source] <= limit:
            kept.append(row)
    return kept


def build(options: argparse.Namespace) -> dict[str, Any]:
    """The whole way from sources to files; returns what corpus.json holds."""
    progress = Progress()
    progress.begin("read")
    catalogue = load_catalogue(options.datasets / "sources.toml")
    train, dev, used = _read(options, catalogue)
    exclusion = load_exclusion(options.exclude) if options.exclude else None
    if exclusion is None:
        print("    no exclusion list (--exclude): rows are not checked against held-out texts", flush=True)

    progress.begin("decontaminate", f"{len(train)} train and {len(dev)} dev rows")
    read = Counter(row.source for row in train + dev)
    train, dev = decontaminate(train, exclusion), decontaminate(dev, exclusion)
    clean = Counter(row.source for row in train + dev)
    own = load_pieces(options.datasets)
    if exclusion is not None:
        held = {row.text for row in _rows_of(own)} - {row.text for row in decontaminate(_rows_of(own), exclusion)}
        own = [piece for piece in own if piece.text not in held]

    progress.begin("deduplicate", f"{len(train)} train and {len(dev)} dev rows")
    dev = deduplicate(dev)
    train = deduplicate(train)
    distinct = Counter(row.source for row in train + dev)
    train = drop_overlapping(train, dev)
    apart = Counter(row.source for row in train + dev)

    progress.begin("split", f"{len(train)} train and {len(dev)} dev rows")
    limits = {(source.name, kind): most for source in catalogue.source for kind, most in source.max_rows.items()}
    left_over = spare(train, limits, SPARE_PER_KIND)
    train = cap(train, limits)
    train, calib = split(
        train,
        stratum=lambda row: f"{row.source}/{row.label}/{row.role}",
        group=lambda row: row.group,
        share=options.calib_share,
        seed=options.seed,
    )
    own_train, own_calib = split(
        own,
        stratum=lambda piece: f"{piece.part}/{piece.category}/{piece.language}",
        group=lambda piece: piece.text,
        share=max(0.12, options.calib_share),
        seed=options.seed,
    )

    progress.begin("compose", f"{options.composed} train rows")
    share = options.calib_share / (1 - options.calib_share)
    train = _with_composed(train, own_train, options.composed, options.seed)
    composed = min(round(options.composed * share), CALIB_COMPOSED)
    calib = _with_composed(calib, own_calib, composed, options.seed + 1)
    # Whole groups only: a spare row whose relative is trained on would flatter the calibration.
    trained = {row.group for row in train}
    calib += [row for row in left_over if row.group not in trained]
    dev += compose_fixed([row for row in dev if row.kind == "indirect_injection_payload"], dev)
    train, calib, dev = (decontaminate(tidy(rows), exclusion) for rows in (train, calib, dev))
    train = drop_overlapping(_distinct(train), dev)
    calib = _distinct(calib, apart_from=train)
    dev = drop_overlapping(_distinct(dev), train)

    progress.begin("augment", f"{len(train)} train rows")
    train += augment(train, options.augment_share, seed=options.seed)

    progress.begin("write", str(options.out))
    splits = {"train": train, "calib": calib, "dev": dev}
    digest = _write(options.out, splits)
    for name, entry in used.items():
        stages = ("read", "clean", "distinct", "apart_from_dev")
        entry |= dict(zip(stages, (count[name] for count in (read, clean, distinct, apart)), strict=True))
        entry |= {"used": sum(row.source == name for rows in splits.values() for row in rows)}
    progress.end()
    report = {
        "data_sha256": digest,
        "rows": {name: len(rows) for name, rows in splits.items()},
        "labels": LABELS,
        "options": {name: getattr(options, name) for name in _RECORDED},
        "mirror": options.mirror is not None,
        "python": platform.python_version(),
        "exclusion": _described(options.exclude, exclusion),
        "counts": {name: _counts(rows) for name, rows in splits.items()},
        "sources": used,
        "timings_s": progress.timings_s,
    }
    aside = options.out / "corpus.json.part"
    aside.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    aside.replace(options.out / "corpus.json")
    return report


def _read(options: argparse.Namespace, catalogue: Catalogue) -> tuple[list[Row], list[Row], dict[str, dict[str, Any]]]:
    train: list[Row] = []
    dev: list[Row] = []
    used: dict[str, dict[str, Any]] = {}
    if not options.offline_written_only:
        train, dev, used = read_public(catalogue, cache=options.cache, mirror=options.mirror, limit=options.limit)
    own = _limited(load_written(options.datasets), options.limit) + _limited(code_rows(), options.limit)
    if options.data:
        own += load_user(options.data)
    for name, count in Counter(row.source for row in own).items():
        used[name] = {
            "split": "train",
            "licence": "project" if name.startswith("written") else "user" if name == "user_data" else "PSF-2.0",
            "read": count,
        }
    return train + tidy(own), dev, used


def _rows_of(pieces: Sequence[Piece]) -> list[Row]:
    return [Row(piece.text, BENIGN) for piece in pieces]


def _with_composed(rows: list[Row], own: Sequence[Piece], count: int, seed: int) -> list[Row]:
    """The rows without those that are only parts, with templates filled and composed rows added."""
    pieces = [*own, *pieces_from(rows)]
    alone = [row for row in rows if row.kind not in PARTS_ONLY]
    return fill_placeholders(alone, pieces, seed=seed) + (compose(pieces, count, seed=seed) if count else [])


def _distinct(rows: Iterable[Row], apart_from: Iterable[Row] = ()) -> list[Row]:
    """One row per normalised text, none whose text is in `apart_from`."""
    seen = {normalise(row.text) or row.text for row in apart_from}
    kept: list[Row] = []
    for row in rows:
        key = normalise(row.text) or row.text
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def _write(out: Path, splits: dict[str, list[Row]]) -> str:
    """Write every split in an order that a hash decides; returns the sha256 over all lines."""
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name, rows in splits.items():
        rows.sort(key=lambda row: stable_hash(row.text, row.kind))
        lines = msgspec.json.Encoder().encode_lines(rows)
        digest.update(lines)
        (out / f"{name}.jsonl.part").write_bytes(lines)
    for name in splits:
        (out / f"{name}.jsonl.part").replace(out / f"{name}.jsonl")
    return digest.hexdigest()


def _described(path: Path | None, known: Any) -> dict[str, Any] | None:
    if path is None:
        return None
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "hashes": len(known)}


def _counts(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, int]]]:
    """Rows by label within each source, role and language."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for axis in ("source", "role", "language"):
        table: dict[str, Counter[str]] = {}
        for row in rows:
            table.setdefault(getattr(row, axis), Counter())[LABELS[row.label]] += 1
        found[axis] = {name: dict(table[name]) for name in sorted(table)}
    return found


def _print_table(report: dict[str, Any]) -> None:
    for name, counts in report["counts"].items():
        print(f"\n{name}: {report['rows'][name]} rows")
        for axis in ("source", "role"):
            print(f"  {axis:<30}" + "".join(f"{label:>12}" for label in LABELS))
            for key, by_label in counts[axis].items():
                print(f"  {key:<30}" + "".join(f"{by_label.get(label, 0) or '':>12}" for label in LABELS))
    print(f"\ndata sha256 {report['data_sha256']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, build, print the tables. 1 when data cannot be used, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="training.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the splits and corpus.json")
    parser.add_argument("--mirror", type=Path, help="local copies of the public files, used before the network")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where downloads are kept (default: %(default)s)")
    parser.add_argument("--exclude", type=Path, help=".npy list of held-out shingles; rows that match are dropped")
    parser.add_argument("--data", type=Path, help="your own rows to train on, JSONL with text and label")
    parser.add_argument("--datasets", type=Path, default=DATASETS, help=argparse.SUPPRESS)
    parser.add_argument("--composed", type=int, default=16_000, help="composed rows (default: %(default)s)")
    parser.add_argument("--augment-share", type=float, default=0.15, help="share of rows also transformed")
    parser.add_argument("--calib-share", type=float, default=0.08, help="share carved off for calibration")
    parser.add_argument("--limit", type=int, default=0, help="at most N rows a source and 4 N composed, for trials")
    parser.add_argument("--offline-written-only", action="store_true", help="only the project's own data, no network")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.limit:
        options.composed = min(options.composed, 4 * options.limit)
    try:
        report = build(options)
    except (SourceError, CorpusError, ValueError) as error:
        print(f"training.prepare: {error}", file=sys.stderr)
        return 1
    _print_table(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
