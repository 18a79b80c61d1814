"""What a call costs beside the texts that are counted: pictures, sound, files, what a provider keeps, and what has a
price of its own.

Sources: OpenAI, "Images and vision: calculating costs" (tiles and patches); Anthropic, "Vision: image costs" and "Tool
use: pricing".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Detail = Literal["low", "high", "original"]
Caching = Literal["", "short", "long"]

_PART_OF_OPENAI = ("gpt-", "chatgpt-", "o1", "o3", "o4", "computer-use")
_ANTHROPIC_MOST = 1_600
_PIXELS_PER_TOKEN = 750
_TOOLS_PREFACE, _DEFINED_TOOL = 530, 800
_TILE, _FIT, _SHORT_SIDE = 512, 2_048, 768
_BASE, _PER_TILE = 85, 170
_DEAR_TILES = (("gpt-4o-mini", 2_833, 5_667),)
"""Models whose tiles cost more; those whose tiles cost a little less are counted like the others."""
_PATCH, _MOST_PATCHES, _MOST_ORIGINAL = 32, 1_536, 10_000
_PER_HUNDRED_PATCHES = (
    ("gpt-4.1-mini", 162),
    ("gpt-4.1-nano", 246),
    ("gpt-5-mini", 162),
    ("gpt-5-nano", 246),
    ("o4-mini", 172),
)


class Picture(msgspec.Struct, frozen=True):
    """Pixels, 0 where nobody here can tell; `detail` as the caller asks for it."""

    width: int = 0
    height: int = 0
    detail: Detail = "high"


class Fee(msgspec.Struct, frozen=True):
    """Something of a request that the prices of a model's tokens do not hold for: its name, and its JSON pointer."""

    name: str
    pointer: str


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """Of one call. `tokens` are those of what is no text, at most. `unknown`: the model also reads what is not known
    here, up to its whole window. `caching`: the prompt may be written to the provider's cache, for minutes or longer.
    `tools` is how many there are, `defined_tools` how many of them are the provider's own.
    """

    pictures: tuple[Picture, ...] = ()
    tokens: int = 0
    unknown: bool = False
    fees: tuple[Fee, ...] = ()
    caching: Caching = ""
    tools: int = 0
    defined_tools: int = 0


NOTHING = Demand()


def picture_tokens(model: str, pictures: Iterable[Picture]) -> int:
    """Tokens that a model's provider bills for pictures; by the dearest formula where the model is not known."""
    name = model.rpartition("/")[2]
    if name.startswith("claude"):
        return sum(map(_by_pixels, pictures))
    if name.startswith(_PART_OF_OPENAI):
        return sum(_of_openai(name, picture) for picture in pictures)
    return sum(max(_by_pixels(picture), _of_openai(name, picture)) for picture in pictures)


def tool_tokens(model: str, demand: Demand) -> int:
    """What a provider itself says to the model of tools, at most, beside what the request says of them."""
    if not demand.tools or not model.rpartition("/")[2].startswith("claude"):
        return 0
    return _TOOLS_PREFACE + _DEFINED_TOOL * demand.defined_tools


def _by_pixels(picture: Picture) -> int:
    pixels = picture.width * picture.height
    return min(_ANTHROPIC_MOST, -(pixels // -_PIXELS_PER_TOKEN)) if pixels else _ANTHROPIC_MOST


def _of_openai(name: str, picture: Picture) -> int:
    for start, per_hundred in _PER_HUNDRED_PATCHES:
        if name.startswith(start):
            return -(_patches(picture, _MOST_PATCHES) * per_hundred // -100)
    base, per_tile = next((costs for start, *costs in _DEAR_TILES if name.startswith(start)), (_BASE, _PER_TILE))
    tiled = base if picture.detail == "low" else base + per_tile * _tiles(picture)
    return max(tiled, _patches(picture, _MOST_ORIGINAL)) if picture.detail == "original" else tiled


def _tiles(picture: Picture) -> int:
    """Of 512 pixels, after the picture has been made to fit into 2,048 and its shorter side into 768."""
    width, height = picture.width or _FIT, picture.height or _SHORT_SIDE
    longer, shorter = max(width, height), min(width, height)
    if longer > _FIT:
        longer, shorter = _FIT, -(shorter * _FIT // -longer)
    if shorter > _SHORT_SIDE:
        longer, shorter = -(longer * _SHORT_SIDE // -shorter), _SHORT_SIDE
    return -(longer // -_TILE) * -(shorter // -_TILE)


def _patches(picture: Picture, most: int) -> int:
    if not (picture.width and picture.height):
        return most
    return min(most, -(picture.width // -_PATCH) * -(picture.height // -_PATCH))
