"""Seals, the watch over the database, and what is refused or warned about before anything is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import GuardFailed, StorageFailed, Unsealable
from service.firewall import registration
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.registration import bits_of, false_alarms
from service.protection import PATIENCE_S, Registry, Watch
from service.records.place import Place
from service.records.protected_table import ProtectedRow
from service.records.store import Store
from service.settings import Leakage
from service.tenancy.keys import SecretRoot
from service.tenancy.vault import Vault

ROOT = SecretRoot(b"r" * 32)
SECRET = "vault-7F3K9-opens-at-0442-Q8Z"


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    made = Store(place)
    await made.open()
    yield made
    await made.close()


def test_equal_texts_have_nothing_in_common_in_the_database() -> None:
    vault = Vault(ROOT)

    def sealed(tenant: str, text_id: str) -> str:
        return vault.seal(SECRET, text_id=text_id, tenant=tenant, kind="secret", name="n")

    assert len({sealed("a", "1"), sealed("a", "1"), sealed("b", "1")}) == 3
    assert vault.digest(SECRET, "a") == vault.digest(SECRET, "a") != vault.digest(SECRET, "b")
    assert Vault(SecretRoot(b"o" * 32)).digest(SECRET, "a") != vault.digest(SECRET, "a")


def row(**changes: str) -> ProtectedRow:
    sealed = Vault(ROOT).seal(SECRET, text_id="1", tenant="a", kind="secret", name="n")
    values = {"id": "1", "tenant": "a", "kind": "secret", "name": "n", "sealed": sealed, "root": ROOT.id}
    return ProtectedRow(length=9, digest="", created_at=0.0, **(values | changes))


@pytest.mark.parametrize(
    "changes", [{"id": "2"}, {"tenant": "b"}, {"tenant": ""}, {"kind": "prompt"}, {"name": "m"}, {"root": "0" * 16}]
)
def test_a_seal_opens_for_nothing_but_what_it_was_made_for(changes: dict[str, str]) -> None:
    vault = Vault(ROOT)
    assert vault.open(row()) == SECRET
    with pytest.raises(Unsealable) as caught:
        vault.open(row(**changes))
    assert caught.value.text_id == changes.get("id", "1")
    assert SECRET not in str(caught.value)


def test_every_byte_of_a_seal_counts() -> None:
    kept = row().sealed
    for at in range(0, len(kept), 7):
        other = "A" if kept[at] != "A" else "B"
        with pytest.raises(Unsealable):
            Vault(ROOT).open(row(sealed=kept[:at] + other + kept[at + 1 :]))


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("aaaaaaaaaaaaaaaaaaaa", 0, 1),
        ("abcdefghijklmnopqrst", 0, 30),
        ("12345678", 0, 30),
        ("hunterhunterhunter", 0, 30),
        ("correct-horse-battery", 50, 90),
        ("9f8A7b6C5d4E3f2G", 50, 70),
    ],
)
def test_entropy_is_that_of_what_says_something_new(value: str, least: float, most: float) -> None:
    assert least <= bits_of(value) <= most


def test_a_text_of_ordinary_words_is_told_by_how_many_ordinary_texts_it_stands_in() -> None:
    common = false_alarms(ProtectedText("x", "secret", "", "the first"))
    assert 0 < common.hits < common.texts
    assert false_alarms(ProtectedText("x", "secret", "", SECRET)).hits == 0
    sentence = Path(registration.__file__).with_name("ordinary.txt").read_text(encoding="utf-8").splitlines()[60]
    assert false_alarms(ProtectedText("x", "prompt", "", sentence)).hits == 1


async def test_a_database_that_is_silent_for_long_makes_replies_unjudged_until_it_speaks(store: Store) -> None:
    now, silent = [0.0], [False]

    class Silent:
        async def changed_protected(self, after: tuple[int, str], limit: int) -> list[ProtectedRow]:
            if silent[0]:
                raise StorageFailed("no answer")
            return await store.changed_protected(after, limit)

    texts = ProtectedTexts()
    watch = Watch(Silent(), Vault(ROOT), texts, lambda: now[0])  # type: ignore[arg-type]
    await watch.refresh()
    silent[0] = True
    for moment, stale in ((PATIENCE_S - 1, False), (PATIENCE_S + 1, True)):
        now[0] = moment
        await watch.look()
        assert texts.stale == stale
    with pytest.raises(StorageFailed):
        await watch.ping()
    with pytest.raises(GuardFailed):
        await LeakageGuard(Leakage(stream="exact"), texts, None, None, digest=str.upper).open("t", (), ())
    lenient = LeakageGuard(Leakage(stream="exact", on_error="allow"), texts, None, None, digest=str.upper)
    assert (await lenient.open("t", (), ())).verdict.unjudged == ("leakage",)
    silent[0] = False
    await watch.look()
    await watch.ping()


async def test_a_watch_follows_what_another_registry_adds_and_removes(store: Store) -> None:
    registry, texts = Registry(store, Vault(ROOT)), ProtectedTexts()
    watch = Watch(store, Vault(ROOT), texts)
    made = [await registry.add("secret", f"n{number}", f"{SECRET}-{number}", "acme") for number in range(3)]
    await watch.refresh()
    assert len(texts) == 3
    await registry.remove(made[1].row.id)
    await registry.add("secret", "n9", SECRET + "-9")
    await watch.refresh()
    assert len(texts) == 3
    version = texts.version
    await watch.refresh()
    assert texts.version == version


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no core files")
def test_a_served_process_leaves_no_core_file() -> None:
    code = "from service.serving import forbid_dumps; import resource; forbid_dumps(); "
    code += "print(resource.getrlimit(resource.RLIMIT_CORE))"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        == "(0, 0)"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has processes that must not be dumped")
def test_a_served_process_must_not_be_dumped() -> None:
    code = "from service.serving import forbid_dumps; import ctypes; "
    code += "dumpable = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0); "
    code += "before = dumpable(); forbid_dumps(); print(before, dumpable())"
    read = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert read.stdout.strip() == "1 0"
