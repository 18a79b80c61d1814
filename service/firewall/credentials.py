"""Credentials that nobody registered, by their form, in a text that comes in pieces.

One automaton over the prefixes of the formats and the words that announce a value (`credential_formats`) says where to
look; what stands there is read when it has ended. Only what may be the credential itself is held, not the word before
it: `password = ` leaves at once. Whether a place is a match depends on the text alone, never on how it was cut.

Not found: passwords of one plain word or of several, credentials in a disguise (those of `patterns` are for registered
secrets, which are known), and 16-digit card numbers, which are personal data and not keys.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from functools import partial

import msgspec
from ahocorasick_rs import AhoCorasick

from service.firewall import credential_checks as checks
from service.firewall.credential_formats import FORMATS, PASSWORDS, SECRETS, TOKENS, WEBHOOKS, Format

# A token is judged by so many characters; what goes on behind them belongs to it.
_CAP = 512
_CONTEXT = 160
_JWT_HEADER = 1_024
_JWT_CAP = 8_192
_PEM_LEAD = 800
_RUN = re.compile("[0-9A-Za-z_.+/=~$:%@-]*")
_MORE = re.compile("[0-9A-Za-z_+/=-]*")
_MORE_JWT = re.compile(r"[0-9A-Za-z_.-]*")
_ALNUM = re.compile("[0-9A-Za-z]")

Growth = Callable[[str, int, bool], tuple[int, bool]]
"""(text, from, ended) → how far the match goes on in the text, and whether it may go on still."""


class Sight(msgspec.Struct, frozen=True):
    """A credential at [start, end). `score`: 1.0 where a checksum or structure proves it, else how sure its form is."""

    name: str
    start: int
    end: int
    score: float
    grows: Growth | None = None


class _Wait(msgspec.Struct, frozen=True):
    """More text is needed. `hold`: from where on none may leave; None where the value has not begun."""

    hold: int | None = None


Read = Sight | _Wait | None
Reader = Callable[[str, int, bool], Read]
"""(text, place of the anchor, whether the text has ended) → what stands there."""


# -- tokens with a prefix ----------------------------------------------------------------------------------------------


def _read_format(form: Format, body: re.Pattern[str], prefix: str, text: str, at: int, ended: bool) -> Read:
    if not text.startswith(prefix, at):
        return None
    run = _RUN.match(text, at, at + _CAP)
    end = run.end() if run is not None else at
    if end == len(text) and end - at < _CAP and not ended:
        return _Wait(at)
    found = body.match(text, at + len(prefix), end)
    if found is None:
        return None
    token = found.string[at : found.end()]
    score = 0.9
    if form.check is not None:
        score = 1.0 if form.check(token) else 0.6
        if form.strict and score < 1.0:
            return None
    if score < 1.0 and not checks.random_looking(found.group(), form.least_bits):
        return None
    grows = partial(_grow, _MORE) if found.end() - at == _CAP else None
    return Sight(form.name, at, found.end(), score, grows)


def _grow(more: re.Pattern[str], text: str, at: int, ended: bool) -> tuple[int, bool]:
    found = more.match(text, at)
    end = found.end() if found is not None else at
    return end, end == len(text) and not ended


def _read_jwt(text: str, at: int, ended: bool) -> Read:
    if not text.startswith("eyJ", at):
        return None
    run = _MORE_JWT.match(text, at)
    end = run.end() if run is not None else at
    open_ = end == len(text) and not ended
    parts = text[at:end].split(".")
    if len(parts) == 1:
        return _Wait(at) if open_ and end - at < _JWT_HEADER else None
    if len(parts[0]) > _JWT_HEADER or not checks.jwt_header(parts[0]):
        return None
    long = len(parts) == 2 and len(parts[1]) > _JWT_CAP
    signed = len(parts) >= 3 and (len(parts[2]) >= 16 or (len(parts) >= 5 and len(parts[3]) >= 16))
    if not long and not signed:
        return _Wait(at) if open_ and end - at < 2 * _JWT_CAP else None
    if checks.documented_jwt(parts[1]):
        return None
    last, _ = _grow_jwt(text, at, ended)
    return Sight("json web token", at, last, 1.0, _grow_jwt if open_ else None)


def _grow_jwt(text: str, at: int, ended: bool) -> tuple[int, bool]:
    end, open_ = _grow(_MORE_JWT, text, at, ended)
    # A full stop behind it ends the sentence.
    return at + len(text[at:end].rstrip(".-")), open_


# -- private keys ------------------------------------------------------------------------------------------------------

_PEM = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_PEM_OPEN = re.compile(r"-{4,5}(?: ?B?(?:(?<=B)E?)?|(?: ?BEGIN[A-Z0-9 ]{0,60})-{0,5})")
_PEM_BODY = re.compile("[0-9A-Za-z+/]{24}")
_PEM_PART = re.compile(r"""[\s"',]+|\\[nrt]|-{4,5} ?END [A-Z0-9 ]{0,60}-{4,5}|=[0-9A-Za-z+/]{4}(?![0-9A-Za-z+/=])""")
_PEM_WORD = re.compile("[0-9A-Za-z+/]+=*")
_PUTTY = re.compile(r"Private-Lines: *\d+\s+")


