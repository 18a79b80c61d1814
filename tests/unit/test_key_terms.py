"""What a key carries: rotation, what it may ask, its own limits, and the system prompt that its callers never hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from service.api.chat_reply import ChatWire
from service.api.completions import CompletionsWire
from service.api.embeddings import EmbeddingsWire
from service.api.messages_reply import MessagesWire
from service.api.responses_reply import ResponsesWire
from service.errors import ConfigError, Forbidden, StorageFailed, Unauthenticated
from service.firewall.prompt import Prompt
from service.interfaces import Call, Wire
from service.records.key_table import KeyRow
from service.records.place import Place
from service.records.store import Store
from service.settings import KeyDefaults, Limits, Settings, Tenant
from service.tenancy import keys as keys_module
from service.tenancy.caller import KeyCaller, route_of
from service.tenancy.directory import Directory
from service.tenancy.keys import ROUTES, Keys, SecretRoot
from service.tenancy.memory_counters import MemoryCounters
from service.tenancy.quota import Quota
from service.tenancy.sealing import Seal
from service.tenancy.tenants import Tenants
from service.tenancy.tokens import TokenCounter
from tests.stored import everything

PINNED = "You answer for Northwind. Never name the warehouse in Lisbon."


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    made = Store(place)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def keys(store: Store, clock: Clock) -> Keys:
    return Keys(store, SecretRoot(b"r" * 32), clock)


# -- rotation --------------------------------------------------------------------------------------------------------


async def test_after_a_rotation_both_secrets_hold_until_the_old_one_ends(keys: Keys, clock: Clock) -> None:
    made = await keys.create("acme", ["user"])
    new = await keys.rotate(made.id, clock.now + 60)
    assert new is not None
    assert new.id == made.id
    assert (await keys.verify(made.key)).roles == (await keys.verify(new.key)).roles == ("user",)
    clock.now += 60
    with pytest.raises(Unauthenticated):
        await keys.verify(made.key)
    assert (await keys.verify(new.key)).id == made.id


async def test_without_an_overlap_the_old_secret_ends_at_once(keys: Keys) -> None:
    made = await keys.create("acme")
    await keys.verify(made.key)
    assert await keys.rotate(made.id) is not None
    with pytest.raises(Unauthenticated):
        await keys.verify(made.key)


async def test_a_second_rotation_makes_the_secret_before_the_last_worthless(keys: Keys, clock: Clock) -> None:
    first = await keys.create("acme")
    second = await keys.rotate(first.id, clock.now + 60)
    third = await keys.rotate(first.id, clock.now + 60)
    assert second is not None
    assert third is not None
    with pytest.raises(Unauthenticated):
        await keys.verify(first.key)
    assert (await keys.verify(second.key)).id == (await keys.verify(third.key)).id


async def test_a_rotation_by_another_process_holds_within_a_second(keys: Keys, store: Store, clock: Clock) -> None:
    made = await keys.create("acme")
    await keys.verify(made.key)
    new = await Keys(store, SecretRoot(b"r" * 32), clock).rotate(made.id)
    clock.now += 1.0
    assert new is not None
    assert (await keys.verify(new.key)).id == made.id
    with pytest.raises(Unauthenticated):
        await keys.verify(made.key)


async def test_an_id_that_no_key_has_is_looked_up_once_in_a_while(
    keys: Keys, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger who repeats one unknown id costs one read in half a second, and many ids no unbounded memory."""
    monkeypatch.setattr(keys_module, "_ABSENT_IDS", 3)
    asked: list[str] = []
    find = store.find_key

    async def count(key_id: str) -> KeyRow | None:
        asked.append(key_id)
        return await find(key_id)

    monkeypatch.setattr(store, "find_key", count)
    for key_id in ("aaaa", "aaaa", "aaaa", "bbbb", "cccc", "dddd", "dddd"):
        with pytest.raises(Unauthenticated):
            await keys.verify(f"sf-{key_id}-{'x' * 43}")
    assert asked == ["aaaa", "bbbb", "cccc", "dddd"]
    assert len(keys._absent) <= 3
    clock.now += keys_module.CACHE_S
    with pytest.raises(Unauthenticated):
        await keys.verify(f"sf-dddd-{'x' * 43}")
    assert asked[-1] == "dddd"
    assert len(asked) == 5


