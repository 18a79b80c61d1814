"""How many simulated copies of a model are noticed, after how many queries, and who else is suspected.

Weights and threshold are fitted on half of the tenants (`_LEARN`), and everything that is reported comes from others
(`_REPORT`), written with other seeds, under the weights and the threshold that the service ships. Both halves come from
one simulator: the figures say how the signals work on traffic of these kinds, not what share of real copies is noticed.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from time import perf_counter
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from benchmarks.extraction_texts import FORMS, TOPICS, Cells
from benchmarks.extraction_traffic import BENIGN, COPIES, INDISTINCT, RESTARTED, STYLES, Tenant, tenants
from benchmarks.intervals import spread
from benchmarks.results import Options
from service.firewall.extraction import ExtractionWatch
from service.firewall.extraction_observation import Sampling
from service.firewall.extraction_score import BIAS, SIGNALS, TOLD, WEIGHTS, signals_of
from service.firewall.extraction_sketch import Sketch
from service.firewall.prompt import Prompt, Segment
from service.scoring.artifact import load_artifact
from service.settings import Extraction
from training.metrics import share

Floats = npt.NDArray[np.float64]
T = TypeVar("T")

_LEARN, _REPORT = 1, 2  # seeds
_FALSE_ALARMS = 0.01  # of the ordinary tenants that are learned from, in all their days
_SHOWN_COPIES = 50  # a copy is shown to the fit from here on
_STRIDE = 10
_RIDGE = 1e-4
_STEPS = 4_000
_ROWS = 300  # of one tenant that the regression sees, evenly taken: neighbours are alike
_ENOUGH = 1.15
_UNSEEN = 0.001  # score of a caller of whom nothing is known: a scale, nothing is decided by it


class _Size(msgspec.Struct, frozen=True):
    tenants: int
    copies: int
    encoded: int
    timed: int


_FULL, _QUICK = _Size(16, 800, 8, 5_000), _Size(2, 300, 2, 300)


def measure(options: Options) -> dict[str, Any]:
    """What is noticed and who is suspected, what a fit on the other half gives, and what a call costs."""
    size = _QUICK if options.quick else _FULL
    cells = Cells(load_artifact(options.artifact), size.encoded)
    print("  encoded", file=sys.stderr)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        learned = fit(_each(pool, _signals, cells, _LEARN, size, [s for s in STYLES if s != INDISTINCT]))
        print(f"  learned {learned}", file=sys.stderr)
        found = _each(pool, replay, cells, _REPORT, size, STYLES)
        print("  replayed", file=sys.stderr)
        unread = _each(pool, _replay_unread, cells, _REPORT, size, RESTARTED)
    return {
        "tenants": size.tenants,
        "copies": size.copies,
        "allowed": _FALSE_ALARMS,
        "score": Extraction().score,
        "learned": learned,
        "shipped": {"bias": BIAS, "weights": dict(WEIGHTS)},
        "attacks": {style: _noticed([f for f in found if f.style == style]) for style in COPIES},
        "benign": {style: _suspected([f for f in found if f.style == style]) for style in BENIGN},
        "unread": {style: _suspected([f for f in unread if f.style == style]) for style in RESTARTED},
        "false_alarms": _share(bool(f.alarm) for f in found if not f.attack and f.style != INDISTINCT),
        "cost": cost(size.timed),
    }


def _each(
    pool: Executor, work: Callable[[Tenant], T], cells: Cells, seed: int, size: _Size, styles: Sequence[str]
) -> list[T]:
    """What `work` makes of every tenant of these styles; one process works on a style."""
    tasks = [pool.submit(_work, work, cells, seed, size, style) for style in styles]
    return [made for task in tasks for made in task.result()]


def _work(work: Callable[[Tenant], T], cells: Cells, seed: int, size: _Size, style: str) -> list[T]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return [work(tenant) for tenant in tenants(cells, seed, style, size.tenants, size.copies)]


# -- learning --------------------------------------------------------------------------------------------------------


class Seen(msgspec.Struct, frozen=True, eq=False):
    """Signals float64 (n, windows, signals) of one tenant's keys and of itself, and whether each is within a copy."""

    attack: bool
    signals: Floats
    copying: npt.NDArray[np.bool_]


