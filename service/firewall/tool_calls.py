"""Tool calls in a reply: is the tool offered, is it allowed, do the arguments fit, and whose words are in them?

A call is held until it is complete and judged: an argument may say what it is for in its last character. `redact` puts
`[redacted]` into the string that holds a destination; a number cannot hold it, so there it blocks.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import msgspec

from service.firewall.asked import CallPart
from service.firewall.destinations import Trust, destinations, plain
from service.firewall.json_schema import NotChecked, TooLarge, violation
from service.firewall.verdict import Action, Category
from service.firewall.watched import Opening, Sight
from service.settings import Tools

MAX_ARGUMENTS = 1_000_000
"""Characters of one call. Longer arguments are not judged: they end as the policies say for what breaks a schema and
for what a result ordered, and at least with a flag."""
MAX_CALLS = 256
_INLINE_CHARS = 4_000
_STRICT = 0.9
_MAX_DESTINATIONS = 512
_MAX_REPEATED = 4_096
_WRITTEN_CHARS, _WRITTEN_WORDS = 500, 8
_MENTIONED = 0.6
# A string that nothing closes goes to the end: looked for anew at each of its quotes, it would take time squared.
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*+"?|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?', re.DOTALL)


class _Call(msgspec.Struct):
    place: str
    name: str = ""
    parts: list[str] = []
    size: int = 0
    channel: str = ""
    leaves: tuple[tuple[str, str], ...] = ()
    text: bool = False
    judged: bool = False
    told: set[tuple[str, str]] = set()

    @property
    def arguments(self) -> str:
        if len(self.parts) > 1:
            self.parts = ["".join(self.parts)]
        return self.parts[0] if self.parts else ""


class ToolPolicy:
    """What may be called. `denied` are globs of all tenants, `denied_by_tenant` those of one."""

    def __init__(self, settings: Tools, denied_by_tenant: Mapping[str, Sequence[str]] | None = None) -> None:
        self.settings = settings
        self._denied_by_tenant = denied_by_tenant or {}

    def watch(self, opening: Opening) -> ToolCallWatcher:
        """A watcher for one reply."""
        return ToolCallWatcher(self, opening)

    def denies(self, tenant: str, name: str) -> bool:
        """Whether a glob names the tool, whatever its case."""
        globs = (*self.settings.deny, *self._denied_by_tenant.get(tenant, ()))
        return any(fnmatchcase(name.lower(), glob.lower()) for glob in globs)


class ToolCallWatcher:
    """Follows the calls of one reply (`watched.Watcher`)."""

    guard = "tool_calls"

    def __init__(self, policy: ToolPolicy, opening: Opening) -> None:
        self._policy = policy
        self._settings = policy.settings
        self._opening = opening
        self._asked = asked = opening.asked
        self._offered = None if asked.tools is None else {tool.name: tool.schema for tool in asked.tools}
        self._calls: dict[str, _Call] = {}

    @cached_property
    def _trust(self) -> Trust:
        return Trust(self._opening.system_texts, self._opening.user_texts, self._asked.results)

    def held(self, channel: str, end: int) -> int:
        """0 for a channel of a call that is not judged yet."""
        if not self._calls:
            return end
        call = self._call_of(channel)
        return end if call is None or call.judged else 0

    def clears(self, channel: str, spelled: Sequence[str]) -> bool:
        """Where no call has begun: it is told of those, not of texts."""
        del channel, spelled
        return not self._calls

    async def called(self, parts: Sequence[CallPart]) -> list[Sight]:
        """Take parts; a call that is whole is judged at once."""
        found: list[Sight] = []
        for part in parts:
            call = self._calls.get(part.place)
            if call is None:
                if len(self._calls) >= MAX_CALLS:
                    found.append(self._sight("tool.arguments", "block", _Call(part.place), "too many calls"))
                    break
                call = self._calls[part.place] = _Call(part.place, parts=[], told=set())
            if part.whole and call.judged and part.arguments == call.arguments and part.name in ("", call.name):
                continue
            if part.whole:
                call.parts, call.size, call.judged = [part.arguments], len(part.arguments), False
                call.name = part.name or call.name
            else:
                if part.name and part.name != call.name:  # some providers say it again with every part
                    if call.size:  # and some number all calls alike: one has ended, another begins
                        found += await self._judge(call)
                        call.name, call.judged = "", False
                    call.name += part.name
                if call.judged and part.arguments:
                    call.judged = False  # what was complete goes on: it is another call now
                if call.size <= MAX_ARGUMENTS:
                    call.parts.append(part.arguments)
                call.size += len(part.arguments)
            call.channel = part.channel or call.channel
            call.leaves = part.leaves or call.leaves
            call.text = call.text or part.text
            if part.whole and call.name:
                found += await self._judge(call)
        return found

    async def feed(self, channel: str, text: str) -> list[Sight]:
        """Nothing: the parts say it."""
        del channel, text
        return []

    async def end(self, channel: str) -> list[Sight]:
        """Where it is the channel of a call's arguments, the call is complete."""
        call = self._call_of(channel)
        if call is None or call.judged or not call.name or channel.partition("#")[0] != call.channel:
            return []
        return await self._judge(call)

    async def finish(self) -> list[Sight]:
        """Judge what is not judged."""
        found: list[Sight] = []
        for call in self._calls.values():
            if not call.judged:
                found += await self._judge(call)
        return found

    def _call_of(self, channel: str) -> _Call | None:
        at = len(channel)
        while at > 0:
            if (call := self._calls.get(channel[:at])) is not None:
                return call
            at = max(channel.rfind("/", 0, at), channel.rfind("#", 0, at))
        return None

    # ---- judging

    async def _judge(self, call: _Call) -> list[Sight]:
        call.judged = True
        opening = self._opening
        read = (*self._asked.results, *opening.user_texts, *opening.system_texts)
        size = call.size + sum(map(len, read))
        found = list(await asyncio.to_thread(self._read, call) if size > _INLINE_CHARS else self._read(call))
        fresh = [sight for sight in found if (sight.category, sight.detail) not in call.told]
        call.told.update((sight.category, sight.detail) for sight in fresh)
        return fresh

    def _read(self, call: _Call) -> list[Sight]:
        return [sight for sight in self._sights(call) if sight.action != "allow"]

    def _sights(self, call: _Call) -> Iterator[Sight]:
        settings = self._settings
        if self._policy.denies(self._opening.tenant, call.name):
            yield self._sight("tool.denied", settings.denied, call, "denied by policy")
        if self._offered is not None and call.name not in self._offered:
            yield self._sight("tool.unoffered", settings.unoffered, call, "not offered")
        if call.size > MAX_ARGUMENTS:
            action: Action = "flag" if settings.arguments == "allow" else settings.arguments
            yield self._sight("tool.arguments", action, call, "too long to be judged")
            if settings.hijack != "allow" and self._asked.results:
                yield self._sight("tool.hijack", self._unjudged, call, "too long to be judged")
            return
        yield from self._fit(call)
        if settings.hijack != "allow" and self._asked.results:
            yield from self._hijacks(call)

    def _fit(self, call: _Call) -> Iterator[Sight]:
        if call.text:
            return
        action = self._settings.arguments
        try:
            value = _parsed(call.arguments)
        except (ValueError, RecursionError):
            yield self._sight("tool.arguments", action, call, "no JSON that every reader understands alike")
            return
        schema = (self._offered or {}).get(call.name)
        if schema is None or action == "allow":
            return
        try:
            if keyword := violation(value, schema):
                yield self._sight("tool.arguments", action, call, f"schema: {keyword}")
        except NotChecked as reason:
            # What a call is made too large for must not be what lets it pass.
            unjudged = action if isinstance(reason, TooLarge) else "flag"
            yield self._sight("tool.arguments", unjudged, call, f"schema not checked: {reason}")

    @property
    def _unjudged(self) -> Action:
        """What follows where it cannot be said whether a result ordered the call: nothing could be redacted."""
        return "flag" if self._settings.hijack in ("flag", "allow") else "block"

    def _hijacks(self, call: _Call) -> Iterator[Sight]:
        tools = list(self._offered or ())
        known: dict[str, tuple[float, str]] = {}
        action: Action
        looked_at = {False: 0, True: 0}  # of what is written, which is flagged at most, and of the rest
        for number, (channel, start, end, text, is_string) in enumerate(_leaves(call)):
            if number == _MAX_REPEATED:
                yield self._sight("tool.hijack", self._unjudged, call, "more values than are held against results")
            repeats = is_string and number < _MAX_REPEATED
            # What fills lines is a file or a letter: it names destinations, and goes to none.
            has_lines = "\n" in text.strip() and len(text.split()) >= _WRITTEN_WORDS
            is_written = has_lines or len(text) > _WRITTEN_CHARS
            scored = [self._trust.repeats_order(text, tools) if repeats else (0.0, "")]
            for named in destinations(plain(text), alone=True):
                if named.key not in known:
                    looked_at[is_written] += 1
                    if looked_at[is_written] > _MAX_DESTINATIONS:
                        action = "flag" if is_written else self._unjudged
                        yield self._sight("tool.hijack", action, call, "more destinations than are looked at")
                        if not is_written:
                            return
                        break
                    known[named.key] = self._trust.suspicion(named)
                score, detail = known[named.key]
                scored.append((min(score, _MENTIONED) if is_written else score, detail))
            score, detail = max(scored)
            if score <= 0:
                continue
            action = self._settings.hijack if score >= _STRICT else "flag"
            if action == "redact" and not (is_string and channel):
                action = "block"
            yield Sight("tool.hijack", action, channel or call.place, start, end, text, detail, score)

    def _sight(self, category: Category, action: Action, call: _Call, detail: str) -> Sight:
        return Sight(category, action, call.channel or call.place, 0, call.size, call.arguments, detail)


def _leaves(call: _Call) -> Iterable[tuple[str, int, int, str, bool]]:
    """(channel, start, end, text, whether a string) of every string and number in a call's arguments."""
    if call.text:
        return [(call.channel, 0, call.size, call.arguments, True)]
    found = [(channel, 0, len(text), text, True) for channel, text in call.leaves]
    known = {text for _, text in call.leaves}
    for literal in _LITERAL.finditer(call.arguments):
        start, end = literal.span()
        if literal[0][0] != '"':
            found.append((call.channel, start, end, literal[0], False))
            continue
        try:
            text = json.loads(literal[0], strict=False)
        except ValueError:
            text = literal[0][1:-1]
        if call.leaves and text not in known:
            # It stands where nothing can be put in its place, such as in a name.
            found.append(("", start + 1, end - 1, text, True))
        elif not call.leaves:
            found.append((call.channel, start + 1, end - 1, text, True))
    return found


def _parsed(arguments: str) -> Any:
    """The arguments as JSON; none at all are no arguments. Raises ValueError, also for a name that stands twice."""
    return json.loads(arguments, object_pairs_hook=_once) if arguments.strip() else {}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice")
    return made
