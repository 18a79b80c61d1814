"""What stands in a request in the place of personal data, and how it is found again in the reply.

`<EMAIL_ADDRESS_QXKWMTB>`: the kind, so that the model knows what it writes about, and seven letters of a keyed hash of
tenant and value. The same value has the same placeholder in all requests of a tenant, so that a conversation stays one
and the provider's prompt cache holds; another tenant's is another, and nobody without the key can tell what it stands
for or make one up. Nothing is kept: who sends the value again gets the placeholder again.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping

_LETTERS = 7
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Writers of JSON may escape the brackets, and so may a model in the arguments of a call.
_PLACEHOLDER = re.compile(r"(?:<|(?<!\\)\\u003[cC])([A-Z][A-Z0-9_]*_[A-Z]{7,})(?:>|\\u003[eE])")


class Placeholders:
    """Those of one request. `digest` is a keyed hash as hex."""

    def __init__(self, digest: Callable[[str], str], tenant: str) -> None:
        self._digest = digest
        self._tenant = tenant
        self._of: dict[tuple[str, str], str] = {}
        self.values: dict[str, str] = {}

    def of(self, entity: str, value: str) -> str:
        """The placeholder of a value."""
        if (entity, value) in self._of:
            return self._of[entity, value]
        letters = self._letters(f"{self._tenant}\0{entity}\0{value}")
        count = _LETTERS
        # Two values of one request must not share one, however unlikely that is.
        while (made := f"<{entity}_{letters[:count]}>") in self.values:
            count += 1
        self._of[entity, value] = made
        self.values[made] = value
        return made

    def _letters(self, text: str) -> str:
        number = int(self._digest(text), 16)
        letters = []
        for _ in range(20):
            number, rest = divmod(number, len(_ALPHABET))
            letters.append(_ALPHABET[rest])
        return "".join(letters)


class Restored:
    """Finds the placeholders of one request in the texts of its reply."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        bare = [placeholder[1:-1] for placeholder in values]
        spelled = [f"{a}{name}{z}" for name in bare for a, z in (("<", ">"), ("\\u003c", "\\u003e"))]
        self._spelled = sorted(text.lower() for text in spelled)
        self.longest = max(map(len, self._spelled), default=0)

    def spans(self, text: str, start: int = 0) -> list[tuple[int, int, str]]:
        """(start, end, value) of all placeholders from `start` on."""
        found = ((*m.span(), self._values.get(f"<{m.group(1)}>")) for m in _PLACEHOLDER.finditer(text, start))
        return [(first, last, value) for first, last, value in found if value is not None]

    def held(self, text: str) -> int:
        """Where a placeholder may have begun that the text's end has cut off; its length where none has."""
        for at in range(max(0, len(text) - self.longest), len(text)):
            if text[at] in "<\\":
                begun = text[at:].lower()
                index = bisect_left(self._spelled, begun)
                if index < len(self._spelled) and self._spelled[index].startswith(begun):
                    return at
        return len(text)

    def whole(self, text: str) -> str:
        """A text that is complete, with the values in it."""
        parts: list[str] = []
        at = 0
        for first, last, value in self.spans(text):
            parts += (text[at:first], value)
            at = last
        return "".join((*parts, text[at:])) if parts else text
