"""Settings → the wired Litestar application. The only file that knows all the parts."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import asgi

from service.api import (
    admin,
    chat,
    completions,
    embeddings,
    ext_proc,
    gateway_openapi,
    guardrail_litellm,
    guardrail_llm_guard,
    health,
    messages,
    models,
    moderations,
    responses,
    responses_stored,
    scan,
)
from service.api.admin_door import TOKEN_VARIABLE, AdminDoor
from service.api.admin_protected import AdminTexts
from service.api.asgi import Handler, check_origin, sign_answer
from service.api.chat_reply import ChatWire
from service.api.messages_as_chat import CountAsChat, MessagesAsChat
from service.api.messages_reply import CountWire, MessagesWire
from service.api.messages_to_chat import ChatAsMessages
from service.api.personal_data import PersonalData
from service.errors import NotFound, WireError, to_wire
from service.firewall.canary import Canaries
from service.firewall.extraction import ExtractionWatch
from service.firewall.injection import InjectionGuard
from service.firewall.leakage import LeakageGuard
from service.firewall.personal_watch import PersonalDataWatch
from service.firewall.piecemeal import ToldBefore
from service.firewall.policy import threshold_of
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.recognisers import Recognisers
from service.firewall.registration import registered
from service.firewall.reply_injection import ReplyInjectionGuard
from service.firewall.retelling import PairReader, RetellingGuard
from service.firewall.tool_calls import ToolPolicy
from service.firewall.watched import Watch as ReplyWatch
from service.gateway import Gateway
from service.interfaces import Provider, Wire
from service.protection import Registry, Watch
from service.records.audit_log import AuditLog
from service.records.pace_recall import PaceRecall
from service.records.place import database_place
from service.records.row_writer import RowWriter
from service.records.store import Store
from service.scoring.artifact import load_artifact
from service.scoring.attack_index import AttackIndex
from service.scoring.batcher import Batcher
from service.scoring.encoder import Encoder
from service.settings import Settings, load
from service.telemetry.metrics import Metrics
from service.tenancy.directory import Directory, report_unknown
from service.tenancy.issued import IssuedIds
from service.tenancy.keys import Keys, load_root
from service.tenancy.pseudonyms import Pseudonyms
from service.tenancy.quota import Quota, counters_of
from service.tenancy.refusals import Refusals
from service.tenancy.tenants import Tenants
from service.tenancy.tokens import TokenCounter
from service.tenancy.vault import Vault
from service.upstream import estimate
from service.upstream.breaker import Breaker
from service.upstream.client import HttpProvider, SharedSession
from service.upstream.line import Line
from service.upstream.router import Router
from service.upstream.sandbox import MODELS, Count, Sandbox

if TYPE_CHECKING:
    from service.api.ext_proc.server import ExtProcServer

_MIN_KEY_CHARS = 16

Hook = Callable[[], Awaitable[None]]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the routes need besides the settings. `start` and `stop` run in the server's event loop, in this order.

    Without `admin` its routes do not exist.
    """

    gateway: Gateway
    exposition: Callable[[], tuple[str, bytes]]
    facts: Mapping[str, str] = {}
    providers: Callable[[], Mapping[str, str]] = dict
    checks: Mapping[str, Hook] = {}
    admin: Handler | None = None
    start: Sequence[Hook] = ()
    stop: Sequence[Hook] = ()


