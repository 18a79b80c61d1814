"""Records out of the formats that public data comes in; what a part of sources.toml says about reading them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from training.corpus import MAX_CHARS, Role

csv.field_size_limit(16_000_000)


class FieldLabel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A label that stands in a field of the record; `map` turns the field's value into 0 or 1."""

    field: str
    map: dict[str, int]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to read rows out of some of a source's files; sources.toml explains the fields."""

    format: Literal["csv", "json", "jsonl", "jsonl.gz", "parquet", "yaml", "txt"]
    text: list[str]
    label: int | FieldLabel
    kind: str
    role: Role
    files: tuple[str, ...] = ("*",)
    records: str = ""
    header: bool = True
    whole_file: bool = False
    kind_field: str = ""
    role_field: str = ""
    role_map: dict[str, Role] = {}
    language: str = ""
    language_path: str = ""
    language_field: str = ""
    language_map: dict[str, str] = {}
    min_chars: int = 1
    max_chars: int = 0
    truncate: int = MAX_CHARS
    extract: str = ""
    drop_regex: str = ""
    require_regex: str = ""
    drop_where: dict[str, str] = {}


def dig(record: Any, path: str) -> Any:
    """The value at `a.0.b`, None where the record has no such place; `$` is the record itself."""
    if path == "$":
        return record
    for step in path.split("."):
        if isinstance(record, dict):
            record = record.get(step)
        elif isinstance(record, list) and step.isdigit() and int(step) < len(record):
            record = record[int(step)]
        else:
            return None
    return record


def records(part: Part, data: bytes) -> Iterator[Any]:
    """The records of a file's bytes, in order: dicts, lists or strings, as the format has them."""
    for document in _READERS[part.format](part, data):
        yield from _select(document, part.records.split(".") if part.records else [])


def _select(value: Any, steps: list[str]) -> Iterator[Any]:
    if not steps:
        yield value
        return
    step, rest = steps[0], steps[1:]
    items: Any
    if step == "*[]":
        items = [item for found in value.values() if isinstance(found, list) for item in found]
    else:
        key = step.removesuffix("[]")
        items = (value.get(key) if isinstance(value, dict) else None) if key else value
    for item in items if isinstance(items, list) else []:
        yield from _select(item, rest)


def _read_csv(part: Part, data: bytes) -> Iterator[Any]:
    lines = io.StringIO(data.decode("utf-8-sig"), newline="")
    yield from csv.DictReader(lines) if part.header else csv.reader(lines)


def _read_jsonl(part: Part, data: bytes) -> Iterator[Any]:
    if part.format == "jsonl.gz":
        data = gzip.decompress(data)
    yield from (msgspec.json.decode(line) for line in data.split(b"\n") if line.strip())


def _read_json(part: Part, data: bytes) -> Iterator[Any]:
    yield msgspec.json.decode(data)


def _read_txt(part: Part, data: bytes) -> Iterator[Any]:
    text = data.decode("utf-8")
    yield from [text] if part.whole_file else text.split("\n")


def _read_parquet(part: Part, data: bytes) -> Iterator[Any]:
    # Here and below: only training installs these readers, and only few sources need them.
    from pyarrow import parquet

    yield from parquet.read_table(io.BytesIO(data)).to_pylist()


def _read_yaml(part: Part, data: bytes) -> Iterator[Any]:
    import yaml

    yield yaml.safe_load(data)


_READERS: dict[str, Callable[[Part, bytes], Iterator[Any]]] = {
    "csv": _read_csv,
    "json": _read_json,
    "jsonl": _read_jsonl,
    "jsonl.gz": _read_jsonl,
    "parquet": _read_parquet,
    "yaml": _read_yaml,
    "txt": _read_txt,
}
