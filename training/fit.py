"""Training of both heads: cross-entropy on the labels, and the embedding held to the base's own vectors.

Resumable: the order of batches follows from the seed, so a checkpoint is the weights, the optimiser and a step number.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.corpus import BENIGN
from training.encode import Windows, batches
from training.memory import keep_freed_memory
from training.model import FirewallModel, pad
from training.precision import bfloat16_pays

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 180.0


class FitOptions(msgspec.Struct, frozen=True):
    """How to train. A batch is bounded by padded tokens and by windows; `minutes` stops early with the rate at zero.

    An epoch sees every window of the project's and the user's own rows, every mined one, and of the others
    `attack_share` of the attack windows and `benign_share` of the benign ones, different ones in the next epoch: public
    and composed rows are many and say much the same.

    `teacher_weight` multiplies the embedding loss. `distrust` is the share of its own opinion that the model may set
    against the label of a window when only its whole text is known to attack (soft bootstrapping, Reed et al.,
    arXiv:1412.6596).
    """

    epochs: float = 2.5
    attack_share: float = 0.6
    benign_share: float = 0.25
    rate: float = 2e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    batch_tokens: int = 3_072
    batch_windows: int = 64
    smoothing: float = 0.02
    teacher_weight: float = 2.0
    distrust: float = 0.6
    minutes: float = 60.0
    seed: int = 1


class TrainingDiverged(RuntimeError):
    """The loss is not a number; the last checkpoint is kept."""


class _Schedule:
    """Linear warm-up, then a straight line to zero at whichever of steps and minutes ends first."""

    def __init__(self, options: FitOptions, steps: int) -> None:
        self._options = options
        self._steps = steps

    def progress(self, step: int, elapsed_s: float) -> float:
        return max(step / self._steps, elapsed_s / (self._options.minutes * 60))

    def rate(self, step: int, elapsed_s: float) -> float:
        done = self.progress(step, elapsed_s)
        warm = min(1.0, (step + 1) / max(1.0, self._options.warmup * self._steps))
        return self._options.rate * warm * max(0.0, 1.0 - done)


def fit(
    model: FirewallModel,
    windows: Windows,
    teacher: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None,
    folder: Path,
    options: FitOptions,
    pad_id: int,
    always: npt.NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Train in place and return what happened. `teacher` is (vectors float32 (m, hidden), indices of their windows);
    `always` bool (n,) marks the windows that every epoch sees.

    Raises TrainingDiverged. An interrupt leaves the last checkpoint in `folder`, from which the next call goes on.
    """
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    model.to(device)
    schedule_batches = _order(windows, np.zeros(len(windows), np.bool_) if always is None else always, options)
    half = bfloat16_pays(device.type)
    log.info("%s, %s", device, "bfloat16" if half else "float32")
    optimiser = torch.optim.AdamW(_groups(model, options), lr=options.rate, betas=(0.9, 0.98), fused=True)
    schedule = _Schedule(options, len(schedule_batches))
    target_row = np.full(len(windows), -1, np.int64)
    vectors = torch.zeros((0, 1))
    if teacher is not None:
        target_row[teacher[1]] = np.arange(len(teacher[1]))
        vectors = torch.from_numpy(np.asarray(teacher[0], np.float32))
    checkpoint = folder / "checkpoint.pt"
    step, spent_s = _resume(checkpoint, model, optimiser)
    began = saved = time.monotonic()
    losses: list[float] = []
    model.train()
    with tqdm(total=len(schedule_batches), initial=step, desc="train", unit="batch", mininterval=10) as bar:
        while step < len(schedule_batches):
            elapsed = spent_s + time.monotonic() - began
            if schedule.progress(step, elapsed) >= 1.0:
                break
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step, elapsed) * group["scale"]
            chosen = schedule_batches[step]
            loss = _loss(model, windows, chosen, vectors, target_row, options, pad_id, device, half, step)
            if not math.isfinite(loss.item()):
                raise TrainingDiverged(f"loss is {loss.item()} at step {step}; the last checkpoint is {checkpoint}")
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{np.mean(losses[-100:]):.3f}", refresh=False)
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                _checkpoint(checkpoint, model, optimiser, step, spent_s + time.monotonic() - began)
                saved = time.monotonic()
    elapsed = spent_s + time.monotonic() - began
    model.eval().to("cpu")
    checkpoint.unlink(missing_ok=True)
    return {
        "steps": float(step),
        "planned_steps": float(len(schedule_batches)),
        "seconds": elapsed,
        "final_loss": float(np.mean(losses[-100:])) if losses else math.nan,
    }


