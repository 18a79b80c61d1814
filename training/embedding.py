"""The embedding head as a sentence-transformers model, and how much of its teacher it kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from training.model import FirewallModel, pad
from training.teacher import Teacher

MAX_TOKENS = 128
SAMPLE = 600


def to_sentence_transformer(model: FirewallModel, tokenizer_file: Path, folder: Path) -> SentenceTransformer:
    """Encoder, mean pooling, projection and norm as sentence-transformers modules, also saved in `folder`."""
    body = folder / "encoder"
    model.encoder.save_pretrained(body)
    core = Tokenizer.from_file(str(tokenizer_file))
    from tokenizers.processors import TemplateProcessing

    core.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        model_max_length=MAX_TOKENS,
    )  # fmt: skip
    wrapped.save_pretrained(body)
    transformer = Transformer(str(body), max_seq_length=MAX_TOKENS)
    hidden = model.encoder.config.hidden_size
    dense = Dense(hidden, hidden, bias=False, activation_function=torch.nn.Identity())
    dense.linear.weight.data.copy_(model.projection.weight.data)
    made = SentenceTransformer(modules=[transformer, Pooling(hidden), dense, Normalize()], device="cpu")
    made.save(str(folder))
    return made


def measure(
    model: FirewallModel, tokenizer_file: Path, teacher: Teacher, texts: Sequence[str], folder: Path
) -> dict[str, float]:
    """Cosine to the teacher, agreement of pairwise similarities (Pearson), and equality with sentence-transformers."""
    rng = np.random.default_rng(3)
    chosen = [texts[i][:600] for i in rng.permutation(len(texts))[:SAMPLE]]
    core = Tokenizer.from_file(str(tokenizer_file))
    windows = [
        np.asarray([0, *encoding.ids[: MAX_TOKENS - 2], 2], np.int32)
        for encoding in core.encode_batch(chosen, add_special_tokens=False)
    ]
    wanted = teacher.vectors(windows)
    got = np.zeros_like(wanted)
    with torch.inference_mode():
        for at in range(0, len(windows), 32):
            ids, mask = pad([window.tolist() for window in windows[at : at + 32]], 1)
            got[at : at + 32] = model(ids, mask)[1].numpy()
    portable = to_sentence_transformer(model, tokenizer_file, folder / "sentence-transformer")
    same = portable.encode(chosen[:64], normalize_embeddings=True, show_progress_bar=False)
    upper = np.triu_indices(len(chosen), 1)
    return {
        "cosine_to_teacher": float((wanted * got).sum(1).mean()),
        "similarity_correlation": float(np.corrcoef((wanted @ wanted.T)[upper], (got @ got.T)[upper])[0, 1]),
        "max_difference_in_sentence_transformers": float(np.abs(same - got[:64]).max()),
        "texts": float(len(chosen)),
    }
