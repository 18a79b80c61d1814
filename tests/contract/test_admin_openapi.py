"""Schemathesis makes calls from the admin API's OpenAPI document: what it promises holds, and nothing breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

import service.app
from service import settings as config
from service.api.admin_openapi import document
from tests.e2e.test_admin import CONFIGURATION, TOKEN
from tests.servers import running

schema = schemathesis.openapi.from_dict(document())
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    ]
)
"""The door, which closes after some wrong tokens, has tests of its own (`tests/e2e/test_admin.py`)."""


@pytest.fixture(scope="module")
def admin_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("admin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIREWALL_ADMIN_TOKEN", TOKEN)
        (folder / "firewall.toml").write_text(CONFIGURATION)
        with running(service.app.create_app(config.load(folder / "firewall.toml"))) as url:
            yield f"{url}/admin/v1"


@schema.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_operation_keeps_what_its_document_says(case: Any, admin_url: str) -> None:
    answer = case.call(base_url=admin_url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30)
    case.validate_response(answer, checks=CHECKS)
