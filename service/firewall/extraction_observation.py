"""What one call shows of whoever copies a model: where its text lies, which texts it resembles, what it asks beside.

Nothing of the text is kept but hashes: a MinHash (Broder 1997) over eight-byte shingles, and the hashes of its two
ends, which a template keeps while its slot varies.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from service.firewall.prompt import Prompt

HASHES = 8
_SHINGLE_BYTES = 8
_EDGE_BYTES = 24
_READ_BYTES = 256  # of each end of a text: templates show there, and long texts cost no more than short ones
_SHORT_TOKENS = 4

_MIX = np.uint64(0x9E3779B97F4A7C15)
# Odd multipliers: multiplying by one permutes the 32-bit numbers.
_MULTIPLIERS = np.random.default_rng(20240311).integers(0, 2**32, HASHES, np.uint32) | np.uint32(1)

Signature = npt.NDArray[np.uint32]
"""uint32 (HASHES + 3,): the minima, then the hashes of head, tail and whole."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What a call asks of the model's sampling. `bias` is a hash of its logit biases, 0 where there are none;
    `output_tokens` bounds one answer, `answers` is how many are asked for.
    """

    logprobs: bool = False
    bias: int = 0
    temperature: float | None = None
    answers: int = 1
    output_tokens: int | None = None

    @property
    def greedy(self) -> bool:
        """The likeliest token is asked for, expressly."""
        return self.temperature == 0

    @property
    def short(self) -> bool:
        """No more than a label can be answered."""
        return self.output_tokens is not None and self.output_tokens <= _SHORT_TOKENS

    @property
    def probes(self) -> bool:
        """The distribution itself is asked for or bent."""
        return self.logprobs or self.bias != 0


class Observation(msgspec.Struct, frozen=True, eq=False):
    """One call. `cell` is the coarse cell of its text (-1: not known), `single` says that no earlier turn stands
    before it, `at_s` is a time in seconds that does not go back.
    """

    at_s: float
    signature: Signature
    cell: int = -1
    single: bool = True
    sampling: Sampling = Sampling()


def observe(prompt: Prompt, sampling: Sampling, cell: int, at_s: float) -> Observation:
    """What this call shows."""
    return Observation(at_s, signature_of(asked(prompt)), cell, is_single(prompt), sampling)


def asked(prompt: Prompt) -> str:
    """What is asked now: the user texts of the last message that has any, else the last text."""
    users = [segment for segment in prompt.segments if segment.role == "user"]
    if not users:
        return prompt.segments[-1].text if prompt.segments else ""
    return "\n".join(segment.text for segment in users if segment.message == users[-1].message)


def is_single(prompt: Prompt) -> bool:
    """Whether the call is no later turn of a conversation."""
    turns = {
        segment.message for segment in prompt.segments if segment.role in {"user", "tool"} and segment.message >= 0
    }
    return len(turns) <= 1


def signature_of(text: str) -> Signature:
    """Hashes by which near-duplicates are known: uint32 (HASHES + 3,). Reads the two ends of long texts."""
    raw = text.encode("utf-8", "surrogatepass")
    shown = raw[:_READ_BYTES] + raw[-_READ_BYTES:] if len(raw) > 2 * _READ_BYTES else raw
    shown = shown.ljust(_SHINGLE_BYTES)
    signature = np.empty(HASHES + 3, np.uint32)
    words = np.ndarray(len(shown) - _SHINGLE_BYTES + 1, np.uint64, shown, strides=(1,)).copy()
    mixed = ((words ^ (words >> np.uint64(29))) * _MIX >> np.uint64(32)).astype(np.uint32)
    signature[:HASHES] = (_MULTIPLIERS[:, None] * mixed).min(axis=1)
    signature[HASHES:] = [zlib.crc32(raw[:_EDGE_BYTES]), zlib.crc32(raw[-_EDGE_BYTES:]), zlib.crc32(raw)]
    return signature


def bias_hash(biases: Iterable[tuple[str, object]]) -> int:
    """A hash of logit biases, the same in whatever order they stand; never 0."""
    return zlib.crc32(repr(sorted(biases, key=lambda bias: bias[0])).encode("utf-8", "surrogatepass")) or 1
