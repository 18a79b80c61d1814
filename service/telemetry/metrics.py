"""Prometheus metrics. Labels are words of our own, never a caller's: a model's name there would have no bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)

# A second series for each one, with the time of its making, that nothing here needs.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Categorised(Protocol):
    """What is counted of one finding."""

    @property
    def category(self) -> str: ...  # noqa: D102


class Observed(Protocol):
    """What is counted of one request; the audit row has it. `_ms` are milliseconds."""

    @property
    def protocol(self) -> str: ...  # noqa: D102
    @property
    def action(self) -> str: ...  # noqa: D102
    @property
    def category(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> int: ...  # noqa: D102
    @property
    def attempts(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def unjudged(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def error(self) -> str: ...  # noqa: D102
    @property
    def findings(self) -> Sequence[Categorised]: ...  # noqa: D102
    @property
    def prompt_tokens(self) -> int: ...  # noqa: D102
    @property
    def completion_tokens(self) -> int: ...  # noqa: D102
    @property
    def judge_ms(self) -> float: ...  # noqa: D102
    @property
    def upstream_ms(self) -> float: ...  # noqa: D102
    @property
    def reply_judge_ms(self) -> float: ...  # noqa: D102
    @property
    def total_ms(self) -> float: ...  # noqa: D102


class Suspicion(Protocol):
    """What is counted of an alarm."""

    @property
    def scope(self) -> str: ...  # noqa: D102
    @property
    def action(self) -> str: ...  # noqa: D102


class Metrics:
    """One process's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "firewall_requests",
            "Requests answered",
            ("protocol", "action", "category", "status"),
            registry=self._registry,
        )
        self._stages = Histogram(
            "firewall_stage_seconds",
            "Wall time by stage; own is the total less the upstream's",
            ("stage",),
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._unjudged = Counter(
            "firewall_unjudged", "Texts that a guard could not judge", ("guard",), registry=self._registry
        )
        self._cross_tenant = Counter(
            "firewall_cross_tenant", "Replies in which another tenant's protected text stood", registry=self._registry
        )
        self._errors = Counter("firewall_errors", "Requests that ended in an error", ("code",), registry=self._registry)
        self._tokens = Counter("firewall_tokens", "Tokens used", ("kind",), registry=self._registry)
        self._attempts = Counter(
            "firewall_provider_attempts",
            "Calls to providers by how they went: a status, or a word for what kept them from one",
            ("provider", "outcome"),
            registry=self._registry,
        )
        self._alarms = Counter(
            "firewall_extraction_alarms",
            "Keys and tenants that came under suspicion of copying a model",
            ("scope", "action"),
            registry=self._registry,
        )
        self._build = Info("firewall_build", "What runs here", registry=self._registry)
        # Finding a series by its labels takes longer than counting in it, and each request counts in nine.
        self._series = cache(_labelled)

    def observe(self, row: Observed) -> None:
        """Count one request."""
        self._series(self._requests, row.protocol, row.action, row.category, str(row.status)).inc()
        self._stage("judge", row.judge_ms)
        self._stage("upstream", row.upstream_ms - row.reply_judge_ms)
        self._stage("reply_judge", row.reply_judge_ms)
        self._stage("own", row.total_ms - row.upstream_ms + row.reply_judge_ms)
        self._stage("total", row.total_ms)
        for guard in row.unjudged:
            self._unjudged.labels(guard).inc()
        if any(finding.category == "cross_tenant" for finding in row.findings):
            self._cross_tenant.inc()
        if row.error:
            self._errors.labels(row.error).inc()
        for attempt in row.attempts:
            provider, _, outcome = attempt.rpartition(" ")
            self._series(self._attempts, provider, outcome).inc()
        self._series(self._tokens, "prompt").inc(row.prompt_tokens)
        self._series(self._tokens, "completion").inc(row.completion_tokens)

    def alarm(self, alarm: Suspicion) -> None:
        """Count a key or tenant whose calls look like the copying of a model."""
        self._alarms.labels(alarm.scope, alarm.action).inc()

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A gauge `firewall_<name>` that asks `read` at every scrape, such as the depth of the scoring queue."""
        Gauge(f"firewall_{name}", help_text, registry=self._registry).set_function(read)

    def watch_each(self, name: str, help_text: str, label: str, reads: Mapping[str, Callable[[], float]]) -> None:
        """The same with a series for each value of a label."""
        gauge = Gauge(f"firewall_{name}", help_text, (label,), registry=self._registry)
        for value, read in reads.items():
            gauge.labels(value).set_function(read)

    def describe(self, **facts: str) -> None:
        """Say what runs here: version, artifact, execution provider."""
        self._build.info(facts)

    def exposition(self) -> tuple[str, bytes]:
        """Content type and text of everything, as Prometheus scrapes it."""
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def _stage(self, stage: str, duration_ms: float) -> None:
        if duration_ms > 0:
            self._series(self._stages, stage).observe(duration_ms / 1e3)


def _labelled(metric: Any, *values: str) -> Any:
    return metric.labels(*values)
