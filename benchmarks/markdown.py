"""What the tables of RESULTS.md are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] + ['---:'] * (len(head) - 1))}|"]
    return "\n".join(lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows])


def percent(share: dict[str, Any] | None) -> str:
    """A share with its interval; a dash where there is none."""
    if not share or not share["total"]:
        return "–"
    return f"{share['value']:.1%} ({share['low']:.1%}–{share['high']:.1%})"


def number(value: float | None, digits: int = 2) -> str:
    """A figure; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def interval(value: dict[str, float], digits: int = 2) -> str:
    """A figure with its interval."""
    return f"{value['value']:.{digits}f} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"