def _read_pem(text: str, at: int, ended: bool) -> Read:
    head = _PEM.match(text, at)
    if head is None or head.end() == len(text):
        short = len(text) - at < 90 and (head is not None or _PEM_OPEN.fullmatch(text, at) is not None)
        return _Wait(at) if short and not ended else None
    return _read_key_body(text, at, head.end(), ended)


def _read_putty(text: str, at: int, ended: bool) -> Read:
    head = _PUTTY.match(text, at)
    if head is None or head.end() == len(text):
        return _Wait(None) if len(text) - at < 40 and not ended else None
    return _read_key_body(text, head.end(), head.end(), ended)


def _read_key_body(text: str, start: int, at: int, ended: bool) -> Read:
    limit = at + _PEM_LEAD
    stop = text.find("-----", at, limit)
    body = _PEM_BODY.search(text, at, min(limit, len(text)) if stop < 0 else stop)
    if body is None:
        return _Wait(start) if stop < 0 and len(text) < limit and not ended else None
    if checks.made_up(body.group()):
        return None
    return Sight("private key", start, body.end(), 1.0, _KeyGrowth())


class _KeyGrowth:
    """Follows a key's lines to its END; where none comes, to the second word that is too short to be a line."""

    def __init__(self) -> None:
        self._line = True

    def __call__(self, text: str, at: int, ended: bool) -> tuple[int, bool]:
        while at < len(text):
            if self._line:  # within a line that is known to be one
                word = _PEM_WORD.match(text, at)
                at = word.end() if word is not None else at
                self._line = at == len(text)
                if self._line:
                    break
            part = _PEM_PART.match(text, at)
            if part is not None:
                at = part.end()
                if "END" in part.group():
                    return at, False
                continue
            word = _PEM_WORD.match(text, at)
            if word is None:
                dashes = text[at : at + 90]
                return at, bool(not ended and len(dashes) < 90 and (dashes == "\\" or _OPEN_END.fullmatch(dashes)))
            if word.end() - at >= 24:
                self._line = True
                at = word.end()
                self._line = at == len(text)
                continue
            if word.end() == len(text) and not ended:
                return at, True
            # The last line of a key may be short, but what stands behind it is its end.
            behind = text[word.end() : word.end() + 24].lstrip(" \r\n\"'\\nr,")
            if not behind and len(text) - word.end() < 24 and not ended:
                return at, True
            if behind[:1] in ("-", "=") or word.group().endswith("="):
                at = word.end()
                continue
            return at, False
        return at, not ended


_OPEN_END = re.compile(r"-{1,5}(?: ?E?(?:(?<=E)N?)?| ?END [A-Z0-9 ]{0,60}-{0,5}| ?END)|=[0-9A-Za-z+/]{0,4}")


# -- values behind a word ----------------------------------------------------------------------------------------------

