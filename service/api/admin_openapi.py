"""The admin API's OpenAPI 3.1 document, made from the shapes that it reads and writes."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from service.api import admin_shapes as shapes

_LIMIT = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}}
_AFTER = {
    "name": "after",
    "in": "query",
    "description": "`next` of the page before",
    "schema": {"type": "string"},
}
_TENANT = {"name": "tenant", "in": "query", "schema": {"type": "string"}}
_KEY_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_TEXT_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_TENANT_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}

Keys, Tenants, Usages = shapes.Page[shapes.KeyShown], shapes.Page[shapes.TenantShown], shapes.Page[shapes.UsageShown]
Texts = shapes.Page[shapes.TextShown]
_ASKED = (shapes.NewKey, shapes.Rotation, shapes.NewTenant, shapes.TenantChange, shapes.NewText)
_ANSWERED = (shapes.KeyMade, shapes.KeyShown, Keys, shapes.TenantShown, Tenants, shapes.TextShown, Texts, Usages)


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    types = (*_ASKED, *_ANSWERED)
    found, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(types, found, strict=True))

    def operation(
        name: str, summary: str, answer: Any, *, asks: Any = None, status: int = 200, parameters: tuple[Any, ...] = ()
    ) -> dict[str, Any]:
        made: dict[str, Any] = {
            "operationId": name,
            "summary": summary,
            "responses": {
                str(status): {
                    "description": "Done",
                    "content": _json(schemas[answer] if answer else {"type": "object"}),
                },
                **{str(code): {"$ref": "#/components/responses/Error"} for code in _ERRORS},
            },
        }
        if parameters:
            made["parameters"] = list(parameters)
        if asks is not None:
            made["requestBody"] = {"required": asks is not shapes.Rotation, "content": _json(schemas[asks])}
        return made

    return {
        "openapi": "3.1.0",
        "info": {"title": "Semantic firewall, admin API", "version": "1"},
        "servers": [{"url": "/admin/v1"}],
        "security": [{"token": []}],
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "responses": {
                "Error": {"description": "An error", "content": _json({"$ref": "#/components/schemas/Error"})}
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "paths": {
            "/keys": {
                "get": operation("listKeys", "Keys, oldest first", Keys, parameters=(_TENANT, _LIMIT, _AFTER)),
                "post": operation("createKey", "Make a key", shapes.KeyMade, asks=shapes.NewKey, status=201),
            },
            "/keys/{id}": {
                "parameters": [_KEY_ID],
                "get": operation("showKey", "A key", shapes.KeyShown),
                "delete": operation("revokeKey", "Make a key worthless", shapes.KeyShown),
            },
            "/keys/{id}/rotate": {
                "parameters": [_KEY_ID],
                "post": operation("rotateKey", "Give a key a new secret", shapes.KeyMade, asks=shapes.Rotation),
            },
            "/tenants": {
                "get": operation("listTenants", "Tenants, by name", Tenants, parameters=(_LIMIT, _AFTER)),
                "post": operation(
                    "createTenant", "Make a tenant", shapes.TenantShown, asks=shapes.NewTenant, status=201
                ),
            },
            "/tenants/{name}": {
                "parameters": [_TENANT_NAME],
                "get": operation("showTenant", "A tenant", shapes.TenantShown),
                "patch": operation("changeTenant", "Change its limits", shapes.TenantShown, asks=shapes.TenantChange),
                "delete": operation("deleteTenant", "Delete a tenant and revoke its keys", None),
            },
            "/protected": {
                "get": operation(
                    "listProtected", "Protected texts, oldest first", Texts, parameters=(_TENANT, _LIMIT, _AFTER)
                ),
                "post": operation(
                    "createProtected", "Protect a text", shapes.TextShown, asks=shapes.NewText, status=201
                ),
            },
            "/protected/{id}": {
                "parameters": [_TEXT_ID],
                "get": operation("showProtected", "A protected text, without the text", shapes.TextShown),
                "delete": operation("deleteProtected", "Forget a protected text", None),
            },
            "/usage": {
                "get": operation(
                    "usage",
                    "Requests and tokens by day, tenant and model",
                    Usages,
                    parameters=(_TENANT, _moment("from"), _moment("to"), _LIMIT, _AFTER),
                )
            },
        },
    }


_ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)
"""Any operation may answer so."""
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "JSON pointer of what is wrong"},
                "code": {"type": "string"},
            },
        }
    },
}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _moment(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": "ISO 8601, or seconds since the epoch",
        "schema": {"type": "string"},
    }
