"""Where something could be sent: mail addresses, web addresses, hosts, accounts; and who told the model to do so.

A hijacked agent is seen by where its words come from: a destination that only a tool's result or a document named, in
a sentence that tells to act, is not what the user asked for (K. Greshake et al., "Not what you've signed up for",
2023). All of it is by words; a destination that the model was told in pieces or in a code is not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Literal

import msgspec

Kind = Literal["mail", "web", "account"]

_MAIL = re.compile(r"[a-z0-9._%+-]{1,64}@(?:[a-z0-9-]{1,63}\.){1,8}[a-z][a-z0-9-]{1,24}")
_WEB = re.compile(r"(?:[a-z][a-z0-9+.-]{1,10}://|(?<![\w.@/-])www\.)[^\s<>\"'`()\[\]{}\\]{3,2000}")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}(?::\d{1,5})?")
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_IBAN = re.compile(r"(?<![a-z0-9])[a-z]{2}\d{2}(?: ?[a-z0-9]{4}){2,7}(?: ?[a-z0-9]{1,3})?(?![a-z0-9])")
_NUMBER = re.compile(r"(?<![\w.,+-])\+?\d(?:[ /-]?\d){8,18}(?![\w.,]\d)")
_DATE = re.compile(r"(?:19|20)\d\d[ /-]?(?:0[1-9]|1[0-2])[ /-]?(?:[0-2]\d|3[01])(?!\d{4})")
_WALLET = re.compile(r"(?<![a-z0-9])(?:0x[0-9a-f]{40}|bc1[a-z0-9]{25,60})(?![a-z0-9])")
_FILE_ENDINGS = """
c cc cfg conf cpp css csv doc docx gif go gz h html ini java jpeg jpg js json log md pdf php png py rb rs sh sql svg
tar toml ts tsx txt xls xlsx xml yaml yml zip
"""
_FILES = frozenset(_FILE_ENDINGS.split())
_AT = re.compile(r"\s?[\[({<]\s?(?:at|@)\s?[\])}>]\s?")
_DOT = re.compile(r"\s?[\[({<]\s?(?:dot|\.)\s?[\])}>]\s?")

# Verbs that tell to send, pay, fetch or hand over. Those of other languages are stems, for orders and wishes alike.
_ABROAD = (
    r"\b(?:send|schick|leite|weiterleit|überweis|hochlad|lade|zahl|antwort|schreib|einlad|öffne|bestätig|nenne|"
    r"env[ií]|reenv|transfi|paga|sube|respond|escrib|mand[ae]|abr[ae]|encaminh|"
    r"envoy|envoie|transf[ée]r|paie|pay[ez]|r[ée]pond|[ée]cri|ouvr|"
    r"invi|inoltr|trasfer|apr[ei]|stuur|verzend|betaal|skicka|betala|öppna|wyśl|prześl|zapła|otwórz|gönder|ilet)\w*"
    r"|отправ|пересл|перешл|перевед|загруз|выгруз|перейд|открой|подтверд|надішл|перекаж|підтверд"
    r"|发送|转发|提交|发到|发给|汇款|转账|打开|送信|送って|転送|振り込|開いて|보내|전송|송금|أرسل|ارسل|حوّل|حول|भेज|gửi|chuyển"
)
_ORDERS = re.compile(
    r"\b(?:send|forward|e-?mail|mail|b?cc|upload|transfer|pay|wire|deposit|submit|export|share|post|push|grant|invite|"
    r"add|redirect|route|deliver|leak|exfiltrate|report|copy|replace|update|change|use|execute|run|curl|wget|fetch|get|"
    r"download|install|load|request|open|visit|click|confirm|settle|issue|append|register|move|switch|hand over|"
    r"write to|sending|forwarding|writing to|uploading|moving|opening|paying)\b|" + _ABROAD
)
_ASKED_TO_SEND = re.compile(
    r"\b(?:send|forward|e-?mail|mail|reply|respond|answer|write|share|invite|message|notify|tell|inform|pay|transfer|"
    r"wire|refund|book|schedule|post|upload|publish|submit|order|contact|call|text|ping|cc|add|meet|arrange)\b|"
    + _ABROAD
)
_ASKED_TO_FETCH = re.compile(
    r"\b(?:open|visit|fetch|browse|research|search|find|download|install|set ?up|follow|link|clone|crawl|scrape|go to|"
    r"such|find|installier|busca|descarg|instal|cherch|télécharg)\w*|" + _ABROAD
)
_DELEGATED = re.compile(
    r"\b(?:(?:do|follow|act on|carry out|execute|complete) (?:what|whatever|the|all|any|its|their|his|her|these|those)|"
    r"handle|process|take care of|deal with|work through|settle)\b"
)
_ADDRESSES_MODEL = re.compile(
    r"\b(?:assistant|a\.?i\.?|agent|language model|llm|chatbot|ignore (?:all|any|the|your|previous)|"
    r"do not (?:tell|mention|inform)|without (?:telling|asking|informing)|system (?:note|notice|message|override))\b"
)
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")  # many results are JSON in a string
# A record's members are no sentence together; a line that ends in a colon goes on in the next.
_BREAK = re.compile(r"(?<=[.!?;])\s|(?<![:\n ])\n|(?<!\\)\"\s*(?:[,:]\s*[\"\[{\d]|[\]}])")
_UNSEEN = re.compile(
    "[\u00ad\u034f\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]"
)
_MAX_SENTENCE = 400
_MAX_PLACES = 256  # at which one destination is looked at
# Long conversations are read from their end: what hijacks a call is mostly the latest result.
_MAX_CHARS = 400_000


class Named(msgspec.Struct, frozen=True):
    """A destination at [start, end) of its text; `key` is how equal ones are known."""

    kind: Kind
    key: str
    start: int
    end: int


def plain(text: str) -> str:
    """The text as destinations are compared: nothing unseen, one width, small letters, `[at]` and `[dot]` undone."""
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).lower()
    return _DOT.sub(".", _AT.sub("@", text)) if "[" in text or "(" in text or "{" in text or "<" in text else text


def destinations(text: str, *, alone: bool = False) -> Iterator[Named]:
    """Those in a text that is `plain`; `alone`: the whole text may be a bare host."""
    for found in _MAIL.finditer(text):
        yield Named("mail", found[0].rstrip("."), *found.span())
    for found in _WEB.finditer(text):
        if host := _host(found[0]):
            yield Named("web", host, *found.span())
    for found in _IP.finditer(text):
        yield Named("web", found[0], *found.span())
    if alone and (bare := text.strip()) and _HOST.fullmatch(bare):
        host = bare.partition(":")[0]
        if host.rpartition(".")[2] not in _FILES:
            yield Named("web", host, 0, len(text))
    for pattern in (_IBAN, _NUMBER, _WALLET):
        for found in pattern.finditer(text):
            key = re.sub(r"[ /+-]", "", found[0])
            if _is_account(pattern, key, found[0]):
                yield Named("account", key, *found.span())


def _host(url: str) -> str:
    authority = re.split(r"[/?#]", url.partition("://")[2] or url, maxsplit=1)[0]
    host = authority.rpartition("@")[2].partition(":")[0].rstrip(".,;:!?")
    return host if "." in host else ""


def _is_account(pattern: re.Pattern[str], key: str, written: str) -> bool:
    if pattern is _NUMBER:
        return not _DATE.match(written)
    # Invented ones are ordered as well: enough digits do.
    return pattern is not _IBAN or sum(map(str.isdecimal, key)) >= 10 or _is_iban(key)


def _is_iban(text: str) -> bool:
    """ISO 7064, mod 97."""
    turned = "".join(str(int(char, 36)) for char in text[4:] + text[:4])
    return 15 <= len(text) <= 34 and int(turned) % 97 == 1


class Trust:
    """Who named what in one conversation. Texts are long and calls of tools few: read at the first call."""

    def __init__(self, trusted: Iterable[str], user: Iterable[str], results: Iterable[str]) -> None:
        self._user = plain("\n".join(user))
        self._trusted = f"{plain(chr(10).join(trusted))}\n{self._user}"
        told = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), "\n".join(results)[-_MAX_CHARS:])
        self._results = plain(told)
        self._by_user = {named.kind for named in destinations(self._user)}

    def suspicion(self, named: Named) -> tuple[float, str]:
        """(score, why) of a destination in a call's arguments: 0.0 for none, from 0.9 on it was ordered by a text that
        nobody trusts and is nothing that the user asked for; between, something speaks for it.
        """
        if not self._results or self._says(self._trusted, named):
            return 0.0, ""
        places = list(islice(self._places(named), _MAX_PLACES))
        if not places:
            return 0.0, ""
        ordered = any(_ORDERS.search(sentence) for sentence in places)
        asked = self._asked_for(named.kind)
        if not ordered:
            return (0.0, "") if asked or named.kind == "web" else (0.5, f"{named.kind}: only in a result")
        if asked:
            return 0.6, f"{named.kind}: ordered by a result, and the user asked for such"
        return 0.95, f"{named.kind}: ordered by a result"

    def repeats_order(self, text: str, tools: Iterable[str]) -> tuple[float, str]:
        """(score, why) of an argument that stands word for word in a result's sentence which speaks to the model."""
        wanted = plain(text).strip()
        if len(wanted) < 12 or len(wanted.split()) < 3 or wanted in self._trusted:
            return 0.0, ""
        at = self._results.find(wanted)
        if at < 0:
            return 0.0, ""
        sentence = self._sentence(at, at + len(wanted))
        around = sentence.replace(wanted, " ", 1)
        if not _ORDERS.search(around):
            return 0.0, ""
        if any(name.lower() in around for name in tools if re.search(r"_|[a-z][A-Z]", name)):
            return 0.95, "an order of a result that names the tool"
        return (0.6, "an order of a result to the model") if _ADDRESSES_MODEL.search(around) else (0.0, "")

    def _asked_for(self, kind: Kind) -> bool:
        """Whether the user asked for something of this kind and left open where to: then a result may say it."""
        if not self._user.strip() or _DELEGATED.search(self._user):
            return True
        wants = _ASKED_TO_FETCH if kind == "web" else _ASKED_TO_SEND
        return wants.search(self._user) is not None and kind not in self._by_user

    def _says(self, text: str, named: Named) -> bool:
        if named.kind == "account":
            return named.key in text or named.key in re.sub(r"[ /+-]", "", text)
        # Who names a domain means what is below it; who names a page means its host.
        labels = named.key.split(".")
        names = [named.key]
        if named.kind == "web" and not _IP.fullmatch(named.key):
            names += [".".join(labels[at:]) for at in range(1, len(labels) - 1)]
        return any(re.search(rf"(?<![\w.%+-])(?:www\.)?{re.escape(name)}(?![\w-]|\.\w)", text) for name in names)

    def _places(self, named: Named) -> Iterator[str]:
        if named.kind == "account":
            for start, end in self._accounts.get(named.key, ()):
                yield self._sentence(start, end)
            return
        at = self._results.find(named.key)
        while at >= 0:
            yield self._sentence(at, at + len(named.key))
            at = self._results.find(named.key, at + len(named.key))

    @cached_property
    def _accounts(self) -> dict[str, list[tuple[int, int]]]:
        found: dict[str, list[tuple[int, int]]] = {}
        for named in destinations(self._results):
            if named.kind == "account":
                found.setdefault(named.key, []).append((named.start, named.end))
        return found

    def _sentence(self, start: int, end: int) -> str:
        text = self._results
        first = max(0, start - _MAX_SENTENCE)
        for found in _BREAK.finditer(text, first, start):
            first = found.end()
        after = _BREAK.search(text, end, end + _MAX_SENTENCE)
        return text[first : after.start() if after else min(len(text), end + _MAX_SENTENCE)]
