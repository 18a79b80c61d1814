"""Texts that stand in one string, a list of strings or as token ids: what is embedded, and legacy prompts.

Token ids are text in another spelling: where the model's encoding is known they are decoded and judged as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from service.api.asgi import malformed
from service.api.request_texts import RequestTexts
from service.api.strict_json import pointer
from service.api.texts import Path
from service.errors import PayloadTooLarge
from service.firewall.prompt import Role, Unscannable

Decode = Callable[[str, Sequence[int]], tuple[str, bool] | None]
"""(model, ids) → the text and whether it is all of them; None where the model's encoding is not known."""

_MAX_ID = 2**31


class Inputs(RequestTexts):
    """Collects the texts of one request. `count` is how many were sent, `token_ids` how many tokens came as ids."""

    def __init__(self, model: str, decode: Decode, role: Role) -> None:
        super().__init__()
        self.count = 0
        self.token_ids = 0
        self._model = model
        self._decode = decode
        self._role = role

    def read(self, value: Any, name: str, max_texts: int, message: int = -1) -> None:
        """The member `name`: a string, token ids, or a list of either. Raises MalformedRequest, PayloadTooLarge."""
        if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
            self._one(value, (name,), message)
            return
        if not isinstance(value, list) or not value:
            raise malformed(pointer(name), "a string, or a list of strings or of token ids, not empty")
        if len(value) > max_texts:
            raise PayloadTooLarge(f"More than {max_texts} texts.", pointer=pointer(name))
        for index, item in enumerate(value):
            self._one(item, (name, index), message)

    def _one(self, value: Any, path: Path, message: int) -> None:
        self.count += 1
        if isinstance(value, str):
            self.text(value, path, self._role, message)
            return
        if not isinstance(value, list):
            raise malformed(pointer(*path), "a string or a list of token ids")
        for index, item in enumerate(value):
            if type(item) is not int or not 0 <= item < _MAX_ID:
                raise malformed(pointer(*path, index), "a token id")
        self.token_ids += len(value)
        text, complete = self._decode(self._model, value) or ("", False)
        self.text(text.replace("\x00", ""), path, self._role, message)
        if value and not complete:
            self.unscannable.append(Unscannable(pointer(*path), "token_ids"))
