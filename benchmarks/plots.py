"""PNG plots of the kept figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.latency import STAGES
from benchmarks.results import Results

mpl.use("Agg")
from matplotlib import pyplot

_COLOURS = ("#3b6fb6", "#e08a2c", "#4f9d69", "#a94f6b", "#7a6fb0", "#8c8c8c")
_MANY_COLOURS = (*_COLOURS, "#c2a83e", "#2f8f9d", "#5a4632", "#d46a9f")
_STYLE = {
    "figure.dpi": 130,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def draw(results: Results, folder: Path) -> list[str]:
    """Draw what was measured; returns paths relative to the folder above, in the order they are to be shown."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[str] = []
    with mpl.rc_context(_STYLE):
        for part, drawings in _DRAWINGS.items():
            if part not in results.parts:
                continue
            for name, drawing in drawings.items():
                figure = drawing(results.parts[part].figures)
                if figure is None:
                    continue
                path = folder / f"{part}_{name}.png"
                figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
                pyplot.close(figure)
                drawn.append(f"{folder.name}/{path.name}")
    return drawn


def _recall_by_kind(figures: dict[str, Any]) -> Any:
    rows: list[tuple[str, dict[str, Any]]] = []
    for benchmark in figures["benchmarks"].values():
        kinds = benchmark["kinds"].items()
        rows += [(f"{kind} ({e['attacks']})", e["recall_at_1pct"]) for kind, e in kinds if e.get("recall_at_1pct")]
    if not rows:
        return None
    rows.sort(key=lambda row: row[1]["value"])
    figure, axes = pyplot.subplots(figsize=(7.5, 0.9 + 0.21 * len(rows)))
    values, errors = _whiskers([share for _, share in rows])
    axes.barh(range(len(rows)), values, color=_COLOURS[0], height=0.66)
    axes.errorbar(values, range(len(rows)), xerr=errors, fmt="none", ecolor="#333333", elinewidth=0.8, capsize=1.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7.5)
    axes.set(xlim=(0, 1), ylim=(-0.7, len(rows) - 0.3), xlabel="recall at 1 % false positives, 95 % Wilson interval")
    axes.grid(axis="y", visible=False)
    axes.set_title("Attacks found, by source and kind (number of attacks)", loc="left")
    return figure


def _recall_curves(figures: dict[str, Any]) -> Any:
    found = {name: b for name, b in figures["benchmarks"].items() if b["curves"]}
    if not found:
        return None
    figure, row = pyplot.subplots(1, len(found), figsize=(4.4 * len(found), 3.6), squeeze=False, sharey=True)
    for axes, (name, benchmark) in zip(row[0], found.items(), strict=True):
        for colour, (method, points) in zip(_COLOURS, benchmark["curves"].items(), strict=False):
            shown = [(rate, recall) for rate, recall in points if rate > 0]
            width = 2.0 if method == "fused" else 1.3
            axes.step(*zip(*shown, strict=True), where="post", color=colour, label=method, linewidth=width)
        axes.set_xscale("log")
        axes.set(xlim=(1e-3, 1), ylim=(0, 1.02), xlabel="false-positive rate on ordinary benign texts")
        axes.set_title(
            f"{name} ({benchmark['attacks']} attacks, {benchmark['ordinary_benign']} benign)", loc="left", fontsize=9
        )
        axes.axvline(0.01, color="#666666", linewidth=0.8, linestyle=":")
    row[0][0].set_ylabel("recall")
    row[0][-1].legend(frameon=False, loc="lower right")
    return figure


