"""Rows of the training corpus: where the project's own rows come from, how they are capped, weighted and split.

    written + public (sources.py) + stdlib code (code_rows.py) ─▶ overlap.py filters ─▶ split ─▶ compose ─▶ augment

A *row* is one text with its label. Rows that belong together (an attack and its benign twin, near-duplicates,
translations) share a `group`, and no split separates a group: otherwise calibration would measure memory.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

Role = Literal["user", "tool", "document"]
Span = tuple[int, int]
T = TypeVar("T")

LABELS = ("benign", "injection", "jailbreak", "extraction")
LABEL_ID = {name: number for number, name in enumerate(LABELS)}
BENIGN = LABEL_ID["benign"]
MAX_CHARS = 20_000
# Written in the project's own hand against the threat model: worth more than a scraped row.
WRITTEN_WEIGHT = 2.0
# What an assistant is asked most: plain commands and questions that say "ignore", "override", "system prompt".
USER_WEIGHT = 2.0


class CorpusError(Exception):
    """A row or file that the project or the user supplied cannot be read; the message names the file and the line."""


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One labelled text.

    `label` is an index into `LABELS`. `span` holds the character offsets [start, end) of the injected text inside
    `text`, for rows where it is known. `weight` multiplies the row's loss. `language` is ISO 639-1, "" if unknown.
    `made_of` names the sources of a composed row's attack, apart from the project's own parts.
    """

    text: str
    label: int
    role: Role = "user"
    kind: str = ""
    source: str = ""
    language: str = "en"
    span: Span | None = None
    group: str = ""
    weight: float = 1.0
    made_of: str = ""


class WrittenRow(msgspec.Struct, frozen=True):
    """A line of datasets/written/*.jsonl. `payload` is the injected part of `text`, word for word."""

    id: str
    text: str
    label: Literal["benign", "injection", "jailbreak", "extraction"]
    family: str = ""
    language: str = "en"
    role: Role = "user"
    remark: str = ""
    payload: str | None = None


class UserRow(msgspec.Struct, frozen=True):
    """A line of a user's own data: the label is a name, an index, or 0/1 with `category` for the attacks."""

    text: str
    label: str | int
    role: Role = "user"
    language: str = ""
    category: str = "injection"
    kind: str = "user_data"
    group: str = ""
    weight: float = USER_WEIGHT


def stable_hash(*parts: object) -> int:
    """A 64-bit number that depends only on the parts, on every machine and in every process."""
    joined = "\x1f".join(str(part) for part in parts).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")


def load_written(datasets: Path) -> list[Row]:
    """The project's own rows to train on. Raises `CorpusError` for a line it cannot read."""
    return load_own(datasets, "written")


def load_own(datasets: Path, folder: str) -> list[Row]:
    """The project's own rows, from every file in that folder. Raises `CorpusError` for a line it cannot read."""
    rows: list[Row] = []
    for path in sorted((datasets / folder).glob("*.jsonl")):
        for number, written in read_jsonl(path, WrittenRow):
            start = written.text.find(written.payload) if written.payload else -1
            if written.payload and start < 0:
                raise CorpusError(f"{path.name}:{number}: the payload of {written.id} is not part of its text")
            span = (start, start + len(written.payload)) if written.payload else None
            rows.append(
                Row(
                    text=written.text,
                    label=LABEL_ID[written.label],
                    role=written.role,
                    kind=written.family,
                    source=f"{folder}_{path.stem}",
                    language=written.language,
                    span=span,
                    group=written.id.rstrip("abcdef"),
                    weight=WRITTEN_WEIGHT,
                )
            )
    return rows


def load_user(path: Path) -> list[Row]:
    """A user's own labelled data, one JSON object a line: `text`, `label`, and optionally the fields of `UserRow`."""
    rows: list[Row] = []
    for number, item in read_jsonl(path, UserRow):
        label = _user_label(item, f"{path.name}:{number}")
        group = item.group or f"user:{number}"
        rows.append(Row(item.text, label, item.role, item.kind, "user_data", item.language, None, group, item.weight))
    return rows


