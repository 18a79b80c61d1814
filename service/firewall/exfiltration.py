"""Addresses in a reply that carry the conversation away, and characters that nobody sees, as the text comes.

A Markdown image of an unknown host is fetched without a click, so whatever stands in its address has left
(J. Rehberger, "ChatGPT data exfiltration via images", 2023; "EchoLeak", CVE-2025-32711). What is looked at is the
address: does it hold words of the conversation, in whatever coding, or a payload that reads as data? Invisible
characters carry text past the reader's eye ("ASCII smuggling": tags, U+E0000 block; variation selectors).

Not seen: numbers of fewer than eight digits and words that are no three in a row, written plainly; an address that a
tool's result or a document already had carries none of theirs; and a host on the list that redirects to another.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Literal
from urllib.parse import unquote_plus

import msgspec

from service.firewall.address_starts import LOOK, MAIL, MARKS, OPEN, START, plain_address
from service.firewall.credential_checks import entropy, is_uuid
from service.firewall.ngrams import grams, words

Kind = Literal["image", "link", "address", "hidden"]

# How far a kind goes without anybody's doing: an image is fetched at once, a link waits for a click.
_WEIGHT: dict[Kind, float] = {"image": 1.0, "link": 0.75, "address": 0.7, "hidden": 1.0}
ACTS = 0.5
"""From this score on the configured action follows; from REPORTED on the record has it."""
REPORTED = 0.4
_CODED, _READABLE, _SYSTEM, _LONG, _HIDDEN = 1.0, 0.9, 0.9, 0.9, 0.9
_USER, _USER_PATH, _PROSE, _RANDOM = 0.6, 0.4, 0.4, 0.45
# Longer addresses break in browsers and proxies; nothing ordinary has one.
_MAX_URL = 2_000
_CONTEXT = 1_024
_PROSE_WORDS = 6

_REST = re.compile(r"""(?:\[[0-9a-f:.]+\])?[^\s<>"'`\[\]\\]*""", re.IGNORECASE)
_MAIL_HOST = re.compile(r"@([a-z0-9.-]+)", re.IGNORECASE)
_PARENS = re.compile("[()]")
_AUTHORITY = re.compile(r"(?:[a-z]+:)?[/\\]*([^/?#\\]*)(.*)", re.IGNORECASE | re.DOTALL)
_FETCHED = re.compile(
    r"<(?:img|image|iframe|frame|embed|object|script|link|video|audio|source|track|input|body|table|td|style|svg|use)\b"
    r"|url\(\s*\Z",
    re.IGNORECASE,
)
_INVISIBLE = re.compile(
    "[\U000e0000-\U000e007f\U000e0100-\U000e01ef\ufe00-\ufe0f\u200b-\u200d\u2060-\u2064\ufeff\u00ad]+"
)
_TAGS = re.compile("[\U000e0000-\U000e007f]")
_SELECTORS = re.compile("[\U000e0100-\U000e01ef\ufe00-\ufe0f]")
_FLAG = "\U0001f3f4"
_MAX_FLAG = 7
# Numbers of a card, an order, an account, in groups or not; a day, with or without its time, is none.
_NUMBER = re.compile(r"\d(?:[ -]?\d){7,31}(?!\d)")
_SENT_NUMBER = re.compile(r"\d(?:[ ._-]?\d){7,}")
_LEAST_DIGITS = 8
_DAY = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d\d){0,3}")
_NOT_DIGIT = re.compile(r"\D")
_TOKEN = re.compile("[0-9A-Za-z+/_-]{16,}={0,6}")
_HEX = re.compile("(?:[0-9a-f]{2})+", re.IGNORECASE)


class Seen(msgspec.Struct, frozen=True):
    """An address or a run of invisible characters at [start, end). `text` is the address as far as it is judged."""

    kind: Kind
    start: int
    end: int
    text: str


