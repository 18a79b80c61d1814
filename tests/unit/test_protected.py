"""Which texts are protected, from where they are read, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import ConfigError
from service.firewall.protected import ProtectedText, ProtectedTexts, registered
from service.settings import Protected, Settings

SECRET = "tr0ub4dor-and-three"


def test_a_value_is_read_from_the_environment_and_from_a_file_without_its_last_newline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.txt").write_bytes(b"\xef\xbb\xbf  file secret\n\r\n")
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
    assert (second.value, second.tenant) == ("  file secret\n", "acme")


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


def test_a_tenants_secret_is_looked_for_in_that_tenants_replies_only() -> None:
    texts = ProtectedTexts(
        [ProtectedText("a", "secret", "acme", SECRET), ProtectedText("b", "secret", "", "for-everyone")]
    )
    names = [
        {owner.name for patterns in texts.for_request(tenant).patterns for owner in patterns.owners}
        for tenant in ("acme", "other", "")
    ]
    assert names == [{"a", "b"}, {"b"}, {"b"}]


def test_automata_are_built_once_until_the_texts_are_replaced() -> None:
    texts = ProtectedTexts([ProtectedText("a", "secret", "", SECRET)])
    first = texts.for_request("t").patterns
    assert texts.for_request("u").patterns == first
    version = texts.version
    texts.replace([ProtectedText("b", "secret", "", "another-secret")])
    assert texts.version == version + 1
    (patterns,) = texts.for_request("t").patterns
    assert {owner.name for owner in patterns.owners} == {"b"}


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
