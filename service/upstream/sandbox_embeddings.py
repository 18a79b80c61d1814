"""The sandbox's vectors: equal inputs have equal ones, and that is all they mean."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from typing import Any

EMBEDDING_MODEL = "sandbox-embedding"

_DIMENSIONS = 256
_MAX_DIMENSIONS = 4_096


def embeddings_of(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request for embeddings."""
    inputs = inputs_of(request.get("input"))
    size = min(request.get("dimensions") or _DIMENSIONS, _MAX_DIMENSIONS)
    data: list[dict[str, Any]] = []
    for index, item in enumerate(inputs):
        vector: Any = _vector(json.dumps(item), size)
        if request.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(len(words_of(item).split()) if isinstance(item, str) else len(item) for item in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": EMBEDDING_MODEL, "usage": usage}


def _vector(text: str, size: int) -> list[float]:
    """`size` numbers from the text's hash, of Euclidean length 1."""
    raw = hashlib.shake_256(text.encode("utf-8", "replace")).digest(4 * size)
    numbers = [number / 2**31 - 1.0 for number in struct.unpack(f"<{size}I", raw)]
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return [number / length for number in numbers]


def inputs_of(value: Any) -> list[Any]:
    """One for each text: strings, or lists of token ids."""
    if value is None:
        return [""]
    single = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    return [value] if single else list(value)


def words_of(item: Any) -> str:
    """An input as text."""
    return item if isinstance(item, str) else f"{len(item)} tokens"
