"""The one place that knows the order: admit, judge, forward, judge, settle, record. For every protocol alike.

Nothing of a prompt reaches a provider's answer to the caller before its verdict, nothing of a reply leaves before it is
cleared, and every request ends in exactly one audit row, durable before the answer ends, whichever way it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any

import structlog

from service.errors import (
    FirewallError,
    GuardFailed,
    PayloadTooLarge,
    RequestError,
    StorageFailed,
    UpstreamInvalid,
    WireError,
    to_wire,
)
from service.firewall.prompt import Prompt
from service.firewall.verdict import Finding, Verdict, decide
from service.interfaces import (
    AuditSink,
    Call,
    CallerLeft,
    Digest,
    Exchange,
    Piece,
    PromptGuard,
    Provider,
    Reply,
    ReplyGuard,
    Router,
    Tenancy,
    Usage,
)
from service.ledger import Ledger, log_unexpected
from service.records.audit import AuditRow
from service.release import Release

CLIENT_LEFT = 499
"""Status in the audit row of a caller who left before any answer (nginx's convention)."""

_AT_ONCE = 64  # texts of a scan that wait for their scores together
_INLINE_BYTES = 65_536  # larger replies are parsed in a thread

_log = structlog.get_logger("gateway")


class Gateway:
    """Everything a request passes through. `prompts` None turns the input side off; `overlap` starts the provider's
    call while the prompt is still judged.
    """

    def __init__(
        self,
        *,
        tenancy: Tenancy,
        prompts: PromptGuard | None,
        replies: ReplyGuard,
        providers: Router,
        audit: AuditSink,
        observe: Callable[[AuditRow], None],
        digest: Digest,
        overlap: bool = False,
    ) -> None:
        self.tenancy = tenancy
        self.prompts = prompts
        self.replies = replies
        self.providers = providers
        self.audit = audit
        self.observe = observe
        self.digest = digest
        self.overlap = overlap

    async def serve(self, exchange: Exchange) -> None:
        """Answer one call; stop all work for it as soon as its caller leaves."""
        request = _Request(self, exchange)
        await request.run(request.answer())

    async def scan(self, exchange: Exchange, write: Callable[[Call, list[Verdict]], bytes]) -> None:
        """Judge without forwarding. `write` makes the answer's body of one verdict for each of `prompts_of(call)`."""
        request = _Request(self, exchange)
        await request.run(request.scan(write))


def prompts_of(call: Call) -> list[Prompt]:
    """The texts of a scan: the messages of a conversation are one prompt, texts outside of any are one each."""
    prompt = call.prompt
    if any(segment.message >= 0 for segment in prompt.segments):
        return [prompt]
    return [Prompt(call.model, (segment,)) for segment in prompt.segments]


class _Request:
    """The state of one request on its way."""

    def __init__(self, gateway: Gateway, exchange: Exchange) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._ledger = Ledger(gateway, exchange)
        self._reply: Reply | None = None

    # -- the frame ---------------------------------------------------------------------------------------------------

    async def run(self, answer: Coroutine[Any, Any, None]) -> None:
        """Run the answer beside a watch on the caller's connection, which the server would not end for us."""
        work = asyncio.ensure_future(self._guarded(answer))
        watch = asyncio.ensure_future(self._exchange.gone())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self._abandon(work)
            work.result()
        except asyncio.CancelledError:
            if not work.done():
                await self._abandon(work)
            raise
        finally:
            watch.cancel()

    async def _abandon(self, work: asyncio.Future[None]) -> None:
        """The caller left: cancel what is being done for it, but let a settlement that has begun come to its end."""
        if not self._ledger.closing:
            work.cancel()
        await asyncio.wait({work})
        if not self._ledger.closing:
            self._ledger.error = "client_disconnected"
            self._ledger.status = self._ledger.status or CLIENT_LEFT
            await self._close_quietly()
        if work.cancelled():
            raise CallerLeft

    async def _guarded(self, answer: Coroutine[Any, Any, None]) -> None:
        try:
            await answer
        except CallerLeft:
            self._ledger.error = "client_disconnected"
            self._ledger.status = CLIENT_LEFT
            await self._close_quietly()
            raise
        except Exception as error:
            await self._fail(error)

    async def _fail(self, error: Exception) -> None:
        if not isinstance(error, FirewallError):
            log_unexpected(self._exchange.request_id, error)
        elif not isinstance(error, RequestError):
            _log.warning("failed", request_id=self._exchange.request_id, code=error.code)
        failure = to_wire(error)
        self._ledger.error = failure.code
        await self._refuse(failure, "error")

    async def _refuse(self, error: WireError, action: str) -> None:
        """End the answer with an error: as its body before the first byte, as an event after it."""
        wire = self._exchange.wire
        if not self._exchange.started:
            self._ledger.status = error.status
        if not self._ledger.closing:
            try:
                await self._ledger.close()
            except StorageFailed as failed:
                error, action = to_wire(failed), "error"
        if self._exchange.started:
            await self._exchange.end(wire.error_event(error))
            return
        self._ledger.status = error.status
        headers = [("content-type", "application/json"), *error.headers, *self._own_headers(action)]
        await self._exchange.start(error.status, headers)
        await self._exchange.end(wire.error_body(error))

    # -- the order ---------------------------------------------------------------------------------------------------

    async def answer(self) -> None:
        """Admit, judge, forward, judge, settle, record."""
        gateway, exchange = self._gateway, self._exchange
        caller = self._ledger.caller = await gateway.tenancy.authenticate(exchange.credential)
        call = self._ledger.call = await exchange.receive()
        provider = gateway.providers.choose(call.model)
        self._ledger.provider = provider.name
        caller.authorise((segment.role, segment.pointer) for segment in call.prompt.segments)
        texts = [segment.text for segment in call.prompt.segments]
        reserved = await gateway.tenancy.reserve(caller, call.model, texts, call.max_output_tokens, call.choices)
        self._ledger.reservation = reserved
        body = call.body
        if reserved.max_output_tokens is not None:
            body = exchange.wire.clamp(call, reserved.max_output_tokens)
        early = asyncio.ensure_future(self._forward(provider, body)) if gateway.overlap else None
        try:
            verdict = await self._judge_prompt(call.prompt)
            if verdict.action == "block":
                await self._refuse(_block_error(verdict, exchange.request_id, "prompt"), "block")
                return
            self._ledger.judge = await gateway.replies.open(caller.tenant, call.system_texts, call.user_texts)
            reply = await (early or self._forward(provider, body))
            await self._answer_with(reply, call)
        finally:
            if early is not None:
                await _drop(early)
            if self._reply is not None:
                await self._reply.close()

    async def scan(self, write: Callable[[Call, list[Verdict]], bytes]) -> None:
        """Admit, judge, settle, record."""
        caller = self._ledger.caller = await self._gateway.tenancy.authenticate(self._exchange.credential)
        call = self._ledger.call = await self._exchange.receive()
        texts = [segment.text for segment in call.prompt.segments]
        self._ledger.reservation = await self._gateway.tenancy.reserve(caller, call.model, texts, 0)
        if self._gateway.prompts is None:
            raise GuardFailed("Detection is switched off (detection.enabled).")
        begun = perf_counter()
        prompts, verdicts = prompts_of(call), list[Verdict]()
        for at in range(0, len(prompts), _AT_ONCE):
            verdicts += await asyncio.gather(*map(self._judge_prompt, prompts[at : at + _AT_ONCE]))
        self._ledger.judge_s = perf_counter() - begun
        self._ledger.prompt_verdict = decide(
            (finding for verdict in verdicts for finding in verdict.findings),
            dict.fromkeys(name for verdict in verdicts for name in verdict.unjudged),
        )
        self._ledger.status = 200
        await self._ledger.close()
        headers = [("content-type", "application/json"), *self._own_headers(self._ledger.prompt_verdict.action)]
        await self._exchange.start(200, headers)
        await self._exchange.end(write(call, verdicts))

    async def _judge_prompt(self, prompt: Prompt) -> Verdict:
        guard = self._gateway.prompts
        begun = perf_counter()
        try:
            if guard is None:
                verdict = Verdict()
            else:
                scope = self._ledger.caller.tenant if self._ledger.caller else ""
                verdict = await guard.judge(prompt, digest=self._gateway.digest, cache_scope=scope)
        except FirewallError:
            raise
        except Exception as error:
            log_unexpected(self._exchange.request_id, error)
            raise GuardFailed("The prompt could not be judged.") from None
        finally:
            self._ledger.judge_s += perf_counter() - begun
        self._ledger.prompt_verdict = verdict
        if verdict.unjudged and verdict.action == "block" and not any(f.action == "block" for f in verdict.findings):
            raise GuardFailed("The prompt could not be judged.")
        return verdict

    async def _forward(self, provider: Provider, body: bytes) -> Reply:
        assert self._ledger.call is not None
        self._ledger.forwarded = perf_counter()
        reply = await provider.open(
            self._exchange.wire.path,
            body,
            stream=self._ledger.call.stream,
            headers=self._exchange.forwarded_headers,
        )
        self._reply = reply
        self._ledger.answered = True
        return reply

    async def _answer_with(self, reply: Reply, call: Call) -> None:
        failed = reply.status >= 400
        if reply.status < 200 or 300 <= reply.status < 400:
            raise UpstreamInvalid("The provider answered with a redirect or an unknown status.")
        is_stream = reply.content_type == "text/event-stream"
        if not failed and is_stream != call.stream:
            raise UpstreamInvalid("The provider answered a streaming call with a whole reply, or the reverse.")
        if is_stream and not failed:
            await self._answer_streaming(reply)
        else:
            await self._answer_whole(reply, failed=failed)

    async def _answer_whole(self, reply: Reply, *, failed: bool) -> None:
        judge, wire = self._ledger.judge, self._exchange.wire
        assert judge is not None
        body = b"".join([chunk async for chunk in reply.chunks()])
        self._ledger.upstream_s = perf_counter() - self._ledger.forwarded
        read = wire.read_error if failed else wire.read_reply
        piece = read(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(read, body)
        release = self._ledger.release = Release(judge, wire)
        self._ledger.usage = piece.usage
        await release.take(piece)
        await release.finish()
        out = release.cleared()
        self._ledger.reply_judge_s = release.judge_s
        verdict = self._ledger.reply_verdict = release.verdict
        if release.blocked:
            await self._refuse(_block_error(verdict, self._exchange.request_id, "reply"), "block")
            return
        self._ledger.status = reply.status
        if failed or piece.failed:
            self._ledger.error = "upstream_error"
            self._ledger.usage = piece.usage or Usage(0, 0)
        await self._ledger.close()
        content_type = "application/json" if piece.document is not None else "text/plain; charset=utf-8"
        action = decide([*self._findings(self._ledger.prompt_verdict), *self._findings(verdict)]).action
        headers = [("content-type", content_type), *reply.headers, *self._own_headers(action)]
        await self._exchange.start(reply.status, headers)
        await self._exchange.end(out)

    async def _answer_streaming(self, reply: Reply) -> None:
        judge, wire, exchange = self._ledger.judge, self._exchange.wire, self._exchange
        assert judge is not None
        release = self._ledger.release = Release(judge, wire)
        reader = wire.open_stream()
        tail = last = b""
        try:
            async for chunk in reply.chunks():
                tail += await self._take(reader.feed(chunk), release)
                out = release.cleared()
                if release.blocked:
                    break
                if out:
                    await self._begin_stream(reply)
                    await exchange.send(out)
            else:
                tail += await self._take(reader.finish(), release)
                if not release.blocked:
                    await release.finish()
                    last = release.cleared()
        finally:
            self._ledger.upstream_s = perf_counter() - self._ledger.forwarded
            self._ledger.reply_judge_s = release.judge_s
            self._ledger.reply_verdict = release.verdict
        if release.blocked:
            # The provider has nothing more to say to this caller: it must not go on billing while the row is written.
            await reply.close()
            await self._refuse(_block_error(release.verdict, exchange.request_id, "reply"), "block")
            return
        self._ledger.status = reply.status
        await self._ledger.close()
        await self._begin_stream(reply)
        await exchange.end(last + tail)

    async def _take(self, pieces: list[Piece], release: Release) -> bytes:
        """Give the pieces to the judge; return the bytes of the last event, which waits for the audit row."""
        tail = b""
        for piece in pieces:
            if piece.usage is not None:
                self._ledger.usage = piece.usage
            if piece.failed:
                self._ledger.error = "upstream_error"
            if piece.done:
                tail += piece.raw
                continue
            await release.take(piece)
        return tail

    async def _begin_stream(self, reply: Reply) -> None:
        if self._exchange.started:
            return
        self._ledger.status = reply.status
        action = self._ledger.prompt_verdict.action if self._ledger.prompt_verdict else "allow"
        headers = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),
            *reply.headers,
            *self._own_headers(action),
        ]
        await self._exchange.start(reply.status, headers)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _close_quietly(self) -> None:
        try:
            await self._ledger.close()
        except Exception as error:
            _log.error("record failed", request_id=self._exchange.request_id, error=type(error).__name__)

    @staticmethod
    def _findings(verdict: Verdict | None) -> Sequence[Finding]:
        return verdict.findings if verdict else ()

    def _own_headers(self, action: str) -> list[tuple[str, str]]:
        own = [("x-firewall-request-id", self._exchange.request_id), ("x-firewall-action", action)]
        return [*own, *self._ledger.reservation.headers] if self._ledger.reservation else own


def _block_error(verdict: Verdict, request_id: str, what: str) -> WireError:
    """What a blocked caller is told: the category and the request id, never a score."""
    finding = verdict.decisive
    category = finding.category if finding else "policy"
    pointer = finding.pointer if finding and what == "prompt" else None
    message = f"The {what} was blocked by the firewall: {category} (request {request_id})."
    if category == "oversize":
        return WireError(413, "invalid_request_error", PayloadTooLarge.code, message, pointer)
    return WireError(400, "invalid_request_error", "content_filter", message, pointer)


async def _drop(early: asyncio.Future[Reply]) -> None:
    """Stop a call that was sent ahead of a verdict which did not let it pass."""
    if not early.done():
        early.cancel()
    await asyncio.wait({early})
    if not early.cancelled():
        early.exception()
