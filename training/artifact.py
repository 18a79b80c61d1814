"""The artifact folder: manifest with checksums, and the model card. Written aside, verified, then moved into place."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.scoring.artifact import Calibration, Manifest, Model, Threshold, describe
from service.scoring.artifact import write_manifest as write
from training.corpus import LABELS

SHIPPED = ("model.int8.onnx", "graph.onnx", "tokenizer.json", "attacks.faiss", "attacks.jsonl", "probes.npz")


def commit() -> str:
    """The commit that trained, marked where the tree had changes; empty outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+changes" if dirty.strip() else "")


def write_manifest(
    folder: Path,
    *,
    name: str,
    base: str,
    max_tokens: int,
    overlap: int,
    dimensions: int,
    origins: dict[str, int],
    calibration: Calibration,
    thresholds: dict[str, dict[str, Threshold]],
    data: dict[str, Any],
    metrics: dict[str, Any],
    parity: dict[str, Any],
    quantisation: dict[str, Any],
) -> Manifest:
    """Write `manifest.json` with the checksum of every shipped file in the folder."""
    manifest = Manifest(
        format=1,
        name=name,
        base=base,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=commit(),
        files=describe(folder, SHIPPED),
        model=Model(file="model.int8.onnx", precision="int8", opset=18),
        labels=LABELS,
        max_tokens=max_tokens,
        overlap_tokens=overlap,
        cls_id=0,
        origins=origins,
        sep_id=2,
        pad_id=1,
        embedding_dim=dimensions,
        calibration=calibration,
        thresholds=thresholds,
        data=data,
        metrics=metrics,
        parity=parity,
        quantisation=quantisation,
    )
    write(manifest, folder)
    return manifest


def write_card(folder: Path, manifest: Manifest) -> None:
    """MODEL_CARD.md from the manifest, so that the two cannot disagree."""
    metrics, data = manifest.metrics, manifest.data
    dev = metrics.get("dev", {})
    lines = [
        f"# {manifest.name}",
        "",
        "A DeBERTa-v2 encoder with two heads in one pass: a classifier (benign, injection, jailbreak, extraction) and",
        "a sentence embedding for the index of known attacks and for the leak check.",
        "",
        f"- Base: {manifest.base}",
        f"- Windows of at most {manifest.max_tokens} tokens, {manifest.overlap_tokens} shared; embedding of "
        f"{manifest.embedding_dim} dimensions",
        f"- Files: {', '.join(f'{n} ({e.bytes / 1e6:.1f} MB)' for n, e in manifest.files.items())}",
        f"- Created {manifest.created}, commit `{manifest.commit}`, data `{data.get('sha256', '')[:16]}`",
        f"- Training rows {data.get('rows', {})}",
        f"- Training: {metrics.get('training', {})}",
        "",
        "## Intended use and limits",
        "",
        "Scores texts that are about to reach a language model. A score is evidence, not proof: an attacker who can",
        "try often enough finds a text that passes. A plain harmful question without a trick is labelled benign here.",
        "Languages beyond those in the training data rest on the multilingual base alone.",
        "",
        "## Visible dev sources (reported, never trained on)",
        "",
    ]
    if dev:
        lines += [
            f"{dev['texts']} texts, AUC {dev['auc']:.4f}, recall {_share(dev['recall_at_1pct'])} at 1 % and "
            f"{_share(dev['recall_at_0.1pct'])} at 0.1 % false positives on ordinary texts, expected calibration "
            f"error {dev['ece']:.3f}.",
            "",
            "| source / kind | texts | recall at 1 % FPR | flagged by default policy | benign passed |",
            "| --- | ---: | --- | --- | --- |",
        ]
        for kind, entry in dev["kinds"].items():
            cells = [
                _share(entry[key]) if key in entry else "" for key in ("recall_at_1pct", "flagged", "passed_benign")
            ]
            lines.append(f"| {kind} | {entry['texts']} | " + " | ".join(cells) + " |")
    lines += ["", "## Embedding head against its teacher", "", f"{metrics.get('embedding', {})}", ""]
    lines += ["## Export and quantisation", "", f"Parity {manifest.parity}; int8 {manifest.quantisation}", ""]
    lines += ["## Sources", "", "Public sources by name and licence (texts are not redistributed):", ""]
    for name, entry in data.get("sources", {}).items():
        lines.append(f"- {name}: {entry}")
    (folder / "MODEL_CARD.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _share(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
