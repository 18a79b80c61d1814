"""`/admin/v1`: keys, tenants, protected texts and usage, for operators. Closed unless `FIREWALL_ADMIN_TOKEN` is set.

Every change leaves a row in the record, durable before its answer, and every change and refusal a line in the log.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import structlog

from service.api import admin_shapes as shapes
from service.api.admin_calls import Done, Operation, Request, page_limit
from service.api.admin_door import AdminDoor
from service.api.admin_openapi import document
from service.api.admin_protected import AdminTexts
from service.api.asgi import Handler, HttpExchange, MethodNotAllowed, headers_of, respond
from service.api.chat_reply import ChatWire
from service.errors import ConfigError, FirewallError, MalformedRequest, NotFound, Unauthenticated, WireError, to_wire
from service.interfaces import AuditSink, Call, CallerLeft
from service.ledger import log_unexpected
from service.records.audit import AuditRow
from service.records.store import Store
from service.settings import Server
from service.tenancy.directory import Directory
from service.tenancy.keys import Keys

PATH = "/admin/v1"
MAX_BODY_BYTES = 262_144
DEFAULT_USAGE_S = 30 * 86_400.0

_log = structlog.get_logger("admin")
_error_body = ChatWire().error_body


class Admin:
    """The operations. Each raises RequestError for what it cannot do, StorageFailed where there is no database."""

    def __init__(self, keys: Keys, store: Store, tenants: Directory, texts: AdminTexts) -> None:
        self._keys = keys
        self._store = store
        self._tenants = tenants
        self.routes: tuple[tuple[re.Pattern[str], Mapping[str, tuple[str, Operation]]], ...] = (
            (_path("/keys"), {"GET": ("keys.list", self._list_keys), "POST": ("keys.create", self._create_key)}),
            (_path("/keys/([a-z0-9]{1,64})/rotate"), {"POST": ("keys.rotate", self._rotate_key)}),
            (
                _path("/keys/([a-z0-9]{1,64})"),
                {"GET": ("keys.show", self._show_key), "DELETE": ("keys.revoke", self._revoke_key)},
            ),
            (
                _path("/tenants"),
                {"GET": ("tenants.list", self._list_tenants), "POST": ("tenants.create", self._create_tenant)},
            ),
            (
                _path("/tenants/([a-z0-9_.]{1,63})"),
                {
                    "GET": ("tenants.show", self._show_tenant),
                    "PATCH": ("tenants.change", self._change_tenant),
                    "DELETE": ("tenants.delete", self._delete_tenant),
                },
            ),
            (_path("/protected"), {"GET": ("protected.list", texts.list), "POST": ("protected.create", texts.create)}),
            (
                _path("/protected/([a-z0-9]{1,64})"),
                {"GET": ("protected.show", texts.show), "DELETE": ("protected.delete", texts.remove)},
            ),
            (_path("/usage"), {"GET": ("usage", self._usage)}),
            (_path(r"/openapi\.json"), {"GET": ("openapi", self._openapi)}),
        )

    # -- keys --------------------------------------------------------------------------------------------------------

    async def _create_key(self, request: Request) -> Done:
        asked = shapes.read(request.body, shapes.NewKey)
        try:
            await self._tenants.find(asked.tenant)
        except NotFound:
            raise MalformedRequest("There is no such tenant.", pointer="/tenant") from None
        made = await self._keys.create(
            asked.tenant,
            asked.roles,
            shapes.moment(asked.expires_at, "expires_at"),
            models=asked.models,
            routes=asked.routes,
            limits=asked.limits,
            system_prompt=asked.system_prompt,
        )
        return Done(201, shapes.KeyMade(id=made.id, key=made.key), asked.tenant, made.id)

    async def _list_keys(self, request: Request) -> Done:
        query, limit = request.query, page_limit(request.query)
        rows = await self._store.list_keys(query.get("tenant"), limit=limit + 1, after=query.get("after"))
        shown = [shapes.key_shown(row) for row in rows[:limit]]
        return Done(200, shapes.Page(data=shown, next=shown[-1].id if len(rows) > limit else None))

    async def _show_key(self, request: Request) -> Done:
        row = await self._store.find_key(request.subject)
        if row is None:
            raise NotFound("There is no key with this id.")
        return Done(200, shapes.key_shown(row), row.tenant, row.id)

    async def _revoke_key(self, request: Request) -> Done:
        await self._show_key(request)
        await self._keys.revoke(request.subject)
        return await self._show_key(request)  # one that was revoked before stays what it is

    async def _rotate_key(self, request: Request) -> Done:
        asked = shapes.read(request.body, shapes.Rotation) if request.body else shapes.Rotation()
        until = shapes.moment(asked.old_expires_at, "old_expires_at")
        made = await self._keys.rotate(request.subject, until)
        if made is None:
            raise NotFound("There is no key with this id that is still good.")
        shown = (await self._show_key(request)).answer
        answer = shapes.KeyMade(id=made.id, key=made.key, old_expires_at=shown.old_expires_at)
        return Done(200, answer, shown.tenant, made.id)

    # -- tenants -----------------------------------------------------------------------------------------------------

    async def _list_tenants(self, request: Request) -> Done:
        limit, after = page_limit(request.query), request.query.get("after", "")
        found = await self._tenants.list(limit=limit + 1, after=after)
        shown = [shapes.tenant_shown(tenant) for tenant in found[:limit]]
        return Done(200, shapes.Page(data=shown, next=shown[-1].name if len(found) > limit else None))

    async def _create_tenant(self, request: Request) -> Done:
        asked = shapes.read(request.body, shapes.NewTenant)
        made = await self._tenants.create(asked.name, asked.limits)
        return Done(201, shapes.tenant_shown(made), made.name)

    async def _show_tenant(self, request: Request) -> Done:
        return Done(200, shapes.tenant_shown(await self._tenants.find(request.subject)), request.subject)

    async def _change_tenant(self, request: Request) -> Done:
        changes = shapes.read(request.body, shapes.TenantChange).limits
        changed = await self._tenants.change(request.subject, changes)
        return Done(200, shapes.tenant_shown(changed), request.subject)

    async def _delete_tenant(self, request: Request) -> Done:
        await self._tenants.delete(request.subject)
        return Done(200, {"name": request.subject, "deleted": True}, request.subject)

    # -- usage -------------------------------------------------------------------------------------------------------

    async def _usage(self, request: Request) -> Done:
        query, limit = request.query, page_limit(request.query)
        end = shapes.moment(query.get("to"), "to")
        end = time.time() + 1.0 if end is None else end
        begin = shapes.moment(query.get("from"), "from")
        begin = end - DEFAULT_USAGE_S if begin is None else begin
        rows = await self._store.usage(
            query.get("tenant"), begin, end, limit=limit + 1, after=_usage_place(query.get("after"))
        )
        shown = [shapes.usage_shown(row) for row in rows[:limit]]
        last = rows[limit - 1] if len(rows) > limit else None
        following = f"{last.day} {last.tenant} {last.model}" if last is not None else None
        return Done(200, shapes.Page(data=shown, next=following))

    async def _openapi(self, request: Request) -> Done:
        return Done(200, document())


_QUERY = {
    "keys.list": frozenset({"tenant", "limit", "after"}),
    "tenants.list": frozenset({"limit", "after"}),
    "protected.list": frozenset({"tenant", "limit", "after"}),
    "usage": frozenset({"tenant", "from", "to", "limit", "after"}),
}


def handler(
    admin: Admin,
    door: AdminDoor,
    audit: AuditSink,
    server: Server,
    *,
    open_mode: bool,
) -> Handler:
    """All of it, for whom `door` admits. To be mounted at `PATH`: its paths are what follows."""
    bounded = msgspec.structs.replace(server, max_body_bytes=min(MAX_BODY_BYTES, server.max_body_bytes))

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        exchange = HttpExchange(
            scope, receive, send, wire=ChatWire(), read=_no_call, server=bounded, open_mode=open_mode
        )
        with contextlib.suppress(CallerLeft):
            status, body, headers = await _answer(exchange, scope)
            own = [("x-firewall-request-id", exchange.request_id), ("cache-control", "no-store"), *headers]
            await respond(send, status, body, headers=own)

    async def _answer(exchange: HttpExchange, scope: Any) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
        begun, started = time.time(), perf_counter()
        method, name, failure = scope["method"], "", None
        done = Done(500, None)
        try:
            exchange.check_caller()
            door.admit(headers_of(scope), (scope.get("client") or ("",))[0])
            name, operation, subject = _find(admin, method, scope["path"])
            query = _query(scope.get("query_string", b""), _QUERY.get(name, frozenset()))
            body = await exchange.body() if method != "GET" else b""
            if body:
                exchange.check_media()
            done = await operation(Request(subject, query, body))
        except CallerLeft:
            raise
        except Exception as error:
            failure = _failure(exchange.request_id, error)
        if name and method != "GET":
            row = AuditRow(
                time=begun,
                request_id=exchange.request_id,
                tenant=done.tenant,
                key_id=done.key_id,
                protocol=f"admin.{name}",
                action="error" if failure else "allow",
                status=failure.status if failure else done.status,
                error=failure.code if failure else "",
                total_ms=(perf_counter() - started) * 1e3,
            )
            _log.info(
                "admin", request_id=row.request_id, action=name, tenant=row.tenant, key_id=row.key_id, status=row.status
            )
            try:
                await audit.write(row)
            except FirewallError as error:
                failure = to_wire(error)
        if failure is not None:
            return failure.status, _error_body(failure), failure.headers
        return done.status, msgspec.json.encode(done.answer), ()

    return handle


async def _no_call(_: bytes) -> Call:
    raise MalformedRequest("There is no call to read here.")


def _failure(request_id: str, error: Exception) -> WireError:
    if isinstance(error, ConfigError):  # what is wrong here is the caller's, and begins with the member's name
        place = re.match(r"([a-z_]+): ", str(error))
        error = MalformedRequest(f"{error}.", pointer=f"/{place.group(1)}" if place else None)
    elif not isinstance(error, FirewallError):
        log_unexpected(request_id, error)
    elif not isinstance(error, Unauthenticated):
        _log.info("admin failed", request_id=request_id, code=error.code)
    return to_wire(error)


def _path(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern + "/?")


def _find(admin: Admin, method: str, path: str) -> tuple[str, Operation, str]:
    for pattern, operations in admin.routes:
        if match := pattern.fullmatch(path):
            if method not in operations:
                raise MethodNotAllowed(f"Use {' or '.join(operations)}.")
            name, operation = operations[method]
            return name, operation, match.group(1) if match.groups() else ""
    raise NotFound("There is no such route here.")


def _query(raw: bytes, known: frozenset[str]) -> dict[str, str]:
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=20) if raw else []
    query = dict(pairs)
    if unknown := sorted(query.keys() - known):
        raise MalformedRequest(f"Unknown parameters: {', '.join(repr(name[:64]) for name in unknown[:10])}.")
    if len(query) < len(pairs):
        raise MalformedRequest("A parameter is given twice.")
    return query


def _usage_place(after: str | None) -> tuple[int, str, str] | None:
    if after is None:
        return None
    day, _, rest = after.partition(" ")
    tenant, separator, model = rest.partition(" ")
    if not re.fullmatch(r"[0-9]{1,9}", day) or not separator:
        raise MalformedRequest("after: as `next` of the page before it.")
    return int(day), tenant, model
