"""From window outputs to a text's score: pure arithmetic, the same in training, serving and `scan`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from service.errors import GuardFailed
from service.firewall.normalize import View
from service.firewall.windows import Window, windows
from service.scoring.artifact import BENIGN, Artifact, Calibration
from service.scoring.attack_index import AttackIndex
from service.scoring.encoder import Encoded

Floats = npt.NDArray[np.float64]


class TextWindow(msgspec.Struct, frozen=True):
    """A window with the view it was cut from, so that its span can be told in the original text."""

    view: View
    window: Window

    @property
    def ids(self) -> list[int]:
        """The token ids, specials included."""
        return self.window.ids


class WindowRows(msgspec.Struct, frozen=True, eq=False):
    """`logits` float32 (n, labels), uncalibrated; `similarity` float32 (n,), cosine to the nearest known attack."""

    logits: npt.NDArray[np.float32]
    similarity: npt.NDArray[np.float32]


class TextScore(msgspec.Struct, frozen=True):
    """How sure the model is that a text attacks.

    `score` in [0, 1], unrounded, and `logit` before the sigmoid. `category` is the likeliest attack label at the
    deciding window; [start, end) is that window in the original text, `view` the kind of view it comes from.
    `windows` counts the main view's windows, `similarity` is the deciding window's cosine to the nearest attack.
    """

    score: float
    logit: float
    category: str
    start: int
    end: int
    view: str
    windows: int
    similarity: float
    probabilities: dict[str, float]


class TextScorer:
    """The calibrated arithmetic of an artifact, with its tokenizer's windows."""

    def __init__(self, artifact: Artifact, index: AttackIndex) -> None:
        manifest = artifact.manifest
        self._tokenizer = artifact.tokenizer
        self._manifest = manifest
        self._calibration = manifest.calibration
        self._labels = manifest.labels
        self._benign = manifest.labels.index(BENIGN)
        self._attacks = [i for i in range(len(manifest.labels)) if i != self._benign]
        self._index = index

    def cut(self, views: Sequence[View], origin: str = "") -> list[TextWindow]:
        """The windows of all views of one text, the main view's first; `origin` as in `Segment`."""
        manifest = self._manifest
        first = manifest.origins.get(origin, manifest.cls_id)
        return [
            TextWindow(view, window)
            for view in views
            for window in windows(
                view,
                self._tokenizer,
                manifest.max_tokens,
                manifest.overlap_tokens,
                cls_id=first,
                sep_id=manifest.sep_id,
            )
        ]

    def rows(self, encoded: Encoded) -> WindowRows:
        """What scoring needs of encoded windows: their logits and their similarity to known attacks."""
        return WindowRows(encoded.logits, self._index.search(encoded.vectors)[0])

    def score(self, cut: Sequence[TextWindow], encoded: Encoded) -> TextScore:
        """Judge one text from all its windows. `encoded` has one row per window. A text without windows scores 0."""
        return self.score_rows(cut, self.rows(encoded))

    def score_rows(self, cut: Sequence[TextWindow], rows: WindowRows) -> TextScore:
        """The same from rows that were computed before."""
        if not cut:
            benign = {label: float(label == BENIGN) for label in self._labels}
            return TextScore(0.0, -math.inf, self._labels[self._attacks[0]], 0, 0, "main", 0, 0.0, benign)
        probabilities = softmax(rows.logits / self._calibration.temperature)
        logits = window_logits(rows.logits, rows.similarity, self._calibration, self._benign)
        if not np.isfinite(logits).all():
            # A NaN compares as lower than every threshold: it would pass as benign.
            raise GuardFailed("the encoder gave a value that is not a number")
        deciding = int(np.argmax(logits))
        main = sum(part.view.kind == "main" for part in cut)
        logit = float(logits[deciding]) - length_offset(main, self._calibration)
        chosen = cut[deciding]
        start, end = chosen.view.span(chosen.window.start, chosen.window.end)
        row = probabilities[deciding]
        return TextScore(
            score=sigmoid(logit),
            logit=logit,
            category=self._labels[max(self._attacks, key=lambda i: row[i])],
            start=start,
            end=end,
            view=chosen.view.kind,
            windows=main,
            similarity=float(rows.similarity[deciding]),
            probabilities={label: float(p) for label, p in zip(self._labels, row, strict=True)},
        )


def window_logits(
    logits: npt.NDArray[np.float32], similarity: npt.NDArray[np.float32], calibration: Calibration, benign: int
) -> Floats:
    """Fused log-odds of an attack per window: logits float32 (n, labels), similarity float32 (n,) → float64 (n,)."""
    scaled = logits.astype(np.float64) / calibration.temperature
    attacks = np.delete(scaled, benign, axis=1)
    # log((1 − p) / p) straight from the logits: through the probability it would saturate and tie at 1.
    peak = attacks.max(axis=1, keepdims=True)
    odds = peak[:, 0] + np.log(np.exp(attacks - peak).sum(axis=1)) - scaled[:, benign]
    fusion = calibration.fusion
    nearness = np.maximum(0.0, similarity.astype(np.float64) - fusion.near)
    return np.asarray(fusion.bias + fusion.classifier * odds + fusion.similarity * nearness)


def length_offset(count: int, calibration: Calibration) -> float:
    """What a text of `count` windows in its main view has taken off its highest logit."""
    points = calibration.length
    at = np.log2([number for number, _ in points])
    return float(np.interp(math.log2(max(count, 1)), at, [offset for _, offset in points]))


def softmax(logits: npt.NDArray[np.float32]) -> Floats:
    """Rows of probabilities, float64, same shape."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def sigmoid(logit: float) -> float:
    """The logistic function, without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    odds = math.exp(logit)
    return odds / (1.0 + odds)
