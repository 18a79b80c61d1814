"""What the guards found and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Action = Literal["allow", "flag", "redact", "block"]
Category = Literal[
    "injection",
    "jailbreak",
    "extraction",
    "model_extraction",
    "leak.secret",
    "leak.prompt",
    "leak.credential",
    "leak.exfiltration",
    "cross_tenant",
    "foreign_id",
    "leak.canary",
    "leak.piecemeal",
    "tool.unoffered",
    "tool.denied",
    "tool.arguments",
    "tool.hijack",
    "reply.injection",
    "pii",
    "hidden_text",
    "unscannable",
    "oversize",
]

_SEVERITY: dict[Action, int] = {"allow": 0, "flag": 1, "redact": 2, "block": 3}


class Finding(msgspec.Struct, frozen=True):
    """What one guard saw, where, and how sure it is.

    `score` is a probability or similarity in [0, 1], unrounded, for the audit log and operators only. `start` and `end`
    are offsets in characters of the original text at `pointer`; `digest` is a keyed hash of that text, so that equal
    texts can be recognised in the record without being kept.
    """

    guard: str
    category: Category
    score: float
    action: Action
    pointer: str = ""
    start: int = 0
    end: int = 0
    digest: str = ""
    detail: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """The findings and the action: the severest of all of them. `unjudged` names guards that could not judge. `cell` is
    the coarse cell of the embedding space in which a prompt's last text lies, -1 where it was not encoded.
    """

    action: Action = "allow"
    findings: tuple[Finding, ...] = ()
    unjudged: tuple[str, ...] = ()
    cell: int = -1

    @property
    def decisive(self) -> Finding | None:
        """The finding that the action rests on: the severest, then the surest."""
        return max(self.findings, key=lambda f: (_SEVERITY[f.action], f.score), default=None)


def told(category: Category) -> str:
    """The category as a caller is told it: that a text is another tenant's is for the record, and for operators."""
    return "leak.secret" if category == "cross_tenant" else category


def severest(actions: Iterable[Action]) -> Action:
    """The strongest of the actions; `allow` where there is none."""
    return max(actions, key=_SEVERITY.__getitem__, default="allow")


def is_new_kind(finding: Finding, known: Iterable[Finding]) -> bool:
    """Whether none of its category led to its action yet: of many findings the first of each kind must be on record."""
    return all((finding.category, finding.action) != (each.category, each.action) for each in known)


def decide(findings: Iterable[Finding], unjudged: Iterable[str] = ()) -> Verdict:
    """Fold findings into one verdict."""
    kept = tuple(findings)
    return Verdict(severest(f.action for f in kept), kept, tuple(unjudged))
