"""What the gateway needs of its neighbours, and the neutral form of a request and of a piece of a reply.

Each file of `api/` implements `Exchange` and `Wire` for one protocol; `app.py` hands in the rest. The gateway thus
knows neither HTTP nor any provider's JSON.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from service.errors import WireError
from service.firewall.asked import Asked, CallPart, OfferedTool
from service.firewall.extraction import Ruling
from service.firewall.extraction_observation import Sampling
from service.firewall.prompt import Prompt
from service.firewall.verdict import Finding, Verdict, decide
from service.records.audit import AuditRow
from service.settings import Limits
from service.tenancy.demand import NOTHING, Demand
from service.tenancy.issued import Origin

Headers = Iterable[tuple[str, str]]
Digest = Callable[[str], str]


class Reference(msgspec.Struct, frozen=True):
    """An id of something that a provider keeps; `pointer` is its place in the request. `outside`: it may have come to
    be outside of this gateway, as a file that was uploaded. `read`: it stands for earlier turns, which the model reads
    again.
    """

    id: str
    pointer: str
    outside: bool = False
    read: bool = False


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One parsed request.

    `body` is what the caller sent, byte for byte. `max_output_tokens` counts all `choices` together, None where the
    caller set no bound. `token_ids` is how many of the prompt's tokens came as ids. `unknown_fields` are members that
    this protocol does not know. `reply` is a reply that the caller has and wants judged, no model called.

    `tools` are those that the model may call, None where the request does not say all of them; `results` are texts that
    neither user nor system wrote; `end_user` is the caller's own name for whom it asks. `names` are all such names and
    those of its caches, by their JSON pointer: no provider sees them. `further_models` are those that tools name, each
    with its pointer.

    `references` must have been issued to the caller's tenant by the provider that is asked. `echoes` are strings of the
    request that replies of this protocol repeat beside the model's output. `deferred`: the model goes on working after
    the answer. `stored` is the id of what the call is about where it is about something kept: the provider that issued
    it is asked, no model works and nothing is generated; nor is it where `counted_only`. `reports_usage`: the reply
    says what it used without being asked. `repeats_prompt`: the reply may begin with the prompt. `method` and `path`
    are those of the provider's side; an empty path is the protocol's own. `sampling` is what is asked beside the text.
    `counted_texts` are what the prompt's tokens are counted by, None where that is its segments; `demand` is what it
    costs beside them.
    """

    model: str
    stream: bool
    body: bytes
    prompt: Prompt
    system_texts: tuple[str, ...] = ()
    user_texts: tuple[str, ...] = ()
    tools: tuple[OfferedTool, ...] | None = None
    results: tuple[str, ...] = ()
    end_user: str = ""
    max_output_tokens: int | None = None
    choices: int = 1
    token_ids: int = 0
    unknown_fields: tuple[str, ...] = ()
    reply: Piece | None = None
    names: Mapping[str, str] = {}
    further_models: tuple[tuple[str, str], ...] = ()
    references: tuple[Reference, ...] = ()
    echoes: frozenset[str] = frozenset()
    deferred: bool = False
    stored: str = ""
    counted_only: bool = False
    reports_usage: bool = True
    repeats_prompt: bool = False
    method: str = "POST"
    path: str = ""
    sampling: Sampling = Sampling()
    counted_texts: tuple[str, ...] | None = None
    demand: Demand = NOTHING


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider reports them. `cached_tokens` are those of the prompt that cost less, `written_tokens` and
    `long_written_tokens` those that were written to the provider's cache, for minutes and for longer. `partial`: the
    reply has begun, and how long it becomes is not said yet.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    written_tokens: int = 0
    long_written_tokens: int = 0
    partial: bool = False


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A whole reply, or one event of a streamed one.

    `texts` are (channel, text) for every string in it that carries model output; a channel names one text that grows
    over the stream, as `choices/0/content`; one with a `#` repeats another's text in another form; one that ends in `=`
    is no such text but a value complete in itself, as an id, and is judged alone (below `echo/` it may repeat what the
    request said); one that begins with `=` says once more all that the channel behind it has said so far. `ended` are
    channels that get no more text after this piece, so that what follows need not wait for them. `raw` leaves byte for
    byte where no text is changed; else `Wire.rewrite` puts changed texts into `document`. `final` says that the reply
    ends here for the caller (a finish reason), so that it waits for the whole verdict; `done` marks the very last
    event, which waits for the audit row; `failed` an error that the provider reports in its stream. `number` is the
    protocol's own number of the event, `issued` are ids in it by which the caller may ask for what the provider keeps.
    `calls` are parts of tool calls, `usage_only`: an event with nothing in it but `usage`.
    """

    raw: bytes
    texts: tuple[tuple[str, str], ...] = ()
    document: Any = None
    usage: Usage | None = None
    final: bool = False
    done: bool = False
    failed: bool = False
    ended: tuple[str, ...] = ()
    number: int | None = None
    issued: tuple[str, ...] = ()
    calls: tuple[CallPart, ...] = ()
    usage_only: bool = False


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in texts that are not forwarded: a verdict for each prompt, the reply's, and what of the reply may
    be sent (`Piece.raw` or `Wire.rewrite`), nothing where it is blocked.
    """

    prompts: tuple[Verdict, ...] = ()
    reply: Verdict = Verdict()
    released: bytes = b""

    @property
    def verdict(self) -> Verdict:
        """Over all of them."""
        verdicts = (*self.prompts, self.reply)
        return decide(
            (finding for verdict in verdicts for finding in verdict.findings),
            dict.fromkeys(name for verdict in verdicts for name in verdict.unjudged),
        )


