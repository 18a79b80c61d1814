"""A secret that is told in pieces by different texts: two choices, two calls, two values of a call, two replies.

No piece is a match by itself. Two texts tell a secret together where the one ends, as far as it has come, with the
beginning of the secret and the other begins with the rest; where both pieces are long it does not matter what else the
texts say. Text in the middle of a secret is a text that goes on with one and is gone on with. The first piece must be
long, or a quarter of the secret in its projection, which has no separators: that is a third of it as it is written.

Everything is counted in characters of a projection (`patterns`), in which a secret has a pattern for each disguise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import NamedTuple

import msgspec

from service.firewall.owners import Owners
from service.firewall.patterns import MIN_PIECE, Begun, Form

_LONG = 8
_MOST_TOLD = 32
"""Patterns of which pieces are remembered in one reply, and as many of one caller."""
_MOST_PLACES = 16
_TEXT_CHARS = 8_192
_KEPT_CHARS = 65_536
_MOST_TEXTS = 256
_BEFORE = "\0"
"""The text that stands for earlier replies."""


def counts(length: int, whole: int) -> bool:
    """Whether a piece of this length says so much of a pattern that what goes on with it is looked for."""
    return length >= _LONG or (length >= MIN_PIECE and 4 * length >= whole)


class Completed(NamedTuple):
    """A secret is complete with a text. `start` and `end` of the piece in it are counted from its end so far, so that
    they are negative or 0.
    """

    owners: Owners
    start: int
    end: int


class Remembered(NamedTuple):
    """How far a reply came with a pattern: where a text of it ended, and at most."""

    form: Form
    pattern: str
    owners: Owners
    at_end: int
    farthest: int


class _Said(msgspec.Struct):
    """The last of what one text says; `whole`: it is all of it."""

    text: str = ""
    whole: bool = True

    def completes(self, rest: str, length: int, at_end: bool, fresh: int) -> int | None:
        """Where `rest` ends, if that is among the last `fresh` characters; `length` is that of the piece before."""
        known = len(self.text) - fresh
        if at_end and self.whole and len(rest) > known and self.text.startswith(rest):
            return len(rest)
        if length >= _LONG and len(rest) >= _LONG:
            at = self.text.find(rest, max(0, known - len(rest) + 1))
            return at + len(rest) if at >= 0 else None
        return None

    def goes_on(self, rest: str, length: int, at_end: bool) -> int:
        """With how many characters of `rest` the text ends."""
        text = self.text
        if at_end and self.whole and len(text) < len(rest) and rest.startswith(text):
            return len(text)
        if length >= _LONG and len(rest) >= _LONG:
            # Keys of one kind all begin alike, so this is asked often, and of long patterns.
            head = rest[:MIN_PIECE]
            at = text.find(head, max(0, len(text) - len(rest) + 1))
            while at >= 0:
                if rest.startswith(text[at:]):
                    return len(text) - at
                at = text.find(head, at + 1)
            return next((size for size in (2, 1) if text.endswith(rest[:size])), 0)
        return 0


class _Place(msgspec.Struct):
    """How far one text has come with a pattern: at its end now, and at most."""

    now: int = 0
    farthest: int = 0


class _Told(msgspec.Struct):
    owners: Owners
    places: dict[str, _Place]

    def reach(self, unit: str, length: int) -> bool:
        """A text has come so far; whether that is farther than before."""
        place = self.places.setdefault(unit, _Place())
        farther = length > max(place.farthest, place.now)
        place.now, place.farthest = max(place.now, length), max(place.farthest, length)
        if len(self.places) > _MOST_PLACES:
            del self.places[next(each for each in self.places if each != unit)]
        return farther

    def lengths(self, unit: str) -> Iterator[tuple[int, bool]]:
        """(how far, whether the text ends so) of a text."""
        place = self.places.get(unit)
        if place is None:
            return
        if place.now:
            yield place.now, True
        if place.farthest != place.now:
            yield place.farthest, False

    @property
    def most(self) -> int:
        """How far any text has come."""
        return max((place.farthest for place in self.places.values()), default=0)


class SplitSecrets:
    """Follows the texts of one reply. `before` are pieces of earlier ones; `remember` is told of the pieces of this."""

    def __init__(
        self, before: Iterable[Remembered] = (), remember: Callable[[Sequence[Remembered]], None] | None = None
    ) -> None:
        self._told: dict[tuple[Form, str], _Told] = {}
        self._said: OrderedDict[tuple[str, Form], _Said] = OrderedDict()
        self._chars = 0
        self._remember = remember
        for form, pattern, owners, at_end, farthest in before:
            self._told[form, pattern] = _Told(owners, {_BEFORE: _Place(at_end, farthest)})

    def passes(self, form: Form, begun: Iterable[Begun]) -> bool:
        """Whether a text that begins these patterns at its end surely tells no piece, and none was told before."""
        if any(kind == form for kind, _ in self._told):
            return False
        return not any(counts(length, len(pattern)) for pattern, _, length in begun)

    def keep(self, unit: str, form: Form, letters: str) -> None:
        """Take the next of a text that `passes`: what it ends may be begun later."""
        said = self._said.get((unit, form))
        if said is None:
            said = self._said[unit, form] = _Said()
        self._said.move_to_end((unit, form))
        text = said.text + letters
        if len(text) > _TEXT_CHARS:
            text, said.whole = text[-_TEXT_CHARS:], False
        self._chars += len(text) - len(said.text)
        said.text = text
        while len(self._said) > 1 and (self._chars > _KEPT_CHARS or len(self._said) > _MOST_TEXTS):
            self._chars -= len(self._said.popitem(last=False)[1].text)

    def take(self, unit: str, form: Form, letters: str, begun: Iterable[Begun]) -> tuple[list[Completed], int]:
        """The next of a text, and the patterns that it begins at its end: what is complete with it, and how many
        characters at its end go on with what another text has told, so that they must wait.
        """
        self.keep(unit, form, letters)
        pieces = self._begin(unit, form, begun)
        if not self._told:
            return [], 0
        said = self._said[unit, form]
        found: list[Completed] = []
        live = 0
        for (kind, pattern), told in self._told.items():
            if kind != form:
                continue
            for other in [each for each in told.places if each != unit]:
                for length, at_end in list(told.lengths(other)):
                    rest = pattern[length:]
                    if other == _BEFORE and not counts(len(rest), len(pattern)):
                        continue
                    end = said.completes(rest, length, at_end, len(letters))
                    if end is not None:
                        size = len(said.text)
                        found.append(Completed(told.owners, end - len(rest) - size, end - size))
                    elif more := said.goes_on(rest, length, at_end):
                        live = max(live, more)
                        if counts(more, len(pattern)):
                            told.reach(unit, length + more)
                            pieces[pattern] = max(more, pieces.get(pattern, 0))
        for pattern, size in pieces.items():
            told = self._told[form, pattern]
            if self._ended_before(told, form, pattern, unit):
                found.append(Completed(told.owners, -size, 0))
        self._report(form, pieces)
        return found, live

    def finish(self) -> None:
        """The reply has ended: what its texts end with is what others may go on with."""
        if self._remember is None:
            return
        self._remember(
            [
                Remembered(form, pattern, told.owners, now, now)
                for (form, pattern), told in self._told.items()
                if (now := max((place.now for unit, place in told.places.items() if unit != _BEFORE), default=0))
            ]
        )

    def _begin(self, unit: str, form: Form, begun: Iterable[Begun]) -> dict[str, int]:
        """Note what a text begins; the patterns with the lengths of the pieces."""
        pieces: dict[str, int] = {}
        for (kind, _), told in self._told.items():
            if kind == form and unit in told.places:
                told.places[unit].now = 0
        for pattern, owners, length in begun:
            own = tuple(owner for owner in owners if owner.kind == "secret")
            if own and counts(length, len(pattern)):
                told = self._told.setdefault((form, pattern), _Told(own, {}))
                told.reach(unit, length)
                pieces[pattern] = max(length, pieces.get(pattern, 0))
        while len(self._told) > _MOST_TOLD:
            least = min(self._told, key=lambda each: self._told[each].most / len(each[1]))
            del self._told[least]
            if least[0] == form:
                pieces.pop(least[1], None)
        return pieces

    def _ended_before(self, told: _Told, form: Form, pattern: str, unit: str) -> bool:
        """Whether texts that came earlier say the rest of what a text has begun or gone on with."""
        ahead = [unit]
        while ahead:
            source = ahead.pop()
            for length, at_end in list(told.lengths(source)):
                rest = pattern[length:]
                for (other, kind), said in self._said.items():
                    if kind != form or other in (source, unit):
                        continue
                    if said.completes(rest, length, at_end, len(said.text)) is not None:
                        return True
                    more = said.goes_on(rest, length, at_end)
                    if counts(more, len(pattern)) and told.reach(other, length + more):
                        ahead.append(other)
        return False

    def _report(self, form: Form, pieces: Iterable[str]) -> None:
        """At once: who has read a long piece may leave before the reply ends."""
        if self._remember is None:
            return
        told = [(pattern, self._told[form, pattern]) for pattern in pieces]
        self._remember([Remembered(form, each, of.owners, 0, of.most) for each, of in told if of.most >= _LONG])


class _Kept(msgspec.Struct):
    at_end: int
    farthest: int
    time: float


class ToldSecrets:
    """Which pieces of secrets each caller was told within the window. Memory is bounded: the oldest are forgotten.

    `clock` gives seconds. Each process remembers its own replies.
    """

    def __init__(
        self, window_s: float = 3_600.0, most_callers: int = 4_096, clock: Callable[[], float] = monotonic
    ) -> None:
        self._window_s = window_s
        self._most_callers = most_callers
        self._clock = clock
        self._callers: OrderedDict[str, dict[tuple[Form, str], _Kept]] = OrderedDict()

    def follow(self, caller: str, registered: Callable[[Form, str], Owners]) -> SplitSecrets:
        """For one reply to a caller. `registered` tells whose a pattern is, nobody's where it is gone."""
        if not caller:
            return SplitSecrets()
        since = self._clock() - self._window_s
        before = [
            Remembered(form, pattern, owners, kept.at_end, kept.farthest)
            for (form, pattern), kept in self._callers.get(caller, {}).items()
            if kept.time >= since and (owners := registered(form, pattern))
        ]
        return SplitSecrets(before, lambda pieces: self._remember(caller, pieces))

    def _remember(self, caller: str, pieces: Sequence[Remembered]) -> None:
        if not pieces:
            return
        told = self._callers.setdefault(caller, {})
        self._callers.move_to_end(caller)
        now = self._clock()
        for piece in pieces:
            kept = told.pop((piece.form, piece.pattern), None)
            if kept is None or now - kept.time > self._window_s:
                kept = _Kept(0, 0, now)
            farthest = max(kept.farthest, piece.farthest)
            # Told longest ago stands first.
            told[piece.form, piece.pattern] = _Kept(max(kept.at_end, piece.at_end), farthest, now)
            while len(told) > _MOST_TOLD:
                del told[next(iter(told))]
        while len(self._callers) > self._most_callers:
            self._callers.popitem(last=False)