def fit(seen: Sequence[Seen]) -> dict[str, Any]:
    """Non-negative weights by logistic regression, every tenant weighing the same, none for `TOLD`; scaled so that
    `_FALSE_ALARMS` of the ordinary tenants reach the shipped threshold, and nothing seen makes `_UNSEEN`.
    """
    weighed = np.array([name not in TOLD for name in SIGNALS])
    ordinary = [found.signals for found in seen if not found.attack]
    copies = [found.signals[found.copying] for found in seen if found.copying.any()]
    rows, labels, weights = list[Floats](), list[Floats](), list[Floats]()
    for label, groups in ((0.0, ordinary), (1.0, copies)):
        for group in groups:
            # The higher window decides: of a copy it is learned from the one that shows more, else from both.
            shown = (
                group.reshape(-1, len(SIGNALS)) if not label else group[np.arange(len(group)), group.sum(2).argmax(1)]
            )
            shown = shown[:: len(shown) // _ROWS + 1]
            rows.append(shown * weighed)
            labels.append(np.full(len(shown), label))
            weights.append(np.full(len(shown), 0.5 / len(groups) / len(shown)))
    values = _regress(np.concatenate(rows), np.concatenate(labels), np.concatenate(weights))
    highest = np.sort([float((signals @ values).max()) for signals in ordinary])[::-1]
    most = int(_FALSE_ALARMS * len(highest))  # so many may reach it
    edge = (highest[most] + highest[max(0, most - 1)]) / 2 if most else highest[0] + 0.1
    # No ordinary traffic has other biases at every call: a sweep alone is to be enough, at whatever pace.
    sweep = list(SIGNALS).index("sweep")
    values[sweep] = max(values[sweep], _ENOUGH * float(edge))
    bias = math.log(_UNSEEN / (1 - _UNSEEN))
    values *= (math.log(Extraction().score / (1 - Extraction().score)) - bias) / float(edge)
    return {
        "bias": round(bias, 2),
        "weights": {name: round(float(value), 2) for name, value in zip(SIGNALS, values, strict=True)},
        "tenants": len(seen),
    }


def _signals(tenant: Tenant) -> Seen:
    sketches: dict[str, Sketch] = {}
    copies: dict[str, int] = {}
    rows, copying = list[list[list[float]]](), list[bool]()
    for number, call in enumerate(tenant.calls):
        for name in (call.key, ""):
            if name not in sketches:
                sketches[name] = Sketch()
                sketches[name].remember(tenant.paces.get(name, 0.0))
            sketch = sketches[name]
            sketch.add(call.seen)
            copies[name] = copies.get(name, 0) + call.copies
            if number % _STRIDE == 0:
                rows.append([list(signals.values()) for signals in signals_of(sketch)])
                copying.append(call.copies and copies[name] >= _SHOWN_COPIES)
    return Seen(tenant.attack, np.asarray(rows), np.asarray(copying))


def _regress(rows: Floats, labels: Floats, weights: Floats) -> Floats:
    """Projected gradient with momentum: rows float64 (n, signals) → weights float64 (signals,), none below 0."""
    values = velocity = np.zeros(rows.shape[1] + 1)
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    for _ in range(_STEPS):
        ahead = values + 0.95 * velocity
        error = 1 / (1 + np.exp(-(rows @ ahead))) - labels
        slope = rows.T @ (weights * error) + _RIDGE * np.append(ahead[:-1], 0.0)
        new = values + 0.95 * velocity - 2.0 * slope
        new[:-1] = np.maximum(new[:-1], 0.0)
        velocity, values = new - values, new
    return values[:-1]


# -- reporting -------------------------------------------------------------------------------------------------------


class Replayed(msgspec.Struct, frozen=True):
    """What the watch made of one tenant. `alarm` are the first reasons given for an ordinary call, `queries` how many
    calls of a copy were made when it was noticed (None: it was not), and `scope` whose sketch noticed it.
    """

    style: str
    attack: bool
    calls: int
    alarm: tuple[str, ...] = ()
    queries: int | None = None
    scope: str = ""


def replay(tenant: Tenant) -> Replayed:
    """One tenant's calls before the watch as it is shipped."""
    watch = ExtractionWatch(Extraction(), lambda: 0.0)
    for key, calls in tenant.paces.items():
        watch.remember(tenant.name, key, calls)
    alarm: tuple[str, ...] = ()
    queries, scope, copies = None, "", 0
    for call in tenant.calls:
        copies += call.copies
        findings = watch.count(tenant.name, call.key, call.seen)
        if not findings:
            continue
        if call.copies and queries is None:
            queries, scope = copies, findings[0].detail.partition(":")[0]
        elif not call.copies and not alarm and not copies:
            alarm = (findings[0].detail,)
    return Replayed(tenant.style, tenant.attack, len(tenant.calls), alarm, queries, scope)


def _replay_unread(tenant: Tenant) -> Replayed:
    """The same before a watch that was told of no pace."""
    return replay(msgspec.structs.replace(tenant, paces={}))


def _noticed(found: list[Replayed]) -> dict[str, Any]:
    after = sorted(f.queries for f in found if f.queries is not None)
    return {
        "noticed": _share(f.queries is not None for f in found),
        "by_tenant": sum(f.scope == "tenant" for f in found),
        "queries": after,
        "median": float(np.median(after)) if after else None,
        "p90": float(np.percentile(after, 90)) if after else None,
    }


def _suspected(found: list[Replayed]) -> dict[str, Any]:
    return {
        "alarms": _share(bool(f.alarm) for f in found),
        "calls": sum(f.calls for f in found),
        "reasons": sorted({reason.partition(" (")[0] for f in found for reason in f.alarm}),
    }


def _share(hits: Iterator[bool]) -> dict[str, Any]:
    values = list(hits)
    return msgspec.structs.asdict(share(sum(values), len(values)))


def cost(calls: int) -> dict[str, Any]:
    """Microseconds that the watch takes for a call of a key, everything but the encoder, and the bytes of a sketch."""
    chooser, topics = random.Random(5), sorted(TOPICS)
    ticks = count(0, 2)
    watch, times = ExtractionWatch(Extraction(), lambda: float(next(ticks))), list[float]()
    for _ in range(calls):
        text = FORMS["question"](chooser, chooser.choice(topics))
        prompt = Prompt("m", (Segment(text, "user", "/messages/0/content", 0),))
        begun = perf_counter()
        watch.rule("tenant", "key", Sampling())
        watch.see("tenant", "key", prompt, Sampling(), chooser.randrange(20))
        times.append((perf_counter() - begun) * 1e6)
    return {"us": msgspec.structs.asdict(spread(times)), "bytes": Sketch().nbytes, "sketches": 2}
