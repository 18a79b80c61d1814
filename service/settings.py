"""The configuration as inert data: one TOML file, environment names inside it, unknown keys refused.

Paths in the file are relative to the file. Secrets are never in it: it names environment variables.
"""

from __future__ import annotations

import os
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from service.errors import ConfigError

SHIPPED_MODELS = Path(__file__).resolve().parents[1] / "models"
TENANT_NAME = r"^[a-z0-9][a-z0-9_.]{0,62}$"
"""Ids of keys are of this form as well."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Positive = Annotated[int, Meta(ge=1)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Price = Annotated[float, Meta(ge=0, le=1_000_000)]
Rate = Annotated[float, Meta(gt=0, lt=1)]
Effect = Literal["block", "flag", "allow"]
OnError = Literal["block", "allow"]
LeakEffect = Literal["block", "redact", "flag", "allow"]
ToolGlob = Annotated[str, Meta(min_length=1, max_length=128)]
Host = Annotated[str, Meta(pattern=r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Server(_Strict, frozen=True, kw_only=True):
    """Where to listen and how much to read. `caller_timeout_s` bounds the whole upload, and each wait for the caller to
    read on.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    workers: Positive = 1
    max_body_bytes: Positive = 4_194_304
    max_messages: Positive = 2_048
    caller_timeout_s: PositiveSeconds = 60.0


class Auth(_Strict, frozen=True, kw_only=True):
    """`open` serves everyone on loopback as tenant `default`; `keys` asks for a key of this firewall.

    `failures_per_minute` is how often wrong keys of one address, or a key's other requests, may be refused before their
    limits are looked at (0: any number of times).
    """

    mode: Literal["open", "keys"] = "open"
    failures_per_minute: Annotated[int, Meta(ge=0, le=1_000_000)] = 60


