"""Detection of model extraction: what one key, and one tenant over all its keys, asked for in the last hour and day.

    Call ─▶ Observation ─▶ Sketch (constant size, of key and tenant) ─▶ Assessment (score, reasons) ─▶ Ruling

A call is ruled on by what was seen before it, so the ruling costs no model and comes before the provider is asked in
every mode. What is refused is not counted: a ruling ends when the calls that led to it have left the window. State is
of this process; several workers each see their part of a caller's calls.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
import structlog

from service.firewall.extraction_observation import Observation, Sampling, observe
from service.firewall.extraction_score import Assessment, assess
from service.firewall.extraction_sketch import HOUR_S, Sketch
from service.firewall.prompt import Prompt
from service.firewall.verdict import Action, Finding
from service.settings import Extraction

GUARD = "extraction"
_FIRST = 100  # after so many calls a hundredth more is no news: not every call is assessed
_REST_S = 30.0
_STRIPPED = "log-probabilities and biases taken out"
Ruled = Literal["pass", "strip", "throttle", "block"]

_log = structlog.get_logger("extraction")


class Ruling(msgspec.Struct, frozen=True):
    """What happens to a call: passed, passed without what probes the distribution, asked to come back in `wait_s`, or
    refused. `findings` are for the record.
    """

    action: Ruled = "pass"
    wait_s: float = 0.0
    findings: tuple[Finding, ...] = ()


class Alarm(msgspec.Struct, frozen=True):
    """A key or tenant came under suspicion. `scope` is `key` or `tenant`."""

    scope: str
    action: str


class _Watched:
    """One key or tenant."""

    def __init__(self) -> None:
        self.sketch = Sketch()
        self.found = Assessment(0.0)
        self.unseen = 0
        self.assessed_s = -math.inf
        self.told_s: float | None = None
        self.passed_s = -math.inf

    def assess(self, now_s: float) -> None:
        """Bring what was found up to the calls and the time."""
        self.sketch.slide(now_s)
        self.found, self.unseen, self.assessed_s = assess(self.sketch), 0, now_s


class ExtractionWatch:
    """Watches the callers of one process; the `max_callers` most recent keys and tenants are kept.

    `clock` gives seconds that do not go back. `alarmed` is told when somebody comes under suspicion, at most once an
    hour for each key and tenant.
    """

    def __init__(
        self, settings: Extraction, clock: Callable[[], float], alarmed: Callable[[Alarm], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._alarmed = alarmed
        self._watched: OrderedDict[tuple[str, ...], _Watched] = OrderedDict()
        self._paces: dict[tuple[str, ...], float] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def remember(self, tenant: str, key_id: str, calls: float) -> None:
        """So many calls stood in a busy hour of this key, or where `key_id` is empty of the tenant over all its keys,
        on earlier days: what a process that has just started cannot know. Of the first `max_callers` only.
        """
        name = (tenant, key_id) if key_id else (tenant,)
        if len(self._paces) < self._settings.max_callers or name in self._paces:
            self._paces[name] = calls
            if name in self._watched:
                self._watched[name].sketch.remember(calls)

    def rule(self, tenant: str, key_id: str, sampling: Sampling) -> Ruling:
        """What happens to the caller's next call, by what was seen of it and its tenant before."""
        settings = self._settings
        if settings.action == "alert" or self._is_exempt(tenant, key_id):
            return Ruling()
        now_s = self._clock()
        for scope, name in _scopes(tenant, key_id):
            watched = self._watched.get(name)
            if watched is None or not self._is_suspect(watched):
                continue
            watched.assess(now_s)
            if not self._is_suspect(watched):
                continue
            if settings.action == "strip" and sampling.probes:
                finding = msgspec.structs.replace(
                    _finding(scope, watched.found, "flag"), detail=f"{scope}: {_STRIPPED}"
                )
                return Ruling("strip", findings=(finding,))
            if settings.action == "block":
                return Ruling("block", findings=(_finding(scope, watched.found, "block"),))
            if settings.action == "throttle":
                wait_s = watched.passed_s + settings.throttle_s - now_s
                if wait_s > 0:
                    return Ruling("throttle", wait_s, (_finding(scope, watched.found, "flag"),))
                watched.passed_s = now_s
        return Ruling()

    def see(self, tenant: str, key_id: str, prompt: Prompt, sampling: Sampling, cell: int) -> tuple[Finding, ...]:
        """Count a call that passed; what it makes of key and tenant, for the record. `cell` is `Verdict.cell`."""
        return self.count(tenant, key_id, observe(prompt, sampling, cell, self._clock()))

    def count(self, tenant: str, key_id: str, seen: Observation) -> tuple[Finding, ...]:
        """The same for a call that was looked at already."""
        if self._is_exempt(tenant, key_id):
            return ()
        findings: list[Finding] = []
        for scope, name in _scopes(tenant, key_id):
            watched = self._watched.get(name) or self._begin(name)
            self._watched.move_to_end(name)
            watched.sketch.add(seen)
            watched.unseen += 1
            if watched.unseen > watched.found.calls // _FIRST or seen.at_s - watched.assessed_s > _REST_S:
                watched.assess(seen.at_s)
            if self._is_suspect(watched):
                findings.append(_finding(scope, watched.found, "flag"))
                self._tell(scope, tenant, key_id if scope == "key" else "", watched, seen.at_s)
                # What one key is suspected of is not laid to the other keys of its tenant.
                break
        while len(self._watched) > self._settings.max_callers:
            self._watched.popitem(last=False)
        return tuple(findings)

    def _begin(self, name: tuple[str, ...]) -> _Watched:
        watched = self._watched[name] = _Watched()
        watched.sketch.remember(self._paces.get(name, 0.0))
        return watched

    def assessment(self, tenant: str, key_id: str = "") -> Assessment:
        """Of a key, or of the tenant over all its keys, as it was at its last call."""
        watched = self._watched.get((tenant, key_id) if key_id else (tenant,))
        return watched.found if watched else Assessment(0.0)

    def _is_exempt(self, tenant: str, key_id: str) -> bool:
        return tenant in self._settings.exempt or (bool(key_id) and key_id in self._settings.exempt)

    def _is_suspect(self, watched: _Watched) -> bool:
        return watched.found.score >= self._settings.score

    def _tell(self, scope: str, tenant: str, key_id: str, watched: _Watched, now_s: float) -> None:
        if watched.told_s is not None and now_s - watched.told_s < HOUR_S:
            return
        watched.told_s = now_s
        self._alarmed(Alarm(scope, self._settings.action))
        _log.warning(
            "model extraction suspected",
            tenant=tenant,
            key_id=key_id,
            guard=GUARD,
            action=self._settings.action,
            reasons=list(watched.found.reasons),
            count=watched.found.calls,
        )


def _scopes(tenant: str, key_id: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    if key_id:
        yield "key", (tenant, key_id)
    yield "tenant", (tenant,)


def _finding(scope: str, found: Assessment, action: Action) -> Finding:
    detail = f"{scope}: {', '.join(found.reasons)} ({found.calls} calls)"
    return Finding(GUARD, "model_extraction", found.score, action, detail=detail)
