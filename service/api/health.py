"""`/health/live`, `/health/ready`, LLM Guard's names for them, and `/metrics`: without any text of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from service.api.asgi import Handler, page
from service.api.chat_reply import ChatWire

_error_body = ChatWire().error_body


def live(word: str = "live") -> Handler:
    """The process answers, with this word."""

    async def render(_: str) -> tuple[int, str, bytes]:
        return 200, "application/json", msgspec.json.encode({"status": word})

    return page(render, error_body=_error_body)


def ready(
    facts: Mapping[str, str],
    checks: Mapping[str, Callable[[], Awaitable[None]]],
    providers: Callable[[], Mapping[str, str]] = dict,
) -> Handler:
    """Every part that a request needs works: 200, else 503 with the names of those that do not.

    `facts` are stated in the answer: the artifact, the execution provider; so are the `providers`, each with the state
    of its breaker. Where some are left alone it is `degraded`, and 503 only where all are.
    """

    async def render(_: str) -> tuple[int, str, bytes]:
        failed = []
        for name, check in checks.items():
            try:
                await check()
            except Exception:
                failed.append(name)
        states = dict(providers())
        resting = [name for name, state in states.items() if state == "open"]
        if resting and len(resting) == len(states):
            failed.append("providers")
        word = "not ready" if failed else "degraded" if resting else "ready"
        status = {"status": word, "failed": failed, "providers": states, **facts}
        return 503 if failed else 200, "application/json", msgspec.json.encode(status)

    return page(render, error_body=_error_body)


def metrics(
    exposition: Callable[[], tuple[str, bytes]], *, check: Callable[[Mapping[str, str]], None] | None
) -> Handler:
    """Prometheus metrics: `exposition` gives content type and text."""

    async def allow(headers: Mapping[str, str]) -> None:
        if check is not None:
            check(headers)

    async def render(_: str) -> tuple[int, str, bytes]:
        content_type, body = exposition()
        return 200, content_type, body

    return page(render, error_body=_error_body, allow=allow)
