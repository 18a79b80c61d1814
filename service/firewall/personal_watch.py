"""Personal data that the model itself utters: found in a reply while it streams.

What the request holds is the caller's own, and no finding where it comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.firewall.asked import CallPart
from service.firewall.personal import Recognise, Scan, Spotted
from service.firewall.watched import Opening, Sight
from service.settings import Pii

GUARD = "pii"
_INLINE_CHARS = 1_000
_JSON_ENDS = ("/arguments", "/partial_json")


class PersonalDataWatch:
    """Opens a watcher for each reply."""

    def __init__(self, settings: Pii, recognise: Recognise) -> None:
        self._settings = settings
        self._recognise = recognise

    def watch(self, opening: Opening) -> PersonalDataWatcher | None:
        """A watcher for one reply; None where nothing is looked for."""
        if self._settings.replies == "allow":
            return None
        return PersonalDataWatcher(self._settings, self._recognise, opening)


class PersonalDataWatcher:
    """Follows one reply (`watched.Watcher`). With `redact` and `block` text waits while it may be part of a datum."""

    guard = GUARD

    def __init__(self, settings: Pii, recognise: Recognise, opening: Opening) -> None:
        self._action = settings.replies
        self._recognise = recognise
        asked = opening.asked
        self._own = (*asked.personal, *opening.user_texts, *opening.system_texts, *asked.results)
        self._channels: dict[str, _Channel] = {}

    def held(self, channel: str, end: int) -> int:
        """The first character of what was not looked at yet."""
        state = self._channels.get(channel)
        if state is None or state.ended or self._action == "flag":
            return end
        return min(state.scan.held, end)

    def clears(self, channel: str, spelled: Sequence[str]) -> bool:
        """Never: words alone do not say it, and to look does not take longer."""
        del channel, spelled
        return False

    async def called(self, parts: Sequence[CallPart]) -> list[Sight]:
        """Nothing: the channels say it."""
        del parts
        return []

    async def feed(self, channel: str, text: str) -> list[Sight]:
        """Look at what is whole with this text."""
        state = self._channels.get(channel)
        if state is None:
            state = self._channels[channel] = _Channel(self._recognise)
        state.take(text)
        found = await asyncio.to_thread(state.scan.feed, text) if len(text) > _INLINE_CHARS else state.scan.feed(text)
        return self._sights(channel, state, found)

    async def end(self, channel: str) -> list[Sight]:
        """Look at the rest of a text."""
        state = self._channels.get(channel)
        if state is None or state.ended:
            return []
        found = state.scan.finish()
        state.ended = True
        return self._sights(channel, state, found)

    async def finish(self) -> list[Sight]:
        """Look at the rest of all texts."""
        return [sight for channel in list(self._channels) for sight in await self.end(channel)]

    def _sights(self, channel: str, state: _Channel, found: Sequence[Spotted]) -> list[Sight]:
        sights: list[Sight] = []
        for seen in found:
            start, text = seen.start, state.slice(seen.start, seen.end)
            if channel.endswith(_JSON_ENDS) and state.slice(start - 1, start) == "\\":
                start, text = start + 1, text[1:]  # the letter belongs to an escape, as the n of a line's end
            if text and not any(text in own for own in self._own):
                sights.append(Sight("pii", self._action, channel, start, seen.end, text, seen.entity, seen.score))
        state.forget()
        return sights


class _Channel:
    """One text: what of it is still looked at."""

    def __init__(self, recognise: Recognise) -> None:
        self.scan = Scan(recognise)
        self.ended = False
        self._text = ""
        self._base = 0

    def take(self, text: str) -> None:
        self._text += text

    def slice(self, start: int, end: int) -> str:
        return self._text[max(start - self._base, 0) : max(end - self._base, 0)]

    def forget(self) -> None:
        """What was looked at; but for the last character, which may begin an escape."""
        first = max(self.scan.held - 1, self._base)
        self._text, self._base = self._text[first - self._base :], first
