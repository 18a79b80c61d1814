"""Model extraction: the sketch of a caller, what is made of it, and what follows."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from service.firewall.extraction import Alarm, ExtractionWatch
from service.firewall.extraction_habit import Habit
from service.firewall.extraction_observation import (
    Observation,
    Sampling,
    asked,
    bias_hash,
    is_single,
    observe,
    signature_of,
)
from service.firewall.extraction_score import SIGNALS, TOLD, WEIGHTS, assess, breadth, signals_of
from service.firewall.extraction_sketch import DAY_S, HOUR_S, Sketch
from service.firewall.prompt import Prompt, Segment
from service.scoring.cells import CELLS
from service.settings import Extraction

PROBE = Sampling(logprobs=True, temperature=0.0, output_tokens=1)


def text_of(number: int) -> str:
    """A text that resembles no other."""
    chooser = random.Random(number)
    return " ".join("".join(chooser.choices("abcdefghijklmnop", k=7)) for _ in range(12))


def call(at_s: float, text: str, cell: int = 0, sampling: Sampling = PROBE, *, single: bool = True) -> Observation:
    return Observation(at_s, signature_of(text), cell, single, sampling)


def swept(number: int, at_s: float) -> Observation:
    return call(at_s, "the same prompt", sampling=Sampling(logprobs=True, bias=number + 1, output_tokens=1))


def filled(calls: int, make: Callable[[int], Observation]) -> Sketch:
    sketch = Sketch()
    for number in range(calls):
        sketch.add(make(number))
    return sketch


# -- observation -----------------------------------------------------------------------------------------------------


def test_what_is_asked_is_the_last_message_of_the_user() -> None:
    segments = (
        Segment("be kind", "system", "/messages/0/content", 0),
        Segment("first", "user", "/messages/1/content", 1),
        Segment("an answer", "tool", "/messages/2/content", 2),
        Segment("second", "user", "/messages/3/content/0/text", 3),
        Segment("half", "user", "/messages/3/content/1/text", 3),
    )
    assert asked(Prompt("m", segments)) == "second\nhalf"
    assert not is_single(Prompt("m", segments))
    assert is_single(Prompt("m", segments[:2]))
    assert asked(Prompt("m", segments[:1])) == "be kind"
    assert asked(Prompt("m", ())) == ""


def test_an_observation_holds_no_text() -> None:
    prompt = Prompt("m", (Segment("a very particular sentence", "user", "/input"),))
    assert "particular" not in repr(observe(prompt, PROBE, 3, 1.0))


@pytest.mark.parametrize("text", ["", "a", "日本語のとても短い文", "x" * 100_000, "\ud800"])
def test_every_text_has_a_signature_of_the_same_size(text: str) -> None:
    assert signature_of(text).nbytes == signature_of("something else").nbytes


def test_biases_are_the_same_in_whatever_order_they_stand() -> None:
    assert bias_hash([("1", 5.0), ("2", 7.0)]) == bias_hash([("2", 7.0), ("1", 5.0)]) != bias_hash([("1", 5.0)])


# -- sketch ----------------------------------------------------------------------------------------------------------


def test_a_sketch_is_as_large_after_many_calls_as_before_the_first() -> None:
    before = Sketch().nbytes
    sketch = filled(3_000, lambda n: call(n * 40.0, text_of(n), n % CELLS))
    assert sketch.nbytes == before < 16_384
    assert [counts.calls for counts in sketch.windows()] == pytest.approx([90, 2_160], abs=60)


def test_what_is_older_than_a_window_leaves_it() -> None:
    sketch = filled(10, lambda n: call(float(n), text_of(n), n))
    hour, day = sketch.windows()
    assert (hour.calls, day.calls, sum(hour.lone_cells)) == (10, 10, 10)
    sketch.slide(HOUR_S + 600)
    hour, day = sketch.windows()
    assert (hour.calls, day.calls, sum(hour.lone_cells), sum(day.lone_cells)) == (0, 10, 0, 10)
    sketch.slide(2 * DAY_S)
    hour, day = sketch.windows()
    assert (hour.calls, day.calls, sum(day.lone_cells)) == (0, 0, 0)


def test_panes_are_let_go_one_after_the_other() -> None:
    sketch = filled(60, lambda n: call(n * 60.0, text_of(n)))
    left = []
    for minute in range(60, 125, 5):
        sketch.slide(minute * 60.0)
        left.append(sketch.windows()[0].calls)
    assert left == sorted(left, reverse=True) and left[0] == 55 and left[-1] == 0 and len(set(left)) == 12


def test_a_clock_that_goes_back_loses_nothing() -> None:
    sketch = filled(10, lambda n: call(DAY_S - n * 1_000.0, text_of(n)))
    assert sketch.windows()[1].calls == 10


def test_a_text_sent_again_is_neither_fresh_nor_made_from_a_template() -> None:
    hour, _ = filled(20, lambda n: call(float(n), "what time is it in Lisbon now?")).windows()
    assert (hour.calls, hour.fresh, hour.templated) == (20, 1, 0)


@pytest.mark.parametrize(
    "form",
    [
        "Classify this review as good or bad, with one word only: {}",
        "{} -- is that sentence grammatical? Answer yes or no.",
        "Summarise the article.\n\n{}\n\nTwo sentences, please, in plain words.",
    ],
)
def test_a_template_with_a_varying_slot_is_known_as_one(form: str) -> None:
    hour, _ = filled(20, lambda n: call(float(n), form.format(text_of(n)))).windows()
    assert (hour.fresh, hour.templated) == (20, 19)


def test_unlike_texts_are_no_template() -> None:
    hour, _ = filled(60, lambda n: call(float(n), text_of(n))).windows()
    assert (hour.fresh, hour.templated) == (60, 0)


def test_a_few_alike_openings_among_many_others_are_no_template() -> None:
    openings = [text_of(1_000 + number) for number in range(12)]
    hour, _ = filled(120, lambda n: call(float(n), f"{openings[n % 12]} {text_of(n)} {n}")).windows()
    assert hour.fresh == 120
    assert hour.templated <= 4


def test_what_fills_a_template_is_counted_apart_from_what_stands_alone() -> None:
    def either(number: int) -> Observation:
        text = text_of(number) if number % 2 else f"Summarise this text in two sentences: {text_of(number)}"
        return call(float(number), text, 3 if number % 2 else 9)

    hour, _ = filled(100, either).windows()
    assert (hour.lone, sum(hour.lone_cells), hour.slotted, sum(hour.slotted_cells)) == (51, 51, 49, 49)
    assert hour.lone_cells[3] == 50 and hour.slotted_cells[9] == 49


def test_a_later_turn_of_a_conversation_is_neither_alone_nor_in_a_slot() -> None:
    hour, _ = filled(20, lambda n: call(float(n), text_of(n), single=False)).windows()
    assert (hour.calls, hour.lone, hour.slotted, sum(hour.lone_cells)) == (20, 0, 0, 0)


def test_a_constant_bias_is_no_sweep_and_a_changing_one_is() -> None:
    constant, _ = filled(30, lambda n: call(n, "x", sampling=Sampling(bias=7))).windows()
    changing, _ = filled(30, lambda n: swept(n, n)).windows()
    assert (constant.biased, constant.swept) == (30, 1)
    assert (changing.biased, changing.swept) == (30, 30)


def test_what_is_usual_within_a_day_is_no_single_busy_hour() -> None:
    habit = Habit()
    habit.close_hour(400)
    assert habit.calls < 100
    for _ in range(11):
        habit.close_hour(400)
    assert 300 < habit.calls < 400


def test_the_busiest_hour_of_a_day_is_usual_from_the_next_day_on() -> None:
    habit = Habit()
    for calls in (700, 5):
        habit.close_hour(calls)
    assert habit.calls < 200
    habit.close_day()
    assert habit.calls == 700


def test_a_busy_day_long_ago_is_no_longer_usual() -> None:
    habit = Habit()
    habit.close_hour(700)
    for _ in range(40):
        habit.close_day()
        for _ in range(24):
            habit.close_hour(70)
    assert 60 <= habit.calls < 100


def test_a_usual_night_makes_no_other_kind_of_calls_usual() -> None:
    sketch = Sketch()
    for day in range(2):
        for number in range(300):
            at_s = day * DAY_S + number
            sketch.add(call(at_s, f"Summarise this text in two sentences: {text_of(number + 300 * day)}"))
    sketch.slide(2 * DAY_S)
    assert (sketch.usual_slotted, sketch.usual_lone) == (300, 60)


def test_a_remembered_pace_is_usual_from_the_first_call_on() -> None:
    sketch = Sketch()
    sketch.remember(900)
    assert sketch.usual_lone == sketch.usual_slotted == 900


# -- score -----------------------------------------------------------------------------------------------------------


def test_breadth_is_none_for_one_cell_and_full_for_all_of_them_alike() -> None:
    narrow, _ = filled(100, lambda n: call(n, text_of(n), 5)).windows()
    broad, _ = filled(256, lambda n: call(n, text_of(n), n % CELLS)).windows()
    assert breadth(narrow.lone_cells) == 0.0
    assert breadth(broad.lone_cells) == 1.0


def test_a_text_whose_cell_is_not_known_does_not_count_as_a_place() -> None:
    hour, _ = filled(50, lambda n: call(n, text_of(n), -1)).windows()
    assert (hour.lone, breadth(hour.lone_cells)) == (50, 0.0)


def test_all_signals_and_scores_lie_between_none_and_full() -> None:
    chooser = random.Random(4)
    sketch = Sketch()
    assert assess(sketch).score < 0.01
    for number in range(600):
        bias = chooser.choice([0, number])
        sampling = Sampling(logprobs=chooser.random() < 0.5, bias=bias, temperature=0.0, output_tokens=1, answers=2)
        sketch.add(call(number * chooser.choice([1.0, 900.0]), text_of(number % 90), number % CELLS, sampling))
        for signals in signals_of(sketch):
            assert signals.keys() == SIGNALS.keys()
            assert all(0.0 <= value <= 1.0 for value in signals.values()), signals
        assert 0.0 <= assess(sketch).score <= 1.0


def test_a_sweep_alone_is_enough_and_named_as_the_reason() -> None:
    found = assess(filled(40, lambda n: swept(n, n * 60.0)))
    assert found.score >= Extraction().score
    assert found.reasons[0] == "sweep"


def test_no_signal_lowers_a_score_and_what_ordinary_applications_have_too_weighs_nothing() -> None:
    assert WEIGHTS.keys() == SIGNALS.keys()
    assert {name for name, weight in WEIGHTS.items() if weight == 0} == TOLD
    assert min(WEIGHTS.values()) == 0


SUMMARISE = "Summarise the text below in two sentences for our newsletter. {}"


def batch(sketch: Sketch, calls: int, places: int, form: str = SUMMARISE, begun_s: float = 0.0) -> Sketch:
    """One call in four seconds, texts that lie in so many cells."""
    for number in range(calls):
        text = form.format(text_of(int(begun_s) + number))
        sketch.add(call(begun_s + number * 4.0, text, number % places, Sampling(temperature=0.0)))
    return sketch


def test_a_new_callers_batch_over_a_few_topics_is_no_suspicion() -> None:
    found = assess(batch(Sketch(), 800, 18))
    assert found.score < 0.5


def test_a_new_callers_batch_over_everything_is_one_and_says_why() -> None:
    found = assess(batch(Sketch(), 800, CELLS))
    assert found.score >= Extraction().score
    assert found.reasons[0] == "drill" and {"template", "slots"} <= set(found.reasons)


def test_a_batch_over_everything_is_no_suspicion_where_such_batches_are_usual() -> None:
    sketch = batch(Sketch(), 800, CELLS)
    assert assess(batch(sketch, 800, CELLS, begun_s=DAY_S + HOUR_S)).score < 0.5


def test_unlike_texts_over_everything_are_a_suspicion_in_spite_of_usual_batches() -> None:
    sketch = batch(Sketch(), 800, 18)
    found = assess(batch(sketch, 800, CELLS, "{}", DAY_S + HOUR_S))
    assert found.score >= Extraction().score
    assert found.reasons[0] == "burst"


def test_many_single_questions_about_everything_are_no_suspicion_at_a_slow_pace() -> None:
    assert assess(filled(1_000, lambda n: call(n * 70.0, text_of(n), n % CELLS, Sampling()))).score < Extraction().score


def test_few_calls_are_no_suspicion_whatever_they_ask() -> None:
    found = assess(filled(5, lambda n: call(n, text_of(n), n * 7)))
    assert found.score < 0.5


# -- watch -----------------------------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def watch_of(action: str = "alert", **more: object) -> tuple[ExtractionWatch, Clock, list[Alarm]]:
    clock, alarms = Clock(), list[Alarm]()
    settings = Extraction(action=action, **more)  # type: ignore[arg-type]
    return ExtractionWatch(settings, clock, alarms.append), clock, alarms


def sweep(watch: ExtractionWatch, clock: Clock, tenant: str = "north", key: str = "k1", calls: int = 60) -> list[int]:
    """After which calls there were findings."""
    found = []
    for number in range(calls):
        clock.now_s += 1.0
        if watch.count(tenant, key, swept(number, clock.now_s)):
            found.append(number)
    return found


def test_a_suspect_is_told_of_once_an_hour() -> None:
    watch, clock, alarms = watch_of()
    found = sweep(watch, clock)
    assert 5 < found[0] < 60 and found[-1] == 59
    assert alarms == [Alarm("key", "alert")]
    clock.now_s += HOUR_S
    sweep(watch, clock)
    assert len(alarms) == 2


def test_findings_name_scope_and_reasons_and_are_no_block() -> None:
    watch, clock, _ = watch_of()
    sweep(watch, clock)
    (finding,) = watch.count("north", "k1", swept(99, clock.now_s))
    assert (finding.guard, finding.category, finding.action) == ("extraction", "model_extraction", "flag")
    assert finding.detail.startswith("key: sweep") and finding.detail.endswith(" calls)")
    assert watch.rule("north", "k1", PROBE).action == "pass"


def test_tenants_do_not_affect_one_another() -> None:
    watch, clock, _ = watch_of("block")
    sweep(watch, clock, "north")
    assert watch.rule("north", "k1", PROBE).action == "block"
    assert watch.rule("south", "k1", PROBE).action == "pass"
    assert watch.assessment("south").score < 0.1 and watch.assessment("south", "k1").score < 0.1


def test_what_one_key_is_suspected_of_is_not_laid_to_its_tenants_other_keys() -> None:
    watch, clock, _ = watch_of("block")
    for number in range(200):  # enough honest calls that the tenant's own sketch stays calm
        clock.now_s += 1.0
        watch.count("north", "k2", call(clock.now_s, text_of(number), 3, Sampling(), single=False))
    sweep(watch, clock, "north", "k1", 400)
    assert watch.rule("north", "k1", PROBE).action == "block"
    assert watch.assessment("north", "k2").score < 0.1


def test_a_sweep_spread_over_many_keys_is_seen_in_their_tenant() -> None:
    watch, clock, alarms = watch_of("block")
    for number in range(200):
        clock.now_s += 1.0
        watch.count("north", f"k{number % 50}", swept(number, clock.now_s))
    assert {alarm.scope for alarm in alarms} == {"tenant"}
    assert watch.rule("north", "never-seen", PROBE).action == "block"


def test_a_caller_without_a_key_is_watched_as_its_tenant() -> None:
    watch, clock, alarms = watch_of("block")
    sweep(watch, clock, "default", "")
    assert [alarm.scope for alarm in alarms] == ["tenant"]
    assert watch.rule("default", "", PROBE).action == "block"


def test_a_ruling_ends_when_the_calls_behind_it_have_left_the_window() -> None:
    watch, clock, _ = watch_of("block")
    sweep(watch, clock)
    clock.now_s += DAY_S - HOUR_S
    assert watch.rule("north", "k1", PROBE).action == "block"
    clock.now_s += 3 * HOUR_S
    assert watch.rule("north", "k1", PROBE).action == "pass"


def test_a_throttled_caller_may_come_once_in_each_pause() -> None:
    watch, clock, _ = watch_of("throttle", throttle_s=10.0)
    sweep(watch, clock)
    assert watch.rule("north", "k1", PROBE).action == "pass"
    clock.now_s += 4.0
    ruling = watch.rule("north", "k1", PROBE)
    assert (ruling.action, ruling.wait_s) == ("throttle", 6.0)
    clock.now_s += 6.0
    assert watch.rule("north", "k1", PROBE).action == "pass"


def test_only_what_probes_is_stripped() -> None:
    watch, clock, _ = watch_of("strip")
    sweep(watch, clock)
    assert watch.rule("north", "k1", PROBE).action == "strip"
    assert watch.rule("north", "k1", Sampling(bias=3)).action == "strip"
    assert watch.rule("north", "k1", Sampling(temperature=0.0)).action == "pass"


@pytest.mark.parametrize("exempt", ["north", "k1"])
def test_exempt_tenants_and_keys_are_not_watched(exempt: str) -> None:
    watch, clock, alarms = watch_of("block", exempt=(exempt,))
    assert sweep(watch, clock) == [] and alarms == [] and len(watch) == 0
    assert watch.rule("north", "k1", PROBE).action == "pass"


def ask_everything(watch: ExtractionWatch, clock: Clock, calls: int, key: str = "k1") -> bool:
    """Whether single questions about everything, 400 an hour, are suspected."""
    found = False
    for number in range(calls):
        clock.now_s += 9.0
        found |= bool(watch.count("north", key, call(clock.now_s, text_of(number), number % CELLS, Sampling())))
    return found


def test_a_busy_shared_key_is_no_suspect_after_a_restart_where_its_pace_is_remembered() -> None:
    forgetful, clock, _ = watch_of()
    assert ask_everything(forgetful, clock, 500)
    watch, clock, alarms = watch_of()
    watch.remember("north", "k1", 380)
    watch.remember("north", "", 410)
    assert not ask_everything(watch, clock, 500)
    assert alarms == []


def test_a_pace_that_is_remembered_late_holds_for_who_is_watched_already() -> None:
    watch, clock, _ = watch_of()
    assert not ask_everything(watch, clock, 100)
    watch.remember("north", "k1", 380)
    watch.remember("north", "", 410)
    assert not ask_everything(watch, clock, 500)


def test_another_keys_pace_is_no_excuse() -> None:
    watch, clock, _ = watch_of()
    watch.remember("north", "k2", 380)
    assert ask_everything(watch, clock, 500)


def test_no_more_callers_are_kept_than_the_cap() -> None:
    watch, clock, _ = watch_of(max_callers=10)
    for number in range(500):
        watch.count(f"t{number}", "k", swept(number, clock.now_s))
        assert len(watch) <= 10
