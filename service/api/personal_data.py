"""Keeps personal data from the provider: finds them in a request's texts and splices placeholders into its body.

The body with its placeholders is parsed anew, so that what is judged is what is sent. JSON in a string, as the
arguments of a call are, is read as JSON: an escape in it is no part of a datum, and stays whole.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator

from msgspec.structs import replace

from service.api.json_places import Edit, Place, decoded, edited, places, within
from service.api.strict_json import INLINE_BYTES
from service.errors import PayloadTooLarge
from service.firewall.personal import Recognise, spotted_in
from service.firewall.personal_watch import GUARD
from service.firewall.placeholders import Placeholders
from service.firewall.prompt import Prompt
from service.firewall.verdict import Action, Finding, is_new_kind
from service.interfaces import Call, Digest, Hidden
from service.settings import Pii

_MAX_FINDINGS = 64
_MAX_NESTED = 3  # JSON in a string of JSON
_MIN_DIGITS = 9  # of a number that may be somebody's
_CONVERSATION = frozenset({"messages", "input"})
"""Elsewhere a number is no text of the conversation but a setting, and must remain a number."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}\s*")


class PersonalData:
    """`interfaces.PersonalGuard`. `tag` is the keyed hash of placeholders, `digest` that of findings."""

    def __init__(self, settings: Pii, recognise: Recognise, *, tag: Digest, digest: Digest) -> None:
        self._settings = settings
        self._recognise = recognise
        self._tag = tag
        self._digest = digest

    async def hide(self, call: Call, tenant: str, read: Callable[[bytes], Awaitable[Call]]) -> Hidden:
        """The call as it may be sent. Raises PayloadTooLarge for more text than can be looked at, GuardFailed."""
        if self._settings.action == "allow":
            return Hidden(call=call)
        request = _Request(self._settings, self._recognise, Placeholders(self._tag, tenant), self._digest)
        is_short = len(call.body) <= INLINE_BYTES // 64
        looked = request.look(call) if is_short else await asyncio.to_thread(request.look, call)
        if not looked:
            return Hidden(call=call, unjudged=(GUARD,))
        if request.edits:
            body = edited(request.document, request.edits).encode()
            call = replace(call, body=body, prompt=(await read(body)).prompt)
        if request.attached:
            await asyncio.to_thread(request.look_into_attachments, call.prompt)
        values = request.placeholders.values if request.edits and self._settings.restore else {}
        return Hidden(call=call, findings=tuple(request.findings), values=values)


class _Request:
    """One request that is looked at."""

    def __init__(self, settings: Pii, recognise: Recognise, placeholders: Placeholders, digest: Digest) -> None:
        self._settings = settings
        self._recognise = recognise
        self._digest = digest
        self._chars = 0
        self._names: set[str] = set()
        self._read_as: set[tuple[str, str]] = set()
        self.placeholders = placeholders
        self.document = ""
        self.edits: list[Edit] = []
        self.findings: list[Finding] = []
        self.attached: set[str] = set()

    def look(self, call: Call) -> bool:
        """Find what stands in the body; whether it was not too much. Raises PayloadTooLarge where it must be."""
        self.document = call.body.decode()
        roles = {segment.pointer: segment.role for segment in reversed(call.prompt.segments)}
        self._read_as = {(segment.pointer, segment.text) for segment in call.prompt.segments}
        packed: set[str] = set()
        for place in places(self.document, roles):
            if place.role not in self._settings.roles:
                continue
            token = self.document[place.start : place.end]
            self._chars += len(token)
            if self._chars > self._settings.max_chars:
                if self._settings.action == "flag":
                    return False
                limit = self._settings.max_chars
                raise PayloadTooLarge(f"The body holds more than {limit} characters to look for personal data in.")
            text = token if place.is_number else decoded(token)
            if not place.is_name and self._is_packed(text, place.pointer):
                packed.add(place.pointer)
                continue
            found = list(self._in_place(token, text, place, 0))
            for edit in found:
                self._found(edit.why, place, edit)
            if self._settings.action == "redact":
                self.edits += self._spliced(token, place, found)
        self.attached = packed & {segment.pointer for segment in call.prompt.segments}
        return True

    def look_into_attachments(self, prompt: Prompt) -> None:
        """In what nothing can be replaced, what would be is blocked."""
        action: Action = "block" if self._settings.action == "redact" else self._settings.action
        for segment in prompt.segments:
            if segment.pointer in self.attached and segment.role in self._settings.roles:
                for seen in spotted_in(self._recognise, segment.text):
                    text = segment.text[seen.start : seen.end]
                    detail = f"{seen.entity}, in a file"
                    at = (segment.pointer, seen.start, seen.end)
                    self._keep(Finding(GUARD, "pii", seen.score, action, *at, self._digest(text), detail))

    def _in_place(self, token: str, text: str, place: Place, depth: int) -> Iterator[Edit]:
        """What stands at a place, as edits of its text."""
        if place.is_number:
            # In a conversation a number is text as well. In JSON that is a string all of it is.
            if sum(map(str.isdecimal, token)) >= _MIN_DIGITS and (depth or place.top in _CONVERSATION):
                for edit in self._plain(token, place.member):
                    if (edit.start, edit.end) == (0, len(token)):
                        yield edit._replace(new=f'"{edit.new}"')
        elif depth and self._is_packed(text, ""):
            return
        elif depth < _MAX_NESTED and not place.is_name and _is_json(text):
            for inner in places(text, {}):
                part = text[inner.start : inner.end]
                meant = part if inner.is_number else decoded(part)
                yield from self._spliced(part, inner, self._in_place(part, meant, inner, depth + 1))
        else:
            yield from self._plain(text, "" if place.is_name else place.member)

    def _is_packed(self, text: str, pointer: str) -> bool:
        """Whether a string is bytes in other letters, which a change would break, or is read as something else than it
        says: the text behind a `data:` address.
        """
        is_address = text[:5].lower() == "data:"
        payload = text.partition(",")[2] if is_address else text
        return _BASE64.fullmatch(payload) is not None or (
            is_address and bool(pointer) and (pointer, text) not in self._read_as
        )

    def _plain(self, text: str, member: str) -> Iterator[Edit]:
        for seen in spotted_in(self._recognise, text, f"{member}: " if member else ""):
            value = text[seen.start : seen.end]
            new = self.placeholders.of(seen.entity, value)
            yield Edit(seen.start, seen.end, new, (seen.entity, seen.score, value))

    def _spliced(self, token: str, place: Place, found: Iterator[Edit] | list[Edit]) -> list[Edit]:
        """Edits of a place's text as edits of the document that it stands in."""
        if place.is_number:
            return [e._replace(start=place.start + e.start, end=place.start + e.end) for e in found]
        return within(token, place.start, found)

    def _found(self, why: tuple[str, float, str], place: Place, edit: Edit) -> None:
        entity, score, value = why
        if place.is_name:
            self._names.add(value)
        where = place.pointer
        for name in self._names:  # a name that is a datum itself must not be on record
            where = where.replace(name, "*")
        at = (where, edit.start, edit.end)
        self._keep(Finding(GUARD, "pii", score, self._settings.action, *at, self._digest(value), entity))

    def _keep(self, finding: Finding) -> None:
        if len(self.findings) < _MAX_FINDINGS or is_new_kind(finding, self.findings):
            self.findings.append(finding)


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
