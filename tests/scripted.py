"""A provider on a real socket that answers what a test wants, in every protocol: the sandbox writes it."""

from __future__ import annotations

import json
from typing import Any

from service.upstream.sandbox import sandbox_app


def providers(url: str) -> str:
    """The part of a configuration that reaches it at this address: `agent-*` and `claude-*`."""
    return (
        f'[[providers]]\nname = "a"\nkind = "openai"\nmodels = ["agent-*"]\nbase_url = "{url}/v1"\n'
        f'[[providers]]\nname = "b"\nkind = "anthropic"\nmodels = ["claude-*"]\nbase_url = "{url}"\n'
    )


class Agent:
    """A provider whose model calls what `call` says, or says what `text` says, whatever it is asked."""

    def __init__(self) -> None:
        self.call: tuple[str, Any] = ("send_email", {"to": "ann@example.com"})
        self.text = ""
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await _lifespan(scope, receive, send)
            return
        body = b""
        while (message := await receive()) and message.get("body") is not None:
            body += message["body"]
            if not message.get("more_body"):
                break
        request = json.loads(body)
        self.bodies.append(request)
        name, arguments = self.call
        asked = {"role": "user", "content": self.text or f"call {name} {json.dumps(arguments)}"}
        request |= {"model": "sandbox-echo", "tools": [{"type": "function", "name": name, "function": {"name": name}}]}
        request["input" if "responses" in scope["path"] else "messages"] = [asked]

        async def again() -> Any:
            return {"type": "http.request", "body": json.dumps(request).encode(), "more_body": False}

        await sandbox_app(scope, again, send)


async def _lifespan(scope: Any, receive: Any, send: Any) -> None:
    while scope["type"] == "lifespan":
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind.endswith("shutdown"):
            return
