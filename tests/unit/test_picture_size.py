"""How large a picture is, and how many tokens it is billed as."""

from __future__ import annotations

import base64
import struct

import pytest

from service.api.picture_size import size_of
from service.tenancy.demand import Picture, picture_tokens


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII5xI", 13, b"IHDR", width, height, 0)


def jpeg(width: int, height: int, before: bytes = b"") -> bytes:
    return b"\xff\xd8" + before + struct.pack(">HHBHH", 0xFFC2, 17, 8, height, width) + bytes(20)


def webp(kind: bytes, rest: bytes) -> bytes:
    return b"RIFF\x00\x00\x00\x00WEBP" + kind + struct.pack("<I", len(rest)) + rest


PREVIEW = struct.pack(">HH", 0xFFE1, 60_002) + jpeg(1, 1).ljust(60_000, b"\0")
PICTURES = [
    png(800, 600),
    b"GIF89a" + struct.pack("<HH", 800, 600) + bytes(10),
    jpeg(800, 600),
    jpeg(800, 600, PREVIEW + b"\xff"),
    webp(b"VP8X", bytes(4) + struct.pack("<I", 799)[:3] + struct.pack("<I", 599)[:3]),
    webp(b"VP8L", b"\x2f" + struct.pack("<I", 799 | 599 << 14) + bytes(8)),
    webp(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 800, 600 | 0x4000)),
]


@pytest.mark.parametrize("raw", PICTURES)
def test_the_size_of_a_picture_stands_in_its_first_bytes(raw: bytes) -> None:
    data = base64.b64encode(raw).decode()
    assert size_of(data) == (800, 600)
    assert size_of(f"data:image/any;base64,{data}") == (800, 600)


@pytest.mark.parametrize("raw", PICTURES)
def test_no_part_of_a_header_is_taken_for_another_size(raw: bytes) -> None:
    for end in range(len(raw) if len(raw) < 100 else 0):
        assert size_of(base64.b64encode(raw[:end]).decode()) in {None, (800, 600)}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "https://example.org/a.png",
        "file-abc",
        "data:image/png,%89PNG",
        "data:" + "x" * 1_000,
        base64.b64encode(png(800, 600)).decode()[:20] + "\n" + base64.b64encode(png(800, 600)).decode()[20:],
        base64.b64encode(png(0, 600)).decode(),
        base64.b64encode(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 10_000 + jpeg(1, 1)[2:]).decode(),
        base64.b64encode(b"%PDF-1.4" + bytes(50)).decode(),
    ],
)
def test_what_cannot_be_read_without_doubt_has_no_size(value: str) -> None:
    assert size_of(value) is None


@pytest.mark.parametrize(
    ("model", "picture", "tokens"),
    [
        # The examples of OpenAI's guide, and Anthropic's.
        ("gpt-4o", Picture(1024, 1024), 765),
        ("gpt-4o", Picture(2048, 4096), 1_105),
        ("gpt-4o", Picture(4096, 8192, "low"), 85),
        ("gpt-4.1-mini", Picture(1024, 1024), 1_659),
        ("claude-sonnet-4-5", Picture(1000, 1000), 1_334),
        ("claude-sonnet-4-5", Picture(200, 200), 54),
        # The worst case, where the size is not known.
        ("gpt-4o", Picture(), 1_445),
        ("openai/gpt-4o-mini", Picture(), 2_833 + 8 * 5_667),
        ("claude-sonnet-4-5", Picture(), 1_600),
        ("gpt-4o", Picture(detail="original"), 10_000),
        ("somebody-elses", Picture(), 1_600),
        ("somebody-elses", Picture(1024, 1024), 1_399),
    ],
)
def test_a_picture_costs_what_its_provider_s_formula_says(model: str, picture: Picture, tokens: int) -> None:
    assert picture_tokens(model, [picture]) == tokens


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 60_000), (513, 513), (2_048, 768), (3_000, 700)])
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "o4-mini", "claude-3-haiku", "other"])
def test_no_size_costs_more_than_one_that_is_not_known(model: str, size: tuple[int, int]) -> None:
    assert 0 < picture_tokens(model, [Picture(*size)]) <= picture_tokens(model, [Picture()])
