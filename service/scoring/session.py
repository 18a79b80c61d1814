"""How ONNX Runtime is opened: the one place, so that what is calibrated is what serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from service.scoring.signed_weights import signed_pays, with_signed_weights

# Fused, addition and layer norm take four times as long on CPUs as apart (ONNX Runtime 1.32: 0.19 against 0.05 ms for
# 64 tokens).
SLOWER_FUSED = ["SkipLayerNormFusion"]


def open_session(
    path: Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> ort.InferenceSession:
    """A session over the file; `threads` inside one operator (0: one per core).

    On processors with VNNI an int8 file's weights are read as signed: the same products, about twice as fast.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning worker threads would take the cores from the event loop between batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    on_cpu = list(providers) == ["CPUExecutionProvider"]
    signed = with_signed_weights(path.read_bytes()) if on_cpu and signed_pays() else None
    disabled = SLOWER_FUSED if on_cpu else []
    return ort.InferenceSession(signed or str(path), options, providers=list(providers), disabled_optimizers=disabled)
