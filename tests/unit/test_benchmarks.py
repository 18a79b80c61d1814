"""The benchmarks' own arithmetic, and that their tables come out of kept figures."""

from __future__ import annotations

import random
import re
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks import evasion, keys, plots, quota, recall, tables
from benchmarks.disguise import DISGUISES
from benchmarks.intervals import difference, ratio, spread
from benchmarks.latency import STAGES
from benchmarks.leak_cases import cases
from benchmarks.overhead import DIRECT, PLAIN, SCORING
from benchmarks.prompts import prompt
from benchmarks.results import PARTS, Measured, Results, machine, read, write
from tests.tiny_artifact import tiny_tokenizer
from training.corpus import Row


def test_the_bootstrap_interval_holds_the_true_difference_of_medians_and_shrinks_with_the_sample() -> None:
    rng = np.random.default_rng(3)

    def measured(count: int) -> tuple[list[float], list[float]]:
        return rng.normal(2.0, 0.3, count).tolist(), rng.normal(3.5, 0.3, count).tolist()

    few, many = difference(*measured(30)), difference(*measured(600))

    assert few.low <= 1.5 <= few.high
    assert many.low <= 1.5 <= many.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert many.low <= many.value <= many.high


def test_equal_samples_have_a_difference_of_nothing_and_a_ratio_of_one() -> None:
    assert msgspec.structs.astuple(difference([2.0] * 9, [2.0] * 9)) == (0.0, 0.0, 0.0)
    assert msgspec.structs.astuple(ratio([2.0] * 9, [3.0] * 9)) == (1.5, 1.5, 1.5)


def test_percentiles_of_nothing_are_refused() -> None:
    assert spread([1.0, 2.0, 3.0]).p50 == 2.0
    with pytest.raises(ValueError, match="no values"):
        spread([])
    with pytest.raises(ValueError, match="no values"):
        difference([], [1.0])


def _scored(attacks: list[float], ordinary: list[float], triggered: list[float]) -> tuple[list[Row], recall.Scored]:
    rows = [Row(f"a{i}", 1, kind="direct", source="s") for i in range(len(attacks))]
    rows += [Row(f"b{i}", 0, kind="ordinary", source="s") for i in range(len(ordinary))]
    rows += [Row(f"c{i}", 0, kind="over_defence_benign", source="s") for i in range(len(triggered))]
    scores = np.asarray([*attacks, *ordinary, *triggered])
    action = np.asarray(["block" if score > 0.9 else "allow" for score in scores])
    columns = {"fused": scores, "classifier alone": scores, "index alone": -scores}
    return rows, recall.Scored(columns, action, np.ones(len(rows), np.int64))


def test_thresholds_come_from_ordinary_benign_texts_and_not_from_those_with_trigger_words() -> None:
    rows, scored = _scored([0.5, 0.7, 0.2, 0.95], [n / 1000 for n in range(200)], [0.99, 0.6, 0.92, 0.1])

    found = recall.describe(rows, scored)

    # 1 % of 200 texts may lie above: the threshold is the third highest, 0.197. Three of four triggered texts above it
    # change nothing.
    assert found["all"]["recall_at_1pct"]["hits"] == 4
    assert found["methods"]["index alone"]["recall_at_1pct"]["hits"] == 0
    assert found["ordinary_benign"] == 200
    assert (found["over_defence"]["hits"], found["over_defence"]["total"]) == (2, 4)
    assert (found["all"]["blocked"]["hits"], found["all"]["blocked"]["total"]) == (1, 4)


def test_borrowed_benign_scores_replace_the_benchmarks_own() -> None:
    rows, scored = _scored([0.5, 0.7], [0.1, 0.2], [])

    found = recall.describe(rows, scored, borrowed=np.full((3, 100), 0.6))

    assert found["all"]["recall_at_1pct"]["hits"] == 1
    assert found["borrowed"]


def test_kinds_of_a_few_texts_are_put_together() -> None:
    rows, scored = _scored([0.5] * 8, [0.1] * 100, [0.3])

    assert set(recall.describe(rows, scored)["kinds"]) == {"s/direct", "s/ordinary", "s/other benign texts"}


def test_the_own_dev_set_can_be_read() -> None:
    rows = recall.own_rows()

    assert {row.label for row in rows} >= {0, 1, 2}
    assert all(row.source.startswith("own_") for row in rows)


def test_length_bands_meet_without_a_gap() -> None:
    assert [recall.band(n) for n in (0, 1, 2, 3, 4, 7, 8, 15, 16, 900)] == [
        *("1 window", "1 window", "2-3", "2-3", "4-7", "4-7", "8-15", "8-15", "16 and more", "16 and more")
    ]


def test_a_prompt_has_exactly_the_tokens_asked_for_and_no_twin() -> None:
    tokenizer = tiny_tokenizer()
    made = [prompt(tokenizer, 64, seed) for seed in range(5)]

    assert [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in made] == [64] * 5
    assert len(set(made)) == 5


