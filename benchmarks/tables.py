"""RESULTS.md out of the kept figures: a section for each part that was measured, with its circumstances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import calibration, peer_tables
from benchmarks.markdown import interval, number, percent, table
from benchmarks.results import PARTS, Measured, Results

_ABOUT = """# Results

Measured by `python -m benchmarks`; every part says when, on what and with which artifact. `results.json` holds all
figures. Intervals are 95 %: Wilson for shares, percentile bootstrap for times."""


def render(results: Results, pictures: Sequence[str] = ()) -> str:
    """The whole file. `pictures` are paths relative to it, named `<part>_….png`."""
    sections = [_ABOUT]
    for part in PARTS:
        if part in results.parts:
            measured = results.parts[part]
            sections.append(_head(part, measured))
            sections += _SECTIONS[part](measured.figures)
            sections += [f"![{_caption(path)}]({path})" for path in pictures if f"{part}_" in path]
    missing = [part for part in PARTS if part not in results.parts]
    if missing:
        sections.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(sections) + "\n"


def _head(part: str, measured: Measured) -> str:
    facts = [
        ("Date", measured.date),
        ("Commit", f"`{measured.commit or 'unknown'}`"),
        ("Machine", f"{measured.machine}; load average {measured.load:g} before the start"),
        ("Artifact", f"`{measured.artifact}`"),
        ("Command", f"`{measured.command}`"),
    ]
    quick = "\n\n**Quick run: few rows and rounds. It shows that the benchmark works, not how good the firewall is.**"
    return (
        f"## {part.capitalize()}\n\n" + "  \n".join(f"{k}: {v}" for k, v in facts) + (quick if measured.quick else "")
    )


def _caption(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".png").replace("_", " ")


# -- recall ----------------------------------------------------------------------------------------------------------

_AXES = {"kinds": "Source and kind", "sources": "Source", "roles": "Role", "languages": "Language", "lengths": "Length"}


def _recall(figures: dict[str, Any]) -> list[str]:
    sections = list(figures["notes"])
    sections.append(
        "A benchmark's threshold is the score above which the stated share of its ordinary benign texts lies. "
        "*Flagged* and *passed* are the default policy's: flag at 1 %, block at 0.1 % of the calibration's benign "
        "texts. A text's length is counted in windows of at most 128 tokens."
    )
    for name, found in figures["benchmarks"].items():
        whole = found["all"]
        sections.append(f"### {name[0].upper()}{name[1:]}")
        base = f"{found['attacks']} attacks, {found['benign']} benign texts; thresholds from {found['ordinary_benign']}"
        base += " ordinary benign texts" + (" of the public dev sources" if found["borrowed"] else "")
        if found["ordinary_benign"] < 1_000:
            base += " (too few for 0.1 %: that column is the rate at which no benign text or only the highest passes)"
        sections.append(base + ".")
        sections.append(
            table(
                ("", "AUC against ordinary benign texts", "recall at 1 % FPR", "recall at 0.1 % FPR"),
                [
                    (method, number(row["auc"], 4), percent(row["recall_at_1pct"]), percent(row["recall_at_0.1pct"]))
                    for method, row in found["methods"].items()
                ],
            )
        )
        sections.append(
            table(
                ("Default policy", "share"),
                [
                    ("attacks flagged or blocked", percent(whole.get("flagged"))),
                    ("attacks blocked", percent(whole.get("blocked"))),
                    ("benign texts passed", percent(whole.get("passed"))),
                    ("benign texts blocked", percent(whole.get("blocked_benign"))),
                    ("over-defence: benign texts with trigger words passed", percent(found["over_defence"])),
                ],
            )
        )
        if "calibration" in found:
            sections += _calibration(found["calibration"])
        sections += [_axis(title, found[axis]) for axis, title in _AXES.items() if found.get(axis)]
    return sections


def _calibration(found: dict[str, Any]) -> list[str]:
    return [
        f"Expected calibration error **{number(found['ece'], 3)}** over {calibration.BINS} bins of equal width. A score"
        f" is a probability for the mix of texts that it was fitted on; here {found['base_rate']:.0%} are attacks.",
        table(
            ("Mean score in the bin", "texts", "of which attacks"),
            [
                (number(point["score"], 3), str(point["attacks"]["total"]), percent(point["attacks"]))
                for point in found["points"]
            ],
        ),
    ]


def _axis(title: str, values: dict[str, Any]) -> str:
    head = (title, "attacks", "benign", "AUC", "recall at 1 % FPR", "recall at 0.1 % FPR", "flagged", "benign passed")
    return table(
        head,
        [
            (
                name,
                str(row["attacks"]),
                str(row["benign"]),
                number(row.get("auc"), 4),
                percent(row.get("recall_at_1pct")),
                percent(row.get("recall_at_0.1pct")),
                percent(row.get("flagged")),
                percent(row.get("passed")),
            )
            for name, row in values.items()
        ],
    )


# -- latency ---------------------------------------------------------------------------------------------------------


def _latency(figures: dict[str, Any]) -> list[str]:
    goal = figures["goal"]
    sections = [
        f"**{number(goal['p50_ms'], 1)} ms** (p50) for a {goal['tokens']}-token prompt on one core; "
        f"the goal is at most {goal['ms']:g} ms: {'met' if goal['met'] else 'missed'}.",
        "Milliseconds as p50 / p95 / p99. *Guard* is the whole guard as it serves, with batching and threads; the "
        "stages and their *total* are measured without those.",
    ]
    columns = ("views", "tokenise", "encode", "index", "decide", "total", "guard")
    for name, setting in figures["settings"].items():
        rows = []
        for length, stages in setting["lengths"].items():
            cells = [f"{stages[c]['p50']:.2f} / {stages[c]['p95']:.2f} / {stages[c]['p99']:.2f}" for c in columns]
            rows.append((f"{length} tokens, {stages['windows']} windows, {stages['total']['count']} prompts", *cells))
        sections.append(table((f"{name}, {setting['execution_provider']}", *columns), rows))
    return sections


# -- overhead --------------------------------------------------------------------------------------------------------


def _overhead(figures: dict[str, Any]) -> list[str]:
    goal = figures["goal"]
    sections = [
        f"The gateway without scoring adds **{number(goal['added_p50_ms'])} ms** at p50; the goal is at most "
        f"{goal['ms']:g} ms: {'met' if goal['met'] else 'missed'}.",
        "Upstream, gateway and client share the machine. *Added* and *ratio* compare medians with going straight to "
        "the upstream; each gateway took turns with it, request by request. Every request leaves a durable audit row.",
    ]
    for title, key in (("one client, whole answers", "answers"), ("one client, streams", "streams")):
        found = figures[key]
        rows: list[Sequence[str]] = []
        for name, way in found["ways"].items():
            against = found["against_direct"].get(name)
            rows.append(
                (
                    name,
                    _three(way["ms"]),
                    _three(way["first_byte_ms"]),
                    interval(against["added_ms"]) if against else "–",
                    interval(against["added_p95_ms"]) if against else "–",
                    interval(against["added_first_byte_ms"]) if against else "–",
                    interval(against["ratio"]) if against else "–",
                    number(way["cpu_ms"]),
                    f"{way['not_200']} of {way['ms']['count']}",
                )
            )
        columns: tuple[str, ...] = (
            f"{title} (`{found['model']}`)",
            "ms p50 / p95 / p99",
            "first byte",
            "added at p50",
            "added at p95",
        )
        columns += ("added to first byte", "ratio", "server CPU ms", "not 200")
        sections.append(table(columns, rows))
    rates = figures["throughput"]
    head = (
        f"{rates['clients']} clients at once",
        "requests/s (median of blocks)",
        "lowest–highest",
        "ms p50 / p95 / p99",
    )
    blocks = [
        (
            name,
            number(way["per_second"], 0),
            f"{way['lowest']:.0f}–{way['highest']:.0f}",
            _three(way["ms"]),
            str(way["not_200"]),
        )
        for name, way in rates["ways"].items()
    ]
    sections.append(table((*head, "not 200"), blocks))
    return sections


def _three(spread: dict[str, float]) -> str:
    return f"{spread['p50']:.2f} / {spread['p95']:.2f} / {spread['p99']:.2f}"


# -- leakage ---------------------------------------------------------------------------------------------------------


def _leakage(figures: dict[str, Any]) -> list[str]:
    modes = figures["modes"]
    sections = [
        f"{figures['cases']} replies written for this benchmark. A leak is *withheld* when its reply is blocked.",
        table(
            ("Stream mode", "leaks withheld", "false alarms", "ms per piece p50 / p95 / p99", "ms per reply"),
            [
                (
                    mode,
                    percent(found["withheld"]),
                    percent(found["false_alarms"]),
                    _three(figures["cost"][mode]["piece_ms"]),
                    number(figures["cost"][mode]["reply_ms"], 1),
                )
                for mode, found in modes.items()
            ],
        ),
    ]
    cost = next(iter(figures["cost"].values()))
    sections.append(f"Cost: an honest reply of {cost['characters']} characters in {cost['pieces']} pieces.")
    for leak, title in ((True, "Leaks withheld"), (False, "Honest replies stopped")):
        families = [name for name, entry in next(iter(modes.values()))["families"].items() if entry["leak"] == leak]
        rows = []
        for family in families:
            cells = [modes[mode]["families"][family] for mode in modes]
            rows.append((family, str(cells[0]["stopped"]["total"]), *(f"{c['stopped']['value']:.0%}" for c in cells)))
        sections.append(table((title, "replies", *modes), rows))
    return sections


# -- protected -------------------------------------------------------------------------------------------------------


def _protected(figures: dict[str, Any]) -> list[str]:
    return [
        f"Texts of four tenants, all looked for in every reply: secrets of 40 characters, prompts of "
        f"{figures['prompt_words']} words. *Withheld*: replies that tell one, a secret in a disguise of chance, "
        f"stopped before its first character. A piece has {figures['piece_chars']} characters. *Add*: until one more "
        "is looked for. *Pause*: the longest that the event loop stands still while all is built anew beside it.",
        table(
            ("Texts", "build s", "memory MB", "ms per piece p50 / p95 / p99", "withheld", "add ms", "pause ms"),
            [
                (
                    f"{row['count']:,} {row['kind']}s",
                    number(row["build_s"]),
                    number(row["memory_mb"], 0),
                    _three(row["piece_ms"]),
                    percent(row["withheld"]),
                    number(row["add_ms"], 0),
                    number(row["pause_ms"], 0),
                )
                for row in figures["rows"]
            ],
        ),
    ]


# -- retelling -------------------------------------------------------------------------------------------------------


def _retelling(figures: dict[str, Any]) -> list[str]:
    rows = [
        (kind, "leak" if found["leak"] else "honest", *(percent(found[way]) for way in ("before", "alone", "after")))
        for kind, found in figures["kinds"].items()
    ]
    return [
        f"Replies to the {figures['prompts']} prompts of `datasets/leakage.jsonl` that nothing was learned on. "
        "*Without*: the judge of one reply, mode `sentence`, with its comparison by meaning. *Alone*: the weak signs.",
        table(("Reply", "is", "found without", "found alone", "found by both"), rows),
        f"Texts of `datasets/dev` held against a prompt they have nothing to do with: {percent(figures['unrelated'])} "
        f"raise an alarm. A passage costs {figures['passage_ms']:.2f} ms.",
    ]


# -- piecemeal -------------------------------------------------------------------------------------------------------


def _piecemeal(figures: dict[str, Any]) -> list[str]:
    rows = []
    for way, found in figures["ways"].items():
        turns = f"{number(found['turns'], 0)} (at most {found['most_turns']})" if found["turns"] else "–"
        told = f"{found['told_before']:.0%}" if found["told_before"] is not None else "–"
        rows.append((way, percent(found["noticed"]), turns, number(found["of_turns"], 0), told))
    honest = figures["honest"]
    return [
        f"{figures['prompts']} prompts, each asked for bit by bit by one caller within one window; noticed from "
        f"{figures['share']:.0%} of a prompt's phrases on, or by the judge of one reply.",
        table(("Way of asking", "noticed", "turns, median", "turns it would take", "told by then"), rows),
        f"False alarms: {percent(honest['conversations'])} of conversations of all honest replies to one prompt; the "
        f"highest share of a prompt's phrases in one is {honest['highest_share']:.1%}.",
    ]


# -- hostile ---------------------------------------------------------------------------------------------------------


def _hostile(figures: dict[str, Any]) -> list[str]:
    goal = figures["goal"]
    rows = [
        (
            name,
            str(entry["status"] or "–"),
            f"{entry['seconds']:.2f}",
            *(f"{entry['poll_ms'][key]:.1f}" for key in ("p50", "p99", "highest")),
            str(entry["polls"]),
        )
        for name, entry in figures["bodies"].items()
    ]
    return [
        "`/health/live` is polled while each body is sent; the poll's time holds the client's own, on the same cores. "
        f"Highest poll {goal['highest_ms']:.1f} ms, the aim is {goal['ms']:g} ms: "
        f"**{'met' if goal['met'] else 'missed'}**.",
        table(("Body", "status", "seconds, highest", "poll p50 ms", "p99", "highest", "polls"), rows),
    ]


# -- evasion ---------------------------------------------------------------------------------------------------------


def _evasion(figures: dict[str, Any]) -> list[str]:
    rows = [
        (
            name.replace("_", " "),
            *(percent(entry[key]) for key in ("recall", "flagged", "false_alarms", "flagged_benign")),
            f"{entry['recovered']:.0%}",
            f"{entry['cost']:.1f}",
        )
        for name, entry in figures["disguises"].items()
    ]
    heads = ("Disguise", "recall at 1 %", "flagged by default", "false alarms at 1 %", "benign flagged by default")
    return [
        f"{figures['attacks']} attacks and {figures['benign']} benign English texts of the own dev set in every "
        "disguise. The threshold is that of the plain texts. *Recovered*: words that at least one view reads as they "
        "were written; *cost*: characters that are judged, per character of the plain text.",
        table((*heads, "recovered", "cost"), rows),
    ]


# -- credentials -----------------------------------------------------------------------------------------------------


def _credentials(figures: dict[str, Any]) -> list[str]:
    missed = {name: found for name, found in figures["formats"].items() if found["value"] < 1.0}
    return [
        f"{len(figures['formats'])} formats, made up at random by their own rules; found whole: "
        f"{percent(figures['found'])}. Processor time for a chunk of {figures['chunk_chars']} characters of ordinary "
        f"text, µs p50 / p95 / p99: {_three(figures['chunk_us'])}.",
        table(("Formats not always found", "found"), [(name, percent(found)) for name, found in missed.items()]),
        table(
            ("Texts without credentials", "texts", "false alarms", "addresses reported", "addresses acted on"),
            [
                (
                    kind,
                    str(found["total"]),
                    percent(found),
                    percent(figures["addresses"][kind]["reported"]),
                    percent(figures["addresses"][kind]["acted_on"]),
                )
                for kind, found in figures["false_alarms"].items()
            ],
        ),
    ]


def _quota(figures: dict[str, Any]) -> list[str]:
    backends = figures["backends"]
    costs = [
        (name, _three(found["ms"]), f"{found['goal_ms']:g}", "met" if found["met"] else "missed")
        for name, found in backends.items()
    ]
    runs = [
        (
            f"{name}, {run['clients']} callers",
            f"{run['attempts']:,}",
            f"{run['granted']:,}",
            f"{run['cancelled']:,}",
            str(run["overspent"]),
            str(run["unaccounted_tokens"]),
            number(run["per_second"], 0),
        )
        for name, found in backends.items()
        for run in found["callers"]
    ]
    return [
        "A reservation over all five limits of a tenant and of a key, and its settlement, by one caller; Valkey or "
        "Redis is a server on the same machine.",
        table(("where", "ms p50 / p95 / p99", "goal at p50", ""), costs),
        "Callers at once reserve, hold, settle, or are cancelled in the middle, against limits on concurrency, tokens "
        f"and money of about half of what they want; in Valkey through {figures['workers']} clients of it, as workers "
        "have. *Overspent* counts grants after which more was held than a limit allows, *unaccounted* is what the "
        "counters hold in the end beside what was settled. The goal of both is 0.",
        table(("", "attempts", "granted", "cancelled", "overspent", "unaccounted tokens", "per second"), runs),
    ]


# -- keys ------------------------------------------------------------------------------------------------------------


def _keys(figures: dict[str, Any]) -> list[str]:
    rows = [
        (
            f"{found['where']}, {found['keys']:,} keys",
            _three(found["ms"]),
            f"{figures['goal_ms']:g}: {'met' if found['met'] else 'missed'}",
            _three(found["unknown_ms"]),
            _three(found["believed_ms"]),
        )
        for found in figures["rows"]
    ]
    return [
        "One caller after the other presents a key, and is told whose it is. The database is warm. A worker believes "
        "what it has read for half a second; the first two figures are of keys that it does not.",
        table(("database", "ms p50 / p95 / p99", "goal at p99", "unknown key", "believed key"), rows),
    ]


# -- extraction ------------------------------------------------------------------------------------------------------


def _extraction(figures: dict[str, Any]) -> list[str]:
    cost, alarms = figures["cost"], figures["false_alarms"]
    sections = [
        f"**{percent(alarms)}** of the ordinary tenants, evaluation runs and paces not recalled apart, were suspected "
        f"at least once in four days. A call costs {number(cost['us']['p50'], 0)} µs at p50 and "
        f"{number(cost['us']['p99'], 0)} µs at p99, the encoder apart; a key and a tenant take {cost['bytes']:,} bytes "
        "each.",
        f"Simulated: {figures['tenants']} tenants of each kind and style with one to three keys, copies of up to "
        f"{figures['copies']} calls within ordinary traffic. Weights and threshold come from other tenants, of which "
        f"{figures['allowed']:.0%} of the ordinary ones were allowed to reach it. Both halves are written by one "
        "simulator: this shows how the signals work on such traffic, not what share of real copies is noticed.",
        table(
            ("Copy", "noticed", "calls until then, median", "p90", "seen in the tenant's sketch"),
            [
                (name, percent(row["noticed"]), number(row["median"], 0), number(row["p90"], 0), str(row["by_tenant"]))
                for name, row in figures["attacks"].items()
            ],
        ),
        table(
            ("Ordinary traffic", "tenants suspected", "calls", "reasons"),
            [
                (name, percent(row["alarms"]), number(row["calls"], 0), "; ".join(row["reasons"]) or "–")
                for name, row in [
                    *figures["benign"].items(),
                    *((f"{name}, its pace not recalled", row) for name, row in figures.get("unread", {}).items()),
                ]
            ],
        ),
        "Evaluation runs are a copy's very traffic while a set is run for the first time; their keys are to be exempt.",
    ]
    rows = [("bias", figures["learned"]["bias"], figures["shipped"]["bias"])]
    rows += [
        (name, value, figures["shipped"]["weights"][name]) for name, value in figures["learned"]["weights"].items()
    ]
    sections.append(table(("Weight", "learned now", "shipped"), [(name, number(a), number(b)) for name, a, b in rows]))
    return sections


_SECTIONS = {
    "extraction": _extraction,
    "recall": _recall,
    "peers": peer_tables.sections,
    "evasion": _evasion,
    "latency": _latency,
    "overhead": _overhead,
    "hostile": _hostile,
    "leakage": _leakage,
    "retelling": _retelling,
    "piecemeal": _piecemeal,
    "protected": _protected,
    "credentials": _credentials,
    "quota": _quota,
    "keys": _keys,
}
