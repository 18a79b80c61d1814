"""Percentiles and bootstrap intervals of measured times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]


class Spread(msgspec.Struct, frozen=True):
    """Percentiles of `count` values, in the values' own unit."""

    p50: float
    p95: float
    p99: float
    mean: float
    count: int


class Interval(msgspec.Struct, frozen=True):
    """A figure with its 95 % percentile bootstrap interval (Efron 1979, doi:10.1214/aos/1176344552)."""

    value: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError of nothing."""
    if not len(values):
        raise ValueError("percentiles of no values")
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return Spread(float(p50), float(p95), float(p99), float(np.mean(values)), len(values))


def medians(rows: Floats) -> Floats:
    """The median of each row."""
    return np.asarray(np.median(rows, axis=1), np.float64)


def difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    statistic: Statistic = medians,
    rounds: int = 2_000,
    seed: int = 1,
) -> Interval:
    """`statistic(second) − statistic(first)` of two samples drawn independently again and again."""
    a, b = _drawn(first, second, statistic, rounds, seed)
    exact = statistic(np.asarray([second], np.float64)) - statistic(np.asarray([first], np.float64))
    return _interval(float(exact[0]), b - a)


def ratio(
    first: Sequence[float],
    second: Sequence[float],
    *,
    statistic: Statistic = medians,
    rounds: int = 2_000,
    seed: int = 1,
) -> Interval:
    """`statistic(second) / statistic(first)` in the same way."""
    a, b = _drawn(first, second, statistic, rounds, seed)
    exact = statistic(np.asarray([second], np.float64)) / statistic(np.asarray([first], np.float64))
    return _interval(float(exact[0]), b / a)


def _drawn(
    first: Sequence[float], second: Sequence[float], statistic: Statistic, rounds: int, seed: int
) -> tuple[Floats, Floats]:
    if not len(first) or not len(second):
        raise ValueError("an interval of no values")
    random = np.random.default_rng(seed)
    samples = [np.asarray(values, np.float64) for values in (first, second)]
    a, b = (statistic(values[random.integers(0, len(values), (rounds, len(values)))]) for values in samples)
    return a, b


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(value, float(low), float(high))
