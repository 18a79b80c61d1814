"""LLM Guard's API: `/analyze/prompt`, `/analyze/output`, `/scan/prompt`, `/scan/output`.

For applications that ask a server of that (archived) project: the change of one URL brings them here. `scanners` names
what was asked in that project's words, `PromptInjection` of prompts and `Sensitive` of outputs; their values say what
policy decided (0 allowed, 0.5 flagged, 1 refused), not how sure the guard is. `scanners_suppress` is read and changes
nothing: a request cannot loosen policy.

Source: the OpenAPI document of LLM Guard's API, version 0.0.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from service.api.asgi import Handler, HttpExchange, endpoint, malformed
from service.api.chat_reply import ChatWire
from service.api.request_fields import Fields, read_object, recorded
from service.api.strict_json import pointer
from service.errors import WireError
from service.firewall.prompt import Prompt, Segment
from service.gateway import Gateway
from service.interfaces import Call, Judged, Piece
from service.settings import Server

_SUPPRESSED = frozenset({"scanners_suppress"})
_PROMPT = Fields(lists=_SUPPRESSED, strings=frozenset({"prompt"}))
_OUTPUT = Fields(lists=_SUPPRESSED, strings=frozenset({"prompt", "output"}))
_RISK = {"allow": 0.0, "flag": 0.5, "redact": 1.0, "block": 1.0}


class LLMGuardWire(ChatWire):
    """LLM Guard's envelope of errors; an output is one text."""

    name = "llm_guard"
    path = ""

    def rewrite(self, piece: Piece, texts: Sequence[str]) -> bytes | None:
        """The output as it may be sent."""
        return msgspec.json.encode(texts[0])

    def error_body(self, error: WireError) -> bytes:
        """A message, and where and what is wrong."""
        details = {"pointer": error.pointer, "code": error.code}
        return msgspec.json.encode({"message": error.message, "details": details})


def handlers(gateway: Gateway, server: Server, *, open_mode: bool) -> dict[str, Handler]:
    """The four routes by their paths."""
    routes: tuple[tuple[str, Callable[[bytes, Server], Call], Callable[[Call, Judged], bytes]], ...] = (
        ("/analyze/prompt", parse_prompt, write_analysed_prompt),
        ("/analyze/output", parse_output, write_analysed_output),
        ("/scan/prompt", parse_prompt, write_scanned),
        ("/scan/output", parse_output, write_scanned),
    )

    def route(parse: Callable[[bytes, Server], Call], write: Callable[[Call, Judged], bytes]) -> Handler:
        async def serve(exchange: HttpExchange) -> None:
            await gateway.scan(exchange, write)

        return endpoint(LLMGuardWire(), parse, serve, server, open_mode=open_mode)

    return {path: route(parse, write) for path, parse, write in routes}


def parse_prompt(body: bytes, server: Server) -> Call:
    """`{"prompt"}`. Raises MalformedRequest with the JSON pointer of what is wrong."""
    request = _read(body, _PROMPT, ("prompt",))
    prompt = Prompt("", (Segment(request["prompt"], "user", "/prompt"),))
    return Call(
        model="", stream=False, body=body, prompt=prompt, unknown_fields=recorded(request.keys() - _PROMPT.known)
    )


def parse_output(body: bytes, server: Server) -> Call:
    """`{"prompt", "output"}`: the output is judged; the prompt is what its user typed, which is no leak."""
    request = _read(body, _OUTPUT, ("prompt", "output"))
    output = request["output"]
    return Call(
        model="",
        stream=False,
        body=body,
        prompt=Prompt("", ()),
        user_texts=(request["prompt"],),
        reply=Piece(raw=msgspec.json.encode(output), texts=(("output", output),)),
        unknown_fields=recorded(request.keys() - _OUTPUT.known),
    )


def _read(body: bytes, fields: Fields, texts: Sequence[str]) -> dict[str, Any]:
    request = read_object(body)
    fields.check(request)
    for name in texts:
        if request.get(name) is None:
            raise malformed(pointer(name), "a string")
    for index, name in enumerate(request.get("scanners_suppress") or ()):
        if not isinstance(name, str):
            raise malformed(pointer("scanners_suppress", index), "a string")
    return request


def write_analysed_prompt(call: Call, judged: Judged) -> bytes:
    """The verdict on a prompt, which is never changed."""
    return msgspec.json.encode({"sanitized_prompt": call.prompt.segments[0].text, **_verdict(call, judged)})


def write_analysed_output(call: Call, judged: Judged) -> bytes:
    """The verdict on an output and what of it may be sent: valid with its redactions, nothing where it is blocked."""
    verdict = _verdict(call, judged)
    if judged.verdict.action == "redact":
        verdict["is_valid"] = True
    sanitized = msgspec.json.decode(judged.released) if judged.released else ""
    return msgspec.json.encode({"sanitized_output": sanitized, **verdict})


def write_scanned(call: Call, judged: Judged) -> bytes:
    """The verdict alone: an output that would have to be redacted is not valid as it is."""
    return msgspec.json.encode(_verdict(call, judged))


def _verdict(call: Call, judged: Judged) -> dict[str, Any]:
    action = judged.verdict.action
    scanner = "PromptInjection" if call.reply is None else "Sensitive"
    return {"is_valid": action in {"allow", "flag"}, "scanners": {scanner: _RISK[action]}}
