"""Over HTTP: an attack in any field of a request is stopped before a provider hears of it."""

from __future__ import annotations

import aiohttp
import pytest

from tests.contract.test_every_field_asked import REQUESTS
from tests.e2e.conftest import World
from tests.sdk_types import least, marked


@pytest.mark.parametrize("name", REQUESTS)
async def test_an_attack_in_any_field_of_a_request_reaches_no_provider(
    name: str,
    world: World,
    client: aiohttp.ClientSession,
) -> None:
    _, kind = REQUESTS[name]
    path = f"/v1/{name.partition(',')[0]}"
    model = {"model": "claude-message" if name.startswith("messages") else "up-whole"}
    tried = 0
    for found in marked(kind, "ATTACK on all of it"):
        if found.kind == "null" or found.place.count(".") > 1 or found.place.endswith(".model"):
            continue
        async with client.post(path, json={**least(kind), **found.value, **model}) as answer:
            assert answer.status in {400, 404}, found
        tried += 1
    assert tried > 5
    assert world.upstream.requests == []
