"""Whether bfloat16 pays on the machine at hand."""

from __future__ import annotations

import time
from functools import cache

import torch


@cache
def bfloat16_pays(device: str) -> bool:
    """On a GPU it does. On a processor without instructions for it, it is a hundred times slower than float32."""
    if device != "cpu":
        return True

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(256, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype)
        began = time.perf_counter()
        left @ right
        return time.perf_counter() - began

    return min(seconds(torch.bfloat16) for _ in range(4)) < min(seconds(torch.float32) for _ in range(4))
