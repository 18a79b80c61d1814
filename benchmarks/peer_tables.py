"""The section of RESULTS.md that compares detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.markdown import number, percent, table

_AXES = {"roles": "Role", "languages": "Language", "lengths": "Length", "sources": "Source"}


def sections(figures: dict[str, Any]) -> list[str]:
    """Who was measured and how, then every benchmark, then what is only published."""
    measured = [system for system in figures["systems"] if not system["failed"]]
    return [
        *figures["notes"],
        "The same rows as in the section on recall. A detector decides as it does by default: *flagged* is what it "
        "does not let through, *false alarms* are ordinary benign texts flagged, *over-defence* is the share of benign "
        "texts with the words of attacks that it lets through. AUC and recall at 1 % FPR need a score; ties count half,"
        " and where too many benign texts share a score, the threshold lies above them.",
        "Nobody is measured on neutral ground. This firewall was not trained on these rows, but chosen by them; the "
        "own dev set follows its threat model; the public sources are on the web, and what the peers have learned from "
        "them is mostly not known.",
        *_who(figures, measured),
        *(section for name, found in figures["benchmarks"].items() for section in _benchmark(name, found)),
        *_published(figures["published"]),
    ]


def _who(figures: dict[str, Any], measured: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (
            _named(system),
            system.get("licence", "Apache-2.0"),
            system.get("how", "classifier and index of known attacks"),
            system.get("decision", "flagged or blocked by the default policy"),
            f"{system['ms']['p50']:.2f} / {system['ms']['p95']:.2f} / {system['ms']['mean']:.2f}",
            _errors(system["errors"]),
        )
        for system in measured
    ]
    head = ("Detector", "licence", "what it is", "its decision", "ms per text p50 / p95 / mean", "texts it failed on")
    found = [
        f"Times are of {figures['timed']} of the texts, one after the other, in each detector's own default setting. "
        "A text that one fails on counts as let through.",
        table(head, rows),
    ]
    if known := [f"{system['name']}: {system['seen']}" for system in measured if system.get("seen")]:
        found.append(f"What they may know of the rows: {'; '.join(known)}.")
    if failed := [system for system in figures["systems"] if system["failed"]]:
        found.append(table(("Failed", "reason"), [(_named(system), system["failed"]) for system in failed]))
    found.append(table(("Not tried", "reason"), list(figures["not_run"].items())))
    return found


def _named(system: dict[str, Any]) -> str:
    return f"{system['name']} {system.get('version', '')}".strip()


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in errors.items()) or "0"


def _benchmark(name: str, found: dict[str, Any]) -> list[str]:
    rows = [
        (
            system,
            percent(entry["recall"]),
            percent(entry["false_alarms"]),
            percent(entry["over_defence"]),
            percent(entry.get("blocked")),
            percent(entry.get("blocked_benign")),
            number(entry.get("auc"), 3),
            percent(entry.get("recall_at_1pct")),
        )
        for system, entry in found["systems"].items()
    ]
    head = ("Detector", "attacks flagged", "false alarms", "over-defence", "attacks blocked", "benign blocked")
    return [
        f"### Peers, {name}",
        f"{found['attacks']} attacks, {found['ordinary']} ordinary benign texts, {found['triggered']} with the words "
        "of attacks. *Blocked* is of those that tell flagging from blocking.",
        table((*head, "AUC", "recall at 1 % FPR"), rows),
        "Attacks flagged / all benign texts flagged, by default decision:",
        *(_axis(title, found[axis], list(found["systems"])) for axis, title in _AXES.items() if found[axis]),
    ]


def _axis(title: str, groups: dict[str, Any], systems: Sequence[str]) -> str:
    return table(
        (title, "attacks / benign", *systems),
        [
            (
                value,
                f"{group['attacks']} / {group['benign']}",
                *(f"{_short(told['recall'])} / {_short(told['false_alarms'])}" for told in group["systems"].values()),
            )
            for value, group in groups.items()
        ],
    )


def _short(share: dict[str, Any]) -> str:
    return f"{share['value']:.1%}" if share["total"] else "–"


def _published(entries: Sequence[dict[str, str]]) -> list[str]:
    rows = [(e["model"], e["figure"], e["value"], e["rows"], e["source"]) for e in entries]
    return [
        "### Published figures, not measured here",
        "Given by the models' makers, on their own rows: **not comparable** with the tables above, nor with each other."
        " Their weights lie on model hubs; they are listed so that one knows what is claimed.",
        table(("Model", "figure", "value", "on", "source"), rows),
    ]