_SUFFIX = re.compile(r"(?:s|\d{1,2})?(?![0-9A-Za-z])")
_GAP = re.compile(r"""[\s"'`*_)\]:=>|(\[\\,-]*""")
_TOLD = re.compile("[:=>|(]")
_QUOTED = re.compile(r"""(?:[^\s"'`\\<>]|\\(?!["'`nrt]))*""")
_BARE = re.compile(r"""(?:[^\s"'`\\<>|;&,]|\\(?!["'`nrt]))*""")
_TELLING = frozenset(("is", "was", "are", "to", "be", "bearer", "basic"))
_LINKS = _TELLING | {"the", "of", "as", "for", "your", "new", "current", "set", "this", "my", "text", "type", "token"}
_LINKS |= {"str", "string", "&str", "bytes", "secretstr", "optional[str]"}
_CODE = re.compile(
    r"""[$%{<@&]|(?:os|process|self|this|config|settings|env|request|req|response|data|args|options|user)[.\[(]"""
    r"""|[A-Za-z_]\w*(?:(?:\.|->|::)[A-Za-z_]\w*)*(?:\(.*|\[.*|\{.*)?\Z|[./~]?[\w.-]*(?:/[\w.-]+){2,}\Z|https?:"""
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")
_SIGNS = re.compile(r"[0-9!@#$%^&*+=?~]")
_TURNS = re.compile("(?<=[A-Za-z])[0-9]|(?<=[0-9])[A-Za-z]")


def _read_value(kind: str, word: str, text: str, at: int, ended: bool) -> Read:
    """What stands behind `word`, which announces a value: `password = "…"`, `the key is …`, `--token …`."""
    if not _announces(kind, word, text, at):
        return None
    suffix = _SUFFIX.match(text, at + len(word))
    if suffix is None:
        return None
    pos = suffix.end()
    if pos == len(text) and not ended:
        return _Wait()
    told = word in ("bearer", "basic") or text[max(at - 2, 0) : at] == "--"
    for _ in range(4):
        gap = _GAP.match(text, pos, pos + 24)
        start = gap.end() if gap is not None else pos
        if start == len(text):
            return None if ended or start - pos == 24 else _Wait()
        told = told or _TOLD.search(text, pos, start) is not None
        quoted = start > pos and text[start - 1] in "\"'`"
        run = (_QUOTED if quoted else _BARE).match(text, start, start + _CAP)
        end = run.end() if run is not None else start
        if end == len(text) and end - start < _CAP and not ended:
            return _Wait(start)
        value = text[start:end]
        if (link := value.lower().rstrip(":")) not in _LINKS:
            break
        told = told or link in _TELLING
        word = link if link in ("bearer", "basic") else word
        pos = end
    if not (told or quoted):
        return None
    if not quoted:
        value = value.rstrip(".,:!?)]}*_")
    if not _is_value("basic" if word == "basic" else kind, value, quoted):
        return None
    grows = partial(_grow, _MORE) if len(value) == _CAP else None
    return Sight(f"value behind {word!r}", start, start + len(value), 0.8, grows)


def _announces(kind: str, word: str, text: str, at: int) -> bool:
    if at == 0 or not _ALNUM.match(text[at - 1]):
        return True
    # dbPassword and mypassword do; bypass, and basic in the middle of a word, do not.
    return (text[at].isupper() and text[at - 1].islower()) or (len(word) > 5 and kind != "basic")


def _is_value(kind: str, value: str, quoted: bool) -> bool:
    if kind == "basic":
        return checks.basic_auth(value)
    if len(value) < 8 or checks.made_up(value) or _EMAIL.fullmatch(value):
        return False
    if not quoted and _CODE.match(value) and not _random_word(value):
        return False
    if quoted and (value[0] in "$%{<@" or re.match(r"https?:|[./~]?[\w.-]*(?:/[a-z_.-]+){2,}\Z", value)):
        return False
    if kind == "password":
        if len(value) > 128 or not re.search("[A-Za-z]", value) or not _SIGNS.search(value):
            return False
        return checks.kinds(value) >= 2 and checks.entropy(value) >= 2.5
    if len(value) < 16 or (kind == "token" and checks.is_uuid(value)):
        return False
    return _random_word(value) and checks.entropy(value) >= 3.0


def _random_word(value: str) -> bool:
    """Whether letters and digits alternate as they do in no name: my_secret_v2 turns once."""
    return len(value) >= 8 and len(_TURNS.findall(value)) >= max(2, len(value) // 12)


# -- addresses ---------------------------------------------------------------------------------------------------------

_USER = re.compile(r"""[^\s/:@"'`<>?#\\]{0,256}""")
_PASSWORD = re.compile(r"""[^\s/@"'`<>?#\\]*""")
_HOST = re.compile(r"[0-9A-Za-z\[]")


def _read_address(text: str, at: int, ended: bool) -> Read:
    """The password in `scheme://user:password@host`, or a token in the place of the user."""
    start = at + 3
    user = _USER.match(text, start)
    end = user.end() if user is not None else start
    if end - start == 256:
        return None
    if end == len(text):
        return None if ended else _Wait(start)
    if text[end] == ":":
        start = end + 1
        password = _PASSWORD.match(text, start, start + _CAP)
        end = password.end() if password is not None else start
        if end - start == _CAP:
            return None
        if end == len(text):
            return None if ended else _Wait(start)
    if text[end] != "@" or end == start:
        return None
    if end + 1 == len(text):
        return None if ended else _Wait(start)
    if not _HOST.match(text, end + 1):
        return None
    value = text[start:end]
    if start == at + 3:
        secret = len(value) >= 20 and _random_word(value) and checks.random_looking(value, 3.0)
    else:
        strong = len(value) >= 12 or (len(value) >= 6 and _SIGNS.search(value) is not None)
        secret = strong and value[0] not in "$%{[*" and value != text[at + 3 : start - 1] and not checks.made_up(value)
    return Sight("password in an address", start, end, 0.9) if secret else None


def _read_behind(name: str, anchor: str, body: re.Pattern[str], text: str, at: int, ended: bool) -> Read:
    start = at + len(anchor)
    run = _RUN.match(text, start, start + _CAP)
    end = run.end() if run is not None else start
    if end == len(text) and end - start < _CAP and not ended:
        return _Wait(start)
    found = body.match(text, start, end)
    if found is None or not checks.random_looking(found.group(), 3.0):
        return None
    return Sight(name, start, found.end(), 0.9)


_TELEGRAM = re.compile(r"AA[0-9A-Za-z_-]{33}(?![0-9A-Za-z])")
_BOT_ID = re.compile(r"(?<!\d)\d{8,10}\Z")


def _read_telegram(text: str, at: int, ended: bool) -> Read:
    if not text.startswith(":AA", at) or not _BOT_ID.search(text, max(0, at - 11), at):
        return None
    return _read_behind("telegram bot token", ":", _TELEGRAM, text, at, ended)


_DISCORD = re.compile(r"\.[\w-]{6}\.", re.ASCII)
_DISCORD_ID = re.compile(r"(?<![\w-])[MNO][\w-]{22,28}\Z", re.ASCII)
_DISCORD_END = re.compile(r"[\w-]{27,40}", re.ASCII)


def _read_discord(text: str, at: int, ended: bool) -> Read:
    return _read_behind("discord bot token", "", _DISCORD_END, text, at, ended)


# -- where to look -----------------------------------------------------------------------------------------------------


def _anchors() -> dict[str, list[Reader]]:
    found: dict[str, list[Reader]] = {}

    def add(anchor: str, reader: Reader) -> None:
        found.setdefault(anchor.lower(), []).append(reader)

    for form in FORMATS:
        body = re.compile(form.body)
        for prefix in form.prefixes:
            add(prefix, _bounded(partial(_read_format, form, body, prefix)))
    for kind, words in (("password", PASSWORDS), ("secret", SECRETS), ("token", TOKENS), ("basic", ("basic",))):
        for word in words:
            add(word, partial(_read_value, kind, word))
    for name, anchor, rest in WEBHOOKS:
        add(anchor, partial(_read_behind, name, anchor, re.compile(rest)))
    add("eyJ", _bounded(_read_jwt))
    add("----BEGIN", _read_dashes)
    add("---- BEGIN", _read_dashes)
    add("Private-Lines:", _read_putty)
    add("://", _read_address)
    add(":AA", _read_telegram)
    return found


def _bounded(reader: Reader) -> Reader:
    def read(text: str, at: int, ended: bool) -> Read:
        return reader(text, at, ended) if _begins_word(text, at) else None

    return read


def _read_dashes(text: str, at: int, ended: bool) -> Read:
    return _read_pem(text, at - 1 if text[max(at - 1, 0)] == "-" else at, ended)


def _begins_word(text: str, at: int) -> bool:
    """Whether no letter or digit stands before; the n of an escaped line end is none."""
    return at == 0 or not _ALNUM.match(text[at - 1]) or (at > 1 and text[at - 2] == "\\" and text[at - 1] in "nrt")


_READERS = _anchors()
_KEYS = list(_READERS)
_AUTOMATON = AhoCorasick(_KEYS)
_LONGEST = max(map(len, _KEYS))
# What is held while it may become a prefix; of words that only announce a value nothing is.
_PREFIXES = sorted({prefix for form in FORMATS for prefix in form.prefixes} | {"eyJ"})
_PREFIX_CHARS = max(map(len, _PREFIXES)) - 1
_WORD_START = re.compile(r"(?<![0-9A-Za-z])[0-9A-Za-z]|(?<=\\[nrt])[0-9A-Za-z]")
_DASHES_OPEN = re.compile("-{1,5} ?(?:B(?:E(?:G(?:IN?)?)?)?)?\\Z")
_TELEGRAM_OPEN = re.compile(r"\d{8}:A?\Z")
_ASCII_LOWER = {code: code + 32 for code in range(65, 91)}


def _lower(text: str) -> str:
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else text.translate(_ASCII_LOWER)


def may_hold(text: str) -> bool:
    """Whether a whole text can hold a credential: cheap, and in doubt yes."""
    return bool(_AUTOMATON.find_matches_as_indexes(_lower(text))) or _DISCORD.search(text) is not None


class CredentialScanner:
    """Follows one growing text. `held` is the offset of the earliest character that may be part of a credential."""

    def __init__(self) -> None:
        self._text = ""
        self._base = 0
        self._pending: list[tuple[int, Reader]] = []
        self._growing: list[Sight] = []
        self.held: int | None = None

    def feed(self, text: str, offset: int) -> list[Sight]:
        """What is found, or goes on, in `text`, which begins at `offset`; offsets are those of the whole text."""
        known = len(self._text)
        self._text += text
        if known == 0:
            self._base = offset
        self._look(known)
        return self._read(ended=False)

    def finish(self) -> list[Sight]:
        """The text has ended."""
        return self._read(ended=True)

    def _look(self, known: int) -> None:
        first = max(0, known - _LONGEST + 1)
        window = self._text[first:] if first else self._text
        base = self._base + first
        for number, start, end in _AUTOMATON.find_matches_as_indexes(_lower(window), overlapping=True):
            if first + end > known:
                self._pending += [(base + start, reader) for reader in _READERS[_KEYS[number]]]
        if "." in window:
            for match in _DISCORD.finditer(self._text, max(0, known - 8)):
                user = _DISCORD_ID.search(self._text, max(0, match.start() - 30), match.start())
                if match.end() > known and user is not None and checks.discord_id(user.group()):
                    self._pending.append((self._base + match.end(), _read_discord))

    def _read(self, *, ended: bool) -> list[Sight]:
        text, base = self._text, self._base
        found: list[Sight] = []
        held: list[int] = []
        keep = base + len(text) - _CONTEXT
        going: list[Sight] = []
        for sight in self._growing:
            self._go_on(sight, ended, found, held, going)
        pending = []
        for place, reader in self._pending:
            read = reader(text, place - base, ended)
            if isinstance(read, _Wait):
                pending.append((place, reader))
                keep = min(keep, place - 12)
                if read.hold is not None:
                    held.append(base + read.hold)
            elif read is not None:
                sight = msgspec.structs.replace(read, start=base + read.start, end=base + read.end)
                if sight.grows is None:
                    found.append(sight)
                else:
                    self._go_on(sight, ended, found, held, going)
        self._pending, self._growing = pending, going
        found = _distinct(found)
        if not ended and (open_ := _open_prefix(text)) is not None:
            held.append(base + open_)
        self.held = min(held, default=None)
        if keep - base > _CONTEXT:
            # What goes on is read from its end, which is within the context.
            self._text, self._base = text[keep - base :], keep
        return found

    def _go_on(self, sight: Sight, ended: bool, found: list[Sight], held: list[int], going: list[Sight]) -> None:
        assert sight.grows is not None
        end, open_ = sight.grows(self._text, sight.end - self._base, ended)
        sight = msgspec.structs.replace(sight, end=self._base + end)
        found.append(sight)
        if open_:
            going.append(sight)
            if end < len(self._text):
                held.append(sight.end)


def _distinct(found: list[Sight]) -> list[Sight]:
    """Without those that lie within a surer one: `secret_access_key` announces what `access_key` does."""
    kept: list[Sight] = []
    for sight in sorted(found, key=lambda sight: (-sight.score, sight.start - sight.end)):
        if not any(other.start <= sight.start and sight.end <= other.end for other in kept):
            kept.append(sight)
    return sorted(kept, key=lambda sight: sight.start)


def _open_prefix(text: str) -> int | None:
    """Where the end of the text may begin a prefix."""
    size = len(text)
    last = max(0, size - _PREFIX_CHARS)
    last = max(text.rfind(" ", last), text.rfind("\n", last), last - 1) + 1
    for match in _WORD_START.finditer(text, last):
        start = match.start()
        tail = text[start:]
        at = bisect_right(_PREFIXES, tail)
        if at < len(_PREFIXES) and _PREFIXES[at].startswith(tail):
            return start
    if "-" in text[-11:] and (dashes := _DASHES_OPEN.search(text, max(0, size - 11))) is not None:
        return dashes.start()
    if text.endswith((":", ":A")) and _TELEGRAM_OPEN.search(text, size - 10 if size > 10 else 0):
        return text.rindex(":")
    return None
