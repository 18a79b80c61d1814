import asyncio
import gzip
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiktoken
import tiktoken.load

from service.errors import ConfigError
from service.tenancy import tokens
from service.tenancy.tokens import INLINE_CHARS, RUN_CHARS, TokenCounter, encoding_name, load_encoding, pieces

CACHE_NAMES = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  def f(x):\n\treturn {'a': 1234567, \"b\": x}\r\n\r\n",
    "Größe, 東京都の天気, Привет, مرحبا 👩‍👩‍👧‍👦 it's they'LL",
    "<|endoftext|> <|im_start|>system",
    "\u200b\ufeff \u00a0\t\t   end   ",
]


@pytest.fixture(scope="module")
def counter():
    made = TokenCounter()
    yield made
    made.close()


@pytest.mark.parametrize("name", sorted(CACHE_NAMES))
def test_an_encoding_gives_the_same_tokens_as_tiktokens_own(name, tmp_path, monkeypatch):
    packed = Path(find_spec("bpe_openai").origin).parent / "data" / f"{name}.tiktoken.gz"
    (tmp_path / CACHE_NAMES[name]).write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.load, "read_file", lambda path: pytest.fail("the network was asked"))
    theirs = tiktoken.get_encoding(name)
    ours = load_encoding(name)
    for text in TEXTS:
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("openai/gpt-3.5-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("gpt-oss-120b", "o200k_base"),
        ("text-davinci-003", "cl100k_base"),
        ("sandbox-echo", "o200k_base"),
        ("", "o200k_base"),
    ],
)
def test_every_model_name_has_an_encoding_that_is_there_offline(model, name):
    assert encoding_name(model) == name


def test_altered_ranks_are_refused_by_file_name(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "o200k_base.tiktoken.gz").write_bytes(gzip.compress(b"IQ== 0\n"))

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(tokens, "find_spec", lambda name: Spec())
    with pytest.raises(ConfigError, match=r"o200k_base\.tiktoken\.gz"):
        load_encoding("o200k_base")


@pytest.mark.parametrize("run", ["a", "A", "漢", "!", " ", "\n", "aA"])
def test_long_runs_are_counted_in_bounded_pieces_that_lose_nothing(run):
    text = "before " + run * 30_000 + " after"
    cut = list(pieces(text))
    assert "".join(cut) == text
    assert max(map(len, cut)) <= RUN_CHARS


def test_text_without_long_runs_is_counted_whole():
    text = "word " * 10_000
    assert list(pieces(text)) == [text]


def test_a_long_run_is_counted_nearly_as_tiktoken_counts_it(counter):
    text = "abcdefghij" * 1_000
    exact = len(load_encoding("o200k_base").encode_ordinary(text))
    assert exact <= counter.count_now("gpt-4o", [text]) <= exact * 1.01 + 1


def test_special_tokens_in_a_callers_text_are_ordinary_text(counter):
    assert counter.count_now("gpt-4o", ["<|endoftext|>"]) > 1


@pytest.mark.parametrize("text", ["text", "long text " * 1_000])
async def test_nothing_that_takes_long_happens_on_the_event_loop(counter, monkeypatch, text):
    await counter.warm()
    seen = []
    monkeypatch.setattr(tokens, "_count", lambda encoding, texts: seen.append(threading.current_thread()) or 1)
    assert await counter.count("gpt-4o", [text]) == 1
    assert (seen[0] is threading.main_thread()) == (len(text) <= INLINE_CHARS)


async def test_many_letters_leave_the_event_loop_free(counter):
    await counter.warm()
    counting = asyncio.ensure_future(counter.count("gpt-4o", ["a" * 400_000]))
    turns = 0
    while not counting.done():
        await asyncio.sleep(0)
        turns += 1
    assert await counting == 50_000
    assert turns > 10
