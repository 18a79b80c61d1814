"""What a source, an ingredient, a seed is worth: short trainings of the same length, each without something.

`python -m training.study RUN` reads what `training.pipeline --pack` left. *Leave one source out*: the share of the
attacks of a source that a model finds which saw neither the source nor rows composed of it, at 1 % false positives on
the calibration's benign texts. *Ablation*: the calibration's recall without one ingredient. The trainings are far
shorter than a real one: the figures compare with each other, not with the artifact's.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from training import fit, mining, model
from training.corpus import BENIGN
from training.e5_file import E5
from training.learn import Parcel, unpack
from training.metrics import auc, recall_at
from training.windows import Windows, load

log = logging.getLogger(__name__)

# Sources that are left out together, since they were made in one way or by one hand.
LEFT_OUT = {
    "public jailbreaks": ("inthewild_jailbreaks", "self_reminder", "gptfuzz", "pyrit", "garak"),
    "competition overrides": ("hackaprompt",),
    "public injections": ("purplellama_pi", "spikee_seeds", "bipia"),
    "prompt extraction queries": ("prompt_extraction",),
    "written subtle orders": ("written_subtle", "written_quiet"),
    "written agent hijacks": ("written_agents", "written_agent", "written_toolresults"),
    "written personas": ("written_personas", "written_modern_personas", "written_masks"),
    "written languages": ("written_languages", "written_multilingual", "written_voices"),
}
PLAIN = {"mix": 0.0, "noise": 0.0, "teacher_weight": 0.0, "smoothing": 0.0, "distrust": 0.0}


class Trial(msgspec.Struct, frozen=True):
    """One short training: `without` are beginnings of origins to leave out, `changed` other options."""

    name: str
    kind: str
    without: tuple[str, ...] = ()
    changed: dict[str, float] = {}


def trials(seeds: int) -> list[Trial]:
    """Everything that is tried, the plain run first."""
    return [
        *(Trial(f"seed {seed}", "seed", changed={"seed": seed}) for seed in range(1, seeds + 1)),
        *(Trial(name, "left out", without) for name, without in LEFT_OUT.items()),
        Trial("composed rows", "ablation", ("composed",)),
        Trial("written rows", "ablation", ("written", "composed:written")),
        Trial("transformed copies", "ablation", ("+",)),
        *(Trial(name, "ablation", changed={name: value}) for name, value in PLAIN.items()),
    ]


def mentions(origin: str, without: Sequence[str]) -> bool:
    """Whether an origin falls under one of the beginnings; "+" means transformed copies."""
    if "+" in without and origin.endswith("+"):
        return True
    source, _, made_of = origin.rstrip("+").partition(":")
    names = [source, f"{source}:{made_of}", *made_of.split()]
    return any(name.startswith(begin) for name in names for begin in without if begin != "+")


def run(trial: Trial, e5: E5, parcel: Parcel, windows: Windows, calib: Windows, minutes: float) -> dict[str, Any]:
    """Train without what the trial leaves out; what the model finds."""
    left = np.asarray([mentions(name, trial.without) for name in parcel.origins])[np.asarray(parcel.origin)]
    always = np.zeros(len(windows), np.bool_)
    always[parcel.always] = True
    options = msgspec.structs.replace(parcel.course.fit, minutes=minutes, **trial.changed)
    chosen = _only(windows, ~left)
    torch.manual_seed(int(options.seed))
    made = model.warm_start(e5, range(len(e5.pieces)), parcel.course.layers)
    with tempfile.TemporaryDirectory() as scratch:
        figures = fit.fit(made, chosen, None, Path(scratch), options, e5.pad_id, always[~left])
    attack, scores = by_text(calib, score(made, calib, e5.pad_id))
    found: dict[str, Any] = {"kind": trial.kind, "steps": figures["steps"], "windows": int((~left).sum())}
    found["calib"] = _figures(scores[attack], scores[~attack])
    if trial.kind == "left out":
        plain = np.asarray([":" not in name and not name.endswith("+") for name in parcel.origins])
        unseen = _only(windows, left & plain[np.asarray(parcel.origin)])
        attacks, of_unseen = by_text(unseen, score(made, unseen, e5.pad_id))
        found["unseen"] = _figures(of_unseen[attacks], scores[~attack])
    return found


def by_text(windows: Windows, scores: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Whether each text attacks, bool (n,), and its highest window's score, float64 (n,)."""
    _, text = np.unique(windows.row, return_inverse=True)
    highest = np.full(text.max(initial=-1) + 1, -np.inf)
    np.maximum.at(highest, text, scores)
    attack = np.zeros(len(highest), np.bool_)
    attack[text[windows.label != BENIGN]] = True
    return attack, highest


def score(made: model.FirewallModel, windows: Windows, pad_id: int) -> npt.NDArray[np.float64]:
    """Log odds of an attack, float64 (n,)."""
    scores = np.empty(len(windows))
    for chosen, logits in mining.judged(made, windows, np.arange(len(windows)), pad_id, np.random.default_rng(0)):
        others = torch.cat([logits[:, :BENIGN], logits[:, BENIGN + 1 :]], 1).logsumexp(1)
        scores[chosen] = (others - logits[:, BENIGN]).cpu().numpy()
    return scores


def _figures(attack: npt.NDArray[np.float64], benign: npt.NDArray[np.float64]) -> dict[str, Any]:
    return {
        "auc": auc(attack, benign),
        "recall_at_1pct": recall_at(attack, benign, 0.01),
        "recall_at_0.1pct": recall_at(attack, benign, 0.001),
    }


def _only(windows: Windows, chosen: npt.NDArray[np.bool_]) -> Windows:
    kept = np.flatnonzero(chosen)
    lengths = windows.lengths[kept]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.repeat(windows.starts[kept] - starts[:-1], lengths) + np.arange(starts[-1])
    return Windows(
        ids=windows.ids[places],
        starts=starts,
        label=windows.label[kept],
        row=windows.row[kept],
        weight=windows.weight[kept],
        certain=windows.certain[kept],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials that study.json in the run's folder does not hold yet."""
    parser = argparse.ArgumentParser(prog="training.study", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="run folder that training.pipeline --pack left")
    parser.add_argument("--minutes", type=float, default=20.0, help="length of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of trials")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    folder: Path = options.folder
    path = folder / "study.json"
    done: dict[str, Any] = dict(msgspec.json.decode(path.read_bytes())) if path.exists() else {}
    parcel, e5, windows, _ = unpack(folder)
    calib = load(folder / "windows-calib.npz")
    for trial in trials(options.seeds):
        if trial.name in done or (options.only and trial.name not in options.only):
            continue
        done[trial.name] = run(trial, e5, parcel, windows, calib, options.minutes)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(done), indent=1))
        shown = done[trial.name].get("unseen", done[trial.name]["calib"])
        print(f"{trial.kind:9} {trial.name:28} {msgspec.to_builtins(shown['recall_at_1pct'])['value']:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
