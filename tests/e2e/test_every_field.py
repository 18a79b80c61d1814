"""Over HTTP: an attack in any field of a request is stopped before a provider hears of it."""

from __future__ import annotations

import aiohttp
import pytest

from tests.contract.test_every_field_asked import KEPT, REQUESTS
from tests.e2e.conftest import World
from tests.sdk_types import least, marked, said_before


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
    # All of them first: to find the next takes longer than an idle connection is kept.
    for found in list(marked(kind, "ATTACK on all of it")):
        if found.kind == "null" or found.place.count(".") > 1 or found.place.endswith(".model"):
            continue
        async with client.post(path, json=said_before({**least(kind), **found.value, **model})) as answer:
            how = answer.status, answer.headers["x-firewall-action"]
        member = found.place.rpartition(".")[2]
        if found.kind == "word":  # a string where the protocol has none need not be read
            assert how in {(400, "block"), (400, "error")}, found
        elif member in KEPT:
            assert how == (404, "error"), found
        else:
            assert how == (400, "block"), found
        tried += 1
    assert tried > 5
    assert world.upstream.requests == []
