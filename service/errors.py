"""What can be broken, and what the caller is told.

A block is a value (`firewall.verdict.Verdict`), never an exception; these are for what is broken.

    FirewallError
    ├── ConfigError               the configuration is wrong: refuse to start, name the key
    ├── ArtifactError             the model folder is missing, altered or incompatible: refuse to start, name the file
    ├── RequestError              the caller's request cannot be accepted (4xx)
    │   ├── MalformedRequest      400  not JSON, wrong types, forbidden characters
    │   ├── ContextLengthExceeded 400  more tokens than the model reads
    │   ├── Unauthenticated       401
    │   ├── Forbidden             403
    │   ├── NotFound              404
    │   ├── RequestTimeout        408
    │   ├── Conflict              409
    │   ├── PayloadTooLarge       413
    │   ├── UnsupportedMedia      415
    │   └── LimitExceeded         429  a quota or budget is spent
    ├── UnavailableError          the firewall cannot do its part now (503)
    │   ├── Overloaded                 the scoring queue is full
    │   ├── DeadlineExceeded           a guard did not answer in time
    │   ├── GuardFailed                a guard broke while judging
    │   ├── StorageFailed              the audit store did not take the row
    │   │   └── StorageAway            nor would it have taken another: it cannot be reached
    │   └── CountersFailed             quotas cannot be counted
    └── UpstreamError             the provider failed (502)
        ├── UpstreamUnreachable   502
        ├── UpstreamTimeout       504
        ├── UpstreamUnavailable   503  nobody who has the model has a place, or all are left alone for a while
        ├── RunawayReply          502  a stream past its bound, or one that only repeats itself
        └── UpstreamInvalid       502  a reply that cannot be parsed, and so cannot be judged
"""

from __future__ import annotations

import math

import msgspec


class FirewallError(Exception):
    """Base of everything this package raises. Messages never hold prompt text, secrets or header values."""

    status = 500
    code = "internal_error"


class ConfigError(FirewallError):
    """The configuration is wrong; the message names the key's path."""

    code = "config_error"


class Unsealable(ConfigError):
    """A sealed text cannot be opened: sealed under another root, or altered. `text_id` names it."""

    code = "unsealable"

    def __init__(self, message: str, text_id: str) -> None:
        super().__init__(message)
        self.text_id = text_id


class ArtifactError(FirewallError):
    """The model folder cannot be trusted; the message names the file."""

    code = "artifact_error"


class RequestError(FirewallError):
    """The caller's request cannot be accepted. `pointer` is the JSON pointer of the offending value, if any."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, pointer: str | None = None) -> None:
        super().__init__(message)
        self.pointer = pointer


class MalformedRequest(RequestError):
    """Not JSON, wrong types or characters that no reader agrees on."""


class ContextLengthExceeded(RequestError):
    """The prompt has more tokens than the model reads."""

    code = "context_length_exceeded"


class Unauthenticated(RequestError):
    """No key, or one that does not hold; the message never says which."""

    status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    """A valid key without this right."""

    status = 403
    code = "permission_denied"


class NotFound(RequestError):
    """No such route, model or id for this tenant."""

    status = 404
    code = "not_found"


class RequestTimeout(RequestError):
    """The body did not arrive within `caller_timeout_s`."""

    status = 408
    code = "request_timeout"
    headers = {"connection": "close"}  # noqa: RUF012 -- nobody changes it


class Conflict(RequestError):
    """What is asked for contradicts what there is."""

    status = 409
    code = "conflict"


class PayloadTooLarge(RequestError):
    """Over `max_body_bytes`, `max_messages` or the policy's window cap."""

    status = 413
    code = "payload_too_large"


class UnsupportedMedia(RequestError):
    """A content type or content encoding that this route does not read."""

    status = 415
    code = "unsupported_media_type"


class LimitExceeded(RequestError):
    """A quota or budget is spent; `headers` carry `retry-after` and `x-ratelimit-*`."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


class UnavailableError(FirewallError):
    """The firewall cannot do its part now and fails closed."""

    status = 503
    code = "firewall_unavailable"


class Overloaded(UnavailableError):
    """The scoring queue is full."""

    code = "overloaded"


class DeadlineExceeded(UnavailableError):
    """A guard did not answer in time."""

    code = "guard_deadline_exceeded"


class GuardFailed(UnavailableError):
    """A guard broke while judging."""

    code = "guard_failed"


class StorageFailed(UnavailableError):
    """The audit store did not take the row."""

    code = "storage_failed"


class StorageAway(StorageFailed):
    """The database cannot be reached, or does not answer: another row would fare no better."""


class CountersFailed(UnavailableError):
    """Quotas cannot be counted: their server does not answer."""

    code = "counters_failed"


class UpstreamError(FirewallError):
    """The provider failed."""

    status = 502
    code = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    """No connection to the provider, or it broke."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """The provider was silent for longer than `timeout_s`."""

    status = 504
    code = "upstream_timeout"


class UpstreamUnavailable(UpstreamError):
    """Nobody who has the model can take a call now; nothing was sent. After `pause_s` somebody is asked again."""

    status = 503
    code = "upstream_unavailable"

    def __init__(self, message: str, *, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.headers = {"retry-after": str(max(1, math.ceil(pause_s)))}


class RunawayReply(UpstreamError):
    """A stream is past its bound, or only repeats itself: it was cut."""

    code = "runaway_reply"


class UpstreamInvalid(UpstreamError):
    """The provider's reply cannot be parsed, so it cannot be judged."""

    code = "upstream_invalid"


class WireError(msgspec.Struct, frozen=True):
    """An error in protocol-neutral form; each file of `api/` writes it in its own envelope."""

    status: int
    type: str
    code: str
    message: str
    pointer: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def to_wire(error: BaseException) -> WireError:
    """Map any exception to what the caller is told; unknown ones become a bare 500 without their message."""
    if not isinstance(error, FirewallError):
        return WireError(500, "server_error", "internal_error", "The firewall failed on this request.")
    default = "invalid_request_error" if error.status < 500 else "server_error"
    return WireError(
        status=error.status,
        type=_TYPES.get(error.status, default),
        code=error.code,
        message=str(error),
        pointer=getattr(error, "pointer", None),
        headers=tuple(getattr(error, "headers", {}).items()),
    )
