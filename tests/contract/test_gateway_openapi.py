"""Schemathesis makes calls from the gateway's OpenAPI document: no route breaks, or answers what is not in it."""

from __future__ import annotations

import copy
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from service.api.gateway_openapi import document
from tests.conftest import serve

SANDBOX = ("sandbox-echo", "sandbox-leaky", "sandbox-tools", "unknown")


def _with_models() -> dict[str, Any]:
    """The document with models that there are, or most calls would end at the first question."""
    known = copy.deepcopy(document())
    for path in known["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict) and "requestBody" in operation:
                asked = operation["requestBody"]["content"]["application/json"]["schema"]
                if "model" in asked.get("required", ()):
                    asked["properties"]["model"] = {"enum": list(SANDBOX)}
    return known


schema = schemathesis.openapi.from_dict(_with_models())
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[str]:
    more = (
        f'[detection]\nartifact = "{tiny_model}"\n[[providers]]\nname = "s"\nkind = "sandbox"\nmodels = ["sandbox-*"]\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        yield from serve(tmp_path_factory, patch, more)


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_route_keeps_what_its_document_says(case: Any, url: str) -> None:
    """Whatever is sent, valid or not, the answer is of a kind that is written down, and never a 500."""
    answer = case.call(base_url=url, timeout=30)
    case.validate_response(answer, checks=CHECKS)


def test_the_document_is_served_and_names_every_route(url: str) -> None:
    """So that a client can be made from it; what asks for no judgement is not in it."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=30) as answer:
        assert json.load(answer) == document()
