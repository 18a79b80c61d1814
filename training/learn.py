"""The costly part of a run: windows in, trained model out.

    teacher ─▶ guide ─▶ mine ─▶ fit

The teacher is the base itself, whose vectors the embedding is held to. The guide is the same model at the base's full
depth, trained first, whose opinion is half of every label; it needs a GPU's speed and is left out without one. Each
step's result is a file in the run's folder, and a file that exists is kept.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from training import fit, mining, model
from training import teacher as teaching
from training.e5_file import E5, prune, read
from training.windows import Windows, load

log = logging.getLogger(__name__)


class Course(msgspec.Struct, frozen=True):
    """What is trained and how long. `guide_minutes` 0: no guide. `mine` is the share of the benign windows that are
    searched for hard ones, by the guide or by the model to go on from; `teacher_share` that of the windows whose
    vectors are held to the teacher's.
    """

    fit: fit.FitOptions
    layers: int = 8
    teacher_share: float = 0.25
    guide_minutes: float = 0.0
    guide_epochs: float = 2.5
    mine: float = 0.45


def learn(
    e5: E5,
    kept: list[int],
    prefix: list[int],
    windows: Windows,
    always: npt.NDArray[np.bool_],
    course: Course,
    folder: Path,
    start: model.FirewallModel | None = None,
) -> tuple[model.FirewallModel, dict[str, Any]]:
    """The trained model, also as model.pt in `folder`, and figures of the training.

    `kept` are the pieces of the base's vocabulary that the tokenizer has; `prefix` the tokens that the base wants
    before a text; `always` bool (n,) the windows that every epoch sees; `start` a model to go on from.
    """
    vectors = _teacher(e5, kept, prefix, windows, course, folder)
    if start is not None:
        model.with_origins(start, len(kept))
    guide = None
    if course.guide_minutes:
        guide = _guide(e5, kept, windows, always, course, folder, vectors)
    if (searcher := guide or start) is not None and course.mine:
        mined = folder / "mined.npy"
        scores = mining.score(searcher, windows, ~always, mined, pad_id=e5.pad_id, share=course.mine)
        always = always | mining.hardest(scores)
    torch.manual_seed(course.fit.seed)
    made = start or model.warm_start(e5, kept, course.layers)
    figures: dict[str, Any] = dict(
        fit.fit(made, windows, vectors, folder, course.fit, e5.pad_id, always, guide),
        **msgspec.structs.asdict(course.fit),
    )
    if guide is not None:
        figures["guide_minutes"] = course.guide_minutes
    model.save(made, folder / "model.pt")
    return made, figures


def _guide(
    e5: E5,
    kept: list[int],
    windows: Windows,
    always: npt.NDArray[np.bool_],
    course: Course,
    folder: Path,
    vectors: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> model.FirewallModel:
    path = folder / "guide.pt"
    if not path.exists():
        torch.manual_seed(course.fit.seed)
        guide = model.warm_start(e5, kept, e5.layers)
        options = msgspec.structs.replace(course.fit, minutes=course.guide_minutes, epochs=course.guide_epochs)
        log.info("guide: %s", fit.fit(guide, windows, vectors, folder, options, e5.pad_id, always))
        model.save(guide, path)
    return model.load(path)


def _teacher(
    e5: E5, kept: list[int], prefix: list[int], windows: Windows, course: Course, folder: Path
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The base's own vectors of a random share of the windows, with the indices of these windows."""
    path = folder / "teacher.npz"
    if not path.exists():
        rng = np.random.default_rng(course.fit.seed)
        texts = np.flatnonzero(windows.plain)
        chosen = np.sort(rng.choice(texts, round(len(texts) * course.teacher_share), replace=False))
        base = teaching.Teacher(e5, kept, prefix)
        teaching.save(base.vectors([windows.tokens(i) for i in chosen]), chosen, path)
    with np.load(path) as data:
        return data["vectors"].astype(np.float32), data["chosen"]


class Parcel(msgspec.Struct, frozen=True):
    """What a machine that only trains is told, beside windows-train.npz and base.bin.

    `always` are the windows that every epoch sees; `origin` is the place in `origins` of what each window comes from.
    """

    course: Course
    prefix: list[int]
    always: list[int]
    origins: list[str]
    origin: list[int]


def pack(folder: Path, base: Path, kept: list[int], parcel: Parcel) -> None:
    """Write base.bin (the base with the kept pieces only) and parcel.json into the run's folder, for `main`."""
    prune(base, kept, folder / "base.bin")
    (folder / "parcel.json").write_bytes(msgspec.json.encode(parcel))


def unpack(folder: Path) -> tuple[Parcel, E5, Windows, npt.NDArray[np.bool_]]:
    """The parcel, the pruned base, the training windows, and which of them every epoch sees, bool (n,)."""
    parcel = msgspec.json.decode((folder / "parcel.json").read_bytes(), type=Parcel)
    windows = load(folder / "windows-train.npz")
    always = np.zeros(len(windows), np.bool_)
    always[parcel.always] = True
    return parcel, read(folder / "base.bin"), windows, always


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from a packed folder: it needs windows-train.npz, base.bin and parcel.json there, and leaves model.pt and
    training.json. Neither the service nor the network is needed.
    """
    parser = argparse.ArgumentParser(prog="training.learn", description="Train from a folder that the pipeline packed.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, help="training time at most, instead of the packed one")
    parser.add_argument("--guide-minutes", type=float, help="the guide's time, instead of the packed one")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder: Path = options.folder
    parcel, e5, windows, always = unpack(folder)
    course = parcel.course
    if options.minutes is not None:
        course = msgspec.structs.replace(course, fit=msgspec.structs.replace(course.fit, minutes=options.minutes))
    if options.guide_minutes is not None:
        course = msgspec.structs.replace(course, guide_minutes=options.guide_minutes)
    kept = list(range(len(e5.pieces)))
    _, figures = learn(e5, kept, parcel.prefix, windows, always, course, folder)
    (folder / "training.json").write_bytes(msgspec.json.encode(figures))
    print(figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
