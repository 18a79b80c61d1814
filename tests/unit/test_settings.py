from pathlib import Path

import pytest

from service.errors import ConfigError
from service.settings import Settings, load


def written(tmp_path, text):
    path = tmp_path / "firewall.toml"
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_defaults(tmp_path):
    settings = load(written(tmp_path, ""))
    assert settings.folder == tmp_path
    assert settings.server == Settings().server


def test_the_repositorys_example_is_accepted():
    example = Path(__file__).parents[2] / "firewall.toml"
    assert load(example).providers[0].kind == "sandbox"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[server]\nprot = 1", "prot"),
        ("[sever]\nport = 1", "sever"),
        ("[server]\nport = 70000", "$.server.port"),
        ('[server]\nport = "80"', "$.server.port"),
        ("[server]\nworkers = 0", "$.server.workers"),
        ("[limits]\ntokens_per_minute = 0", "$.limits.tokens_per_minute"),
        ("[limits]\nrequests_per_minute = -1", "$.limits.requests_per_minute"),
        ('[auth]\nmode = "none"', "$.auth.mode"),
        ('[server]\nhost = "0.0.0.0"', "auth.mode"),
        ("[server]\nworkers = 2", "counters.url"),
        ("[detection]\nflag_fpr = 0.001\nblock_fpr = 0.01", "detection.block_fpr"),
        ("[detection]\nflag_fpr = 1", "$.detection.flag_fpr"),
        ('[detection.roles.tool]\nleak = "block"', "leak"),
        ('[leakage]\ncredentials = "hide"', "$.leakage.credentials"),
        ('[leakage]\nallowed_hosts = ["https://example.com/"]', "$.leakage.allowed_hosts[0]"),
        ('[leakage]\nallowed_hosts = ["*"]', "$.leakage.allowed_hosts[0]"),
        ('[[tenants]]\nname = "Acme Corp"', "$.tenants[0].name"),
        ('[[tenants]]\nname = "a"\n[[tenants]]\nname = "a"', "tenants"),
        ('[[protected]]\nname = "a"\nkind = "secret"', "protected[0]"),
        ('[[protected]]\nname = "a"\nkind = "secret"\nvalue_env = "NOT_SET_ANYWHERE"', "protected[0].value_env"),
        ('[[protected]]\nname = "a"\nkind = "secret"\nfile = "none.txt"', "protected[0].file"),
        (
            '[[protected]]\nname = "a"\nkind = "secret"\nfile = "a.txt"\ntenant = "Acme Corp"',
            "$.protected[0].tenant",
        ),
        ('[extraction]\nexempt = ["acme", "sf-0a1b-x"]', "$.extraction.exempt[1]"),
        ('[[providers]]\nname = "a"\nkind = "openai"\nmodels = ["x"]', "providers[0].base_url"),
        ('[[providers]]\nname = "a"\nkind = "sandbox"\nmodels = []', "$.providers[0].models"),
        (
            '[[providers]]\nname = "a"\nkind = "anthropic"\nmodels = ["x"]\nbase_url = "https://x/v1/"',
            "providers[0].base_url",
        ),
        (
            '[[providers]]\nname = "a"\nkind = "openai"\nmodels = ["x"]\n'
            'base_url = "http://x"\napi_key_env = "NOT_SET_1"',
            "providers[0].api_key_env",
        ),
        ('[[providers]]\nname = "a"\nkind = "sandbox"', "providers[0].models"),
        ('[[routes]]\nmodel = "x"\ntargets = [{ provider = "nobody" }]', "routes[0].targets[0].provider"),
        ('[[routes]]\nmodel = "x"\ntargets = []', "$.routes[0].targets"),
        (
            '[[routes]]\nmodel = "x"\ntargets = [{ provider = "sandbox", model = "a b" }]',
            "$.routes[0].targets[0].model",
        ),
        ('[[routes]]\nmodel = "x"\ntargets = [{ provider = "sandbox", weight = 0 }]', "$.routes[0].targets[0].weight"),
        (
            '[[providers]]\nname = "a"\nkind = "azure"\nmodels = ["x"]\nbase_url = "https://x/openai/v1"',
            "providers[0].base_url",
        ),
        (
            '[[providers]]\nname = "a"\nkind = "azure"\nmodels = ["x"]\nbase_url = "https://x"\napi_version = "2024"',
            "$.providers[0].api_version",
        ),
        (
            '[[providers]]\nname = "a"\nkind = "openai"\nmodels = ["x"]\nbase_url = "https://x/v1"\n'
            'api_version = "2024-10-21"',
            "providers[0].api_version",
        ),
        (
            '[[providers]]\nname = "a"\nkind = "sandbox"\nmodels = ["x"]\ntranslate_chat = true',
            "providers[0].translate_chat",
        ),
        (
            '[[providers]]\nname = "a"\nkind = "anthropic"\nmodels = ["x"]\nbase_url = "https://x"\n'
            "translate_messages = true",
            "providers[0].translate_messages",
        ),
        ("[server", "firewall.toml"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(tmp_path, monkeypatch, text, key):
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    assert key in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load(tmp_path / "none.toml")


def test_the_folder_cannot_be_set_from_the_file(tmp_path):
    with pytest.raises(ConfigError, match="folder"):
        load(written(tmp_path, 'folder = "/etc"'))


def test_a_provider_that_a_route_names_needs_no_globs_of_its_own(tmp_path):
    text = '[[providers]]\nname = "a"\nkind = "sandbox"\n[[routes]]\nmodel = "x"\ntargets = [{ provider = "a" }]'
    assert load(written(tmp_path, text)).providers[0].models == ()