def _recall_calibration(figures: dict[str, Any]) -> Any:
    found = {name: b["calibration"] for name, b in figures["benchmarks"].items() if "calibration" in b}
    if not found:
        return None
    figure, axes = pyplot.subplots(figsize=(4.6, 4.2))
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle=":")
    for colour, (name, curve) in zip(_COLOURS, found.items(), strict=False):
        places = [point["score"] for point in curve["points"]]
        shares = [point["attacks"] for point in curve["points"]]
        label = f"{name}: ECE {curve['ece']:.3f}"
        axes.errorbar(places, *_whiskers(shares), color=colour, marker="o", markersize=3, linewidth=1.3, label=label)
    axes.set(
        xlim=(0, 1), ylim=(0, 1.02), xlabel="mean score of the texts in a bin", ylabel="share of attacks among them"
    )
    axes.set_title("Scores as probabilities, 95 % Wilson intervals", loc="left")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def _whiskers(shares: list[dict[str, float]]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals reach below and above."""
    # Where all or none were found, rounding puts the interval's end a hair beyond the value.
    below = [max(0.0, share["value"] - share["low"]) for share in shares]
    return [share["value"] for share in shares], [below, [max(0.0, s["high"] - s["value"]) for s in shares]]


def _peers_decisions(figures: dict[str, Any]) -> Any:
    found = {name: b for name, b in figures["benchmarks"].items() if b["attacks"] and b["ordinary"]}
    if not found:
        return None
    figure, row = pyplot.subplots(1, len(found), figsize=(4.6 * len(found), 4.0), squeeze=False, sharey=True)
    colours = dict(zip((s["name"] for s in figures["systems"] if not s["failed"]), _MANY_COLOURS, strict=False))
    lowest = 3e-4
    for axes, (name, benchmark) in zip(row[0], found.items(), strict=True):
        for system, points in benchmark["curves"].items():
            shown = [(rate, reached) for rate, reached in points if rate >= lowest]
            axes.step(*zip(*shown, strict=True), where="post", color=colours[system], linewidth=1.0, alpha=0.75)
        for system, entry in benchmark["systems"].items():
            _, (below, above) = _whiskers([entry["recall"]])
            # A rate of nothing has no place on a logarithmic axis.
            place = max(lowest, entry["false_alarms"]["value"])
            style = {"color": colours[system], "marker": "D", "markersize": 5, "linestyle": "none"}
            axes.errorbar([place], [entry["recall"]["value"]], yerr=[below, above], label=system, **style)
        axes.set_xscale("log")
        axes.set(
            xlim=(lowest * 0.85, 1), ylim=(0, 1.02), xlabel="false alarms among ordinary benign texts (left edge: none)"
        )
        axes.set_title(
            f"{name} ({benchmark['attacks']} attacks, {benchmark['ordinary']} benign)", loc="left", fontsize=9
        )
    row[0][0].set_ylabel("share of attacks flagged")
    handles, labels = row[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4)
    figure.suptitle(
        "Default decisions (diamonds) and what the scores would allow (lines)", x=0.07, ha="left", fontsize=10
    )
    return figure


def _latency_stages(figures: dict[str, Any]) -> Any:
    settings = figures["settings"]
    columns = (*STAGES, "total")
    figure, row = pyplot.subplots(1, len(settings), figsize=(5.2 * len(settings), 3.4), squeeze=False, sharey=True)
    for axes, (name, setting) in zip(row[0], settings.items(), strict=True):
        lengths = setting["lengths"]
        width = 0.84 / len(lengths)
        for number, (colour, (length, stages)) in enumerate(zip(_COLOURS, lengths.items(), strict=False)):
            places = [place + (number - (len(lengths) - 1) / 2) * width for place in range(len(columns))]
            values = [stages[stage]["p50"] for stage in columns]
            upper = [max(0.0, stages[stage]["p99"] - stages[stage]["p50"]) for stage in columns]
            axes.bar(places, values, width=width * 0.94, color=colour, label=f"{length} tokens")
            axes.errorbar(
                places, values, yerr=([0.0] * len(values), upper), fmt="none", ecolor="#333333", elinewidth=0.8
            )
            place, tallest = places[-1], stages["total"]
            axes.annotate(f"{tallest['p50']:.1f}", (place, tallest["p99"]), ha="center", va="bottom", fontsize=7.5)
        goal = figures["goal"]
        axes.axhline(goal["ms"], color="#666666", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"goal for {goal['tokens']} tokens", (-0.45, goal["ms"]), va="bottom", fontsize=7.5, color="#555555"
        )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_title(name, loc="left", fontsize=9)
        axes.grid(axis="x", visible=False)
    row[0][0].set_ylabel("ms at p50, whisker to p99")
    handles, labels = row[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=len(labels))
    return figure


def _overhead_curves(figures: dict[str, Any]) -> Any:
    figure, row = pyplot.subplots(1, 2, figsize=(8.8, 3.4), sharey=True)
    for axes, (key, title) in zip(
        row, (("answers", "whole answers"), ("streams", "streams of 100 words")), strict=True
    ):
        for colour, (name, way) in zip(_COLOURS, figures[key]["ways"].items(), strict=False):
            label = f"{name}: {way['ms']['p50']:.2f} ms"
            axes.plot(way["curve"], [n / 100 for n in range(len(way["curve"]))], color=colour, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.set(ylim=(0, 1), xlabel="ms, one client after the other")
        axes.set_title(title, loc="left")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), title="median")
    row[0].set_ylabel("share of requests")
    return figure


def _leakage_families(figures: dict[str, Any]) -> Any:
    modes = figures["modes"]
    families = list(next(iter(modes.values()))["families"].items())
    families.sort(key=lambda item: item[1]["leak"])
    figure, axes = pyplot.subplots(figsize=(7.2, 1.0 + 0.34 * len(families)))
    height = 0.8 / len(modes)
    for number, (colour, mode) in enumerate(zip(_COLOURS, modes, strict=False)):
        values = [modes[mode]["families"][name]["stopped"]["value"] for name, _ in families]
        # Zero is drawn too: an invisible bar would look like a missing one.
        places = [place + 0.4 - (number + 0.5) * height for place in range(len(families))]
        axes.barh(places, [max(value, 0.004) for value in values], height=height, color=colour, label=mode)
    names = [f"{name} ({entry['stopped']['total']})" for name, entry in families]
    axes.set_yticks(range(len(families)), names)
    for tick, (_, entry) in zip(axes.get_yticklabels(), families, strict=True):
        tick.set_color("#222222" if entry["leak"] else "#2f7d4f")
    axes.set(xlim=(0, 1), ylim=(-0.6, len(families) - 0.4), xlabel="share of replies stopped (green: honest replies)")
    axes.grid(axis="y", visible=False)
    axes.set_title("Replies stopped, by stream mode", loc="left")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08 - 0.6 / len(families)), ncols=3)
    return figure


def _extraction_queries(figures: dict[str, Any]) -> Any:
    figure, axes = pyplot.subplots(figsize=(7.4, 4.0))
    lines = ("-", "--", ":")
    for index, (name, row) in enumerate(figures["attacks"].items()):
        total, after = row["noticed"]["total"], row["queries"]
        places = [1, *after, figures["copies"]]
        shares = [0.0, *((number + 1) / total for number in range(len(after))), len(after) / total]
        style = lines[index // len(_COLOURS)]
        axes.step(places, shares, where="post", color=_COLOURS[index % len(_COLOURS)], linestyle=style, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set(xlim=(1, figures["copies"]), ylim=(0, 1.02), xlabel="calls of the copy", ylabel="share of copies noticed")
    axes.set_title("Copies noticed, by the number of their calls", loc="left")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.5)
    return figure


_DRAWINGS: dict[str, dict[str, Callable[[dict[str, Any]], Any]]] = {
    "recall": {"by_kind": _recall_by_kind, "curves": _recall_curves, "calibration": _recall_calibration},
    "peers": {"decisions": _peers_decisions},
    "latency": {"stages": _latency_stages},
    "overhead": {"curves": _overhead_curves},
    "leakage": {"families": _leakage_families},
    "extraction": {"queries": _extraction_queries},
}
