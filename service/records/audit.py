"""One row per request: what was asked, what was decided, what it cost. Never any text of a prompt or a reply."""

from __future__ import annotations

import msgspec


class AuditFinding(msgspec.Struct, frozen=True):
    """One finding as it is kept: place and certainty, and a keyed hash in the text's stead.

    `start` and `end` are offsets in characters of the original text at `pointer`; `score` is in [0, 1], unrounded.
    """

    guard: str
    category: str
    score: float
    action: str
    pointer: str = ""
    start: int = 0
    end: int = 0
    digest: str = ""
    detail: str = ""


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is kept of one request.

    `time` is seconds since the epoch (UTC). `provider` is who answered, or who was asked
    last, or would have been; `attempts` holds `<provider> <how it went>` of each that was tried: a status, or a word of
    `interfaces.Route`. `action` is the severest of the prompt's and the reply's verdicts, or
    `error` where no verdict was reached; `category` is that of the decisive finding. `status` is the HTTP status that
    the caller got (499: the caller left before one was sent). `unscannable` holds `<pointer> <kind>` of what no text
    guard can read. All `_ms` are milliseconds of wall time; `upstream_ms` runs from the call to the provider's last
    byte, `reply_judge_ms` is the part of it that was spent judging. `error` is a code of `service.errors`, or
    `client_disconnected`.
    """

    time: float
    request_id: str
    tenant: str = ""
    key_id: str = ""
    protocol: str = ""
    model: str = ""
    provider: str = ""
    attempts: tuple[str, ...] = ()
    action: str = "allow"
    category: str = ""
    status: int = 0
    findings: tuple[AuditFinding, ...] = ()
    unjudged: tuple[str, ...] = ()
    unscannable: tuple[str, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    judge_ms: float = 0.0
    upstream_ms: float = 0.0
    reply_judge_ms: float = 0.0
    total_ms: float = 0.0
    stream: bool = False
    unknown_fields: tuple[str, ...] = ()
    error: str = ""
