"""What the documents say of the code is held to the code."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from service import settings
from service.errors import FirewallError
from service.records.schema import AUDIT

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "datasets/*.md",
        "benchmarks/*.md",
        "models/*/*.md",
        "models/*/manifest.json",
    )
    for path in ROOT.glob(pattern)
)
READ_BY_PEOPLE = [
    *DOCUMENTS,
    *(ROOT / name for name in ("Makefile", "firewall.toml", "pyproject.toml", ".ci/run", "datasets/sources.toml")),
    *(path for folder in ("service", "training", "benchmarks") for path in (ROOT / folder).rglob("*.py")),
]
# Places of one machine, folders beside the checkout, and hosts that only some networks have.
ELSEWHERE = re.compile(r"\.\./shared|(?<![\w.])/(?:work|root|home|tmp)/|files\.pythonhosted|artifactory|\bsitting")


def structs_in(kind: object) -> Iterator[type[msgspec.Struct]]:
    """The structs that an annotation names, within tuples and unions too."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    if typing.get_origin(kind) in {tuple, typing.Union, types.UnionType, typing.Annotated}:
        for part in typing.get_args(kind):
            yield from structs_in(part)


def keys_of(struct: type[msgspec.Struct], table: str) -> Iterator[tuple[str, str]]:
    """(table, key) of every key that the configuration may hold."""
    for name, kind in typing.get_type_hints(struct, include_extras=True).items():
        inner = list(structs_in(kind))
        for child in inner:
            yield from keys_of(child, f"{table}.{name}".lstrip("."))
        if not inner and kind is not Path:  # `folder` cannot be set from the file
            yield table, name


KEYS = sorted(set(keys_of(settings.Settings, "")))


def section_of(table: str) -> str:
    """The part of the operations guide whose heading, or whose first words, name the table."""
    parts = re.split(r"^(?=### )", OPERATIONS, flags=re.MULTILINE)
    return next(part for part in parts if f"[{table}]" in part or f"[[{table}]]" in part)


def test_the_configuration_has_keys_to_look_for():
    assert {("detection", "flag_fpr"), ("tenants.limits", "concurrency"), ("providers", "retries")} <= set(KEYS)


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_key_of_the_configuration_is_explained_where_its_table_is(table, key):
    assert re.search(rf"`(?:{re.escape(table)}\.)?{key}`", section_of(table))


WITH_DEFAULTS = [
    (table, key)
    for table, key in KEYS
    if not table.startswith(("detection.actions", "detection.roles", "keys", "limits", "tenants"))
]


@pytest.mark.parametrize(("table", "key"), WITH_DEFAULTS)
def test_defaults_in_the_operations_guide_are_those_of_the_code(table, key):
    row = re.search(
        rf"^\| `(?:{re.escape(table)}\.)?{key}` \| (`[^`]*`|\*required\*) \|", section_of(table), re.MULTILINE
    )
    assert row is not None
    stated = row.group(1).strip("`")
    node: typing.Any = settings.Settings
    for step in table.split("."):
        (node,) = structs_in(typing.get_type_hints(node, include_extras=True)[step])
    fields = {field.name: field for field in msgspec.structs.fields(node)}
    default = fields[key].default
    assert stated == ("*required*" if default is msgspec.NODEFAULT else msgspec.json.encode(default).decode())


def test_every_column_of_the_record_is_explained():
    record = OPERATIONS.partition("## The record")[2].partition("\n## ")[0]
    assert [column.name for column in AUDIT.c if f"`{column.name}`" not in record] == []


def test_every_status_that_a_caller_can_get_is_explained():
    told = OPERATIONS.partition("## What a caller gets")[2].partition("\n## ")[0]

    def below(kind: type[FirewallError]) -> Iterator[type[FirewallError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    leaves = [kind for kind in below(FirewallError) if not kind.__subclasses__() and kind.status != 500]
    assert [kind.code for kind in leaves if f"`{kind.code}`" not in told] == []


def test_the_commands_of_the_readme_exist_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    documents = README + ARCHITECTURE + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", documents, re.MULTILINE))
    assert {"run", "test", "train", "bench"} <= named <= targets


def test_the_variables_of_make_train_exist_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    given = set(re.findall(r"\b([A-Z_]{4,})=", README.partition("make train")[2].partition("```")[0]))
    assert {"MIRROR", "EXCLUDE", "DATA"} <= given
    assert [name for name in given if f"$({name})" not in makefile] == []


def test_the_check_runs_the_command_of_the_readme():
    script = ROOT / ".ci/run"
    assert re.search(r"^make test\b", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert script.stat().st_mode & 0o100


def modules() -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / "service").rglob("*.py") if path.name != "__init__.py"}


def test_every_module_stands_in_the_tree_of_the_architecture_and_no_other():
    tree = set(re.findall(r"^(service/\S+\.py) ", ARCHITECTURE, re.MULTILINE))
    assert tree == modules()


def test_the_order_of_the_rooms_is_the_one_that_is_checked():
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("layers = [")[2].partition("]")[0]
    checked = [re.findall(r"\w+", layer) for layer in re.findall(r'"([^"]+)"', contract)]
    stated = ARCHITECTURE.partition("in the list:")[2].partition("`app.py`")[0]
    assert [re.findall(r"`(\w+)`", layer) for layer in stated.split("›")] == checked


def test_links_between_documents_lead_somewhere():
    dead = []
    for document in DOCUMENTS:
        if document.suffix != ".md" or "models" in document.parts:
            continue
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            if not (document.parent / target).exists():
                dead.append(f"{document.relative_to(ROOT)}: {target}")
    assert dead == []


def test_every_decision_is_listed():
    folder = ROOT / "docs/decisions"
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in folder.glob("[0-9]*.md")}


@pytest.mark.parametrize("path", READ_BY_PEOPLE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_names_places_outside_the_repository(path):
    found = [match.group() for match in ELSEWHERE.finditer(path.read_text(encoding="utf-8"))]
    assert found == []