class _Words(msgspec.Struct, frozen=True, eq=False):
    """Hashes of the word 3-grams of the system's, of the user's and of other texts, long numbers of all of them, and
    how many digits these have.
    """

    system: frozenset[int]
    user: frozenset[int]
    results: frozenset[int]
    numbers: frozenset[str]
    sizes: tuple[int, ...]


class Conversation:
    """The words that must not leave in an address; worked out at the first address of an unknown host. `results` are
    texts of tools and documents.
    """

    def __init__(self, system_texts: Sequence[str], user_texts: Sequence[str], results: Sequence[str] = ()) -> None:
        self._system = system_texts
        self._user = user_texts
        self._results = results

    @property
    def size(self) -> int:
        """Characters."""
        return sum(map(len, (*self._system, *self._user, *self._results)))

    @cached_property
    def grams(self) -> _Words:
        """What of it is looked for."""
        numbers = frozenset(_numbers((*self._system, *self._user, *self._results)))
        sizes = tuple(sorted(set(map(len, numbers))))
        return _Words(_grams(self._system), _grams(self._user), _grams(self._results), numbers, sizes)

    def gave(self, address: str) -> bool:
        """Whether a tool's result or a document has this address: then it carries none of their words."""
        plain = address.rstrip(".,;:!?")
        # JSON in a string may have its slashes escaped.
        return any(plain in text or plain in text.replace("\\/", "/") for text in self._results)


def _grams(texts: Sequence[str]) -> frozenset[int]:
    return frozenset(gram for text in texts for gram in _trigrams(text))


