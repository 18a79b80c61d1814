"""Labelled windows as flat arrays: on disk, on the device, and in batches of similar length.

Nothing here needs more than numpy and torch, so that a machine that only trains can do without the service.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NO_ROW = -1
"""The `row` of a window that is a prompt beside a reply (`training.told`)."""


class Windows(msgspec.Struct, frozen=True):
    """All windows of a set of rows, flat.

    `ids` int32 (tokens,), `starts` int64 (n + 1,), `label` int64 (n,), `row` int64 (n,), `weight` float32 (n,).
    `certain` bool (n,): false where an attack text has several windows and nobody knows which of them attack.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    certain: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label)

    def tokens(self, index: int) -> npt.NDArray[np.int32]:
        """The token ids of one window, specials included."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per window, int64 (n,)."""
        return np.diff(self.starts)

    @property
    def plain(self) -> npt.NDArray[np.bool_]:
        """Which windows are a stretch of one row's text, bool (n,)."""
        return np.not_equal(self.row, NO_ROW)


def joined(first: Windows, second: Windows) -> Windows:
    """The windows of both, in this order."""
    parts = {name: (getattr(first, name), getattr(second, name)) for name in first.__struct_fields__}
    parts["starts"] = (first.starts, second.starts[1:] + first.starts[-1])
    return Windows(**{name: np.concatenate(values) for name, values in parts.items()})


def save(windows: Windows, path: Path) -> None:
    """Write aside, then rename."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **msgspec.structs.asdict(windows))
    partial.rename(path)


def load(path: Path) -> Windows:
    """Read what `save` wrote."""
    with np.load(path) as data:
        return Windows(**{name: data[name] for name in data.files})


def batches(
    lengths: npt.NDArray[np.int64], budget: int, most: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Indices of windows in batches of similar length: at most `budget` padded tokens and `most` windows each.

    The windows are shuffled, sorted by length within pools, cut, and the batches shuffled again.
    """
    order = rng.permutation(len(lengths))
    cut: list[npt.NDArray[np.int64]] = []
    pool = most * 64
    for at in range(0, len(order), pool):
        part = order[at : at + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        start = 0
        while start < len(part):
            ahead = lengths[part[start : start + most]]
            fit = int(np.count_nonzero(ahead * np.arange(1, len(ahead) + 1) <= budget))
            cut.append(part[start : start + max(1, fit)])
            start += max(1, fit)
    return [cut[i] for i in rng.permutation(len(cut))]


class Draws(msgspec.Struct, frozen=True):
    """What is trained on: windows, some of them beside a stretch of another one.

    All int64 (n,): `own` the window whose label counts, `other` the one that lends a stretch (-1: none), `offset` and
    `taken` where the stretch begins in it and how long it is. `before` bool (n,): the stretch stands first.
    """

    own: npt.NDArray[np.int64]
    other: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    taken: npt.NDArray[np.int64]
    before: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, chosen: npt.NDArray[np.int64]) -> Draws:
        return Draws(*(getattr(self, name)[chosen] for name in self.__struct_fields__))


def alone(own: npt.NDArray[np.int64]) -> Draws:
    """Windows as they are."""
    zeros = np.zeros(len(own), np.int64)
    return Draws(own, zeros - 1, zeros, zeros, zeros.astype(np.bool_))


class OnDevice:
    """All windows in the device's memory, to make padded batches of without a copy from the host."""

    def __init__(self, windows: Windows, pad_id: int, device: torch.device) -> None:
        self._flat = torch.from_numpy(windows.ids).to(device)
        self._starts = torch.from_numpy(windows.starts).to(device)
        self._last = int(windows.ids[windows.starts[1] - 1])
        self._firsts = torch.from_numpy(np.unique(windows.ids[windows.starts[:-1][windows.plain]])).long().to(device)
        self._specials = torch.cat([self._firsts, self._firsts.new_tensor([self._last])])
        self._lengths = windows.lengths
        self._pad_id = pad_id
        self._device = device

    def batch(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both int64 (n, longest), on the device."""
        inner = self._lengths[draws.own] - 2
        longest = int((inner + draws.taken).max()) + 2
        own, other, offset, lent, length, before = (
            torch.from_numpy(values).to(self._device, non_blocking=True)[:, None]
            for values in (draws.own, draws.other.clip(min=0), draws.offset, draws.taken, inner, draws.before)
        )
        at = torch.arange(longest, device=self._device)[None, :] - 1
        first = torch.where(before, lent, length)
        in_first = at < first
        lending = in_first == before
        source = torch.where(lending, self._starts[other] + 1 + offset, self._starts[own] + 1)
        source = source + torch.where(in_first, at, at - first)
        ids = self._flat[source.clamp(0, len(self._flat) - 1)].long()
        end = lent + length
        ids = torch.where(at < end, ids, self._pad_id)
        ids = torch.where(at == end, self._last, ids)
        ids[:, 0] = self._flat[self._starts[own[:, 0]]].long()
        return ids, (at <= end).long()

    def moved(self, ids: Tensor, attacks: Tensor, share: float) -> Tensor:
        """The ids with the first token of a `share` of the rows replaced: an attack's by any, a benign text's by the
        usual one. What is harmless where no order belongs is harmless everywhere, but not the reverse.
        """
        hit = (torch.rand(len(ids), device=ids.device) < share) & torch.isin(ids[:, 0], self._firsts)
        any_of = self._firsts[torch.randint(len(self._firsts), (len(ids),), device=ids.device)]
        other = torch.where(attacks, any_of, self._firsts.min())
        return torch.cat([torch.where(hit, other, ids[:, 0])[:, None], ids[:, 1:]], 1)

    def noisy(self, ids: Tensor, mask: Tensor, rate: float, unknown: int) -> Tensor:
        """The ids with about twice `rate` of the tokens replaced in half of the rows: by `unknown`, or by any token."""
        odds = 2 * rate * (torch.rand(len(ids), 1, device=ids.device) < 0.5)
        hit = (torch.rand(ids.shape, device=ids.device) < odds) & (mask == 1)
        hit &= ~torch.isin(ids, self._specials)
        hit[:, 0] = False
        random = self._flat[torch.randint(len(self._flat), ids.shape, device=ids.device)].long()
        random = torch.where(torch.isin(random, self._specials), unknown, random)
        other = torch.where(torch.rand(ids.shape, device=ids.device) < 0.5, random, unknown)
        return torch.where(hit, other, ids)
