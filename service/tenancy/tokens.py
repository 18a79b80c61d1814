"""Tokens of a text by tiktoken, offline: its ranks come out of the `bpe-openai` package, never over the network.

tiktoken fetches its rank files from a storage account unless they are cached. `bpe-openai` (MIT) carries the same
files gzipped; they are read as data (its own tokenizer is not loaded) and checked against the hashes that tiktoken
expects, so that a count here is tiktoken's own.
"""

from __future__ import annotations

import asyncio
import binascii
import gzip
import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import msgspec
import tiktoken
from tiktoken.model import encoding_name_for_model

from service.errors import ConfigError, DeadlineExceeded, Overloaded

RUN_CHARS = 2_000
"""Longest run without a space (or of spaces) that is counted as one text: merging costs more than linear time in it."""

DEFAULT_ENCODING = "o200k_base"
"""For models that tiktoken does not know: of OpenAI's newer models, and close to what others count."""

# Encodings that tiktoken names and this package has no ranks for, by what counts nearest to them.
_NEAREST = {"o200k_harmony": "o200k_base", "p50k_base": "cl100k_base", "p50k_edit": "cl100k_base"}
_NEAREST |= {"r50k_base": "cl100k_base", "gpt2": "cl100k_base"}


class _Recipe(msgspec.Struct, frozen=True):
    """What tiktoken_ext.openai_public states of an encoding beside its ranks."""

    sha256: str
    pattern: str


_RECIPES = {
    "cl100k_base": _Recipe(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"""
        r"""\s*[\r\n]|\s+(?!\S)|\s""",
    ),
    "o200k_base": _Recipe(
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
        r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    ),
}

# Encodings whose ordinary tokens are those of another.
_SAME_TOKENS = {"o200k_harmony": "o200k_base"}

BLOCK_CHARS = 65_536

INLINE_CHARS = 2_000
"""Fewer are counted at once: a tenth of a millisecond, as long as a thread takes to be woken."""

LONG_CHARS = 131_072
"""More, together, have threads of their own: what is ordinary (a tenth of a second at most) never waits for them."""

MAX_WAITING_CHARS = 33_554_432
"""What may wait for the threads of either kind or be counted by them: some eight of the largest bodies."""

# Anchored at the start of a run, so that the search stays linear in the text.
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{RUN_CHARS + 1},}}|(?<!\s)\s{{{RUN_CHARS + 1},}}")


@lru_cache(256)
def encoding_name(model: str) -> str:
    """The encoding to count with for a model's name, `provider/model` included."""
    try:
        name: str = encoding_name_for_model(model.rpartition("/")[2])
    except KeyError:
        return DEFAULT_ENCODING
    return _NEAREST.get(name, name)


def load_encoding(name: str) -> tiktoken.Encoding:
    """Build one of the two encodings (some 0.3 s). Raises ConfigError where the ranks are missing or altered."""
    recipe = _RECIPES[name]
    spec = find_spec("bpe_openai")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0] if folders else "bpe_openai") / "data" / f"{name}.tiktoken.gz"
    try:
        ranks = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: the ranks of {name} cannot be read; install bpe-openai again") from error
    if hashlib.sha256(ranks).hexdigest() != recipe.sha256:
        raise ConfigError(f"{path}: the ranks of {name} are not tiktoken's; install bpe-openai again")
    pairs = (line.split() for line in ranks.splitlines() if line)
    merges = {binascii.a2b_base64(token): int(rank) for token, rank in pairs}
    # Text of callers is ordinary text: `<|endoftext|>` in it is counted as the characters that it is.
    return tiktoken.Encoding(name, pat_str=recipe.pattern, mergeable_ranks=merges, special_tokens={})


def pieces(text: str) -> Iterator[str]:
    """The text in blocks, and runs of more than RUN_CHARS cut; at most a token or two is counted too many at each cut.

    In blocks because a search keeps the interpreter to itself until it ends.
    """
    for block in _blocks(text):
        done = 0
        for run in _LONG_RUN.finditer(block):
            if run.start() > done:
                yield block[done : run.start()]
            for start in range(run.start(), run.end(), RUN_CHARS):
                yield block[start : min(start + RUN_CHARS, run.end())]
            done = run.end()
        if done < len(block):
            yield block[done:]