def _user_label(item: UserRow, where: str) -> int:
    # 0 and 1 are the labels of most public data sets, so 1 means "an attack" and `category` says which.
    name: str | int = item.label
    if name in (1, "1"):
        name = item.category
    elif name in (0, "0"):
        name = "benign"
    if isinstance(name, str) and name in LABEL_ID:
        return LABEL_ID[name]
    if isinstance(name, int) and 0 <= name < len(LABELS):
        return name
    raise CorpusError(f"{where}: label {item.label!r} is none of {', '.join(LABELS)}, 0, 1")


def read_jsonl(path: Path, kind: type[Any]) -> list[tuple[int, Any]]:
    """(line number, decoded object) for every line that is not blank. Raises `CorpusError` with file and line."""
    decoder = msgspec.json.Decoder(kind)
    found: list[tuple[int, Any]] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append((number, decoder.decode(line)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # The message of msgspec names the field, never the text.
            raise CorpusError(f"{path.name}:{number}: {error}") from error
    return found


def tidy(rows: Iterable[Row]) -> list[Row]:
    """Rows with some text, cut at `MAX_CHARS`; lone surrogates and NUL go, as the service refuses them."""
    kept: list[Row] = []
    for row in rows:
        text = row.text.encode("utf-8", "ignore").decode().replace("\x00", "")
        if len(text) != len(row.text) or len(text) > MAX_CHARS:
            text = text[:MAX_CHARS]
            span = row.span if row.span and row.span[1] <= len(text) else None
            kept.append(msgspec.structs.replace(row, text=text, span=span))
        else:
            kept.append(row)
    return [row for row in kept if row.text.strip()]


def cap(rows: Sequence[Row], limits: dict[tuple[str, str], int]) -> list[Row]:
    """At most `limits[source, kind]` rows of a kind, chosen by a hash of the text: the same ones in every run."""
    by_kind: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_kind[row.source, row.kind].append(index)
    chosen: set[int] = set()
    for key, indices in by_kind.items():
        limit = limits.get(key, len(indices))
        if limit < len(indices):
            indices.sort(key=lambda index: stable_hash("cap", rows[index].text))
        chosen.update(indices[:limit])
    return [row for index, row in enumerate(rows) if index in chosen]


def spare(rows: Sequence[Row], limits: dict[tuple[str, str], int], count: int) -> list[Row]:
    """At most `count` rows a kind of those that `cap` leaves out."""
    used = {row.text for row in cap(rows, limits)}
    left = [row for row in rows if row.text not in used]
    return cap(left, dict.fromkeys(((row.source, row.kind) for row in left), count))


def split(
    items: Sequence[T], *, stratum: Callable[[T], str], group: Callable[[T], str], share: float = 0.08, seed: int = 0
) -> tuple[list[T], list[T]]:
    """Divide into (train, calib), about `share` of every stratum, never parting a group.

    A group lies in the stratum of its first item. Within a stratum the groups are ordered by a hash of their name and
    the first `share` of them (by items) are carved off; a stratum of one group stays in train.
    """
    members: dict[str, list[T]] = defaultdict(list)
    for item in items:
        members[group(item)].append(item)
    strata: dict[str, list[str]] = defaultdict(list)
    for name, grouped in members.items():
        strata[stratum(grouped[0])].append(name)
    calibration: set[str] = set()
    for names in strata.values():
        names.sort(key=lambda name: stable_hash("calib", seed, name))
        wanted = share * sum(len(members[name]) for name in names)
        taken = 0
        for name in names[:-1]:
            # Half an item more would overshoot: rounding, not flooring, so that small strata are seen at all.
            if taken + len(members[name]) / 2 > wanted:
                break
            calibration.add(name)
            taken += len(members[name])
    train = [item for item in items if group(item) not in calibration]
    return train, [item for item in items if group(item) in calibration]
