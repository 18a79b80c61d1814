"""The same int8 weights written as signed numbers, where the processor multiplies those faster.

ONNX Runtime multiplies unsigned activations by signed weights with VNNI instructions, and by unsigned ones without. A
file of unsigned weights is exact everywhere (decision 0011); subtracting 128 from weights and zero points changes no
product, only the type. So the file is rewritten in memory at start, bit for bit the same model (decision 0015).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

VNNI = frozenset(["avx512_vnni", "avx_vnni"])

# Field numbers and types of onnx.proto3 (ONNX IR), and wire types of Protocol Buffers.
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_OP = 1, 4
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 2, 8, 9
_UINT8, _INT8 = 2, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@cache
def signed_pays() -> bool:
    """Whether this processor has the instructions; False where nobody can tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not VNNI.isdisjoint(flags)


def with_signed_weights(model: bytes) -> bytes | None:
    """The serialised model with signed MatMulInteger weights; None where it has none that could be changed in place.

    Raises ValueError for bytes that are no serialised model.
    """
    data = bytearray(model)
    graphs = [(field.start, field.end) for field in _fields(data, 0, len(data)) if field.number == _GRAPH]
    if len(graphs) != 1:
        raise ValueError("not one graph")
    top = list(_fields(data, *graphs[0]))
    wanted: set[bytes] = set()
    for node in top:
        if node.number == _NODE:
            parts = list(_fields(data, node.start, node.end))
            if any(part.number == _NODE_OP and data[part.start : part.end] == b"MatMulInteger" for part in parts):
                inputs = [bytes(data[part.start : part.end]) for part in parts if part.number == _NODE_INPUT]
                wanted |= set(inputs[1:2] + inputs[3:4])
    found = 0
    view = np.frombuffer(data, np.uint8)
    for tensor in top:
        if tensor.number != _INITIALIZER:
            continue
        of = {part.number: part for part in _fields(data, tensor.start, tensor.end)}
        if _TENSOR_NAME not in of or bytes(data[of[_TENSOR_NAME].start : of[_TENSOR_NAME].end]) not in wanted:
            continue
        kind = of[_TENSOR_TYPE].start
        if data[kind] != _UINT8 or _TENSOR_RAW not in of:
            return None
        view[kind] = _INT8
        view[of[_TENSOR_RAW].start : of[_TENSOR_RAW].end] ^= 0x80
        found += 1
    return bytes(data) if wanted and found == len(wanted) else None


class _Field(msgspec.Struct, frozen=True):
    """Where a field's value lies; for a varint `start` is its first byte."""

    number: int
    start: int
    end: int


def _fields(data: bytearray, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == _VARINT:
            begin = at
            _, at = _varint(data, at, end)
        elif kind in (_FIXED32, _FIXED64):
            begin, at = at, at + (4 if kind == _FIXED32 else 8)
        elif kind == _BYTES:
            size, begin = _varint(data, at, end)
            at = begin + size
        else:
            raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("a field ends after its message")
        yield _Field(key >> 3, begin, at)


def _varint(data: bytearray, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise ValueError("a varint without an end")
