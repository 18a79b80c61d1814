"""The model folder: a manifest, the files it vouches for by sha256, and nothing that is not checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from service.errors import ArtifactError

FORMAT = 1
BENIGN = "benign"
_CHUNK_BYTES = 1 << 20


class FileEntry(msgspec.Struct, frozen=True):
    """What a file must be."""

    sha256: str
    bytes: int


class Model(msgspec.Struct, frozen=True):
    """Which ONNX file serves. Inputs int64 (n, length); outputs logits (n, labels), embedding (n, embedding_dim)."""

    file: str
    precision: str = "int8"
    opset: int = 18


class Fusion(msgspec.Struct, frozen=True):
    """Window logit = bias + classifier · log((1 − p_benign) / p_benign) + similarity · max(0, nearness − near).

    The nearness is the greatest cosine to a known attack; up to `near` it says nothing.
    """

    bias: float = 0.0
    classifier: float = 1.0
    similarity: float = 0.0
    near: float = 0.0


class Retelling(msgspec.Struct, frozen=True):
    """What tells that a passage of a reply retells a prompt (`service.firewall.retelling`). No `weights`: not learned.

    They are of the four signs by words, of what the encoder says of both side by side, and of the tone: whether the
    passage speaks of what its author was told, which is `tone` (dim,) times its vector plus `tone_bias`. From `limit`
    on the sum with `bias` tells.
    """

    tone: tuple[float, ...] = ()
    tone_bias: float = 0.0
    weights: tuple[float, ...] = ()
    bias: float = 0.0
    limit: float = 0.0


class Calibration(msgspec.Struct, frozen=True):
    """How window logits become a text's score.

    `length` holds (windows, offset) points: the offset is taken off the highest window logit, piecewise linear in
    log2(windows) and flat outside, because the maximum over many windows is high by chance. `leak_cosine` is how near a
    reply's sentence may come to a system prompt's; `retelling` is for whole passages.
    """

    temperature: float = 1.0
    fusion: Fusion = Fusion()
    length: tuple[tuple[int, float], ...] = ((1, 0.0),)
    leak_cosine: float = 0.93
    retelling: Retelling = Retelling()


class Threshold(msgspec.Struct, frozen=True):
    """The score above which the stated share of benign texts lies. `pooled`: not measured on this role alone."""

    threshold: float
    benign_texts: int = 0
    pooled: bool = False


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json`. `thresholds` maps a role (or `pooled`) to false-positive rates as strings to thresholds.

    A window begins with `cls_id`, one of foreign text with the token that `origins` has for where it comes from.
    """

    format: int
    name: str
    files: dict[str, FileEntry]
    model: Model
    labels: tuple[str, ...]
    calibration: Calibration = Calibration()
    thresholds: dict[str, dict[str, Threshold]] = {}
    base: str = ""
    created: str = ""
    commit: str = ""
    max_tokens: int = 128
    overlap_tokens: int = 32
    cls_id: int = 0
    origins: dict[str, int] = {}
    sep_id: int = 2
    pad_id: int = 1
    embedding_dim: int = 384
    data: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    parity: dict[str, Any] = {}
    quantisation: dict[str, Any] = {}


class Artifact(msgspec.Struct, frozen=True, eq=False):
    """A verified model folder. `version` names its very content: the hash of its manifest."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    version: str

    @property
    def model_path(self) -> Path:
        """The ONNX file that serves."""
        return self.folder / self.manifest.model.file

    @property
    def index_path(self) -> Path:
        """The FAISS file."""
        return self.folder / "attacks.faiss"

    @property
    def attacks_path(self) -> Path:
        """One JSON object per index row: its id and category."""
        return self.folder / "attacks.jsonl"


def load_artifact(folder: Path) -> Artifact:
    """Read and verify a model folder.

    Every file that the service opens must be listed and have its sha256. Raises ArtifactError naming the file.
    """
    path = folder / "manifest.json"
    try:
        raw = path.read_bytes()
        manifest = msgspec.json.decode(raw, type=Manifest)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    _check(path, manifest)
    needed = (manifest.model.file, "tokenizer.json", "attacks.faiss", "attacks.jsonl")
    for name in needed:
        verify(folder, name, manifest.files.get(name))
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the tokenizers package raises bare Exception
        raise ArtifactError(f"{folder / 'tokenizer.json'}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Artifact(folder, manifest, tokenizer, hashlib.sha256(raw).hexdigest())


def describe(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Checksum and size of files in a folder."""
    found = {}
    for name in names:
        blob = (folder / name).read_bytes()
        found[name] = FileEntry(sha256=hashlib.sha256(blob).hexdigest(), bytes=len(blob))
    return found


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / "manifest.json").write_bytes(text + b"\n")


def _check(path: Path, manifest: Manifest) -> None:
    if manifest.format != FORMAT:
        raise ArtifactError(f"{path}: format {manifest.format}, this version reads format {FORMAT}")
    if BENIGN not in manifest.labels or len(manifest.labels) < 2:
        raise ArtifactError(f"{path}: labels must hold {BENIGN!r} and an attack")
    if not 0 <= manifest.overlap_tokens < manifest.max_tokens - 2:
        raise ArtifactError(f"{path}: overlap_tokens must be below max_tokens - 2")
    if manifest.calibration.temperature <= 0 or not manifest.calibration.length:
        raise ArtifactError(f"{path}: calibration needs a temperature above 0 and a length point")


def verify(folder: Path, name: str, entry: FileEntry | None) -> None:
    """Raises ArtifactError where a file is not the one that its manifest's entry describes."""
    path = folder / name
    if entry is None or Path(name).name != name:
        raise ArtifactError(f"{folder / 'manifest.json'}: {name} is not among its files")
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    if digest.hexdigest() != entry.sha256:
        raise ArtifactError(f"{path}: its sha256 is not the manifest's; the file is damaged or was changed")
