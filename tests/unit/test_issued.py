"""Ids belong to the tenant that they were issued to, over restarts, and the record of them has an end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.errors import StorageFailed
from service.records.place import Place
from service.records.store import Store
from service.tenancy.issued import IssuedIds, Origin
from service.tenancy.keys import SecretRoot
from tests.stored import everything

ROOT = SecretRoot(b"0" * 32)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    made = Store(place)
    await made.open()
    yield made
    await made.close()


def ids(store: Any, on_error: Any = "block", **more: Any) -> IssuedIds:
    return IssuedIds(store, ROOT.digest("issued-id"), on_error, **more)


async def test_an_id_is_found_by_its_tenant_alone_also_after_a_restart(store: Store) -> None:
    issued = ids(store)
    await issued.record("acme", ["resp_1", "msg_1"], Origin("up", ("be kind",)))
    assert await issued.find("acme", "resp_1") == Origin("up", ("be kind",))
    assert await issued.find("other", "resp_1") is None
    assert await issued.find("acme", "resp_2") is None
    assert await ids(store).find("acme", "msg_1") == Origin("up")


async def test_the_tokens_of_the_call_that_made_an_id_are_known_after_a_restart(store: Store) -> None:
    await ids(store).record("acme", ["resp_1"], Origin("up"))
    assert await ids(store).find("acme", "resp_1") == Origin("up", tokens=None)
    await ids(store).record("acme", ["resp_1"], Origin("up", tokens=1_234))
    assert await ids(store).find("acme", "resp_1") == Origin("up", tokens=1_234)


async def test_no_id_and_no_text_is_kept_in_the_database(store: Store) -> None:
    await ids(store).record("acme", ["resp_secretive"], Origin("up", ("be kind to everyone",)))
    kept = await everything(store)
    assert "acme" in kept
    assert "resp_secretive" not in kept and "be kind" not in kept


async def test_only_a_tenant_s_newest_ids_are_kept(store: Store) -> None:
    await ids(store).record("other", ["resp_0"], Origin("up"))
    for number in range(5):
        await ids(store, max_per_tenant=2).record("acme", [f"resp_{number}"], Origin("up"))
    found = [await ids(store).find("acme", f"resp_{number}") for number in range(5)]
    assert [origin is not None for origin in found] == [False, False, False, True, True]
    assert await ids(store).find("other", "resp_0") is not None


async def test_an_id_that_is_issued_again_is_new_again(store: Store) -> None:
    for name in ("resp_1", "resp_2", "resp_1", "resp_3"):
        await ids(store, max_per_tenant=2).record("acme", [name], Origin("up"))
    assert await ids(store).find("acme", "resp_1") is not None
    assert await ids(store).find("acme", "resp_2") is None


class Broken:
    async def add_issued(self, *_: Any) -> None:
        raise StorageFailed("disk full")


async def test_a_failing_store_blocks_or_lets_pass_as_the_policy_says() -> None:
    with pytest.raises(StorageFailed):
        await ids(Broken()).record("acme", ["resp_1"], Origin("up"))
    await ids(Broken(), "allow").record("acme", ["resp_1"], Origin("up"))


async def test_an_id_of_another_tenant_s_is_told_from_one_of_nobody_s_where_that_is_kept(store: Store) -> None:
    issued = ids(store, everyones=True)
    await issued.record("acme", ["file_1"], Origin("up"))
    assert await issued.is_anyone_s("file_1") and not await issued.is_anyone_s("file_2")
    assert await issued.find("other", "file_1") is None
    assert not await ids(store).is_anyone_s("file_1")
