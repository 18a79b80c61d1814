"""The OpenAPI 3.1 document of what callers may ask: which routes there are, what they take at least, how they refuse.

The bodies are OpenAI's, Anthropic's, LiteLLM's and LLM Guard's, whose own documents say what else may stand in them;
what is named here is what the firewall itself insists on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from service.api import guardrail_litellm
from service.api.asgi import Handler, page
from service.api.chat_reply import ChatWire

PATH = "/openapi.json"

_TEXT = {"type": "string"}
_MODEL = {"type": "string", "minLength": 1, "maxLength": 200, "examples": ["sandbox-echo"]}
_OBJECT = {"type": "object"}
_CONTENT = {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}]}
_ERRORS = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)
"""Any of the judged routes may answer so."""


def _message(*roles: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": list(roles)}, "content": _CONTENT},
    }


def _asked(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_STREAM = {"type": ["boolean", "null"]}
_CHAT = _asked(
    ["model", "messages"],
    model=_MODEL,
    messages={"type": "array", "minItems": 1, "items": _message("system", "developer", "user", "assistant")},
    stream=_STREAM,
    max_tokens={"type": "integer", "minimum": 1},
    temperature={"type": "number"},
)
_RESPONSE = _asked(
    ["model", "input"],
    model=_MODEL,
    input={"anyOf": [_TEXT, {"type": "array", "items": _message("system", "developer", "user", "assistant")}]},
    instructions=_TEXT,
    stream=_STREAM,
    max_output_tokens={"type": "integer", "minimum": 1},
    previous_response_id=_TEXT,
)
_MESSAGES = _asked(
    ["model", "messages", "max_tokens"],
    model=_MODEL,
    messages={"type": "array", "minItems": 1, "items": _message("user", "assistant")},
    system=_CONTENT,
    stream={"type": "boolean"},
    max_tokens={"type": "integer", "minimum": 1},
)
_COUNTED = _asked(["model", "messages"], model=_MODEL, messages=_MESSAGES["properties"]["messages"], system=_CONTENT)
_COMPLETION = _asked(["model", "prompt"], model=_MODEL, prompt=_TEXT, stream=_STREAM, max_tokens={"type": "integer"})
_EMBEDDED = _asked(
    ["model", "input"], model=_MODEL, input={"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
)
_MODERATED = _asked(["input"], input=_EMBEDDED["properties"]["input"], model=_TEXT)
_SCANNED = {
    "oneOf": [
        {
            "type": "object",
            "required": ["texts"],
            "additionalProperties": False,
            "properties": {
                "texts": {"type": "array", "minItems": 1, "items": _TEXT},
                "role": {"enum": ["user", "tool", "document", "system"]},
            },
        },
        {
            "type": "object",
            "required": ["messages"],
            "additionalProperties": False,
            "properties": {"messages": _CHAT["properties"]["messages"], "tools": {"type": "array", "items": _OBJECT}},
        },
    ]
}
_LITELLM = _asked(
    ["texts", "input_type"],
    texts={"type": "array", "items": _TEXT},
    input_type={"enum": ["request", "response"]},
    structured_messages={"type": "array", "items": _message("system", "user", "assistant")},
)
_PROMPT = _asked(["prompt"], prompt=_TEXT, scanners_suppress={"type": "array", "items": _TEXT})
_OUTPUT = _asked(["prompt", "output"], prompt=_TEXT, output=_TEXT, scanners_suppress={"type": "array", "items": _TEXT})

_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Semantic firewall",
            "version": "1",
            "description": "A block is a 400 with the code `request_blocked` or `response_blocked`; in a stream that "
            "has begun, an error event. Every answer carries `x-firewall-request-id` and `x-firewall-action`.",
        },
        "security": [{"bearer": []}, {"header": []}, {}],
        "components": {
            "responses": {"Error": {"description": "An error in the protocol's envelope", "content": _json(_OBJECT)}},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "paths": {
            "/v1/chat/completions": {"post": _operation("createChatCompletion", _CHAT, streams=True)},
            "/v1/responses": {"post": _operation("createResponse", _RESPONSE, streams=True)},
            "/v1/responses/{id}": {
                "parameters": [_ID],
                "get": _operation("retrieveResponse", streams=True),
                "delete": _operation("deleteResponse"),
            },
            "/v1/responses/{id}/cancel": {"parameters": [_ID], "post": _operation("cancelResponse")},
            "/v1/messages": {"post": _operation("createMessage", _MESSAGES, streams=True)},
            "/v1/messages/count_tokens": {"post": _operation("countTokens", _COUNTED)},
            "/v1/completions": {"post": _operation("createCompletion", _COMPLETION, streams=True)},
            "/v1/embeddings": {"post": _operation("createEmbedding", _EMBEDDED)},
            "/v1/moderations": {"post": _operation("createModeration", _MODERATED)},
            "/v1/models": {"get": _operation("listModels")},
            "/v1/models/{id}": {"parameters": [_ID], "get": _operation("retrieveModel")},
            "/v1/scan": {"post": _operation("scan", _SCANNED)},
            guardrail_litellm.PATH: {"post": _operation("guardLiteLLM", _LITELLM)},
            "/analyze/prompt": {"post": _operation("analyzePrompt", _PROMPT)},
            "/analyze/output": {"post": _operation("analyzeOutput", _OUTPUT)},
            "/scan/prompt": {"post": _operation("scanPrompt", _PROMPT)},
            "/scan/output": {"post": _operation("scanOutput", _OUTPUT)},
        },
    }


def handler() -> Handler:
    """The document, for anybody."""
    body = msgspec.json.encode(document())

    async def render(_: str) -> tuple[int, str, bytes]:
        return 200, "application/json", body

    return page(render, error_body=ChatWire().error_body)


def _operation(name: str, asks: dict[str, Any] | None = None, *, streams: bool = False) -> dict[str, Any]:
    content = _json(_OBJECT)
    if streams:
        content["text/event-stream"] = {}  # events of the protocol
    made: dict[str, Any] = {
        "operationId": name,
        "responses": {
            "200": {"description": "The answer", "content": content},
            **{str(status): {"$ref": "#/components/responses/Error"} for status in _ERRORS},
        },
    }
    if asks is not None:
        made["requestBody"] = {"required": True, "content": _json(asks)}
    return made


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
