"""Which benign windows the model is wrong about now: the ones to train on, since a threshold lies in their tail.

Random benign windows are mostly easy, and teach a model that has seen thousands of them nothing. Scoring costs a third
of what training on a window costs, so a scored share that keeps its hardest quarter is the better use of the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from training.attention import without_gathers
from training.corpus import BENIGN
from training.model import FirewallModel
from training.precision import bfloat16_pays
from training.windows import OnDevice, Windows, alone, batches

SAVE_EVERY_S = 120.0
BATCH_TOKENS = 4_096
BATCH_WINDOWS = 96
# The share of the scored windows that are hard enough to be trained on in every epoch.
KEEP = 0.25


def score(
    model: FirewallModel,
    windows: Windows,
    pool: npt.NDArray[np.bool_],
    path: Path,
    *,
    pad_id: int,
    share: float = 0.45,
    seed: int = 1,
) -> npt.NDArray[np.float32]:
    """The model's probability of an attack for a random `share` of the benign windows in `pool` bool (n,).

    float32 (n,), NaN where none was taken; saved to `path` as they come, and a second call goes on from there.
    """
    scores = np.load(path) if path.exists() else np.full(len(windows), np.nan, np.float32)
    rng = np.random.default_rng(seed)
    candidates = rng.permutation(np.flatnonzero(pool & (windows.label == BENIGN)))
    candidates = candidates[: round(len(candidates) * share)]
    left = candidates[np.isnan(scores[candidates])]
    saved = time.monotonic()
    with tqdm(total=len(left), desc="mining", unit="window", mininterval=10) as bar:
        for chosen, logits in judged(model, windows, left, pad_id, rng):
            scores[chosen] = 1.0 - logits.softmax(1)[:, BENIGN].cpu().numpy()
            bar.update(len(chosen))
            if time.monotonic() - saved > SAVE_EVERY_S:
                _save(scores, path)
                saved = time.monotonic()
    _save(scores, path)
    return scores


def judged(
    model: FirewallModel,
    windows: Windows,
    chosen: npt.NDArray[np.int64],
    pad_id: int,
    rng: np.random.Generator,
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """The chosen windows batch by batch: their indices, and their logits float32 (n, labels) on the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    without_gathers(model)
    shelf = OnDevice(windows, pad_id, device)
    times = 1 if device.type == "cpu" else 16
    for batch in batches(windows.lengths[chosen], BATCH_TOKENS * times, BATCH_WINDOWS * times, rng):
        ids, mask = shelf.batch(alone(chosen[batch]))
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device.type)):
            logits, _ = model(ids, mask)
        yield chosen[batch], logits
    model.to("cpu")


def hardest(scores: npt.NDArray[np.float32], keep: float = KEEP) -> npt.NDArray[np.bool_]:
    """Mark the `keep` of the scored windows that the model holds most for attacks; bool (n,)."""
    scored = np.flatnonzero(~np.isnan(scores))
    marked = np.zeros(len(scores), np.bool_)
    marked[scored[np.argsort(-scores[scored], kind="stable")[: round(len(scored) * keep)]]] = True
    return marked


def _save(scores: npt.NDArray[np.float32], path: Path) -> None:
    partial = path.with_suffix(".partial.npy")
    np.save(partial, scores)
    partial.rename(path)
