import re
import tomllib
from fnmatch import fnmatchcase

import pytest

from service.settings import Model, Settings
from service.tenancy.model_table import SHIPPED, UNKNOWN, ModelTable, load_models

ENTRIES = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))["models"]
TABLE = load_models(Settings())


def test_every_shipped_entry_says_of_which_day_it_is():
    assert len(ENTRIES) > 40
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", entry["as_of"]) for entry in ENTRIES)


def test_no_shipped_entry_is_hidden_by_one_before_it():
    names = [entry["name"] for entry in ENTRIES]
    # A name that the glob itself matches, as any that it covers would be.
    hidden = [
        (name, before)
        for place, name in enumerate(names)
        for before in names[:place]
        if fnmatchcase(name.replace("*", ""), before) and fnmatchcase(name.replace("*", "-x"), before)
    ]
    assert hidden == []


def test_prices_come_in_pairs_and_output_is_never_cheaper_than_cached_input():
    for entry in ENTRIES:
        assert ("input_usd_per_mtok" in entry) == ("output_usd_per_mtok" in entry), entry["name"]
        assert entry.get("cached_input_usd_per_mtok", 0) <= entry.get("input_usd_per_mtok", 0), entry["name"]


@pytest.mark.parametrize(
    ("model", "like"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("openai/gpt-4o-mini", "gpt-4o-mini"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("o3-2025-04-16", "o3"),
    ],
)
def test_dated_and_prefixed_names_are_found(model, like):
    assert TABLE.find(model) == TABLE.find(like) != UNKNOWN


def test_what_is_billed_by_other_measures_has_no_price():
    assert not TABLE.find("gpt-4o-audio-preview").priced
    assert not TABLE.find("gpt-4o-mini-realtime-preview").priced
    assert not TABLE.find("nobody-knows").priced


def test_the_sandbox_costs_nothing():
    assert TABLE.find("sandbox-echo").priced
    assert TABLE.find("sandbox-echo").cost_nanousd(10**6, 10**6) == 0


def test_an_operators_entry_stands_before_the_shipped_ones():
    own = load_models(Settings(models=(Model(name="gpt-4o*", context_tokens=7),)))
    assert own.find("gpt-4o").context_tokens == 7
    assert not own.find("gpt-4o").priced
    assert own.find("o3") == TABLE.find("o3")


@pytest.mark.parametrize(
    ("price", "tokens", "nanousd"),
    [(0.15, 1, 150), (0.0125, 1, 13), (0.0125, 2, 25), (0.1, 3, 300), (75.0, 10**6, 75_000_000_000)],
)
def test_a_cost_is_exact_and_rounded_up_only_in_the_end(price, tokens, nanousd):
    facts = ModelTable([Model(name="m", input_usd_per_mtok=price, output_usd_per_mtok=0)]).find("m")
    assert facts.cost_nanousd(tokens, 0) == nanousd


def test_cached_tokens_are_those_of_the_prompt_at_most():
    facts = ModelTable(
        [Model(name="m", input_usd_per_mtok=1, output_usd_per_mtok=0, cached_input_usd_per_mtok=0)]
    ).find("m")
    assert facts.cost_nanousd(10, 0, 4) == 6_000
    assert facts.cost_nanousd(10, 0, 40) == 0


@pytest.mark.parametrize(
    ("glob", "possible"),
    [
        ("*", True),
        ("a-model", True),
        ("a-*", True),
        ("*-model", True),
        ("a-model-?", True),
        ("a-model-x", False),
        ("[ab]-model", True),
        ("vendor/a-model", True),
        ("a", False),
        ("", False),
        ("b*", False),
    ],
)
def test_a_glob_may_have_a_price_where_some_name_matches_both(glob, possible):
    table = ModelTable(
        [Model(name="a-mod*l", input_usd_per_mtok=1, output_usd_per_mtok=1), Model(name="b*", context_tokens=5)]
    )
    assert table.may_price(glob) == possible