def _blocks(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + BLOCK_CHARS
        if end < len(text):
            # Before a space, where tokens end of themselves.
            space = text.rfind(" ", start + 1, end)
            end = space if space > 0 else end
        yield text[start:end]
        start = end


class _Lane:
    """Threads, and how many characters wait for them or are being counted."""

    def __init__(self, name: str, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.waiting_chars = 0


class TokenCounter:
    """Counts tokens, those of longer texts in its own threads, away from the event loop.

    Encodings are built once, on first use or `warm`. Of both kinds of threads there are so many.
    """

    def __init__(self, threads: int = 2) -> None:
        self._ordinary = _Lane("tokens", threads)
        self._long = _Lane("tokens-long", threads)
        self._encodings: dict[str, tiktoken.Encoding] = {}
        self._building = threading.Lock()

    async def warm(self) -> None:
        """Build every encoding, so that no request waits for it. Raises ConfigError naming the file."""
        loop = asyncio.get_running_loop()
        for name in _RECIPES:
            await loop.run_in_executor(self._ordinary.pool, self._encoding, name)

    async def count(self, model: str, texts: Sequence[str], *, deadline_s: float | None = None) -> int:
        """Tokens of all the texts in the encoding of the model, each text for itself.

        With a deadline it raises Overloaded at once where too much waits already, and DeadlineExceeded; without one, as
        what was said has to be settled, it waits as long as it takes.
        """
        chars = sum(map(len, texts))
        if not chars:
            return 0
        encoding = self._encodings.get(encoding_name(model))
        if encoding is not None and chars <= INLINE_CHARS:
            return _count(encoding, texts)
        lane = self._long if chars > LONG_CHARS else self._ordinary
        if deadline_s is not None and lane.waiting_chars and lane.waiting_chars + chars > MAX_WAITING_CHARS:
            raise Overloaded("Too much text waits to have its tokens counted.")
        given_up = threading.Event()
        lane.waiting_chars += chars
        try:
            async with asyncio.timeout(deadline_s):
                wanted = _unless(given_up, tuple(texts))
                return await asyncio.get_running_loop().run_in_executor(lane.pool, self.count_now, model, wanted)
        except TimeoutError:
            raise DeadlineExceeded("The tokens of the prompt were not counted in time.") from None
        finally:
            given_up.set()
            lane.waiting_chars -= chars

    def count_now(self, model: str, texts: Iterable[str]) -> int:
        """As `count`, in this thread, however long it takes."""
        return _count(self._encoding(encoding_name(model)), texts)

    def decode(self, model: str, ids: Sequence[int]) -> tuple[str, bool] | None:
        """The text of token ids (none negative), and whether it is all of them: special and unknown ones are left out.

        None where tiktoken does not know the model's encoding, or it is not one of those built here.
        """
        try:
            name: str = encoding_name_for_model(model.rpartition("/")[2])
        except KeyError:
            return None
        name = _SAME_TOKENS.get(name, name)
        if name not in _RECIPES:
            return None
        encoding = self._encoding(name)
        known = [number for number in ids if number <= encoding.max_token_value]
        return encoding.decode_bytes(known).decode("utf-8", "replace"), len(known) == len(ids)

    def close(self) -> None:
        """Let the threads go."""
        for lane in (self._ordinary, self._long):
            lane.pool.shutdown(wait=False, cancel_futures=True)

    def _encoding(self, name: str) -> tiktoken.Encoding:
        with self._building:
            if name not in self._encodings:
                self._encodings[name] = load_encoding(name)
            return self._encodings[name]


def _unless(given_up: threading.Event, texts: Sequence[str]) -> Iterator[str]:
    """The texts in blocks, until nobody waits for their count any more."""
    for text in texts:
        for block in _blocks(text):
            if given_up.is_set():
                return
            yield block


def _count(encoding: tiktoken.Encoding, texts: Iterable[str]) -> int:
    return sum(len(encoding.encode_ordinary(piece)) for text in texts for piece in pieces(text))
