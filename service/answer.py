"""From a provider's reply to the caller's answer: judged before it is released, whole or event by event."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter

from service.errors import PayloadTooLarge, RunawayReply, StorageFailed, UpstreamInvalid, WireError, to_wire
from service.firewall.verdict import Finding, Verdict, decide, told
from service.interfaces import Call, Exchange, IssuedIds, Piece, Reply, StreamReader, Tenancy, Usage
from service.ledger import Ledger
from service.release import Release
from service.tenancy.issued import Origin
from service.tenancy.runaway import RunawayWatch

_INLINE_BYTES = 65_536  # larger replies are parsed in a thread
_SLICE_BYTES = 4_096  # of a stream, read at once


class Answer:
    """Writes one answer; its audit row is durable before the answer ends."""

    def __init__(self, ledger: Ledger, exchange: Exchange, issued: IssuedIds, tenancy: Tenancy) -> None:
        self._ledger = ledger
        self._exchange = exchange
        self._issued = issued
        self._tenancy = tenancy
        self._recorded: set[str] = set()

    async def refuse(self, error: WireError, action: str) -> None:
        """End the answer with an error: as its body before the first byte, as an event after it."""
        wire = self._exchange.wire
        error = wire.phrase(error)
        if not self._exchange.started:
            self._ledger.status = error.status
        if not self._ledger.closing:
            try:
                await self._ledger.close()
            except StorageFailed as failed:
                error, action = wire.phrase(to_wire(failed)), "error"
        if self._exchange.started:
            release = self._ledger.release
            await self._exchange.end(wire.error_event(error, release.number if release else None))
            return
        self._ledger.status = error.status
        headers = [("content-type", "application/json"), *error.headers, *self.own_headers(action)]
        await self._send(error.status, headers, wire.error_body(error))

    async def forward(self, reply: Reply, call: Call) -> None:
        """Answer with the provider's reply. Raises UpstreamInvalid for one that does not fit the call."""
        failed = reply.status >= 400
        if reply.status < 200 or 300 <= reply.status < 400:
            raise UpstreamInvalid("The provider answered with a redirect or an unknown status.")
        is_stream = reply.content_type == "text/event-stream"
        if not failed and is_stream != call.stream:
            raise UpstreamInvalid("The provider answered a streaming call with a whole reply, or the reverse.")
        if is_stream and not failed:
            await self._streaming(reply)
        else:
            await self._whole(reply, failed=failed)

    def _open(self) -> Release:
        ledger = self._ledger
        assert ledger.judge is not None
        wire = self._exchange.wire
        model = ledger.call.model if ledger.call is not None else ""
        ledger.release = Release(
            ledger.judge,
            wire,
            echo_judge=ledger.echo_judge,
            echoes=ledger.echoes,
            count=lambda texts: self._tenancy.count(model, texts),
        )
        return ledger.release

    async def _record(self, piece: Piece) -> None:
        """An id must be known here before its caller has it and asks for it."""
        ledger, usage = self._ledger, piece.usage
        # What is gone on from will be read again: all of the prompt, and all of the reply.
        tokens = None if usage is None or usage.partial else usage.prompt_tokens + usage.completion_tokens
        new = [name for name in dict.fromkeys(piece.issued) if tokens is not None or name not in self._recorded]
        if new and ledger.caller is not None:
            self._recorded.update(new)
            origin = Origin(ledger.provider, ledger.system_texts, tokens)
            await self._issued.record(ledger.caller.tenant, new, origin)

    async def _whole(self, reply: Reply, *, failed: bool) -> None:
        wire = self._exchange.wire
        body = b"".join([chunk async for chunk in reply.chunks()])
        self._ledger.upstream_s = perf_counter() - self._ledger.forwarded
        read = wire.read_error if failed else wire.read_reply
        piece = read(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(read, body)
        release = self._open()
        self._ledger.usage = piece.usage
        if not failed:
            await self._record(piece)
        await release.take_headers(reply.headers)
        await release.take(piece, last=True)
        await release.finish()
        out = release.cleared()
        self._ledger.reply_judge_s = release.judge_s
        verdict = self._ledger.reply_verdict = release.verdict
        if release.blocked:
            await self.refuse(block_error(verdict, self._exchange.request_id, "reply"), "block")
            return
        self._ledger.status = reply.status
        if failed or piece.failed:
            self._ledger.error = "upstream_error"
            self._ledger.usage = piece.usage or Usage(0, 0)
        await self._ledger.close()
        content_type = "application/json" if piece.document is not None else "text/plain; charset=utf-8"
        action = decide([*_findings(self._ledger.prompt_verdict), *_findings(verdict)]).action
        headers = [("content-type", content_type), *release.headers, *self.own_headers(action)]
        await self._send(reply.status, headers, out)

    async def _send(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        await self._exchange.start(status, [*headers, ("content-length", str(len(body)))])
        await self._exchange.end(body)

    async def _streaming(self, reply: Reply) -> None:
        exchange = self._exchange
        release = self._open()
        call = self._ledger.call
        assert call is not None
        reader, watch = exchange.wire.open_stream(call.choices), self._watch()
        tail = last = b""
        try:
            await release.take_headers(reply.headers)
            async for chunk in reply.chunks():
                tail += await self._take_chunk(chunk, reader, release, watch)
                out = release.cleared()
                if release.blocked:
                    break
                if out:
                    await self._begin_stream(reply, release)
                    await exchange.send(out)
            else:
                tail += await self._take(reader.finish(), release, watch)
                if not release.blocked:
                    await release.finish()
                    last = release.cleared()
        except RunawayReply:
            await reply.close()  # first of all: every further token would be billed
            raise
        finally:
            self._ledger.upstream_s = perf_counter() - self._ledger.forwarded
            self._ledger.reply_judge_s = release.judge_s
            self._ledger.reply_verdict = release.verdict
        if release.blocked:
            # The provider has nothing more to say to this caller: it must not go on billing while the row is written.
            await reply.close()
            await self.refuse(block_error(release.verdict, exchange.request_id, "reply"), "block")
            return
        self._ledger.status = reply.status
        await self._ledger.close()
        await self._begin_stream(reply, release)
        await exchange.end(last + tail)

    async def _take_chunk(self, chunk: bytes, reader: StreamReader, release: Release, watch: RunawayWatch) -> bytes:
        """Read a chunk in slices: one may hold a thousand events, and others want their turn."""
        tail = b""
        for start in range(0, len(chunk), _SLICE_BYTES):
            if start:
                await asyncio.sleep(0)
            part = chunk[start : start + _SLICE_BYTES]
            large = reader.kept_bytes > _INLINE_BYTES
            pieces = await asyncio.to_thread(reader.feed, part) if large else reader.feed(part)
            tail += await self._take(pieces, release, watch)
            if release.blocked:
                break
        return tail

    async def _take(self, pieces: list[Piece], release: Release, watch: RunawayWatch) -> bytes:
        """Give the pieces to the judge; return the bytes of the last event, which waits for the audit row."""
        tail = b""
        for piece in pieces:
            if piece.usage is not None:
                self._ledger.usage = piece.usage
            if piece.failed:
                self._ledger.error = "upstream_error"
            if piece.usage_only and self._ledger.hides_usage:
                continue
            if piece.done:
                tail += piece.raw
                continue
            await self._record(piece)
            await release.take(piece)
            if release.blocked:
                break
            await watch.take(piece.texts)
        return tail

    def _watch(self) -> RunawayWatch:
        """Counts what is delivered against what was reserved for it."""
        call, reserved = self._ledger.call, self._ledger.reservation
        assert call is not None
        assert reserved is not None
        bound = reserved.output_tokens or None
        if bound is not None and call.repeats_prompt:
            bound += reserved.prompt_tokens * call.choices
        return RunawayWatch(bound, lambda texts: self._tenancy.count(call.model, texts))

    async def _begin_stream(self, reply: Reply, release: Release) -> None:
        if self._exchange.started:
            return
        self._ledger.status = reply.status
        action = self._ledger.prompt_verdict.action if self._ledger.prompt_verdict else "allow"
        headers = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),
            *release.headers,
            *self.own_headers(action),
        ]
        await self._exchange.start(reply.status, headers)

    def own_headers(self, action: str) -> list[tuple[str, str]]:
        """The request's id, its action, and what is left of its limits."""
        own = [("x-firewall-request-id", self._exchange.request_id), ("x-firewall-action", action)]
        return [*own, *self._ledger.reservation.headers] if self._ledger.reservation else own


def _findings(verdict: Verdict | None) -> Sequence[Finding]:
    return verdict.findings if verdict else ()


def block_error(verdict: Verdict, request_id: str, what: str) -> WireError:
    """What a blocked caller is told: the category and the request id, never a score."""
    finding = verdict.decisive
    category = told(finding.category) if finding else "policy"
    pointer = finding.pointer if finding and what == "prompt" else None
    message = f"The {what} was blocked by the firewall: {category} (request {request_id})."
    if category == "oversize":
        return WireError(413, "invalid_request_error", PayloadTooLarge.code, message, pointer)
    return WireError(400, "invalid_request_error", "content_filter", message, pointer)


def extraction_error(request_id: str) -> WireError:
    """What a caller is told whose calls look like the copying of a model: neither why nor since when."""
    message = f"Calls of this key are refused by the firewall: model_extraction (request {request_id})."
    return WireError(403, "permission_error", "model_extraction", message)