class Hidden(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it may be sent, what personal data was found in it, and `values`: what stands for which placeholder in
    it, where that is to be put back into the reply.
    """

    call: Call
    findings: tuple[Finding, ...] = ()
    unjudged: tuple[str, ...] = ()
    values: Mapping[str, str] = {}


class PersonalGuard(Protocol):
    """Looks for personal data in what goes in."""

    async def hide(self, call: Call, tenant: str, read: Callable[[bytes], Awaitable[Call]]) -> Hidden:
        """The call without them, or as it is where they are only told of. `read` parses a body of its protocol.

        Raises PayloadTooLarge, GuardFailed.
        """


class StreamReader(Protocol):
    """Reads one streamed reply. Both methods raise UpstreamInvalid for what cannot be read, and so not be judged."""

    @property
    def kept_bytes(self) -> int:
        """Of the event that is not whole yet."""

    def feed(self, chunk: bytes) -> list[Piece]:
        """The events that these bytes complete."""

    def finish(self) -> list[Piece]:
        """The end of the bytes; raises where the reply is not complete."""


class Wire(Protocol):
    """One wire protocol's way of writing replies and errors."""

    @property
    def name(self) -> str:
        """As it stands in the audit row. Up to its dot it names the family that a provider speaks: `openai.chat`."""

    @property
    def path(self) -> str:
        """Below the provider's base address."""

    def read_reply(self, body: bytes) -> Piece:
        """A whole reply. Raises UpstreamInvalid."""

    def read_error(self, body: bytes) -> Piece:
        """The body of a provider's own error, in whatever form it has."""

    def open_stream(self, choices: int = 1) -> StreamReader:
        """A reader for one streamed reply, of which so many choices were asked for."""

    def rewrite(self, piece: Piece, texts: Sequence[str]) -> bytes | None:
        """The piece with these texts in the place of its own, in their order; None where one cannot be changed."""

    def clamp(self, call: Call, max_output_tokens: int) -> bytes:
        """The call's body with its output bounded, every other byte as it is."""

    def pin(self, call: Call, text: str) -> bytes:
        """The call's body with a system text before all others, every other byte as it is.

        Raises Forbidden where the protocol has no place for one.
        """

    def ask_usage(self, body: bytes) -> bytes:
        """A body of this protocol that asks for the usage of its stream, every other byte as it is."""

    def phrase(self, error: WireError) -> WireError:
        """The error with the status and type that this protocol's clients know it by."""

    def error_body(self, error: WireError) -> bytes:
        """An error as the body of an answer."""

    def error_event(self, error: WireError, after: int | None) -> bytes:
        """An error within a stream that has begun; `after` is the number of the last event that was sent."""


class Exchange(Protocol):
    """One request and its answer."""

    request_id: str
    credential: str
    address: str
    """Where the connection comes from; empty where that is not known, or is not the caller's."""
    started: bool

    @property
    def wire(self) -> Wire:
        """The protocol spoken."""

    @property
    def forwarded_headers(self) -> Mapping[str, str]:
        """The caller's headers that may reach a provider."""

    def name_model(self, body: bytes, model: str) -> bytes:
        """A body of this protocol that asks for this model, every other byte as it is."""

    def without_probes(self, body: bytes) -> bytes:
        """A body of this protocol that asks for no log-probabilities and biases no token, every other byte as it is."""

    def with_names(self, body: bytes, names: Mapping[str, str]) -> bytes:
        """A body of this protocol with these names at their JSON pointers, every other byte as it is."""

    def with_user(self, body: bytes, name: str) -> bytes:
        """A body of OpenAI's protocols that says for whom it asks, as it is where it does already."""

    async def receive(self) -> Call:
        """Read and parse the request. Raises RequestError, CallerLeft."""

    async def parse(self, body: bytes) -> Call:
        """Parse a body that stands for the request's. Raises RequestError."""

    async def gone(self) -> None:
        """Return when the caller has left; waits for the request to be read first."""

    async def start(self, status: int, headers: Headers) -> None:
        """Begin the answer. This, `send` and `end` raise CallerLeft where the caller does not read."""

    async def send(self, data: bytes) -> None:
        """Send a part of the answer's body."""

    async def end(self, data: bytes = b"") -> None:
        """Send the last part and end the answer."""


class CallerLeft(Exception):
    """The caller closed the connection before the request was read, or does not read its answer."""


class Caller(Protocol):
    """Who asks."""

    @property
    def tenant(self) -> str:
        """The tenant's name."""

    @property
    def key_id(self) -> str:
        """The key's id; empty in open mode."""

    @property
    def models(self) -> Sequence[str]:
        """Globs of the models that it may ask for; all where there is none."""

    @property
    def limits(self) -> Limits:
        """The key's own."""

    @property
    def tenant_limits(self) -> Limits | None:
        """The tenant's, where the configuration does not name it and the database does."""

    @property
    def system_prompt(self) -> str:
        """What its key puts before every prompt; empty where there is none."""

    def authorise(self, sent: Iterable[tuple[str, str]]) -> None:
        """Check the (role, JSON pointer) of each text sent. Raises Forbidden."""

    def permit_route(self, protocol: str) -> None:
        """Check the protocol (`Wire.name`). Raises Forbidden."""

    def permit_model(
        self, model: str, unknown_fields: Sequence[str] = (), further: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Check the model asked for, the `further` ones (model, JSON pointer) that work for it, and that no unknown
        member names others. Raises Forbidden.
        """


class Reservation(Protocol):
    """Tokens and money set aside for a call. `headers` tell the caller what is left."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, counted here."""

    @property
    def max_output_tokens(self) -> int | None:
        """What each choice must be clamped to; None where nothing needs to be."""

    @property
    def output_tokens(self) -> int:
        """What was set aside for all choices together; 0 where nothing bounds them."""

    @property
    def hidden_output(self) -> bool:
        """The model bills output that it does not deliver."""

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """`x-ratelimit-*`."""


class Tenancy(Protocol):
    """Who may ask for how much."""

    async def authenticate(self, credential: str) -> Caller:
        """Raises Unauthenticated."""

    async def reserve(
        self,
        caller: Caller,
        model: str,
        texts: Sequence[str],
        output_tokens: int | None,
        choices: int = 1,
        token_ids: int = 0,
        *,
        billed: bool = True,
        demand: Demand = NOTHING,
        models: Sequence[str] = (),
    ) -> Reservation:
        """Count the texts and set them and the longest reply aside.

        `output_tokens` bounds all choices together; None where the caller set no bound. `token_ids` of the prompt's
        tokens came as ids. `billed` says that a model reads them. `demand` is what it costs beside the texts, `models`
        the names by which those who may be asked know the model. Raises LimitExceeded, ContextLengthExceeded,
        Forbidden, CountersFailed.
        """

    async def count(self, model: str, texts: Sequence[str], *, estimated: bool = False) -> int:
        """Tokens of the texts; `estimated` as the model's provider would bill them."""

    def decode(self, model: str, ids: Sequence[int]) -> tuple[str, bool] | None:
        """The text of token ids and whether it is all of them; None where the model's encoding is not known."""

    async def settle(
        self,
        reservation: Reservation,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        *,
        written_tokens: int = 0,
        long_written_tokens: int = 0,
        model: str = "",
    ) -> None:
        """Replace the reservation by what was used; `model` is who answered, by the name that its provider knows."""


class PromptGuard(Protocol):
    """Judges what goes in."""

    async def judge(self, prompt: Prompt, *, digest: Digest, cache_scope: str) -> Verdict:
        """Raises UnavailableError where it cannot judge and fails closed."""


class CallWatch(Protocol):
    """Watches what a caller asks for over many calls."""

    def rule(self, tenant: str, key_id: str, sampling: Sampling) -> Ruling:
        """What happens to the caller's next call, by what was seen before."""

    def see(self, tenant: str, key_id: str, prompt: Prompt, sampling: Sampling, cell: int) -> Sequence[Finding]:
        """Count a call; `cell` is that of the prompt's verdict. What it makes of the caller, for the record only."""


class ReplyJudge(Protocol):
    """Judges one reply while it streams."""

    async def called(self, parts: Sequence[CallPart]) -> None:
        """Parts of tool calls, told before the texts that hold them."""

    async def feed(self, channel: str, text: str, *, last: bool = False) -> None:
        """The next text of a channel, and whether the channel ends with it."""

    async def end(self, channel: str) -> None:
        """The channel gets no more text: judge what was held of it."""

    async def finish(self) -> None:
        """The reply has ended; everything is judged after this."""

    async def whole(self, channel: str, text: str) -> str:
        """Judge a text that is complete in itself; what may be sent of it, nothing once `blocked`."""

    def clears(self, texts: Sequence[str]) -> bool:
        """Whether texts that are complete in themselves surely hold nothing, so that `whole` would give them back."""

    def cleared(self, channel: str) -> int:
        """Characters of that channel, from its start, that may leave now."""

    def render(self, channel: str, start: int, end: int) -> str:
        """What may be sent for these characters."""

    @property
    def blocked(self) -> bool:
        """Nothing more may leave."""

    @property
    def verdict(self) -> Verdict:
        """Of what was judged so far."""


class ReplyGuard(Protocol):
    """Opens a judge for each reply."""

    async def open(
        self, tenant: str, system_texts: Sequence[str], user_texts: Sequence[str], asked: Asked | None = None
    ) -> ReplyJudge:
        """A judge that knows the tenant's protected texts and this request's own. Without `asked` only texts are
        judged, no calls and nothing that adds up.
        """


class Reply(Protocol):
    """A provider's answer whose head has arrived."""

    status: int
    content_type: str
    headers: tuple[tuple[str, str], ...]

    def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes as they come. Raises UpstreamError."""

    async def close(self) -> None:
        """Drop the connection unless everything was read."""


class Provider(Protocol):
    """Somebody who answers calls. `asks_usage`: may be asked for the usage of a stream that nobody asked it for."""

    name: str
    asks_usage: bool

    async def open(
        self, path: str, body: bytes, *, stream: bool, headers: Mapping[str, str], method: str = "POST", model: str = ""
    ) -> Reply:
        """Send a call for a model and wait for the answer's head. Raises UpstreamError, MalformedRequest."""


class RoutedReply(Reply, Protocol):
    """A provider's answer, whose it is, and whether it is in a protocol that the caller does not speak."""

    provider: str
    translated: bool


class Target(Protocol):
    """A provider as one call would ask it."""

    @property
    def name(self) -> str:
        """The provider's."""

    @property
    def model(self) -> str:
        """The name that it knows the model by; empty where it is not asked for one."""

    @property
    def asks_usage(self) -> bool:
        """As `Provider.asks_usage`."""

    @property
    def translated(self) -> bool:
        """The provider speaks another protocol than the caller (`Translation`)."""


class Route(Protocol):
    """The providers that may answer one call, in the order in which they are asked, one at a time."""

    @property
    def name(self) -> str:
        """Of the provider that is asked first."""

    @property
    def models(self) -> Sequence[str]:
        """The names by which they know the model; none where it is not asked for."""

    def only(self, name: str) -> Route | None:
        """With no other provider than this one; None where it is not among them."""

    async def open(
        self,
        ask_of: Callable[[Target], tuple[str, bytes]],
        *,
        stream: bool,
        headers: Mapping[str, str],
        method: str,
        note: Callable[[str, str], None],
    ) -> RoutedReply:
        """Ask until one answers, with the path and body of `ask_of`; `note` is told (provider, how it went) of each.

        Raises UpstreamError, and MalformedRequest where a provider cannot be asked this.
        """


class Translation(Protocol):
    """From the caller's protocol to a provider's, and back. Requests are judged before it, replies after it."""

    @property
    def path(self) -> str:
        """Below the provider's base address."""

    def request(self, body: bytes, *, asks_usage: bool) -> bytes:
        """What the provider is sent, and whether it may be asked for the usage of its stream. Raises MalformedRequest
        naming what its protocol cannot say.
        """

    def reply(self, reply: Reply, asked: bytes, *, tells_usage: bool) -> Reply:
        """The answer in the caller's protocol to the body that he `asked`; whether its stream ends with its usage."""


class Router(Protocol):
    """Chooses who may be asked for a model."""

    def choose(self, model: str, protocol: str | None) -> Route:
        """Those who speak the protocol (`Wire.name`) or are reached by a translation, with None any. Raises NotFound,
        and MalformedRequest where there are none.
        """

    def named(self, name: str) -> Route:
        """To the provider of this name. Raises NotFound."""


class IssuedIds(Protocol):
    """Which ids were issued to which tenant. All raise StorageFailed."""

    async def record(self, tenant: str, ids: Sequence[str], origin: Origin) -> None:
        """Keep ids; durable on return."""

    async def find(self, tenant: str, issued_id: str) -> Origin | None:
        """None where it was not issued to this tenant."""

    async def is_anyone_s(self, issued_id: str) -> bool:
        """Whether it is known to have been issued to some tenant."""


class AuditSink(Protocol):
    """Keeps audit rows."""

    async def write(self, row: AuditRow) -> None:
        """Return when the row is durable. Raises StorageFailed where the policy is to fail closed."""
