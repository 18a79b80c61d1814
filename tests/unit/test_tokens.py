import asyncio
import gzip
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiktoken
import tiktoken.load

from service.errors import ConfigError, DeadlineExceeded, Overloaded
from service.settings import Limits, Settings
from service.tenancy import tokens
from service.tenancy.caller import KeyCaller
from service.tenancy.memory_counters import MemoryCounters
from service.tenancy.quota import Quota
from service.tenancy.tenants import Tenants
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


class Gate:
    """Stands in for the counting: waits until it is opened."""

    def __init__(self):
        self.open = threading.Event()
        self.counted = []

    def __call__(self, encoding, texts):
        self.open.wait(60)
        blocks = list(texts)
        self.counted.append(sum(map(len, blocks)))
        return len(blocks)


@pytest.fixture
async def gate(monkeypatch):
    made = Gate()
    monkeypatch.setattr(tokens, "_count", made)
    yield made
    made.open.set()


async def test_where_too_much_waits_to_be_counted_the_next_is_refused_at_once(gate, monkeypatch):
    """The bound is of characters; who has to settle is not refused, and afterwards there is room again."""
    monkeypatch.setattr(tokens, "MAX_WAITING_CHARS", 10_000)
    counter = TokenCounter(threads=1)
    waiting = [asyncio.ensure_future(counter.count("m", ["x" * 4_000], deadline_s=60)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await counter.count("m", ["x" * 4_000], deadline_s=60)
    settling = asyncio.ensure_future(counter.count("m", ["x" * 4_000]))
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(*waiting, settling) == [1, 1, 1]
    assert await counter.count("m", ["x" * 20_000], deadline_s=60) == 1
    counter.close()


async def test_a_count_that_takes_too_long_is_given_up_and_its_thread_stops(gate):
    """503 for the one that waited; the thread counts none of what nobody waits for any more."""
    counter = TokenCounter(threads=1)
    with pytest.raises(DeadlineExceeded):
        await counter.count("m", ["x" * 4_000], deadline_s=0.001)
    gate.open.set()
    assert await counter.count("m", ["y" * 4_000], deadline_s=60) == 1
    counter.close()
    assert 4_000 in gate.counted
    assert gate.counted.count(4_000) == 1


async def test_long_texts_do_not_hold_ordinary_ones(monkeypatch):
    """While every thread for long texts is busy, another tenant's ordinary prompt is counted."""
    gate = Gate()
    monkeypatch.setattr(tokens, "_count", lambda encoding, texts: gate(encoding, texts) if is_long() else 7)

    def is_long():
        return threading.current_thread().name.startswith("tokens-long")

    counter = TokenCounter(threads=1)
    long = [asyncio.ensure_future(counter.count("m", ["x" * 400_000], deadline_s=60)) for _ in range(3)]
    await asyncio.sleep(0)
    assert await counter.count("m", ["y" * 5_000], deadline_s=60) == 7
    assert not any(each.done() for each in long)
    gate.open.set()
    await asyncio.gather(*long)
    counter.close()


async def test_nothing_is_reserved_for_a_prompt_that_is_not_counted():
    """The count comes before the reservation: a call that is told 503 holds nothing, its tenant's next is served."""

    class Busy:
        busy = True

        async def count(self, model, texts, *, deadline_s=None):
            assert deadline_s is not None
            if self.busy:
                raise Overloaded("busy")
            return 1

    counters, busy = MemoryCounters(), Busy()
    quota = Quota(counters)
    tenants = Tenants(Settings(limits=Limits(concurrency=1)), busy, quota)
    with pytest.raises(Overloaded):
        await tenants.reserve(KeyCaller("default"), "m", ["text"], 5)
    assert quota.in_flight() == 0
    busy.busy = False
    assert (await tenants.reserve(KeyCaller("default"), "m", ["text"], 5)).output_tokens == 5
