"""The artifact's probes: windows of the project's own development texts, on which derived models are compared.

They are never trained on, so that a float model made from the int8 file can be held against it wherever it is made.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.corpus import BENIGN, load_own
from training.encode import encode


def write(datasets: Path, tokenizer: Tokenizer, path: Path) -> int:
    """Write the first window of every text, aside first; returns how many there are."""
    rows = load_own(datasets, "dev")
    windows = encode(rows, tokenizer, most=1, seed=1)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, ids=windows.ids, starts=windows.starts, attack=windows.label != BENIGN)
    partial.rename(path)
    return len(windows)