class Envoy(_Strict, frozen=True, kw_only=True):
    """Where Envoy's external processing (gRPC) is answered; without `port` it is not. `key_header` is where its callers
    put a key of this firewall, since `authorization` is the provider's.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    key_header: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "x-firewall-key"


class Provider(_Strict, frozen=True, kw_only=True):
    """One LLM provider. `timeout_s` is its longest silence, the first byte included. `stream_usage`: streams of chat
    completions are asked for their usage, whether the caller does or not. `concurrency` calls of this process may be
    under way, more wait `wait_s` for a place. After `breaker_failures` in a row (0: never) it is left alone for
    `breaker_open_s`. Without `models` it is asked by `[[routes]]` only. `translate_chat`: it may be asked
    for chat completions, translated into Messages; `translate_messages`: for Messages, translated into chat
    completions. `pseudonym`: calls that name no user are sent with a pseudonym of their tenant as one.
    """

    name: Annotated[str, Meta(min_length=1)]
    kind: Literal["openai", "azure", "anthropic", "sandbox"]
    models: Annotated[tuple[str, ...], Meta(min_length=1)] = ()
    base_url: str = ""
    api_key_env: str = ""
    api_version: Annotated[str, Meta(pattern=r"^(\d{4}-\d{2}-\d{2}(-preview)?|preview|latest|)$")] = ""
    connect_timeout_s: PositiveSeconds = 5.0
    timeout_s: PositiveSeconds = 120.0
    retries: Annotated[int, Meta(ge=0, le=10)] = 1
    stream_usage: bool = True
    translate_chat: bool = False
    translate_messages: bool = False
    pseudonym: bool = False
    concurrency: Positive | None = None
    wait_s: Annotated[float, Meta(ge=0)] = 1.0
    breaker_failures: Annotated[int, Meta(ge=0)] = 5
    breaker_open_s: PositiveSeconds = 15.0


class RouteTarget(_Strict, frozen=True, kw_only=True):
    """A provider of a route, and the name by which it knows the model (empty: the caller's)."""

    provider: str
    model: Annotated[str, Meta(pattern=r"^\S{0,256}$")] = ""
    weight: Positive = 1


class Route(_Strict, frozen=True, kw_only=True):
    """Who is asked for the models whose whole name matches the glob `model`: the targets in their order, or in one
    drawn by weight. The next is asked where one cannot take the call, with `next_on_429` also where it has had enough.
    """

    model: Annotated[str, Meta(min_length=1)]
    targets: Annotated[tuple[RouteTarget, ...], Meta(min_length=1)]
    pick: Literal["order", "weight"] = "order"
    next_on_429: bool = False


class Actions(_Strict, frozen=True, kw_only=True):
    """What a finding above the blocking threshold leads to, by category."""

    injection: Effect = "block"
    jailbreak: Effect = "block"
    extraction: Effect = "block"


_FLAG_ONLY = Actions(injection="flag", jailbreak="flag", extraction="flag")


class Roles(_Strict, frozen=True, kw_only=True):
    """Actions by role; a role left out follows `[detection.actions]`. System text is flagged, not blocked."""

    user: Actions | None = None
    tool: Actions | None = None
    document: Actions | None = None
    system: Actions = _FLAG_ONLY


class Detection(_Strict, frozen=True, kw_only=True):
    """How prompts are judged. Rates are false-positive rates whose thresholds stand in the artifact's manifest."""

    enabled: bool = True
    artifact: str = ""
    flag_fpr: Rate = 0.01
    block_fpr: Rate = 0.001
    mode: Literal["sequential", "overlap"] = "sequential"
    # 512 windows are some 48,000 tokens: what a two-core machine judges within the deadline. Known turns cost nothing.
    max_windows: Positive = 512
    deadline_s: PositiveSeconds = 30.0
    threads: Annotated[int, Meta(ge=0)] = 0
    queue_windows: Positive = 8_192
    on_error: OnError = "block"
    on_oversize: Effect = "block"
    on_unscannable: Effect = "flag"
    actions: Actions = Actions()
    roles: Roles = Roles()


class Leakage(_Strict, frozen=True, kw_only=True):
    """How replies are judged. `credentials` and `exfiltration` have actions of their own; `allowed_hosts` are those
    that an address in a reply may name whatever it holds, `*.example.com` for all below one. `retelling` is what
    follows where a passage tells a prompt in other words.
    """

    stream: Literal["exact", "sentence", "buffer"] = "sentence"
    action: Literal["block", "redact", "flag"] = "block"
    credentials: LeakEffect = "redact"
    exfiltration: LeakEffect = "flag"
    allowed_hosts: tuple[Host, ...] = ()
    retelling: Effect = "flag"
    on_error: OnError = "block"


class Tools(_Strict, frozen=True, kw_only=True):
    """What follows from tool calls in replies. `deny` are globs of tools that no reply may call, for every tenant."""

    unoffered: Effect = "block"
    denied: Effect = "block"
    arguments: Effect = "flag"
    hijack: LeakEffect = "block"
    deny: tuple[ToolGlob, ...] = ()


class Canary(_Strict, frozen=True, kw_only=True):
    """A mark in the system text that no reply may hold: a new one for each `request`, or one for each tenant and `day`.

    Off by default, since it changes what the caller sent.
    """

    mode: Literal["off", "request", "day"] = "off"
    action: Literal["block", "redact", "flag"] = "block"


class Piecemeal(_Strict, frozen=True, kw_only=True):
    """Bits of a prompt that one caller is told in many replies add up over `window_s`; from `share` of it on the action
    follows. At most `max_entries` callers are kept, keys among them.
    """

    action: LeakEffect = "flag"
    share: Annotated[float, Meta(gt=0, le=1)] = 0.12
    window_s: PositiveSeconds = 3600.0
    max_entries: Positive = 4_096


class ReplyInjection(_Strict, frozen=True, kw_only=True):
    """The classifier over the reply, for those who read it next. `fpr` is a false-positive rate of the artifact."""

    enabled: bool = False
    action: Literal["block", "flag"] = "flag"
    fpr: Rate = 0.001
    max_windows: Positive = 64


class Pii(_Strict, frozen=True, kw_only=True):
    """Personal data, by Presidio's recognisers of patterns (the extra `pii`).

    `action` is for requests, in texts of these `roles`; `redact` puts placeholders into the body before it is sent, and
    with `restore` what they stand for is put back into the reply. `replies` is for what the model itself utters.
    Without `entities` those are looked for that `firewall.recognisers` names. `score` is from which certainty on
    something is found. Of one request `max_chars` characters are looked at.
    """

    enabled: bool = False
    action: LeakEffect = "redact"
    replies: LeakEffect = "flag"
    restore: bool = True
    entities: tuple[str, ...] = ()
    roles: Annotated[tuple[Literal["user", "tool", "document", "system"], ...], Meta(min_length=1)] = (
        "user",
        "tool",
        "document",
    )
    score: Rate = 0.5
    max_chars: Positive = 500_000


class Protected(_Strict, frozen=True, kw_only=True):
    """A text that must not leave: its value comes from the environment or a file, never from the configuration."""

    name: Annotated[str, Meta(min_length=1)]
    kind: Literal["secret", "prompt"]
    tenant: Annotated[str, Meta(pattern=f"^$|{TENANT_NAME}")] = ""
    value_env: str = ""
    file: str = ""


class Extraction(_Strict, frozen=True, kw_only=True):
    """What follows where a key's or tenant's calls look like the copying of a model: their score reaches `score`.
    `exempt` are tenants and ids of keys that are not watched.
    """

    enabled: bool = True
    action: Literal["alert", "strip", "throttle", "block"] = "alert"
    score: Rate = 0.9
    throttle_s: PositiveSeconds = 10.0
    max_callers: Positive = 4_096
    exempt: tuple[Annotated[str, Meta(pattern=TENANT_NAME)], ...] = ()


class Limits(_Strict, frozen=True, kw_only=True):
    """Absent means unlimited."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    tokens_per_day: Positive | None = None
    budget_usd_per_day: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    concurrency: Positive | None = None
    max_output_tokens: Positive | None = None


class KeyDefaults(_Strict, frozen=True, kw_only=True):
    """What holds for every key by itself, beside its tenant's limits. Open mode has no keys."""

    limits: Limits = Limits()


class Model(_Strict, frozen=True, kw_only=True):
    """What is known of the models whose whole name matches the glob `name`; prices are list prices on the day `as_of`.

    `hidden_output`: output is billed that is not delivered. `token_factor` is how many tokens it has for one that is
    counted here. `covers` are names of tiers and of tools of the provider's for which these prices hold as well.
    """

    name: Annotated[str, Meta(min_length=1)]
    as_of: Annotated[str, Meta(pattern=r"^(\d{4}-\d{2}-\d{2})?$")] = ""
    context_tokens: Positive | None = None
    max_output_tokens: Positive | None = None
    input_usd_per_mtok: Price | None = None
    output_usd_per_mtok: Price | None = None
    cached_input_usd_per_mtok: Price | None = None
    cache_write_usd_per_mtok: Price | None = None
    hidden_output: bool = False
    token_factor: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    covers: tuple[str, ...] = ()


class Tenancy(_Strict, frozen=True, kw_only=True):
    """What tenants share, since all of them share the providers' accounts. `foreign_ids` is for ids of files and other
    kept things that no reply issued to the caller's tenant; left out: `refuse` with keys, `flag` in open mode.
    """

    foreign_ids: Literal["refuse", "flag", "allow"] | None = None


class Tenant(_Strict, frozen=True, kw_only=True):
    """A tenant named in the configuration exists for the CLI and the admin API alike."""

    name: Annotated[str, Meta(pattern=TENANT_NAME)]
    limits: Limits | None = None
    denied_tools: tuple[ToolGlob, ...] = ()


class Storage(_Strict, frozen=True, kw_only=True):
    """Where audit rows and keys live: a file, or a PostgreSQL server, whose password may come from the environment."""

    url: str = "sqlite:///firewall.db"
    password_env: str = ""
    on_error: OnError = "block"


class Counters(_Strict, frozen=True, kw_only=True):
    """Where quotas are counted: in this process, or in Valkey or Redis. `on_error` is for when that does not answer."""

    url: Annotated[str, Meta(pattern=r"^(memory://|valkeys?://.+|rediss?://.+)$")] = "memory://"
    password_env: str = ""
    on_error: OnError = "block"


class Telemetry(_Strict, frozen=True, kw_only=True):
    """Logs and metrics."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics: bool = True


class Settings(_Strict, frozen=True, kw_only=True):
    """The whole configuration. `folder` is the file's own folder, for its relative paths."""

    server: Server = Server()
    auth: Auth = Auth()
    envoy: Envoy = Envoy()
    providers: tuple[Provider, ...] = (Provider(name="sandbox", kind="sandbox", models=("sandbox-*",)),)
    routes: tuple[Route, ...] = ()
    detection: Detection = Detection()
    leakage: Leakage = Leakage()
    tools: Tools = Tools()
    canary: Canary = Canary()
    piecemeal: Piecemeal = Piecemeal()
    reply_injection: ReplyInjection = ReplyInjection()
    pii: Pii = Pii()
    protected: tuple[Protected, ...] = ()
    extraction: Extraction = Extraction()
    limits: Limits = Limits()
    tenancy: Tenancy = Tenancy()
    tenants: tuple[Tenant, ...] = ()
    keys: KeyDefaults = KeyDefaults()
    models: tuple[Model, ...] = ()
    storage: Storage = Storage()
    counters: Counters = Counters()
    telemetry: Telemetry = Telemetry()
    folder: Path = Path()

    @property
    def foreign_ids(self) -> Literal["refuse", "flag", "allow"]:
        """What follows from ids that were not issued to the caller's tenant: in open mode there is one tenant only."""
        return self.tenancy.foreign_ids or ("refuse" if self.auth.mode == "keys" else "flag")

    @property
    def artifact_path(self) -> Path:
        """The artifact folder: the configured one, or the shipped one wherever the process was started."""
        if self.detection.artifact:
            return (self.folder / self.detection.artifact).resolve()
        return shipped_artifact()


def shipped_artifact() -> Path:
    """The one artifact folder below `models/`.

    Raises ConfigError where there is none, or more than one to choose from.
    """
    found = sorted(SHIPPED_MODELS.glob("*/manifest.json"))
    if len(found) != 1:
        raise ConfigError(f"detection.artifact: {SHIPPED_MODELS} holds {len(found)} artifacts; name one")
    return found[0].parent


def load(path: Path | None) -> Settings:
    """Read and check a configuration file; `None` gives the defaults relative to the working folder.

    Raises ConfigError naming the key (`$.server.port`) or what contradicts what.
    """
    if path is None:
        return Settings()
    try:
        with path.open("rb") as stream:
            raw = tomllib.load(stream)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if "folder" in raw:
        raise ConfigError(f"{path}: unknown key `folder`")
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    settings = msgspec.structs.replace(settings, folder=path.resolve().parent)
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Refuse settings that contradict each other or name what does not exist. Raises ConfigError with the key."""
    if settings.auth.mode == "open" and settings.server.host not in LOOPBACK:
        raise ConfigError('auth.mode: "open" is only for loopback; set mode = "keys" or server.host = "127.0.0.1"')
    if settings.auth.mode == "open" and settings.envoy.port is not None and settings.envoy.host not in LOOPBACK:
        raise ConfigError('auth.mode: "open" is only for loopback; set mode = "keys" or envoy.host = "127.0.0.1"')
    if settings.detection.block_fpr > settings.detection.flag_fpr:
        raise ConfigError("detection.block_fpr: must not be above detection.flag_fpr")
    if settings.reply_injection.enabled and not settings.detection.enabled:
        raise ConfigError("reply_injection.enabled: needs the model of detection.enabled")
    if settings.pii.enabled and find_spec("presidio_analyzer") is None:
        raise ConfigError('pii.enabled: needs the extra "pii"; run: pip install "semantic-firewall[pii]"')
    if settings.server.workers > 1 and settings.counters.url.startswith("memory:"):
        raise ConfigError('counters.url: "memory://" counts per process; more than one worker needs valkey://')
    _unique("providers", [p.name for p in settings.providers])
    _unique("tenants", [t.name for t in settings.tenants])
    _unique("protected", [f"{p.tenant}/{p.name}" for p in settings.protected])
    _check_providers(settings)
    _check_routes(settings)
    for index, text in enumerate(settings.protected):
        where = f"protected[{index}]"
        if bool(text.value_env) == bool(text.file):
            raise ConfigError(f"{where}: give exactly one of value_env and file")
        if text.value_env and text.value_env not in os.environ:
            raise ConfigError(f"{where}.value_env: environment variable {text.value_env} is not set")
        if text.file and not (settings.folder / text.file).is_file():
            raise ConfigError(f"{where}.file: {text.file} does not exist")


def _check_routes(settings: Settings) -> None:
    names = {provider.name for provider in settings.providers}
    for index, route in enumerate(settings.routes):
        for at, target in enumerate(route.targets):
            if target.provider not in names:
                raise ConfigError(f"routes[{index}].targets[{at}].provider: there is no provider {target.provider!r}")


def _check_providers(settings: Settings) -> None:
    routed = {target.provider for route in settings.routes for target in route.targets}
    for index, provider in enumerate(settings.providers):
        where = f"providers[{index}]"
        if not provider.models and provider.name not in routed:
            raise ConfigError(f"{where}.models: missing, and no route names this provider: it would never be asked")
        if provider.kind == "anthropic" and provider.base_url.rstrip("/").endswith("/v1"):
            raise ConfigError(f'{where}.base_url: without /v1 for kind "anthropic", as its SDK takes it')
        if provider.kind == "azure" and "/openai" in provider.base_url:
            raise ConfigError(f'{where}.base_url: the resource\'s own address for kind "azure", without /openai')
        if provider.translate_chat and provider.kind != "anthropic":
            raise ConfigError(f'{where}.translate_chat: only for kind "anthropic"')
        if provider.translate_messages and provider.kind not in {"openai", "azure"}:
            raise ConfigError(f'{where}.translate_messages: only for kinds "openai" and "azure"')
        if provider.pseudonym and provider.kind not in {"openai", "azure"}:
            raise ConfigError(f'{where}.pseudonym: only for kinds "openai" and "azure"')
        if provider.api_version and provider.kind != "azure":
            raise ConfigError(f'{where}.api_version: only for kind "azure"')
        if provider.kind != "sandbox" and not provider.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{where}.base_url: an http(s) address is needed for kind {provider.kind!r}")
        if provider.api_key_env and provider.api_key_env not in os.environ:
            raise ConfigError(f"{where}.api_key_env: environment variable {provider.api_key_env} is not set")


def _unique(where: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: {name!r} is given twice")
