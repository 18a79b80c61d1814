"""The types of Anthropic's SDK, looked into."""

from __future__ import annotations

import typing

import pytest
from anthropic.types.shared.error_type import ErrorType

from service.api.messages_reply import MessagesWire
from service.errors import WireError


@pytest.mark.parametrize("status", range(400, 600))
def test_errors_have_types_that_the_sdk_knows(status: int) -> None:
    kind = MessagesWire().phrase(WireError(status, "x", "y", "z")).type
    # The SDK knows a body that is too large by its status; the type stands in the API's reference only.
    assert kind in {*typing.get_args(ErrorType), "request_too_large"}
