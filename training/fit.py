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

from training.attention import without_gathers
from training.corpus import BENIGN
from training.memory import keep_freed_memory
from training.model import FirewallModel
from training.precision import bfloat16_pays
from training.windows import Draws, OnDevice, Windows, alone, batches

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 180.0
LOOK_EVERY = 20
# The step from which the model's own opinion is worth hearing.
OPINION_FROM = 200
# Tokens of another window that are lent at least.
SHORTEST_STRETCH = 8
UNKNOWN = 3


class FitOptions(msgspec.Struct, frozen=True):
    """How to train. A batch is bounded by padded tokens and by windows; `minutes` stops early with the rate at zero.

    An epoch sees every window of the project's and the user's own rows, every mined one, and of the others
    `attack_share` of the attack windows and `benign_share` of the benign ones, different ones in the next epoch: public
    and composed rows are many and say much the same.

    `teacher_weight` multiplies the embedding loss. `distrust` is the share of its own opinion that the model may set
    against the label of a window when only its whole text is known to attack (soft bootstrapping, Reed et al.,
    arXiv:1412.6596). `guidance` is the weight of a larger model's opinion, where there is one, against the label's
    (Hinton et al., arXiv:1503.02531).

    `mix` is the share of the windows with room that get a stretch of a benign window beside them, so that neither
    position nor company says what a text is; `noise` is the mean share of tokens that are replaced; `moved` is the
    share of the windows whose text is said to come from elsewhere (`OnDevice.moved`). `dropout` is none by default: few
    windows are seen twice, and drawing the masks takes an eighth of a processor's time.
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
    guidance: float = 0.5
    mix: float = 0.25
    noise: float = 0.03
    moved: float = 0.15
    dropout: float = 0.0
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
        warm = min(1.0, max(done, 1 / self._steps) / self._options.warmup)
        return self._options.rate * warm * max(0.0, 1.0 - done)


def fit(
    model: FirewallModel,
    windows: Windows,
    teacher: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None,
    folder: Path,
    options: FitOptions,
    pad_id: int,
    always: npt.NDArray[np.bool_] | None = None,
    guide: FirewallModel | None = None,
) -> dict[str, float]:
    """Train in place and return what happened. `teacher` is (vectors float32 (m, hidden), indices of their windows);
    `always` bool (n,) marks the windows that every epoch sees; `guide` is a trained model whose opinion counts too.

    Raises TrainingDiverged. An interrupt leaves the last checkpoint in `folder`, from which the next call goes on.
    """
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    model.to(device)
    without_gathers(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = options.dropout
    planned = _order(windows, np.zeros(len(windows), np.bool_) if always is None else always, options)
    half = bfloat16_pays(device.type)
    log.info("%s, %s", device, "bfloat16" if half else "float32")
    optimiser = torch.optim.AdamW(_groups(model, options), lr=options.rate, betas=(0.9, 0.98), fused=True)
    schedule = _Schedule(options, len(planned))
    loss_of = _Loss(windows, teacher, options, pad_id, device, half, guide)
    checkpoint = folder / "checkpoint.pt"
    step, spent_s = _resume(checkpoint, model, optimiser)
    began = saved = time.monotonic()
    losses: list[Tensor] = []
    model.train()
    with tqdm(total=len(planned), initial=step, desc="train", unit="batch", mininterval=10) as bar:
        while step < len(planned):
            elapsed = spent_s + time.monotonic() - began
            if schedule.progress(step, elapsed) >= 1.0:
                break
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step, elapsed) * group["scale"]
            loss = loss_of(model, planned[step], step)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            losses.append(loss.detach())
            bar.update()
            if step % LOOK_EVERY == 0:  # a look makes a GPU wait
                bar.set_postfix(loss=f"{_mean(losses, checkpoint, step):.3f}", refresh=False)
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                _mean(losses, checkpoint, step)
                _checkpoint(checkpoint, model, optimiser, step, spent_s + time.monotonic() - began)
                saved = time.monotonic()
    final = _mean(losses, checkpoint, step) if losses else math.nan
    elapsed = spent_s + time.monotonic() - began
    model.eval().to("cpu")
    checkpoint.unlink(missing_ok=True)
    return {
        "steps": float(step),
        "planned_steps": float(len(planned)),
        "seconds": elapsed,
        "final_loss": final,
    }


def _mean(losses: list[Tensor], checkpoint: Path, step: int) -> float:
    """The mean of the last hundred losses; the older ones go. Raises TrainingDiverged."""
    del losses[:-100]
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise TrainingDiverged(f"the loss is {mean} before step {step}; the last checkpoint is {checkpoint}")
    return mean


def _order(windows: Windows, always: npt.NDArray[np.bool_], options: FitOptions) -> list[Draws]:
    """The batches of all epochs."""
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
    lenders = np.flatnonzero(~always & ~attack & windows.plain)
    planned: list[Draws] = []
    for epoch in range(math.ceil(options.epochs)):
        parts = []
        for pool, share in pools:
            taken = math.ceil(len(pool) * share)
            parts.append(np.roll(pool, -epoch * taken)[:taken])
        draws = _mixed(np.concatenate(parts), windows, lenders, options.mix, rng)
        lengths = windows.lengths[draws.own] + draws.taken
        order = batches(lengths, options.batch_tokens, options.batch_windows, rng)
        share = min(1.0, options.epochs - epoch)
        planned += [draws[batch] for batch in order[: max(1, round(len(order) * share))]]
    return planned


def _mixed(
    own: npt.NDArray[np.int64],
    windows: Windows,
    lenders: npt.NDArray[np.int64],
    share: float,
    rng: np.random.Generator,
) -> Draws:
    """A `share` of the windows beside a stretch of one of the `lenders`, as long as the room allows or shorter."""
    if not len(lenders):
        return alone(own)
    other = rng.choice(lenders, len(own))
    lengths = windows.lengths
    room = np.minimum(int(lengths[windows.plain].max()) - lengths[own], lengths[other] - 2)
    drawn = (rng.random(len(own)) < share) & (room >= SHORTEST_STRETCH) & windows.plain[own]
    taken = np.where(drawn, rng.integers(SHORTEST_STRETCH, np.maximum(room, SHORTEST_STRETCH) + 1), 0)
    offset = rng.integers(0, np.maximum(lengths[other] - 2 - taken, 0) + 1)
    before = rng.random(len(own)) < 0.5
    return Draws(own, np.where(drawn, other, -1), np.where(drawn, offset, 0), taken, before & drawn)


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


class _Loss:
    """The loss of a batch, all of whose data lie on the device."""

    def __init__(
        self,
        windows: Windows,
        teacher: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None,
        options: FitOptions,
        pad_id: int,
        device: torch.device,
        half: bool,
        guide: FirewallModel | None,
    ) -> None:
        self._options = options
        self._half = half
        self._shelf = OnDevice(windows, pad_id, device)
        self._label = torch.from_numpy(windows.label).to(device)
        self._weight = torch.from_numpy(windows.weight).to(device)
        self._certain = torch.from_numpy(windows.certain).to(device)
        self._guide = guide.to(device).eval() if guide is not None else None
        row = np.full(len(windows), -1, np.int64)
        vectors = np.zeros((0, 1), np.float32)
        if teacher is not None:
            vectors = np.asarray(teacher[0], np.float32)
            row[teacher[1]] = np.arange(len(teacher[1]))
        self._row_of = row
        self._vectors = torch.from_numpy(vectors).to(device)

    def __call__(self, model: FirewallModel, draws: Draws, step: int) -> Tensor:
        options = self._options
        ids, mask = self._shelf.batch(draws)
        own = torch.from_numpy(draws.own).to(ids.device)
        label, weight = self._label[own], self._weight[own]
        ids = self._shelf.moved(ids, label != BENIGN, options.moved)
        seen = self._shelf.noisy(ids, mask, options.noise, UNKNOWN) if options.noise else ids
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._half):
            logits, embedding = model(seen, mask)
        target = nn.functional.one_hot(label, logits.shape[1]).float()
        if self._guide is not None:
            with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=self._half):
                opinion = self._guide(ids, mask)[0].softmax(1)
            target = (1 - options.guidance) * target + options.guidance * opinion
        elif step > OPINION_FROM:
            trust = torch.where(self._certain[own], 0.0, options.distrust)[:, None]
            target = (1 - trust) * target + trust * logits.detach().softmax(1)
        target = (1 - options.smoothing) * target + options.smoothing / logits.shape[1]
        cross_entropy = -(target * logits.log_softmax(1)).sum(1)
        loss: Tensor = (cross_entropy * weight).sum() / weight.sum()
        rows = np.where(draws.other < 0, self._row_of[draws.own], -1)
        known = np.flatnonzero(rows >= 0)
        if len(known) and options.teacher_weight:
            wanted = self._vectors[torch.from_numpy(rows[known]).to(ids.device)]
            held = embedding[torch.from_numpy(known).to(ids.device)]
            loss = loss + options.teacher_weight * (1 - (held * wanted).sum(1)).mean()
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
