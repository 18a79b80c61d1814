"""Tenants and keys that the configuration is about without naming them in `[[tenants]]`."""

import pytest
import structlog

from service.errors import ConfigError
from service.records.place import Place
from service.records.store import Store
from service.records.tenant_table import TenantRow
from service.settings import Auth, Extraction, Limits, Protected, Settings, Tenant
from service.tenancy.directory import Directory, check, report_unknown
from service.tenancy.keys import Keys, SecretRoot


def settings_about(*exempt: str, protected: str = "", mode: str = "keys") -> Settings:
    text = Protected(name="p", kind="secret", value_env="P", tenant=protected)
    return Settings(
        auth=Auth(mode=mode),
        tenants=(Tenant(name="north"),),
        protected=(text,),
        extraction=Extraction(exempt=exempt),
    )


@pytest.mark.parametrize("mode", ["open", "keys"])
def test_the_file_s_own_tenants_are_known(mode: str) -> None:
    assert check(settings_about("default", "north", protected="north", mode=mode)) == []


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (settings_about("nroth", mode="open"), "extraction.exempt[0]"),
        (settings_about("0123456789abcdef", mode="open"), "extraction.exempt[0]"),
        (settings_about(protected="nroth", mode="open"), "protected[0].tenant"),
    ],
)
def test_open_mode_has_no_other_tenants_and_no_keys(settings: Settings, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(settings)
    assert str(caught.value).startswith(f"{where}: ")


def test_with_keys_others_are_doubtful_but_ids_of_keys() -> None:
    doubtful = check(settings_about("0123456789abcdef", "0123", protected="0123456789abcdef"))
    assert [named.where for named in doubtful] == ["protected[0].tenant", "extraction.exempt[1]"]


async def test_pages_of_tenants_hold_those_of_the_file_and_of_the_database_in_one_order(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of any size join to the whole list, each tenant once; the database is asked for no more than a page."""
    store = Store(place)
    await store.open()
    try:
        directory = Directory(Settings(), store)
        for name in ("alpha", "beta", "east", "north", "zulu"):
            await directory.create(name, Limits())
        directory = Directory(settings_about(), store)  # `north` is the file's now, and so is `default`
        asked: list[int | None] = []
        fetch = store.list_tenants

        async def watched(*, limit: int | None = None, after: str = "") -> list[TenantRow]:
            rows = await fetch(limit=limit, after=after)
            asked.append(limit)
            assert limit is None or len(rows) <= limit
            return rows

        monkeypatch.setattr(store, "list_tenants", watched)
        everyone = [tenant.name for tenant in await directory.list()]
        assert everyone == ["alpha", "beta", "default", "east", "north", "zulu"]
        for size in (1, 2, 3, 6, 7):
            names: list[str] = []
            while page := await directory.list(limit=size, after=names[-1] if names else ""):
                assert len(page) <= size
                names += [tenant.name for tenant in page]
            assert names == everyone
        assert (await directory.list(limit=9, after="east\0x"))[0].name == "north"
        assert (await directory.find("north")).origin == (await directory.list(after="east"))[0].origin
        assert set(asked) == {None, 1, 2, 3, 6, 7, 9}
    finally:
        await store.close()


async def test_who_is_neither_in_the_file_nor_in_the_database_is_logged_at_start(place: Place) -> None:
    store = Store(place)
    await store.open()
    try:
        await Directory(Settings(), store).create("south", Limits())
        made = await Keys(store, SecretRoot(b"r" * 32)).create("south")
        settings = settings_about("north", "south", made.id, "0123456789abcdef", protected="souht")
        with structlog.testing.capture_logs() as told:
            await report_unknown(settings, store)
    finally:
        await store.close()
    assert [(line["log_level"], line["at"], line["tenant"]) for line in told] == [
        ("warning", "protected[0].tenant", "souht"),
        ("warning", "extraction.exempt[3]", "0123456789abcdef"),
    ]
