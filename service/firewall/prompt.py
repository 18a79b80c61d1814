"""What goes in, freed from its wire protocol: every string that a model can read, with its role and its place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Literal

import msgspec

Role = Literal["user", "tool", "document", "system"]
ROLES: tuple[Role, ...] = ("user", "tool", "document", "system")
FOREIGN: frozenset[Role] = frozenset({"tool", "document"})
"""The roles of text that a caller passes on; where nothing else tells, their text is foreign."""


class Segment(msgspec.Struct, frozen=True):
    """One string that the model can read.

    `role` is the trust the text deserves, not the wire's word for it: `tool` also stands for tool definitions, names,
    schemas and assistant turns that the caller sends back; `document` for retrieved text and strings in unknown parts.
    `pointer` is its RFC 6901 JSON pointer. `message` is the index of its message (-1: outside of any message).
    `foreign` text is what a tool gave back or a document holds: an order to the assistant has no business there.
    """

    text: str
    role: Role
    pointer: str
    message: int = -1
    foreign: bool = False

    @property
    def origin(self) -> str:
        """Where foreign text comes from, for the encoder: `tool` or `document`; else empty."""
        return self.role if self.foreign else ""


class Unscannable(msgspec.Struct, frozen=True):
    """Binary content or a remote reference that no text guard can judge; `kind` is for example `image` or `file_id`."""

    pointer: str
    kind: str


class Prompt(msgspec.Struct, frozen=True):
    """Everything of one request that the guards judge. `apart`: nobody reads its texts together."""

    model: str
    segments: tuple[Segment, ...]
    unscannable: tuple[Unscannable, ...] = ()
    apart: bool = False


def joined_segments(prompt: Prompt) -> Iterator[Segment]:
    """Texts that only their neighbourhood makes whole: the parts of one message, and neighbouring user messages.

    An attack split over parts or over turns reads as one text to the model, so it is judged as one. Each joined segment
    carries the pointer of its first part. Nothing is yielded where there is nothing to join.
    """
    turns: list[list[Segment]] = []
    for message, run in groupby(prompt.segments, key=lambda s: s.message):
        if message < 0:
            continue
        # By role, not by neighbourhood: a name or an odd member between two parts must not keep them apart.
        roles: dict[Role, list[Segment]] = {}
        for segment in run:
            roles.setdefault(segment.role, []).append(segment)
        yield from (_join(parts) for parts in roles.values() if len(parts) > 1)
        turns.append(roles.get("user", []))
    for spoken, neighbours in groupby(turns, key=bool):
        said = list(neighbours)
        if spoken and len(said) > 1:
            yield _join([segment for turn in said for segment in turn])


def _join(parts: list[Segment]) -> Segment:
    text, foreign = "\n".join(part.text for part in parts), any(part.foreign for part in parts)
    return msgspec.structs.replace(parts[0], text=text, foreign=foreign)