def _numbers(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        for found in _NUMBER.finditer(text):
            for number in (_NOT_DIGIT.sub("", found[0]), *_NOT_DIGIT.split(found[0])):
                if len(number) >= _LEAST_DIGITS and len(set(number)) > 2 and not _DAY.fullmatch(number):
                    yield number


def _trigrams(text: str) -> list[int]:
    spelled = [token.word for token in words(text)]
    return [gram for at, gram in enumerate(grams(spelled, 3)) if sum(map(len, spelled[at : at + 3])) >= 9]


class Hosts:
    """The hosts that addresses may name: `example.com` itself, `*.example.com` for all below it."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._exact = frozenset(host.lower() for host in allowed if not host.startswith("*."))
        self._below = tuple(host[1:].lower() for host in allowed if host.startswith("*."))

    def allow(self, host: str) -> bool:
        """Whether the list holds the host."""
        return host in self._exact or host.endswith(self._below)


def host_of(url: str) -> str:
    """The host that a browser would ask: behind the last `@`, without port and final dot, in small letters."""
    found = _AUTHORITY.match(url)
    authority = found[1] if found is not None else ""
    return authority.rpartition("@")[2].partition(":")[0].rstrip(".").lower()


def weigh(seen: Seen, conversation: Conversation) -> tuple[float, str]:
    """(score in [0, 1], what speaks for it) of an address whose host is not on the list; 0.0 where nothing does."""
    if seen.kind == "hidden":
        return _HIDDEN, "invisible characters"
    found = _AUTHORITY.match(seen.text)
    if found is None:
        return 0.0, ""
    labels = found[1].rpartition("@")[2].partition(":")[0].split(".")
    path, _, query = found[2].replace("#", "?").partition("?")
    below = ".".join(labels[:-2]) + " " + found[1].rpartition("@")[0]
    said = conversation.grams
    if conversation.gave(seen.text):
        said = msgspec.structs.replace(said, results=frozenset(), numbers=frozenset(), sizes=())
    best = max(_evidence(path, below, query, said), default=(0.0, ""))
    if seen.end - seen.start >= _MAX_URL:
        best = max(best, (_LONG, "very long address"))
    return best[0] * _WEIGHT[seen.kind], f"{seen.kind}: {best[1]}"


def _evidence(path: str, below: str, query: str, said: _Words) -> Iterator[tuple[float, str]]:
    for part in (path, below, query):
        plain = unquote_plus(unquote_plus(part))
        told = set(_trigrams(plain)) | set(_trigrams(codecs.encode(plain, "rot13"))) | set(_trigrams(plain[::-1]))
        if told & said.system:
            yield _SYSTEM, "words of the system text"
        plainly = _USER_PATH if part is path else _USER
        if told & said.user:
            yield plainly, "words of the user"
        if told & said.results:
            yield plainly, "words of a tool or a document"
        if part is query and any(len(words(value)) >= _PROSE_WORDS for value in re.split("[&;]", plain)):
            yield _PROSE, "prose"
        # DNS labels and path segments cut a code into pieces.
        cut = "." if part is below else "/"
        if _tells_number(f"{plain} {plain.replace(cut, '')}", said):
            yield plainly, "a number of the conversation"
        spread = f"{plain} {plain.replace(cut, ' ')} {plain.replace(cut, '')}"
        for token in dict.fromkeys(_TOKEN.findall(spread)):
            for text in _decoded(token):
                coded = set(_trigrams(text))
                if coded & said.system or coded & said.user or coded & said.results or _tells_number(text, said):
                    yield _CODED, "coded words of the conversation"
                elif _reads(text):
                    yield _READABLE, "coded text"
            if part is not path and _random(token):
                yield _RANDOM, "random payload"


def _tells_number(text: str, said: _Words) -> bool:
    """Whether a long number of the conversation stands in the text, by itself or within other digits."""
    runs = [_NOT_DIGIT.sub("", found[0]) for found in _SENT_NUMBER.finditer(text)] if said.sizes else []
    return any(
        run[at : at + size] in said.numbers for run in runs for size in said.sizes for at in range(len(run) - size + 1)
    )


def _decoded(token: str) -> Iterator[str]:
    digits = token.replace("-", "+").replace("_", "/").rstrip("=")
    coders: list[Callable[[], bytes]] = [lambda: base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)]
    if _HEX.fullmatch(token):
        coders.append(lambda: binascii.a2b_hex(token))
    coders.append(lambda: base64.b32decode(digits.upper() + "=" * (-len(digits) % 8)))
    for decode in coders:
        try:
            yield decode().decode()
        except (binascii.Error, ValueError):
            continue


def _reads(text: str) -> bool:
    plain = sum(char.isalnum() or char in " .,:;'\"!?@-_\n{}" for char in text)
    return len(text) >= 10 and text.replace("\n", " ").isprintable() and plain >= 0.9 * len(text)


def _random(token: str) -> bool:
    least = 3.3 if _HEX.fullmatch(token) else 4.0
    return len(token) >= 32 and not is_uuid(token) and entropy(token) >= least and any(map(str.isdigit, token))


class ExfiltrationScanner:
    """Follows one growing text. `held` is the offset of the earliest character that may be part of what is looked for.

    An address of a host on the list is held until its host is known.
    """

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._text = ""
        self._base = 0
        self._from = 0  # before it every address is judged
        self._seen = 0  # and every invisible character
        self._growing = False
        self.held: int | None = None

    def feed(self, text: str, offset: int) -> list[Seen]:
        """What ended in `text`, which begins at `offset`; offsets are those of the whole text."""
        if not self._text:
            self._base = self._from = self._seen = offset
        self._text += text
        return self._read(ended=False)

    def finish(self) -> list[Seen]:
        """The text has ended."""
        return self._read(ended=True)

    def _read(self, *, ended: bool) -> list[Seen]:
        text, base = self._text, self._base
        at = self._from - base
        found: list[Seen] = []
        held: list[int] = []
        if self._growing:
            end, whole = _end(text, at)
            found.append(Seen("address", self._from, base + end, ""))
            self._growing = not whole and not ended
            at = end
        if not text.isascii():
            self._read_hidden(text, ended, found, held)
        self._seen = min(held, default=base + len(text))
        marked = any(text.find(mark, max(at - 1, 0)) >= 0 for mark in MARKS)
        while not self._growing and marked and (start := START.search(text, at)) is not None:
            first, at = start.start("bare" if start["bare"] else 0), start.end()
            end, whole = _end(text, at)
            whole = whole or ended
            url = plain_address(text, first, at, end)
            if self._allows(url, whole=whole):
                at = end
                continue
            if not whole and end - first < _MAX_URL:
                at = start.start()  # what stands before a bare one is what it is known by
                held.append(base + first)
                break
            end = min(end, first + _MAX_URL)
            self._growing = end - first == _MAX_URL and not ended
            if start["slashes"] or ("?" in url if start["mail"] else "." in host_of(url)):
                found.append(
                    Seen(_kind(text, first, url), base + first, base + end, plain_address(text, first, at, end))
                )
            at = end
            if self._growing:
                at, whole = _end(text, end)
                found.append(Seen("address", base + first, base + at, ""))
                self._growing = not whole
        else:
            look = max(0, len(text) - LOOK)
            at = max(at, look) if not self._growing else at
            if not ended and not self._growing and (open_ := OPEN.search(text, look)) is not None:
                at = min(at, open_.start())
                held.append(base + open_.start())
        self._from = base + at
        self.held = min(held, default=None)
        if (keep := min(self._from, self._seen) - _CONTEXT) - base > _CONTEXT:
            self._text, self._base = text[keep - base :], keep
        return found

    def _allows(self, url: str, *, whole: bool) -> bool:
        """Whether all hosts that the address names are on the list, and surely so."""
        if url.startswith(MAIL):
            hosts = _MAIL_HOST.findall(unquote_plus(url)) if whole else []
            return bool(hosts) and all(self._hosts.allow(host.rstrip(".").lower()) for host in hosts)
        known = whole or _AUTHORITY.match(url)[2] != ""  # type: ignore[index]
        return known and self._hosts.allow(host_of(url))

    def _read_hidden(self, text: str, ended: bool, found: list[Seen], held: list[int]) -> None:
        for run in _INVISIBLE.finditer(text, self._seen - self._base):
            start, end = run.span()
            if end == len(text) and not ended and end - start < _MAX_URL:
                held.append(self._base + start)
            elif _smuggles(run.group(), text[start - 1 : start]):
                found.append(Seen("hidden", self._base + start, self._base + end, ""))


def _smuggles(run: str, before: str) -> bool:
    tags = len(_TAGS.findall(run))
    if tags and before == _FLAG and tags <= _MAX_FLAG:
        tags = 0
    return tags >= 2 or len(_SELECTORS.findall(run)) >= 3 or len(run) >= 8


def _end(text: str, at: int) -> tuple[int, bool]:
    """Where the address ends, and whether it surely does; a parenthesis that it did not open ends it."""
    rest = _REST.match(text, at)
    end = rest.end() if rest is not None else at
    depth = 0
    for paren in _PARENS.finditer(text, at, end):
        depth += 1 if paren.group() == "(" else -1
        if depth < 0:
            return paren.start(), True
    return end, end < len(text)


def _kind(text: str, start: int, url: str) -> Kind:
    """How the address stands in its text; where that is in doubt, the kind that weighs more."""
    if url.startswith(MAIL):
        return "link"  # nobody fetches it
    before = text[max(0, start - _CONTEXT) : start]
    bare = before.rstrip(" \t\r\n<")
    if bare.endswith("]("):
        opened = bare.rfind("[", 0, -2)
        return "image" if opened > 0 and bare[opened - 1] == "!" else "link"
    if bare.endswith("]:"):
        return "image"
    tag = before.rfind("<")
    if tag > before.rfind(">") or bare.lower().endswith("url("):
        return "image" if _FETCHED.search(before, max(tag, 0)) else "link"
    return "address"