def assemble(settings: Settings, parts: Parts) -> Litestar:
    """The application over parts that are made already."""
    is_open = settings.auth.mode == "open"
    check = check_origin if is_open else None
    gateway, server = parts.gateway, settings.server
    authenticate = gateway.tenancy.authenticate
    create = responses.handler(gateway, server, open_mode=is_open)
    # Litestar knows no path parameters of plain ASGI handlers.
    mounts: dict[str, Handler] = {
        models.PATH: models.handler(
            settings.providers, settings.routes, MODELS, gateway.providers, authenticate, check=check
        ),
        responses_stored.PATH: responses_stored.handler(gateway, server, create, open_mode=is_open),
    }
    if parts.admin is not None:
        mounts[admin.PATH] = parts.admin
    routes: dict[str, Handler] = {
        "/v1/chat/completions": chat.handler(gateway, server, open_mode=is_open),
        "/v1/messages": messages.handler(gateway, server, open_mode=is_open),
        "/v1/messages/count_tokens": messages.count_handler(gateway, server, open_mode=is_open),
        "/v1/completions": completions.handler(gateway, server, open_mode=is_open),
        "/v1/embeddings": embeddings.handler(gateway, server, open_mode=is_open),
        "/v1/moderations": moderations.handler(gateway, server, open_mode=is_open),
        "/v1/scan": scan.handler(gateway, server, open_mode=is_open),
        guardrail_litellm.PATH: guardrail_litellm.handler(gateway, server, open_mode=is_open),
        **guardrail_llm_guard.handlers(gateway, server, open_mode=is_open),
        gateway_openapi.PATH: gateway_openapi.handler(),
        "/health/live": health.live(),
        "/health/ready": health.ready(parts.facts, parts.checks, parts.providers),
        "/healthz": health.live("alive"),  # LLM Guard's probes
        "/readyz": health.ready(parts.facts, parts.checks, parts.providers),
    }
    start, stop = list(parts.start), list(parts.stop)
    if settings.envoy.port is not None:
        processor = _ext_proc(settings, gateway)
        start.append(processor.start)
        stop.insert(0, processor.stop)
    if settings.telemetry.metrics:
        routes["/metrics"] = health.metrics(parts.exposition, check=check)
    return Litestar(
        route_handlers=[
            *(asgi(path, copy_scope=False)(handle) for path, handle in routes.items()),
            *(asgi(path, is_mount=True, copy_scope=False)(handle) for path, handle in mounts.items()),
        ],
        openapi_config=None,  # its pages load scripts from a CDN
        before_send=[_sign],
        exception_handlers={HTTPException: _refused, Exception: _refused},
        on_startup=start,
        on_shutdown=stop,
        logging_config=None,
        state=State({"facts": dict(parts.facts)}),
        debug=False,
    )


def _ext_proc(settings: Settings, gateway: Gateway) -> ExtProcServer:
    """What answers Envoy. Imported here: gRPC comes with an extra. Raises ConfigError where it is not installed."""
    ext_proc.require()
    from service.api.ext_proc.server import ExtProcServer

    return ExtProcServer(gateway, settings.envoy, settings.server, shared=settings.server.workers > 1)


async def _sign(message: Any, scope: Any) -> None:
    sign_answer(message, scope)