def test_no_honest_case_holds_a_whole_secret_and_every_plain_leak_does() -> None:
    for case in cases():
        if case.family == "secret, plain":
            assert any(secret in case.reply for secret in case.secrets)
        if not case.leak:
            assert not any(secret in case.reply for secret in case.secrets)
    assert {case.leak for case in cases()} == {True, False}


# -- tables and plots ------------------------------------------------------------------------------------------------


def _ms(value: float) -> dict[str, float]:
    return {"p50": value, "p95": 2 * value, "p99": 3 * value, "mean": value, "count": 9}


def _figures() -> dict[str, dict[str, Any]]:
    rows, scored = _scored([0.5, 0.7, 0.95], [n / 1000 for n in range(200)], [0.99])
    lengths = {str(n): {"windows": 1, **{s: _ms(n / 9) for s in (*STAGES, "total", "guard")}} for n in (64, 256)}
    setting = {"lengths": lengths, "execution_provider": "CPUExecutionProvider", "threads": 1}
    interval = {"value": 0.9, "low": 0.8, "high": 1.0}
    against = dict.fromkeys(("added_ms", "added_p95_ms", "added_first_byte_ms", "ratio"), interval)
    way = {"ms": _ms(1.0), "first_byte_ms": _ms(0.5), "cpu_ms": 0.4, "not_200": 0, "curve": [1.0, 2.0, 3.0]}
    ways = {"ways": dict.fromkeys((DIRECT, PLAIN, SCORING), way), "model": "sandbox-echo"}
    ways["against_direct"] = dict.fromkeys((PLAIN, SCORING), against)
    rate = {"per_second": 1234.0, "lowest": 1000.0, "highest": 1500.0, "ms": _ms(6.0), "not_200": 0}
    family = {"leak": True, "stopped": {"value": 1.0, "low": 0.6, "high": 1.0, "hits": 6, "total": 6}}
    mode = {"withheld": family["stopped"], "false_alarms": family["stopped"], "families": {"secret, plain": family}}
    cost = {"piece_ms": _ms(0.1), "reply_ms": 12.0, "finish_ms": 1.0, "pieces": 99, "characters": 495}
    return {
        "recall": {"notes": ["A note."], "benchmarks": {recall.PUBLIC: recall.describe(rows, scored)}},
        "peers": {
            **{"notes": [], "timed": 9, "not_run": {"elsewhere": "needs a model"}, "published": [], "benchmarks": {}},
            "systems": [{"name": "this firewall", "failed": "", "errors": {}, "ms": _ms(9.0)}],
        },
        "latency": {
            "settings": {"one core": setting},
            "goal": {"tokens": 64, "ms": 25.0, "p50_ms": 7.1, "met": True},
        },
        "overhead": {
            "answers": ways,
            "streams": ways,
            "throughput": {"clients": 8, "ways": {DIRECT: rate}},
            "goal": {"ms": 1.5, "added_p50_ms": 1.75, "met": False},
        },
        "evasion": {
            "attacks": 3,
            "benign": 3,
            "disguises": {
                "morse": {
                    **dict.fromkeys(("recall", "flagged", "false_alarms", "flagged_benign"), family["stopped"]),
                    "recovered": 0.9,
                    "cost": 1.5,
                }
            },
        },
        "hostile": {
            "bodies": {
                "400,000 letters": {"status": 200, "seconds": 0.5, "polls": 9, "poll_ms": _ms(2.0) | {"highest": 61.5}}
            },
            "goal": {"ms": 50.0, "highest_ms": 61.5, "met": False},
        },
        "credentials": {
            "formats": {"a token": family["stopped"], "a key": {**family["stopped"], "value": 0.5}},
            "found": family["stopped"],
            "false_alarms": {"replies": family["stopped"]},
            "addresses": {"replies": {"reported": family["stopped"], "acted_on": family["stopped"]}},
            "chunk_us": _ms(9.0),
            "chunk_chars": 200,
        },
        "retelling": {
            "prompts": 4,
            "kinds": {"list": {"leak": True, **dict.fromkeys(("before", "alone", "after"), family["stopped"])}},
            "unrelated": family["stopped"],
            "passage_ms": 0.2,
        },
        "piecemeal": {
            "prompts": 4,
            "share": 0.12,
            "ways": {
                "five words a turn": {
                    "noticed": family["stopped"],
                    "by_adding_up": 3,
                    "turns": 7.0,
                    "most_turns": 11,
                    "of_turns": 23.0,
                    "told_before": 0.25,
                },
                "a paraphrase a turn": {
                    "noticed": family["stopped"],
                    "by_adding_up": 0,
                    "turns": None,
                    "most_turns": None,
                    "of_turns": 2.0,
                    "told_before": None,
                },
            },
            "honest": {"conversations": family["stopped"], "highest_share": 0.056},
        },
        "leakage": {"modes": {"exact": mode}, "cost": {"exact": cost}, "cases": 6},
        "protected": {
            "rows": [
                {
                    **{"kind": "secret", "count": 1_000, "build_s": 0.5, "memory_mb": 9.0, "add_ms": 7.0},
                    **{"piece_ms": _ms(0.03), "withheld": family["stopped"], "pause_ms": 3.0},
                },
                {
                    **{"kind": "secret", "count": 0, "build_s": 0.0, "memory_mb": 0.0, "add_ms": None},
                    **{"piece_ms": _ms(0.03), "withheld": None, "pause_ms": None},
                },
            ],
            "prompt_words": 60,
            "piece_chars": 5,
        },
        "extraction": {
            "tenants": 8,
            "copies": 800,
            "allowed": 0.05,
            "learned": {"bias": -9.0, "weights": {"sweep": 11.0}},
            "shipped": {"bias": -9.5, "weights": {"sweep": 11.5}},
            "attacks": {
                "sweep": {
                    "noticed": family["stopped"],
                    "by_tenant": 1,
                    "queries": [9, 30],
                    "median": 19.5,
                    "p90": 28.0,
                },
                "slow": {
                    "noticed": family["stopped"] | {"hits": 0, "value": 0.0},
                    **{"by_tenant": 0, "queries": [], "median": None, "p90": None},
                },
            },
            "benign": {"chat": {"alarms": family["stopped"], "calls": 900, "reasons": ["key: spread"]}},
            "false_alarms": family["stopped"],
            "cost": {"us": _ms(90.0), "bytes": 9_584},
        },
        "quota": {
            "workers": 4,
            "backends": {quota.MEMORY: {"ms": _ms(0.2), "goal_ms": 0.3, "met": True, "callers": []}},
        },
        "keys": {
            "goal_ms": 1.0,
            "rows": [
                {
                    **{"where": keys.SQLITE, "keys": 1_000_000, "fill_s": 30.0, "met": True},
                    **{"ms": _ms(0.5), "unknown_ms": _ms(0.5), "believed_ms": _ms(0.01)},
                }
            ],
        },
    }


