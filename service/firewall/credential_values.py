"""Values that a word before them announces, and passwords in addresses."""

from __future__ import annotations

import re
from functools import partial

from service.firewall import credential_checks as checks
from service.firewall.credential_sights import ALNUM, CAP, MORE, Read, Sight, Wait
from service.firewall.credential_tokens import grow

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


def read_value(kind: str, word: str, text: str, at: int, ended: bool) -> Read:
    """What stands behind `word`, which announces a value: `password = "…"`, `the key is …`, `--token …`."""
    if not _announces(kind, word, text, at):
        return None
    suffix = _SUFFIX.match(text, at + len(word))
    if suffix is None:
        return None
    pos = suffix.end()
    if pos == len(text) and not ended:
        return Wait()
    told = word in ("bearer", "basic") or text[max(at - 2, 0) : at] == "--"
    for _ in range(4):
        gap = _GAP.match(text, pos, pos + 24)
        start = gap.end() if gap is not None else pos
        if start == len(text):
            return None if ended or start - pos == 24 else Wait()
        told = told or _TOLD.search(text, pos, start) is not None
        quoted = start > pos and text[start - 1] in "\"'`"
        run = (_QUOTED if quoted else _BARE).match(text, start, start + CAP)
        end = run.end() if run is not None else start
        if end == len(text) and end - start < CAP and not ended:
            return Wait(start)
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
    grows = partial(grow, MORE) if len(value) == CAP else None
    return Sight(f"value behind {word!r}", start, start + len(value), 0.8, grows)


def _announces(kind: str, word: str, text: str, at: int) -> bool:
    if at == 0 or not ALNUM.match(text[at - 1]):
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


def read_address(text: str, at: int, ended: bool) -> Read:
    """The password in `scheme://user:password@host`, or a token in the place of the user."""
    start = at + 3
    user = _USER.match(text, start)
    end = user.end() if user is not None else start
    if end - start == 256:
        return None
    if end == len(text):
        return None if ended else Wait(start)
    if text[end] == ":":
        start = end + 1
        password = _PASSWORD.match(text, start, start + CAP)
        end = password.end() if password is not None else start
        if end - start == CAP:
            return None
        if end == len(text):
            return None if ended else Wait(start)
    if text[end] != "@" or end == start:
        return None
    if end + 1 == len(text):
        return None if ended else Wait(start)
    if not _HOST.match(text, end + 1):
        return None
    value = text[start:end]
    if start == at + 3:
        secret = len(value) >= 20 and _random_word(value) and checks.random_looking(value, 3.0)
    else:
        strong = len(value) >= 12 or (len(value) >= 6 and _SIGNS.search(value) is not None)
        secret = strong and value[0] not in "$%{[*" and value != text[at + 3 : start - 1] and not checks.made_up(value)
    return Sight("password in an address", start, end, 0.9) if secret else None