def _order(windows: Windows, always: npt.NDArray[np.bool_], options: FitOptions) -> list[npt.NDArray[np.int64]]:
    rng = np.random.default_rng(options.seed)
    attack = windows.label != BENIGN
    pools = [
        (rng.permutation(np.flatnonzero(chosen)), share)
        for chosen, share in (
            (always, 1.0),
            (~always & attack, options.attack_share),
            (~always & ~attack, options.benign_share),
        )
    ]
    planned: list[npt.NDArray[np.int64]] = []
    for epoch in range(math.ceil(options.epochs)):
        parts = []
        for pool, share in pools:
            taken = math.ceil(len(pool) * share)
            parts.append(np.roll(pool, -epoch * taken)[:taken])
        chosen = np.concatenate(parts)
        order = batches(windows.lengths[chosen], options.batch_tokens, options.batch_windows, rng)
        share = min(1.0, options.epochs - epoch)
        planned += [chosen[batch] for batch in order[: max(1, round(len(order) * share))]]
    return planned


def _groups(model: FirewallModel, options: FitOptions) -> list[dict[str, object]]:
    """The new head learns faster than the warm body; tables, biases and norms do not decay."""
    decayed, plain, head = [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith("head."):
            head.append(parameter)
        elif parameter.ndim < 2 or "embeddings" in name:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    return [
        {"params": decayed, "weight_decay": options.weight_decay, "scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "scale": 1.0},
        {"params": head, "weight_decay": 0.0, "scale": 3.0},
    ]


def _loss(
    model: FirewallModel,
    windows: Windows,
    chosen: npt.NDArray[np.int64],
    vectors: Tensor,
    target_row: npt.NDArray[np.int64],
    options: FitOptions,
    pad_id: int,
    device: torch.device,
    half: bool,
    step: int,
) -> Tensor:
    ids, mask = pad([windows.tokens(i).tolist() for i in chosen], pad_id)
    label = torch.from_numpy(windows.label[chosen]).to(device)
    weight = torch.from_numpy(windows.weight[chosen]).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        logits, embedding = model(ids.to(device), mask.to(device))
    target = nn.functional.one_hot(label, logits.shape[1]).float()
    if step > 200:  # an opinion worth hearing
        trust = torch.from_numpy(np.where(windows.certain[chosen], 0.0, options.distrust).astype(np.float32))
        trust = trust.to(device).unsqueeze(1)
        target = (1 - trust) * target + trust * logits.detach().softmax(1)
    target = (1 - options.smoothing) * target + options.smoothing / logits.shape[1]
    cross_entropy = -(target * logits.log_softmax(1)).sum(1)
    loss: Tensor = (cross_entropy * weight).sum() / weight.sum()
    rows = target_row[chosen]
    known = np.flatnonzero(rows >= 0)
    if len(known) and options.teacher_weight:
        wanted = vectors[rows[known]].to(device)
        loss = loss + options.teacher_weight * (1 - (embedding[known] * wanted).sum(1)).mean()
    return loss


def _checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, spent_s: float) -> None:
    partial = path.with_suffix(".partial")
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "spent_s": spent_s}
    torch.save(state, partial)
    partial.rename(path)


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    log.info("resuming %s at step %d", path, state["step"])
    return int(state["step"]), float(state["spent_s"])
