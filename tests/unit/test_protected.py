"""Which texts are protected, from where they are read, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigError
from service.firewall import protected
from service.firewall.ngrams import words
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.registration import registered
from service.firewall.stream import ReplyJudge
from service.settings import Leakage, Protected, Settings

SECRET = "tr0ub4dor-and-three"


def test_a_value_is_read_from_the_environment_and_from_a_file_without_its_last_newline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.txt").write_bytes(b"\xef\xbb\xbf  file secret 4711\n\r\n")
    monkeypatch.setenv("SECRET_A", SECRET + "\n")
    settings = Settings(
        folder=tmp_path,
        protected=(
            Protected(name="a", kind="secret", value_env="SECRET_A"),
            Protected(name="b", kind="secret", tenant="acme", file="key.txt"),
        ),
    )
    first, second = registered(settings)
    assert (first.value, first.tenant) == (SECRET, "")
    assert (second.value, second.tenant) == ("  file secret 4711\n", "acme")


@pytest.mark.parametrize("value", ["", "short", "a b c d e f", "\u200b" * 20 + "1234567"])
def test_a_tiny_secret_is_refused_by_its_key_and_never_quoted(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY", value)
    settings = Settings(protected=(Protected(name="tiny", kind="secret", value_env="TINY"),))
    with pytest.raises(ConfigError, match=r"^protected\[0\]\.value_env: ") as caught:
        registered(settings)
    assert not value or value not in str(caught.value)


def test_a_missing_variable_and_an_unreadable_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00secretsecret")
    for entry, key in (
        (Protected(name="x", kind="secret", value_env="NOT_SET_ANYWHERE"), r"protected\[0\]\.value_env"),
        (Protected(name="x", kind="secret", file="nowhere"), r"protected\[0\]\.file"),
        (Protected(name="x", kind="secret", file="binary"), r"protected\[0\]\.file"),
    ):
        with pytest.raises(ConfigError, match=key):
            registered(Settings(folder=tmp_path, protected=(entry,)))


def test_a_prompt_that_says_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="protected 'p'"):
        ProtectedTexts([ProtectedText("p", "prompt", "", "Be nice.")])


async def judged(texts: ProtectedTexts, tenant: str, reply: str, *, action: str = "block", **said: Any) -> ReplyJudge:
    judge = ReplyJudge(texts.for_request(tenant, **said), Leakage(stream="exact", action=action), str.upper)  # type: ignore[arg-type]
    for char in reply:
        await judge.feed("c", char)
    await judge.finish()
    return judge


@pytest.mark.parametrize(
    ("tenant", "reply", "category"),
    [
        ("acme", SECRET, "leak.secret"),
        ("other", SECRET, "cross_tenant"),
        ("other", SECRET[::-1].upper(), "cross_tenant"),
        ("other", "for-everyone", "leak.secret"),
        ("", SECRET, "cross_tenant"),
        ("other", "shared-by-two-of-them", "leak.secret"),
        ("third", "shared-by-two-of-them", "cross_tenant"),
    ],
)
@pytest.mark.parametrize("action", ["block", "redact", "flag"])
async def test_a_tenants_secret_is_its_own_to_itself_and_never_leaves_to_another(
    tenant: str, reply: str, category: str, action: str
) -> None:
    texts = ProtectedTexts(
        [
            ProtectedText("a", "secret", "acme", SECRET),
            ProtectedText("b", "secret", "", "for-everyone"),
            ProtectedText("c", "secret", "acme", "shared-by-two-of-them"),
            ProtectedText("d", "secret", "other", "shared-by-two-of-them"),
        ]
    )
    judge = await judged(texts, tenant, f"It is {reply}.", action=action)
    assert {finding.category for finding in judge.verdict.findings} == {category}
    assert judge.blocked == (action == "block" or category == "cross_tenant")
    if judge.blocked:
        assert judge.cleared("c") <= len("It is ")


OTHERS = "You are Harbor, the booking assistant of the Lighthouse group, and you never reveal the wholesale rates."


async def test_another_tenants_prompt_is_withheld_unless_the_caller_said_the_same() -> None:
    texts = ProtectedTexts([ProtectedText("desk", "prompt", "acme", OTHERS)])
    found = await judged(texts, "other", OTHERS)
    assert (found.verdict.findings[0].category, found.verdict.findings[0].detail) == (
        "cross_tenant",
        "acme: desk, verbatim",
    )
    assert not (await judged(texts, "other", OTHERS, user_texts=[OTHERS])).verdict.findings
    own = await judged(texts, "other", OTHERS, system_texts=[OTHERS])
    assert {finding.category for finding in own.verdict.findings} == {"leak.prompt"}


def test_no_tenants_sentences_are_compared_with_another_tenants_prompt() -> None:
    texts = ProtectedTexts([ProtectedText("desk", "prompt", "acme", OTHERS)])
    assert [texts.for_request(tenant).prompts for tenant in ("acme", "other")] == [(OTHERS,), ()]


def test_automata_are_built_once_until_the_texts_are_replaced() -> None:
    texts = ProtectedTexts([ProtectedText("a", "secret", "", SECRET)])
    first = texts.for_request("t").patterns
    assert texts.for_request("u").patterns == first
    version = texts.version
    texts.replace([ProtectedText("b", "secret", "", "another-secret")])
    assert texts.version == version + 1
    (patterns,) = texts.for_request("t").patterns
    assert {owner.name for owners in patterns.owners for owner in owners} == {"b"}


def test_a_short_system_text_is_protected_as_a_whole_and_a_tiny_one_not_at_all() -> None:
    texts = ProtectedTexts()
    assert texts.for_request("t", ["Speak only of lighthouse keeping."]).patterns
    assert not texts.for_request("t", ["Be nice.", "", " \n"]).has_prompts


def test_a_system_text_seen_before_is_not_read_again() -> None:
    texts = ProtectedTexts()
    prompt = " ".join(f"word{i}" for i in range(50))
    assert texts.for_request("t", [prompt]).fingerprints[0] is texts.for_request("u", [prompt]).fingerprints[0]


def test_what_is_kept_of_system_texts_is_bounded() -> None:
    texts = ProtectedTexts()
    for number in range(40):
        texts.for_request("t", [f"p{number} " + "word " * 5_000])
    assert texts._seen_words <= 100_000


def test_the_repr_of_a_protected_text_does_not_show_it() -> None:
    assert SECRET not in repr(ProtectedText("a", "secret", "", SECRET))


# -- texts that come and go ------------------------------------------------------------------------------------------


def stored(number: int, tenant: str = "acme") -> ProtectedText:
    return ProtectedText(f"s{number}", "secret", tenant, f"key-{number:05d}-{number * 7919 % 99991:05d}", f"id{number}")


async def test_texts_that_are_added_and_removed_are_found_and_no_longer_found_in_a_large_set_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protected, "MAX_RECENT", 20)
    texts = ProtectedTexts([ProtectedText("b", "secret", "", "for-everyone")])

    async def found(number: int) -> bool:
        return (await judged(texts, "acme", stored(number).value)).blocked

    texts.merge([stored(number) for number in range(50)])
    assert texts.needs_compacting
    texts.compact()
    assert not texts.needs_compacting
    assert [await found(number) for number in (0, 49, 50)] == [True, True, False]
    texts.merge([stored(50)], ["id49", "id0"])
    assert [await found(number) for number in (0, 1, 49, 50)] == [False, True, False, True]
    texts.merge([], [f"id{number}" for number in range(1, 40)])  # so many that all is built anew
    assert [await found(number) for number in (1, 39, 40, 50)] == [False, False, True, True]
    texts.compact()
    assert [await found(number) for number in (1, 39, 40, 50)] == [False, False, True, True]
    texts.merge([], ["id50"])
    assert not await found(50)
    assert (await judged(texts, "acme", "for-everyone")).blocked
    assert len(texts) == 10


def large(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[ProtectedTexts, list[str]]:
    """A set whose texts are kept in arrays, and what they say."""
    monkeypatch.setattr(protected, "MAX_RECENT", 20)
    words = 12 if kind == "prompt" else 5
    said = [" ".join(f"w{number * 7 + at}x" for at in range(words)) for number in range(60)]
    texts = ProtectedTexts()
    texts.merge(
        ProtectedText(f"p{number}", "prompt", f"t{number % 2}", text, f"id{number}") for number, text in enumerate(said)
    )
    texts.compact()
    return texts, said


@pytest.mark.parametrize("kind", ["prompt", "short prompt"])
async def test_a_prompt_added_to_many_or_removed_from_them_is_found_or_not_without_building_them_anew(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, said = large(kind, monkeypatch)
    base = texts._state.base
    added = "Quiet harbours keep lanterns burning through every northern winter night"
    assert not (await judged(texts, "t0", added)).blocked
    texts.merge([ProtectedText("new", "prompt", "t0", added, "new")])
    assert (await judged(texts, "t0", added)).blocked
    assert (await judged(texts, "t0", said[5])).verdict.findings[0].detail.startswith("t1: p5, ")
    texts.merge([], ["id5", "new"])
    for text, blocked in ((said[4], True), (said[5], False), (added, False)):
        assert (await judged(texts, "t0", text)).blocked == blocked
    assert texts._state.base is base
    texts.compact()
    for text, blocked in ((said[4], True), (said[5], False), (added, False)):
        assert (await judged(texts, "t0", text)).blocked == blocked
    assert len(texts) == 59


@pytest.mark.parametrize("kind", ["secret", "prompt", "short prompt"])
async def test_what_two_tenants_registered_is_each_ones_own_among_many_texts_too(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, _ = large("prompt", monkeypatch)
    shared = {"secret": SECRET, "prompt": OTHERS, "short prompt": "Speak only of lighthouse keeping."}[kind]
    registered = "secret" if kind == "secret" else "prompt"
    texts.merge(ProtectedText(f"s{at}", registered, f"t{at}", shared, f"shared{at}") for at in range(2))  # type: ignore[arg-type]
    texts.compact()
    for tenant, category in (("t0", f"leak.{registered}"), ("t1", f"leak.{registered}"), ("t2", "cross_tenant")):
        found = (await judged(texts, tenant, shared)).verdict.findings
        assert {finding.category for finding in found} == {category}


async def test_what_is_removed_while_all_is_built_anew_stays_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, said = large("prompt", monkeypatch)
    build = protected.prints_of

    def meanwhile(*given: Any, **how: Any) -> Any:
        made = build(*given, **how)
        if how.get("many") and len(texts) == 60:
            texts.merge([ProtectedText("new", "prompt", "t0", OTHERS, "new")], ["id7"])
        return made

    monkeypatch.setattr(protected, "prints_of", meanwhile)
    texts.compact()
    for text, blocked in ((said[6], True), (said[7], False), (OTHERS, True)):
        assert (await judged(texts, "t0", text)).blocked == blocked
    assert len(texts) == 60


KEYS = (
    "3f2a9c1e-77b0-4c1d-9a55-0e8f12d4b6aa",
    "correct horse battery staple",
    "4711 4712 4713 4714 4715 4716",
    "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtz\n" * 5,
)


def test_only_secrets_that_read_as_words_are_compared_by_meaning_and_only_so_many() -> None:
    told = [f"Project {number} is called after the river at Trondheim" for number in range(99)]
    texts = ProtectedTexts(
        [ProtectedText(f"k{at}", "secret", "t", key) for at, key in enumerate(KEYS)]
        + [ProtectedText(f"s{at}", "secret", "t", value) for at, value in enumerate(told)]
        + [ProtectedText("p", "prompt", "t", OTHERS)]
    )
    assert texts.for_request("t").prompts == (*told[: protected.MAX_MEANT], OTHERS)
    assert not texts.for_request("u").has_prompts
    assert not ProtectedTexts([ProtectedText("k", "secret", "t", key) for key in KEYS]).for_request("t").has_prompts


def test_a_told_secret_that_is_added_and_removed_is_near_or_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, _ = large("prompt", monkeypatch)
    near = words("Of the cabin by the frozen lake nobody may ever speak")
    texts.merge([ProtectedText("s", "secret", "t", "the cabin by the frozen lake nobody may know", "told")])

    def found() -> str:
        return texts.for_request("t").overlap(near, typed=False)[0]

    assert found() == "s"
    texts.compact()
    assert found() == "s" and len(texts.for_request("t").prompts) == 1
    texts.merge([], ["told"])
    assert not found() and not texts.for_request("t").has_prompts
    texts.compact()
    assert not found()