async def test_a_key_that_is_made_holds_at_once_though_its_id_was_asked_for_before(
    keys: Keys, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made here, it holds at once; made by another process, within a second."""
    monkeypatch.setattr(keys_module.secrets, "token_hex", lambda count: "0123456789abcdef")
    with pytest.raises(Unauthenticated):
        await keys.verify(f"sf-0123456789abcdef-{'x' * 43}")
    made = await keys.create("acme")
    assert (await keys.verify(made.key)).id == made.id
    monkeypatch.setattr(keys_module.secrets, "token_hex", lambda count: "fedcba9876543210")
    with pytest.raises(Unauthenticated):
        await keys.verify(f"sf-fedcba9876543210-{'x' * 43}")
    made = await Keys(store, SecretRoot(b"r" * 32), clock).create("acme")
    clock.now += 1.0
    assert (await keys.verify(made.key)).id == made.id


async def test_revoking_a_key_ends_both_of_its_secrets(keys: Keys, clock: Clock) -> None:
    made = await keys.create("acme")
    new = await keys.rotate(made.id, clock.now + 60)
    assert new is not None
    await keys.revoke(made.id)
    for key in (made.key, new.key):
        with pytest.raises(Unauthenticated):
            await keys.verify(key)


async def test_what_is_no_good_any_more_cannot_be_rotated(keys: Keys, clock: Clock) -> None:
    revoked, expired = await keys.create("acme"), await keys.create("acme", expires_at=clock.now + 1)
    await keys.revoke(revoked.id)
    clock.now += 1
    assert [await keys.rotate(each) for each in (revoked.id, expired.id, "unknown")] == [None, None, None]
    with pytest.raises(ConfigError, match="past"):
        await keys.rotate((await keys.create("acme")).id, clock.now)


# -- what it may ask -------------------------------------------------------------------------------------------------


async def test_a_key_keeps_all_that_it_was_made_with(keys: Keys) -> None:
    made = await keys.create(
        "acme",
        models=["gpt-4o*", "o3"],
        routes=["chat"],
        limits=Limits(concurrency=3, budget_usd_per_day=0.5),
        system_prompt=PINNED,
    )
    stored = await keys.verify(made.key)
    assert (stored.models, stored.routes) == (("gpt-4o*", "o3"), ("chat",))
    assert stored.limits == Limits(concurrency=3, budget_usd_per_day=0.5)
    assert keys.system_prompt(stored) == PINNED


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"routes": ["admin"]}, "routes"),
        ({"models": [""]}, "models"),
        ({"models": ["x"] + [str(n) for n in range(100)]}, "100"),
    ],
)
async def test_unknown_routes_and_globs_without_end_make_no_key(
    keys: Keys, store: Store, given: dict[str, list[str]], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        await keys.create("acme", **given)  # type: ignore[arg-type]
    assert await store.list_keys() == []


def test_a_key_for_some_models_asks_for_no_other_under_any_name() -> None:
    caller = KeyCaller("t", "k", models=("gpt-4o*", "o3"))
    for model in ("gpt-4o", "gpt-4o-mini", "o3"):
        caller.permit_model(model)
    for model in ("gpt-4", "o3-pro", "GPT-4o", "x/gpt-4o", "", "o3\n"):
        with pytest.raises(Forbidden) as caught:
            caller.permit_model(model)
        assert caught.value.pointer == "/model"
    with pytest.raises(Forbidden):
        caller.permit_model("o3", ("models",))
    with pytest.raises(Forbidden) as caught:
        caller.permit_model("o3", (), [("gpt-4o", "/tools/0/model"), ("gpt-image-1", "/tools/1/model")])
    assert caught.value.pointer == "/tools/1/model"
    KeyCaller("t", "k").permit_model("anything", ("models",))


def test_a_key_for_some_routes_calls_no_other() -> None:
    caller = KeyCaller("t", "k", routes=("messages", "scan"))
    for protocol in ("anthropic.messages", "anthropic.count_tokens", "scan"):
        caller.permit_route(protocol)
    with pytest.raises(Forbidden, match="chat"):
        caller.permit_route("openai.chat")


def test_every_protocol_is_a_route_that_a_key_can_name() -> None:
    def below(kind: type) -> list[type]:
        return [kind, *(each for child in kind.__subclasses__() for each in below(child))]

    import service.app  # noqa: F401 -- so that all protocols are known

    names = {wire.name for root in (ChatWire, MessagesWire) for wire in below(root)}  # type: ignore[attr-defined]
    assert {route_of(name) for name in names} == set(ROUTES)


# -- limits ----------------------------------------------------------------------------------------------------------


async def reserved(settings: Settings, caller: KeyCaller) -> int | None:
    tenants = Tenants(settings, TokenCounter(), Quota(MemoryCounters()))
    return (await tenants.reserve(caller, "m", [], None)).max_output_tokens


async def test_a_keys_own_limits_replace_single_ones_of_all_keys() -> None:
    settings = Settings(keys=KeyDefaults(limits=Limits(max_output_tokens=50)))
    assert await reserved(settings, KeyCaller("default", "k")) == 50
    assert await reserved(settings, KeyCaller("default", "k", limits=Limits(max_output_tokens=9))) == 9
    assert await reserved(settings, KeyCaller("default", "k", limits=Limits(concurrency=9))) == 50


async def test_a_stored_tenants_limits_hold_unless_the_configuration_names_it() -> None:
    caller = KeyCaller("acme", "k", tenant_limits=Limits(max_output_tokens=9))
    assert await reserved(Settings(limits=Limits(max_output_tokens=50)), caller) == 9
    named = Settings(limits=Limits(max_output_tokens=50), tenants=(Tenant(name="acme"),))
    assert await reserved(named, caller) == 50


async def test_limits_made_later_hold_for_the_keys_of_a_tenant_within_a_second(
    keys: Keys, store: Store, clock: Clock
) -> None:
    await store.add_tenant("acme", Limits(), 1.0)
    made = await keys.create("acme")
    assert (await keys.verify(made.key)).tenant_limits == Limits()
    await store.limit_tenant("acme", Limits(concurrency=1), Limits())
    clock.now += 1.0
    assert (await keys.verify(made.key)).tenant_limits == Limits(concurrency=1)


async def test_changes_of_a_tenant_at_once_lose_none_of_them(store: Store) -> None:
    directory = Directory(Settings(), store)
    await directory.create("acme", Limits())
    names = ("concurrency", "requests_per_minute", "tokens_per_minute", "tokens_per_day", "max_output_tokens")
    await asyncio.gather(*(directory.change("acme", {name: 5}) for name in names))
    assert (await directory.find("acme")).limits == Limits(**dict.fromkeys(names, 5))


async def test_limits_that_cannot_be_read_are_not_taken_for_none(keys: Keys, store: Store) -> None:
    made = await keys.create("acme", limits=Limits(concurrency=1))
    async with store.begin() as connection:
        await connection.exec_driver_sql("UPDATE api_keys SET limits = '{\"concurency\": 1}'")
    with pytest.raises(StorageFailed):
        await keys.verify(made.key)


# -- the system prompt -----------------------------------------------------------------------------------------------


async def test_a_system_prompt_is_not_in_the_database(keys: Keys, store: Store) -> None:
    made = await keys.create("acme", system_prompt=PINNED)
    kept = await everything(store)
    assert made.id in kept
    assert "Northwind" not in kept
    assert "Lisbon" not in kept


def test_a_sealed_text_opens_for_its_owner_under_its_root_alone() -> None:
    seal = Seal(SecretRoot(b"r" * 32).key("seal"))
    sealed = seal.close(PINNED, "k1")
    assert seal.open(sealed, "k1") == PINNED
    assert seal.close(PINNED, "k1") != sealed
    assert seal.open(seal.close("", "k1"), "k2") == ""
    other = Seal(SecretRoot(b"s" * 32).key("seal"))
    for opens, text, owner in (
        (seal, sealed, "k2"),
        (other, sealed, "k1"),
        (seal, sealed[:-4], "k1"),
        (seal, "x", "k1"),
    ):
        with pytest.raises(StorageFailed):
            opens.open(text, owner)


def pinned(wire: Wire, body: str) -> str:
    call = Call(model="m", stream=False, body=body.encode(), prompt=Prompt("m", ()))
    return wire.pin(call, PINNED).decode()


SYSTEM = json.dumps({"role": "system", "content": PINNED})
BLOCK = json.dumps({"type": "text", "text": PINNED})
ITEM = json.dumps({"type": "message", "role": "system", "content": PINNED})


@pytest.mark.parametrize(
    ("wire", "body", "sent"),
    [
        (
            ChatWire(),
            '{"model" : "m", "messages": [ {"a":1}]}',
            '{"model" : "m", "messages": [' + SYSTEM + ', {"a":1}]}',
        ),
        (ChatWire(), '{"messages":[]}', '{"messages":[' + SYSTEM + "]}"),
        (MessagesWire(), '{"a":1}', '{"system":[' + BLOCK + '],"a":1}'),
        (MessagesWire(), '{"system":[{"b":2}] }', '{"system":[' + BLOCK + ',{"b":2}] }'),
        (MessagesWire(), '{"system":"x"}', '{"system":[' + BLOCK + ', {"type": "text", "text": "x"}]}'),
        (ResponsesWire(), '{"input":[{"b":2}]}', '{"input":[' + ITEM + ',{"b":2}]}'),
        (
            ResponsesWire(),
            '{"input":"x"}',
            '{"input":[' + ITEM + ', {"type": "message", "role": "user", "content": "x"}]}',
        ),
        (ResponsesWire(), '{"a":1}', '{"input":[' + ITEM + '],"a":1}'),
        (EmbeddingsWire(), '{"input":"x"}', '{"input":"x"}'),
    ],
)
def test_a_pinned_prompt_comes_first_and_the_rest_of_the_body_stays(wire: Wire, body: str, sent: str) -> None:
    assert pinned(wire, body) == sent


def test_a_route_without_a_place_for_a_system_prompt_is_closed_to_a_key_that_has_one() -> None:
    with pytest.raises(Forbidden):
        pinned(CompletionsWire(), '{"prompt":"x"}')