def test_disguises_leave_no_text_as_it_was_and_the_service_recovers_most() -> None:
    attacks, benign = evasion.chosen(6)
    assert [row.label > 0 for row in attacks] == [True] * 6 and [row.label for row in benign] == [0] * 6
    for name, transform in DISGUISES.items():
        texts = [transform(row.text, random.Random(1)) for row in attacks]
        assert all(text != row.text for text, row in zip(texts, attacks, strict=True)), name
    assert evasion.recovered(attacks[0].text, DISGUISES["base64_once"](attacks[0].text, random.Random(1))) > 0.9
    assert evasion.recovered(attacks[0].text, "something else") < 0.3


def _results(*parts: str) -> Results:
    found = _figures()
    facts = {"date": "2026-01-02T03:04+00:00", "commit": "abc123", "machine": "a machine", "load": 0.5}
    return Results(
        {
            part: Measured(
                **facts, artifact="tiny 0123", command=f"python -m benchmarks {part}", quick=False, figures=f
            )
            for part, f in found.items()
            if part in parts
        }
    )


def test_every_part_becomes_a_section_with_its_circumstances_and_well_formed_tables(tmp_path: Any) -> None:
    path = tmp_path / "results.json"
    write(path, _results(*PARTS))
    text = tables.render(read(path), ["plots/latency_stages.png"])

    for part in PARTS:
        assert f"## {part.capitalize()}\n" in text
        assert f"`python -m benchmarks {part}`" in text
    assert text.count("abc123") == text.count("a machine") == text.count("`tiny 0123`") == len(PARTS)
    assert "**7.1 ms**" in text and "25 ms: met" in text
    assert "Highest poll 61.5 ms, the aim is 50 ms: **missed**" in text
    assert "**1.75 ms**" in text and "1.5 ms: missed" in text
    assert "![latency stages](plots/latency_stages.png)" in text
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1, block


def test_a_part_that_was_not_measured_is_named_and_a_quick_run_is_marked() -> None:
    results = _results("latency")
    quick = {name: msgspec.structs.replace(part, quick=True) for name, part in results.parts.items()}

    assert (
        "Not measured yet: recall, peers, evasion, overhead, hostile, leakage, retelling, piecemeal, protected, "
        "credentials, quota, extraction, keys." in tables.render(results)
    )
    assert "Quick run" not in tables.render(results)
    assert "**Quick run" in tables.render(Results(quick))


async def test_callers_at_once_overspend_nothing_and_everything_is_accounted_for() -> None:
    run = await quota._overspending(None, 16, 800)
    assert (run["overspent"], run["unaccounted_tokens"], run["unaccounted_nanousd"]) == (0, 0, 0)
    assert run["granted"] > 100 and run["refused"] > 100 and run["cancelled"] > 10


def test_every_part_is_drawn(tmp_path: Any) -> None:
    drawn = plots.draw(_results("recall", "latency", "overhead", "leakage", "extraction"), tmp_path / "plots")

    assert {path.partition("_")[0] for path in drawn} == {
        *("plots/recall", "plots/latency", "plots/overhead", "plots/leakage", "plots/extraction")
    }
    assert all((tmp_path / path).read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_machine_is_described_without_its_name_or_paths() -> None:
    assert "/" not in machine().replace("CPUExecutionProvider", "")
