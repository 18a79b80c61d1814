"""Which other detectors are measured beside this one, which are not and why, and what is published of some of those.

The packages that a peer is installed from are pinned in `peer_pins/NAME.txt`, with its dependencies.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

PINS = Path(__file__).with_name("peer_pins")


class Peer(msgspec.Struct, frozen=True):
    """A detector that pip installs. `decision`: what counts as its own default; `seen`: what rows it may know."""

    name: str
    version: str
    licence: str
    how: str
    decision: str
    seen: str = ""


class Published(msgspec.Struct, frozen=True):
    """A figure that a model's makers give. `rows`: what it was measured on."""

    model: str
    figure: str
    value: str
    rows: str
    source: str


PEERS = (
    Peer(
        "jailguard",
        "0.1.2",
        "MIT OR Apache-2.0",
        "small network over embeddings, whose model is fetched at the first use",
        "`is_injection`",
    ),
    Peer("inferwall", "0.1.11", "Apache-2.0", "signatures, without the models of its larger profiles", "`decision`"),
    Peer(
        "agentbastion",
        "0.14.0",
        "MIT AND BUSL-1.1",
        "signatures, also on decoded text",
        "blocked from severity 4",
        "bastioncorpus is its makers' own corpus",
    ),
    Peer(
        "prompt-guardrail",
        "1.0.1",
        "Apache-2.0",
        "logistic regression over TF-IDF of word n-grams",
        "`label`",
        "what it learned on is not published",
    ),
    Peer(
        "toolwall-guard",
        "0.4.0",
        "Apache-2.0",
        "signatures for tool results; its classifier is fetched from a model hub and not measured here",
        "score from 0.6",
    ),
    Peer(
        "aicordon", "1.4.0", "Apache-2.0", "Picket: mined signatures; `dpi` for users, `ipi` for the rest", "`flagged`"
    ),
    Peer(
        "metatronnanoguard",
        "0.1.0",
        "MIT",
        "transformer of 17 million weights, reads the first 512 tokens",
        "probability from 0.5",
        "what it learned on is not published",
    ),
)

NOT_RUN = {
    "llm-guard": "its prompt injection scanner is ProtectAI v2, fetched from a model hub",
    "rebuff": "asks a language model and a vector database, both services with keys",
    "prompt-armor": "its classifier and the embeddings that it compares come from a model hub",
    "bastion-prompt-protection": "its weights come from a model hub; AGPL-3.0",
    "plumblint": "its licence, PolyForm Noncommercial, forbids much of what this table may be used for",
}

_META = "model card, meta-llama/PurpleLlama, Llama-Prompt-Guard-2/86M/MODEL_CARD.md"
_PRIVATE = "private jailbreak benchmark of its makers"
_PROTECT = "model card, protectai/deberta-v3-base-prompt-injection-v2"
_PIGUARD = "Li and Liu, arXiv:2410.22770"

PUBLISHED = (
    Published("Llama Prompt Guard 2 86M", "AUC, English", "0.998", _PRIVATE, _META),
    Published("Llama Prompt Guard 2 86M", "recall at 1 % FPR, English", "97.5 %", _PRIVATE, _META),
    Published("Llama Prompt Guard 2 86M", "AUC, other languages", "0.995", _PRIVATE, _META),
    Published("Llama Prompt Guard 2 22M", "AUC, English", "0.995", _PRIVATE, _META),
    Published("Llama Prompt Guard 2 22M", "recall at 1 % FPR, English", "88.7 %", _PRIVATE, _META),
    Published("Llama Prompt Guard 2 22M", "AUC, other languages", "0.942", _PRIVATE, _META),
    Published(
        "ProtectAI v2",
        "recall / precision",
        "99.74 % / 91.59 %",
        "20,000 prompts of data it was not trained on, chosen by its makers",
        _PROTECT,
    ),
    Published("PIGuard (InjecGuard)", "over-defence accuracy", "87.32 %", "NotInject, 339 texts", _PIGUARD),
    Published(
        "PIGuard (InjecGuard)",
        "mean of benign, malicious and over-defence accuracy",
        "83.48 %",
        "its paper's sets",
        _PIGUARD,
    ),
)
