"""What is known of one request so far, and its end: settled and recorded exactly once, whichever way it ends."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import msgspec
import structlog

from service.errors import MalformedRequest, UpstreamUnavailable, UpstreamUnreachable
from service.firewall.verdict import Finding, Verdict, decide
from service.interfaces import AuditSink, Call, Caller, Exchange, ReplyJudge, Reservation, Tenancy, Usage
from service.records.audit import AuditFinding, AuditRow
from service.release import Release

_NOT_SENT = frozenset({UpstreamUnreachable.code, UpstreamUnavailable.code, MalformedRequest.code})

_log = structlog.get_logger("gateway")


class Books(Protocol):
    """Where requests are settled, counted and recorded."""

    tenancy: Tenancy
    audit: AuditSink
    observe: Callable[[AuditRow], None]


class Ledger:
    """Filled in while the request is on its way. `closing` is set once its end has begun; `forwarded` is when the
    provider was called (0.0: not at all), `answered` whether an answer of it began; `model` is the name by which the
    provider that was asked last knows the model. `system_texts` are the call's own and those of the turns it goes on
    from; `hides_usage`: the provider was asked for what the caller did not ask for; `echo_judge` is for what only
    repeats one of `echoes`. `provider` is who would be asked, is asked or has answered; `attempts` says of each that
    was tried how it went. `noted` is for the record alone: what was found in the caller's calls together. `unrecorded`:
    one of many alike, of which the first has its row.
    """

    def __init__(self, books: Books, exchange: Exchange) -> None:
        self._books = books
        self._exchange = exchange
        self._begun = perf_counter()
        self._time = time.time()
        self.caller: Caller | None = None
        self.call: Call | None = None
        self.provider = ""
        self.model = ""
        self.attempts: list[str] = []
        self.reservation: Reservation | None = None
        self.prompt_verdict: Verdict | None = None
        self.reply_verdict: Verdict | None = None
        self.noted: tuple[Finding, ...] = ()
        self.system_texts: tuple[str, ...] = ()
        self.judge: ReplyJudge | None = None
        self.echo_judge: ReplyJudge | None = None
        self.echoes: frozenset[str] = frozenset()
        self.release: Release | None = None
        self.usage: Usage | None = None
        self.hides_usage = False
        self.forwarded = 0.0
        self.answered = False
        self.judge_s = self.upstream_s = self.reply_judge_s = 0.0
        self.status = 0
        self.error = ""
        self.unrecorded = False
        self.closing = False

    def note(self, provider: str, how: str) -> None:
        """A provider was tried, and how it went (`interfaces.Route.open`)."""
        self.provider = provider
        self.attempts.append(f"{provider} {how}")

    async def close(self) -> None:
        """Settle and record, once. Raises StorageFailed where the policy is to fail closed."""
        self.closing = True
        prompt_tokens, completion_tokens = await self._settle()
        row = self._row(prompt_tokens, completion_tokens)
        if crossed := sum(finding.category == "cross_tenant" for finding in row.findings):
            # Whose text it was and which stands in the record.
            _log.error("cross_tenant", request_id=row.request_id, tenant=row.tenant, key_id=row.key_id, count=crossed)
        self._books.observe(row)
        if not self.unrecorded:
            await self._books.audit.write(row)

    async def _settle(self) -> tuple[int, int]:
        """Settle what the provider reported, else the prompt and what was delivered, or, where a model bills more than
        it delivers, what was reserved; return what is recorded.
        """
        reserved, call = self.reservation, self.call
        if reserved is None or call is None:
            return 0, 0
        prompt_tokens = completion_tokens = 0
        if call.stored:
            # What is kept was settled when it was made, however often it is looked at.
            await self._books.tenancy.settle(reserved, 0, 0)
            return 0, 0
        said = self.usage or Usage(0, 0, partial=True)
        try:
            worked = self.answered or bool(self.forwarded and self.error not in _NOT_SENT)
            if self.usage is not None:
                prompt_tokens, completion_tokens = said.prompt_tokens, said.completion_tokens
            elif worked:
                prompt_tokens = reserved.prompt_tokens
            if said.partial and worked and reserved.hidden_output:
                # What was thought and not delivered is billed all the same, and nobody said how much it was.
                completion_tokens = reserved.output_tokens
            if said.partial and self.release is not None:
                texts = ["".join(parts) for parts in self.release.texts.values()]
                counted = await self._books.tenancy.count(self.model or call.model, texts, estimated=True)
                delivered = self.release.tokens + counted
                completion_tokens = max(completion_tokens, delivered)
                if call.deferred:
                    # The model goes on, and nobody will tell what it used.
                    bound = reserved.max_output_tokens or call.max_output_tokens or 0
                    completion_tokens = max(completion_tokens, bound)
        except Exception as error:
            log_unexpected(self._exchange.request_id, error)
        finally:
            await self._books.tenancy.settle(
                reserved,
                prompt_tokens,
                completion_tokens,
                said.cached_tokens,
                written_tokens=said.written_tokens,
                long_written_tokens=said.long_written_tokens,
                model=self.model,
            )
        return prompt_tokens or reserved.prompt_tokens, completion_tokens

    def _row(self, prompt_tokens: int, completion_tokens: int) -> AuditRow:
        if self.reply_verdict is None and self.judge is not None:
            self.reply_verdict = self.judge.verdict
        verdicts = [v for v in (self.prompt_verdict, self.reply_verdict) if v is not None]
        if self.noted:
            verdicts.append(Verdict(findings=self.noted))
        findings = [finding for verdict in verdicts for finding in verdict.findings]
        folded = decide(findings)
        decisive = folded.decisive
        decided = bool(verdicts) and (not self.error or folded.action == "block")
        call, caller = self.call, self.caller
        return AuditRow(
            time=self._time,
            request_id=self._exchange.request_id,
            tenant=caller.tenant if caller else "",
            key_id=caller.key_id if caller else "",
            protocol=self._exchange.wire.name,
            model=call.model if call else "",
            provider=self.provider,
            attempts=tuple(self.attempts),
            action=folded.action if decided else "error",
            category=decisive.category if decisive and decisive.action != "allow" else "",
            status=self.status,
            findings=tuple(msgspec.convert(finding, AuditFinding, from_attributes=True) for finding in findings),
            unjudged=tuple(dict.fromkeys(name for verdict in verdicts for name in verdict.unjudged)),
            unscannable=tuple(f"{u.pointer} {u.kind}" for u in call.prompt.unscannable) if call else (),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            judge_ms=self.judge_s * 1e3,
            upstream_ms=self.upstream_s * 1e3,
            reply_judge_ms=self.reply_judge_s * 1e3,
            total_ms=(perf_counter() - self._begun) * 1e3,
            stream=call.stream if call else False,
            unknown_fields=call.unknown_fields if call else (),
            error=self.error,
        )


def log_unexpected(request_id: str, error: BaseException) -> None:
    """Where it broke, without the message: that may quote the prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames[-6:]]
    _log.error("unexpected", request_id=request_id, error=type(error).__name__, at=places)