def _refused(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """What no route of ours answered: mostly paths that do not exist, which are refused and never forwarded."""
    failure = to_wire(error)
    if isinstance(error, HTTPException) and error.status_code == 404:
        failure = to_wire(NotFound("There is no such route here."))
    elif isinstance(error, HTTPException) and error.status_code < 500:
        failure = WireError(error.status_code, "invalid_request_error", "invalid_request", "The request was refused.")
    is_messages = request.scope["path"].startswith(MessagesWire.path)
    wire: Wire = MessagesWire() if is_messages else ChatWire()
    body = wire.error_body(failure)
    return Response(body, status_code=failure.status, media_type="application/json")


def providers_of(settings: Settings, session: SharedSession, count: Count) -> dict[str, Provider]:
    """The configured providers by name, each with its key from the environment. The sandbox counts with `count`."""
    made: dict[str, Provider] = {}
    for entry in settings.providers:
        if entry.kind == "sandbox":
            made[entry.name] = Sandbox(entry.name, count)
        else:
            made[entry.name] = HttpProvider(
                entry.name,
                session,
                base_url=entry.base_url,
                api_key=os.environ.get(entry.api_key_env, "") if entry.api_key_env else "",
                connect_timeout_s=entry.connect_timeout_s,
                timeout_s=entry.timeout_s,
                retries=entry.retries,
                kind=entry.kind,
                api_version=entry.api_version,
                asks_usage=entry.stream_usage,
            )
    return made


def lines_of(settings: Settings, providers: Mapping[str, Provider]) -> dict[str, Line]:
    """The way to each provider, by its name."""
    return {
        entry.name: Line(
            entry.name,
            providers[entry.name],
            Breaker(entry.breaker_failures, entry.breaker_open_s),
            concurrency=entry.concurrency,
            wait_s=entry.wait_s,
        )
        for entry in settings.providers
    }


def counted_here(count: Count) -> Line:
    """The way to who counts the tokens of chats: nobody whom a breaker needs to leave alone."""
    return Line(estimate.NAME, estimate.Estimate(count), Breaker(0, 1.0))


def create_app(settings: Settings) -> Litestar:
    """The whole service as it is configured.

    Raises ConfigError and ArtifactError here, or where the server starts it (the database is opened there).
    """
    return assemble(settings, connect(settings))


def connect(settings: Settings) -> Parts:
    """All parts of the service, as they are configured; also for an application that judges in its own process
    (`service.middleware`), and runs `start` and `stop` itself. Raises as `create_app` does.
    """
    root = load_root(settings.folder)
    digest = root.digest("audit")
    store = Store(database_place(settings))
    rows = RowWriter(store.place) if isinstance(store.place, Path) else None
    audit = AuditLog(rows or store, settings.storage.on_error, rows.add_at_once if rows else None)
    counter, session, metrics = TokenCounter(), SharedSession(), Metrics()
    keys = Keys(store, root)
    quota = Quota(counters_of(settings), settings.counters.on_error)
    tenants = Tenants(settings, counter, quota, keys if settings.auth.mode == "keys" else None)
    model = _Model(settings) if settings.detection.enabled or settings.leakage.stream != "exact" else None
    facts = model.facts if model else {}
    metrics.describe(**facts)
    recognise = Recognisers(settings.pii.entities, settings.pii.score) if settings.pii.enabled else None
    texts, vault = ProtectedTexts([*registered(settings), *_provider_keys(settings)]), Vault(root)
    watch = Watch(store, vault, texts)
    replies = LeakageGuard(
        settings.leakage,
        texts,
        model.batcher if model else None,
        model.artifact if model else None,
        digest=digest,
        deadline_s=settings.detection.deadline_s,
        watches=[
            *_watches(settings, model),
            *([PersonalDataWatch(settings.pii, recognise).watch] if recognise else ()),
        ],
        canary=settings.canary.action,
    )
    lines = lines_of(settings, providers_of(settings, session, counter.count))
    metrics.watch_each(
        "provider_breaker",
        "0 closed, 1 open, 0.5 half-open: the next call is a trial",
        "provider",
        {name: partial(_breaker_level, line) for name, line in lines.items()},
    )
    metrics.watch_each(
        "provider_calls",
        "Calls under way",
        "provider",
        {name: line.under_way for name, line in lines.items()},
    )
    metrics.watch("protected_texts", "Texts that replies are compared with", texts.__len__)
    metrics.watch("reservations", "Reservations that are not settled", quota.in_flight)
    copies = ExtractionWatch(settings.extraction, monotonic, metrics.alarm) if settings.extraction.enabled else None
    gateway = Gateway(
        tenancy=tenants,
        prompts=model.guard if model else None,
        replies=replies,
        providers=Router(settings.providers, lines, settings.routes, estimate=counted_here(counter.count)),
        issued=IssuedIds(
            store,
            root.digest("issued-id"),
            settings.storage.on_error,
            everyones=settings.auth.mode == "keys" and settings.foreign_ids != "refuse",
        ),
        foreign_ids=settings.foreign_ids,
        pseudonyms=Pseudonyms(root.digest("pseudonym"), [p.name for p in settings.providers if p.pseudonym]),
        audit=audit,
        observe=metrics.observe,
        digest=digest,
        watch=copies,
        overlap=settings.detection.mode == "overlap",
        translations={
            ChatWire.name: ChatAsMessages(),
            MessagesWire.name: MessagesAsChat(),
            CountWire.name: CountAsChat(),
        },
        canary=Canaries(settings.canary, root.digest("canary")).mark,
        personal=PersonalData(settings.pii, recognise, tag=root.digest("pii"), digest=digest) if recognise else None,
        refusals=Refusals(settings.auth.failures_per_minute),
    )

    recall = PaceRecall(store, copies.remember, settings.extraction.max_callers) if copies is not None else None

    async def start() -> None:
        await store.open()
        await report_unknown(settings, store)
        if recall is not None:
            await recall.start()
        await watch.start()
        await counter.warm()
        quota.start()
        if model is not None:
            model.batcher.start()

    async def stop() -> None:
        if recall is not None:
            await recall.stop()
        await watch.stop()
        await session.close()
        await audit.close()
        if rows is not None:
            await rows.close()
        if model is not None:
            await model.close()
        counter.close()
        await quota.close()
        await store.close()

    return Parts(
        gateway=gateway,
        exposition=metrics.exposition,
        facts=facts,
        providers=lambda: {name: line.state for name, line in lines.items()},
        admin=_admin(settings, keys, store, audit, Registry(store, vault), watch),
        checks={"storage": store.ping, "counters": quota.ping, "protected": watch.ping},
        start=[start],
        stop=[stop],
    )


def _retelling(settings: Settings, model: _Model | None) -> RetellingGuard:
    if model is None or settings.leakage.stream == "exact":
        return RetellingGuard(settings.leakage)
    return RetellingGuard(settings.leakage, PairReader.of(model.batcher, model.artifact, settings.detection.deadline_s))


def _watches(settings: Settings, model: _Model | None) -> list[ReplyWatch]:
    """What looks at a reply beside the judge of protected texts, in the order of their cost."""
    denied = {tenant.name: tenant.denied_tools for tenant in settings.tenants}
    watches: list[ReplyWatch] = [
        ToolPolicy(settings.tools, denied).watch,
        ToldBefore(settings.piecemeal).watch,
        _retelling(settings, model).watch,
    ]
    if settings.reply_injection.enabled and model is not None and model.guard is not None:
        fpr = settings.reply_injection.fpr
        # A reply speaks to the user, and is scored as the user's words are.
        threshold = threshold_of(model.artifact.manifest, "user", fpr, "reply_injection.fpr")
        buffers = settings.leakage.stream == "buffer"
        guard = ReplyInjectionGuard(settings.reply_injection, model.guard.score, threshold, buffers=buffers)
        watches.append(guard.watch)
    return watches


def _breaker_level(line: Line) -> float:
    return {"closed": 0.0, "half-open": 0.5, "open": 1.0}[line.state]


def _admin(
    settings: Settings, keys: Keys, store: Store, audit: AuditLog, registry: Registry, watch: Watch
) -> Handler | None:
    """The admin API where there is a token for it."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        return None
    tenants = Directory(settings, store)
    operations = admin.Admin(keys, store, tenants, AdminTexts(registry, store, watch, tenants))
    is_open = settings.auth.mode == "open"
    return admin.handler(operations, AdminDoor(token), audit, settings.server, open_mode=is_open)


class _Model:
    """The artifact and what runs on it."""

    def __init__(self, settings: Settings) -> None:
        detection = settings.detection
        self.artifact = load_artifact(settings.artifact_path)
        encoder = Encoder(self.artifact, detection.threads)
        self.batcher = Batcher(encoder, queue_windows=detection.queue_windows)
        self.guard: InjectionGuard | None = None
        if detection.enabled:
            self.guard = InjectionGuard(detection, self.artifact, self.batcher, AttackIndex(self.artifact))
        manifest = self.artifact.manifest
        self.facts = {
            "artifact": manifest.name,
            "artifact_version": self.artifact.version,
            "execution_provider": encoder.execution_provider,
        }

    async def close(self) -> None:
        if self.guard is not None:
            self.guard.close()
        await self.batcher.close()


def _provider_keys(settings: Settings) -> list[ProtectedText]:
    """The providers' own keys must not leave either: some providers quote them in their errors."""
    named = {p.api_key_env: p.name for p in settings.providers if p.api_key_env}
    texts = [ProtectedText(f"key of {name}", "secret", "", os.environ.get(env, "")) for env, name in named.items()]
    return [text for text in texts if len(text.value) >= _MIN_KEY_CHARS]


def from_environment() -> Litestar:
    """The application that `FIREWALL_CONFIG` describes, for ASGI servers that start it by its name."""
    name = os.environ.get("FIREWALL_CONFIG", "")
    return create_app(load(Path(name) if name else None))
