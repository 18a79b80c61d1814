"""The one place that knows the order: admit, judge, forward, judge, settle, record. For every protocol alike.

Nothing of a prompt reaches a provider's answer to the caller before its verdict, nothing of a reply leaves before it is
cleared, and every request ends in exactly one audit row, durable before the answer ends, whichever way it ends; but of
those that are refused too often (`tenancy.refusals`) only the first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from copy import copy
from time import perf_counter
from typing import Any, Literal

import structlog
from msgspec.structs import replace

from service.answer import Answer, block_error, extraction_error
from service.errors import (
    FirewallError,
    GuardFailed,
    LimitExceeded,
    NotFound,
    RequestError,
    to_wire,
)
from service.firewall.asked import Asked, supplied_in
from service.firewall.canary import sentence
from service.firewall.extraction import Ruling
from service.firewall.prompt import Prompt
from service.firewall.verdict import Finding, Verdict, decide
from service.interfaces import (
    AuditSink,
    Call,
    Caller,
    CallerLeft,
    CallWatch,
    Digest,
    Exchange,
    Hidden,
    IssuedIds,
    Judged,
    PersonalGuard,
    Piece,
    PromptGuard,
    Reference,
    Reply,
    ReplyGuard,
    ReplyJudge,
    Route,
    Router,
    Target,
    Tenancy,
    Translation,
)
from service.ledger import Ledger, log_unexpected
from service.records.audit import AuditRow
from service.release import Release
from service.restoring import RestoredReply
from service.tenancy.demand import NOTHING
from service.tenancy.issued import Origin
from service.tenancy.pseudonyms import Pseudonyms
from service.tenancy.refusals import Refusals, TooManyRefused

CLIENT_LEFT = 499
"""Status in the audit row of a caller who left before any answer (nginx's convention)."""

_AT_ONCE = 64  # texts of a scan that wait for their scores together

_log = structlog.get_logger("gateway")


class Gateway:
    """Everything a request passes through. `prompts` None turns the input side off; `watch` looks for the extraction of
    models; `overlap` starts the provider's call while the prompt is still judged; `translations` are by the protocol of
    the caller (`Wire.name`); `canary` gives the mark of a (tenant, request id), empty for none; `personal` keeps
    personal data from providers, `pseudonyms` the caller's own names. `foreign_ids` is for what may have come about
    outside and was not issued to the caller's tenant. `refusals` counts those who are refused before anything is
    reserved.
    """

    def __init__(
        self,
        *,
        tenancy: Tenancy,
        prompts: PromptGuard | None,
        replies: ReplyGuard,
        providers: Router,
        issued: IssuedIds,
        audit: AuditSink,
        observe: Callable[[AuditRow], None],
        digest: Digest,
        watch: CallWatch | None = None,
        overlap: bool = False,
        translations: Mapping[str, Translation] | None = None,
        canary: Callable[[str, str], str] = lambda tenant, request_id: "",
        personal: PersonalGuard | None = None,
        pseudonyms: Pseudonyms | None = None,
        foreign_ids: Literal["refuse", "flag", "allow"] = "refuse",
        refusals: Refusals | None = None,
    ) -> None:
        self.tenancy = tenancy
        self.prompts = prompts
        self.replies = replies
        self.providers = providers
        self.issued = issued
        self.audit = audit
        self.observe = observe
        self.digest = digest
        self.watch = watch
        self.overlap = overlap
        self.translations = translations or {}
        self.canary = canary
        self.personal = personal
        self.pseudonyms = pseudonyms
        self.foreign_ids = foreign_ids
        self.refusals = refusals or Refusals(0)

    def towards(self, providers: Router) -> Gateway:
        """The same gateway, but others are asked, and nobody before the verdict: who asks them may not be able to take
        a call back.
        """
        other = copy(self)
        other.providers = providers
        other.overlap = False
        return other

    async def serve(self, exchange: Exchange) -> None:
        """Answer one call; stop all work for it as soon as its caller leaves."""
        request = _Request(self, exchange)
        await request.run(request.answer())

    async def scan(self, exchange: Exchange, write: Callable[[Call, Judged], bytes]) -> None:
        """Judge without forwarding: the texts of a prompt, a reply that the caller has, or both.

        `write` makes the answer's body; `Judged.prompts` has one verdict for each of `prompts_of(call)`.
        """
        request = _Request(self, exchange)
        await request.run(request.scan(write))


def prompts_of(call: Call) -> list[Prompt]:
    """The texts of a scan: the messages of a conversation are one prompt, texts outside of any are one each."""
    prompt = call.prompt
    if prompt.unscannable or any(segment.message >= 0 for segment in prompt.segments):
        return [prompt]
    return [Prompt(call.model, (segment,)) for segment in prompt.segments]


class _Request:
    """The state of one request on its way."""

    def __init__(self, gateway: Gateway, exchange: Exchange) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._ledger = Ledger(gateway, exchange)
        self._answer = Answer(self._ledger, exchange, gateway.issued, gateway.tenancy)
        self._reply: Reply | None = None
        self._canary = ""
        self._hidden: Hidden | None = None
        self._demand = NOTHING

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
            if not self._ledger.closing:
                self._ledger.error = "client_disconnected"
                self._ledger.status = self._ledger.status or CLIENT_LEFT
                await self._close_quietly()
            raise
        except Exception as error:
            await self._fail(self._weighed(error))
        finally:
            if self._ledger.reservation is not None and self._ledger.caller is not None:
                self._gateway.refusals.served(self._ledger.caller.key_id)

    def _weighed(self, error: Exception) -> Exception:
        """The error, or that there were too many of its caller's."""
        ledger = self._ledger
        if not isinstance(error, RequestError) or ledger.reservation is not None:
            return error
        key_id = ledger.caller.key_id if ledger.caller is not None else ""
        weighed = self._gateway.refusals.weigh(error, self._exchange.address, key_id)
        ledger.unrecorded = isinstance(weighed, TooManyRefused) and not weighed.first
        return weighed

    async def _fail(self, error: Exception) -> None:
        if not isinstance(error, FirewallError):
            log_unexpected(self._exchange.request_id, error)
        elif not isinstance(error, RequestError):
            _log.warning("failed", request_id=self._exchange.request_id, code=error.code)
        failure = to_wire(error)
        self._ledger.error = failure.code
        await self._answer.refuse(failure, "error")

    # -- the order ---------------------------------------------------------------------------------------------------

    async def answer(self) -> None:
        """Admit, judge, forward, judge, settle, record."""
        gateway, exchange = self._gateway, self._exchange
        caller = await self._admit()
        asked = self._ledger.call = await exchange.receive()
        if not asked.stored:
            caller.permit_model(asked.model, asked.unknown_fields, asked.further_models)
        call = self._ledger.call = self._marked(caller, self._pinned(caller, asked))
        route = await self._route(caller.tenant, call)
        caller.authorise((segment.role, segment.pointer) for segment in call.prompt.segments)
        ruling = self._rule(caller, call)
        if ruling.action == "block":
            gateway.refusals.count(caller.key_id)
            await self._answer.refuse(extraction_error(exchange.request_id), "block")
            return
        texts = list(call.counted_texts or (segment.text for segment in call.prompt.segments))
        if caller.system_prompt and not call.stored:
            texts.append(caller.system_prompt)
        if self._canary:
            texts.append(sentence(self._canary))
        reserved = await gateway.tenancy.reserve(
            caller,
            call.model,
            texts,
            call.max_output_tokens,
            call.choices,
            call.token_ids,
            billed=not (call.stored or call.counted_only),
            demand=self._demand,
            models=route.models,
        )
        self._ledger.reservation = reserved
        if await self._hide(caller, asked):
            return
        if self._hidden is not None:
            call = self._marked(caller, self._pinned(caller, self._hidden.call))
        if ruling.action == "strip":
            call = replace(call, body=exchange.without_probes(call.body))
        call = self._ledger.call = self._renamed(caller.tenant, call)
        early = asyncio.ensure_future(self._forward(route, call)) if gateway.overlap else None
        try:
            verdict = await self._judge_prompt(call.prompt)
            if verdict.action == "block":
                self._see(caller, call, verdict)
                await self._answer.refuse(block_error(verdict, exchange.request_id, "prompt"), "block")
                return
            system_texts = self._ledger.system_texts
            await self._open_judge(caller, call, system_texts)
            if echoes := self._ledger.echoes:
                # The caller's own words are no leak to him; a secret is one even there.
                self._ledger.echo_judge = await gateway.replies.open(caller.tenant, (), tuple(echoes))
            if early is None:
                early = asyncio.ensure_future(self._forward(route, call))
                await _let_it_go_out()
            self._see(caller, call, verdict)
            await self._answer.forward(await early, call)
        finally:
            if early is not None:
                await _drop(early)
            if self._reply is not None:
                await self._reply.close()

    async def _admit(self) -> Caller:
        """Who asks, and that it may ask this at all. Raises Unauthenticated, Forbidden, LimitExceeded."""
        caller = self._ledger.caller = await self._gateway.tenancy.authenticate(self._exchange.credential)
        self._gateway.refusals.admit(caller.key_id)
        caller.permit_route(self._exchange.wire.name)
        return caller

    async def _open_judge(self, caller: Caller, call: Call, system_texts: Sequence[str]) -> ReplyJudge:
        asked = Asked(
            tools=None if call.stored else call.tools,
            results=call.results,
            supplied=supplied_in(call.prompt.segments),
            caller=f"{caller.tenant}\0{caller.key_id}",
            end_user=call.end_user,
            canary=self._canary,
            personal=tuple(self._hidden.values.values()) if self._hidden is not None else (),
        )
        judge = await self._gateway.replies.open(caller.tenant, system_texts, call.user_texts, asked)
        self._ledger.judge = judge
        return judge

    async def _hide(self, caller: Caller, call: Call) -> bool:
        """Look for personal data, and keep them from the provider; whether the caller was refused for them."""
        guard = self._gateway.personal
        if guard is None or call.stored:
            return False
        begun = perf_counter()
        try:
            self._hidden = hidden = await guard.hide(call, caller.tenant, self._exchange.parse)
        except FirewallError:
            raise
        except Exception as error:
            log_unexpected(self._exchange.request_id, error)
            raise GuardFailed("Personal data could not be looked for.") from None
        finally:
            self._ledger.judge_s += perf_counter() - begun
        # On record even where the caller leaves before the prompt is judged.
        verdict = self._ledger.prompt_verdict = decide(hidden.findings, hidden.unjudged)
        if verdict.action == "block":
            await self._answer.refuse(block_error(verdict, self._exchange.request_id, "prompt"), "block")
            return True
        return False

    def _pinned(self, caller: Caller, call: Call) -> Call:
        """The call with its key's system prompt. The caller never holds that, so its own texts are checked and judged
        without it; replies are compared with it as with any system text.
        """
        text = caller.system_prompt
        if not text:
            return call
        body = call.body if call.stored else self._exchange.wire.pin(call, text)
        return replace(call, body=body, system_texts=(text, *call.system_texts))

    def _marked(self, caller: Caller, call: Call) -> Call:
        """The call with a mark before its system text, where there is one and marks are wanted: no other text says what
        the mark says, so a reply that does has read it out.
        """
        if not call.system_texts or call.stored or call.counted_only:
            return call
        self._canary = self._gateway.canary(caller.tenant, self._exchange.request_id)
        if not self._canary:
            return call
        return replace(call, body=self._exchange.wire.pin(call, sentence(self._canary)))

    def _renamed(self, tenant: str, call: Call) -> Call:
        """The call with pseudonyms in the place of its caller's own names, whatever became of these in its body."""
        pseudonyms = self._gateway.pseudonyms
        if pseudonyms is None or not call.names:
            return call
        names = {place: pseudonyms.of(tenant, name) for place, name in call.names.items()}
        if self._ledger.echoes:
            self._ledger.echoes |= frozenset(names.values())
        return replace(call, body=self._exchange.with_names(call.body, names))

    def _rule(self, caller: Caller, call: Call) -> Ruling:
        """What the caller's earlier calls mean for this one. Raises LimitExceeded for one that comes too soon."""
        watch = self._gateway.watch
        if watch is None or call.stored or call.counted_only:
            return Ruling()
        ruling = watch.rule(caller.tenant, caller.key_id, call.sampling)
        self._ledger.noted = (*self._ledger.noted, *ruling.findings)
        if ruling.action == "throttle":
            headers = {"retry-after": str(math.ceil(ruling.wait_s))}
            raise LimitExceeded("This key is asked to call less often for a while.", headers=headers)
        return ruling

    def _see(self, caller: Caller, call: Call, verdict: Verdict) -> None:
        """Count the call among its caller's. A watch that breaks is logged: it must not keep anybody from an answer."""
        watch = self._gateway.watch
        if watch is None or call.stored or call.counted_only:
            return
        try:
            found = watch.see(caller.tenant, caller.key_id, call.prompt, call.sampling, verdict.cell)
        except Exception as error:
            log_unexpected(self._exchange.request_id, error)
            return
        self._ledger.noted = (*self._ledger.noted, *found)

    async def _route(self, tenant: str, call: Call) -> Route:
        """Who is asked. Raises NotFound, also for an id that this provider did not issue to this tenant."""
        providers, ledger = self._gateway.providers, self._ledger
        known = dict.fromkeys(call.system_texts)
        ledger.echoes = call.echoes
        self._demand = call.demand
        if call.stored:
            origin = await self._origin(tenant, call.stored, "")
            route = providers.named(origin.provider)
            known.update(dict.fromkeys(origin.system_texts))
            ledger.echoes |= known.keys()
        else:
            route = providers.choose(call.model, self._exchange.wire.name)
        ledger.provider = route.name
        for reference in call.references:
            kept = await self._kept(tenant, reference)
            if kept is None:
                continue
            narrowed = route.only(kept.provider)  # what one provider keeps, no other knows
            if narrowed is None:
                raise _not_issued(reference.pointer)
            route = narrowed
            ledger.provider = route.name
            known.update(dict.fromkeys(kept.system_texts))
            if reference.read:
                # It is read again, and billed again, with every turn.
                demand = self._demand
                more = {"unknown": True} if kept.tokens is None else {"tokens": demand.tokens + kept.tokens}
                self._demand = replace(demand, **more)
        ledger.system_texts = tuple(known)
        return route

    async def _kept(self, tenant: str, reference: Reference) -> Origin | None:
        """Of what a call refers to; None for what may pass though it was issued to nobody. Raises NotFound."""
        issued, policy = self._gateway.issued, self._gateway.foreign_ids
        origin = await issued.find(tenant, reference.id)
        if origin is not None:
            return origin
        if policy == "refuse" or not reference.outside or await issued.is_anyone_s(reference.id):
            raise _not_issued(reference.pointer)
        if policy == "flag" and not self._ledger.noted:  # one tells of all
            self._ledger.noted = (Finding("references", "foreign_id", 1.0, "flag", reference.pointer),)
        return None

    async def _origin(self, tenant: str, issued_id: str, pointer: str) -> Origin:
        origin = await self._gateway.issued.find(tenant, issued_id)
        if origin is None:
            raise _not_issued(pointer)
        return origin

    async def scan(self, write: Callable[[Call, Judged], bytes]) -> None:
        """Admit, judge, settle, record."""
        caller = await self._admit()
        call = self._ledger.call = await self._exchange.receive()
        texts = [segment.text for segment in call.prompt.segments]
        texts += [text for _, text in call.reply.texts] if call.reply else ()
        self._ledger.reservation = await self._gateway.tenancy.reserve(caller, call.model, texts, 0, billed=False)
        prompts, verdicts = prompts_of(call), list[Verdict]()
        if self._gateway.prompts is None and (prompts or call.reply is None):
            raise GuardFailed("Detection is switched off (detection.enabled).")
        begun = perf_counter()
        for at in range(0, len(prompts), _AT_ONCE):
            verdicts += await asyncio.gather(*map(self._judge_prompt, prompts[at : at + _AT_ONCE]))
        self._ledger.judge_s = perf_counter() - begun
        judged = Judged(prompts=tuple(verdicts))
        self._ledger.prompt_verdict = judged.verdict
        if call.reply is not None:
            judged = replace(judged, **await self._judge_reply(caller, call, call.reply))
        self._ledger.status = 200
        body = write(call, judged)
        await self._ledger.close()
        headers = [("content-type", "application/json"), *self._answer.own_headers(judged.verdict.action)]
        await self._exchange.start(200, headers)
        await self._exchange.end(body)

    async def _judge_reply(self, caller: Caller, call: Call, reply: Piece) -> dict[str, Any]:
        """The same way as a provider's whole reply goes, and its members of `Judged`."""
        system_texts = (caller.system_prompt, *call.system_texts) if caller.system_prompt else call.system_texts
        judge = await self._open_judge(caller, call, system_texts)
        release = Release(judge, self._exchange.wire)
        await release.take(reply, last=True)
        await release.finish()
        released = release.cleared()
        self._ledger.reply_judge_s = release.judge_s
        self._ledger.reply_verdict = release.verdict
        return {"reply": release.verdict, "released": b"" if release.blocked else released}

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
        if (hidden := self._hidden) is not None:
            both = decide((*verdict.findings, *hidden.findings), (*verdict.unjudged, *hidden.unjudged))
            verdict = self._ledger.prompt_verdict = replace(both, cell=verdict.cell)
        return verdict

    async def _forward(self, route: Route, call: Call) -> Reply:
        self._ledger.forwarded = perf_counter()
        reply = await route.open(
            lambda target: self._asked(target, call),
            stream=call.stream,
            headers=self._exchange.forwarded_headers,
            method=call.method,
            note=self._ledger.note,
        )
        self._reply = reply
        self._ledger.provider = reply.provider
        self._ledger.answered = True
        answered: Reply = reply
        if reply.translated:
            tells_usage = call.reports_usage or self._ledger.hides_usage
            translation = self._gateway.translations[self._exchange.wire.name]
            answered = translation.reply(reply, call.body, tells_usage=tells_usage)
        if self._hidden is not None and self._hidden.values and reply.status < 300:
            # Before it is judged: what is judged is what is sent.
            answered = RestoredReply(answered, self._exchange.wire, self._hidden.values)
        return answered

    def _asked(self, target: Target, call: Call) -> tuple[str, bytes]:
        """Path and body for this provider: the caller's bytes, and spliced into them what a limit, a settlement or the
        provider's own name for the model asks for; all of it translated where it speaks another protocol.
        """
        exchange, reserved = self._exchange, self._ledger.reservation
        asked, body = call.model, call.body
        self._ledger.model = target.model
        call = replace(call, model=target.model or asked)  # some models have their own member for the bound
        if reserved is not None and reserved.max_output_tokens is not None:
            body = exchange.wire.clamp(call, reserved.max_output_tokens)
        # What was really used is what is settled; the caller sees no more of it than it asked for.
        self._ledger.hides_usage = not call.reports_usage and target.asks_usage
        if self._ledger.hides_usage:
            body = exchange.wire.ask_usage(body)
        if call.model != asked:
            body = exchange.name_model(body, call.model)
        path = call.path or exchange.wire.path
        if target.translated:
            translation = self._gateway.translations[exchange.wire.name]
            path, body = translation.path, translation.request(body, asks_usage=target.asks_usage)
        pseudonyms, caller = self._gateway.pseudonyms, self._ledger.caller
        if pseudonyms is not None and target.name in pseudonyms.told and caller is not None and not call.stored:
            body = exchange.with_user(body, pseudonyms.of(caller.tenant))
        return path, body

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _close_quietly(self) -> None:
        try:
            await self._ledger.close()
        except Exception as error:
            _log.error("record failed", request_id=self._exchange.request_id, error=type(error).__name__)


def _not_issued(pointer: str) -> NotFound:
    """The same words whether the id is another tenant's or nobody's."""
    return NotFound("There is nothing with this id here.", pointer=pointer or None)


async def _let_it_go_out() -> None:
    """What else there is to do can be done while the provider works. The HTTP client writes in a task of its own."""
    for _ in range(2):
        await asyncio.sleep(0)


async def _drop(early: asyncio.Future[Reply]) -> None:
    """Stop a call that was sent ahead of a verdict which did not let it pass."""
    if not early.done():
        early.cancel()
    await asyncio.wait({early})
    if not early.cancelled():
        early.exception()
