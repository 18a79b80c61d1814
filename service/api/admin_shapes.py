"""What the admin API reads and writes. Unknown members are refused; no answer but that to a new key holds a secret."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from service.api import strict_json
from service.api.asgi import malformed
from service.api.strict_json import pointer
from service.errors import MalformedRequest
from service.records.key_table import KeyRow
from service.records.protected_table import ProtectedRow
from service.records.usage import Usage
from service.settings import TENANT_NAME, Limits
from service.tenancy.directory import KnownTenant
from service.tenancy.moments import iso, moment_of

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

Moment = Annotated[float | str, Meta(description="ISO 8601 (UTC where it names no zone), or seconds since the epoch")]
Role = Literal["user", "tool", "document", "system"]
Route = Literal[
    "chat", "messages", "responses", "completions", "embeddings", "moderations", "scan", "guardrail", "llm_guard"
]
_DAY_S = 86_400


class _Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class NewKey(_Asked, frozen=True, kw_only=True):
    """A key to be made. What is left out is not bounded; `models` are globs. `system_prompt` is put before every prompt
    of this key's callers, who never see it.
    """

    tenant: str
    roles: tuple[Role, ...] = ()
    expires_at: Moment | None = None
    models: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    limits: Limits = Limits()
    system_prompt: str = ""


class Rotation(_Asked, frozen=True, kw_only=True):
    """Until when the old secret holds; left out: it ends at once."""

    old_expires_at: Moment | None = None


class NewTenant(_Asked, frozen=True, kw_only=True):
    """A tenant to be made."""

    name: Annotated[str, Meta(pattern=TENANT_NAME)]
    limits: Limits = Limits()


class TenantChange(_Asked, frozen=True, kw_only=True):
    """Limits by name; null takes one away, one that is left out stays."""

    limits: dict[str, int | float | None]


class NewText(_Asked, frozen=True, kw_only=True):
    """A text that no reply may contain; without `tenant`, of nobody. It is never told again."""

    kind: Literal["secret", "prompt"]
    name: str
    text: str
    tenant: str = ""


class KeyMade(msgspec.Struct, frozen=True, kw_only=True):
    """The one answer that holds a key."""

    id: str
    key: str
    old_expires_at: str | None = None


class KeyShown(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret. `has_system_prompt` says that it has one; what it says is told to nobody."""

    id: str
    tenant: str
    roles: tuple[str, ...]
    models: tuple[str, ...]
    routes: tuple[str, ...]
    limits: dict[str, float]
    has_system_prompt: bool
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    old_expires_at: str | None


class TextShown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A protected text without the text. `tenant` is empty for every tenant, `length` counts characters, `digest` is a
    keyed hash by which equal texts of one tenant can be recognised. When it is registered, `false_alarm_rate` is the
    share of ordinary texts that it was found in, and `warning` says so where there are any.
    """

    id: str
    kind: str
    name: str
    tenant: str
    length: int
    digest: str
    created_at: str | None
    false_alarm_rate: float | None = None
    warning: str | None = None


class TenantShown(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant with its own limits, those of `[limits]` not among them. `origin` says where it can be changed."""

    name: str
    limits: dict[str, float]
    origin: Literal["configuration", "database"]
    created_at: str | None


class UsageShown(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's calls of one model on one day (UTC)."""

    day: str
    tenant: str
    model: str
    requests: int
    blocked: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Some of many. `next` is what `after` has to be for those that follow; null at the end."""

    data: list[T]
    next: str | None = None


def read(body: bytes, shape: type[S]) -> S:
    """A body of this shape. Raises MalformedRequest naming all unknown members, or the one of a wrong type."""
    value = strict_json.parse(body)
    if not isinstance(value, dict):
        raise malformed("", "an object")
    unknown = sorted(value.keys() - {field.encode_name for field in msgspec.structs.fields(shape)})
    if unknown:
        named = ", ".join(repr(name[:64]) for name in unknown[:10])
        raise MalformedRequest(f"Unknown members: {named}.", pointer=pointer(unknown[0])[:200])
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise MalformedRequest(f"{error}.") from None


def moment(written: float | str | None, where: str) -> float | None:
    """Seconds since the epoch. Raises MalformedRequest."""
    if written is None:
        return None
    try:
        return moment_of(written)
    except ValueError as error:
        raise MalformedRequest(f"{where}: {error}.", pointer=f"/{where}") from None


def key_shown(row: KeyRow) -> KeyShown:
    """Without digests, and without what is sealed."""
    return KeyShown(
        id=row.id,
        tenant=row.tenant,
        roles=row.roles,
        models=row.models,
        routes=row.routes,
        limits=limits_shown(row.limits),
        has_system_prompt=bool(row.system_prompt),
        created_at=iso(row.created_at),
        expires_at=iso(row.expires_at),
        revoked_at=iso(row.revoked_at),
        old_expires_at=iso(row.old_expires_at),
    )


def text_shown(row: ProtectedRow, warning: str | None = None, false_alarm_rate: float | None = None) -> TextShown:
    """Without what is sealed."""
    return TextShown(
        id=row.id,
        kind=row.kind,
        name=row.name,
        tenant=row.tenant,
        length=row.length,
        digest=row.digest,
        created_at=iso(row.created_at),
        false_alarm_rate=false_alarm_rate,
        warning=warning,
    )


def tenant_shown(tenant: KnownTenant) -> TenantShown:
    """As it stands in the configuration or the database."""
    limits = limits_shown(tenant.limits)
    return TenantShown(name=tenant.name, limits=limits, origin=tenant.origin, created_at=iso(tenant.created_at))


def usage_shown(usage: Usage) -> UsageShown:
    """With its day as a date."""
    day = datetime.fromtimestamp(usage.day * _DAY_S, UTC).date().isoformat()
    return msgspec.convert(msgspec.structs.asdict(usage) | {"day": day}, UsageShown)


def limits_shown(limits: Limits) -> dict[str, Any]:
    """Those that there are."""
    return {name: value for name, value in msgspec.structs.asdict(limits).items() if value is not None}
