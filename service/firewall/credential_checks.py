"""Whether a string that looks like a credential is one: checksums where its format has one, structure, made-up values.

Sources of the checksums: GitHub's and npm's tokens end in the CRC-32 of their random part in base62 ("Behind GitHub's
new authentication token formats", github.blog, 2021; npm took the scheme over in the same year); Grafana's in that of
all before it, little-endian hex (grafana/grafana, pkg/components/satokengen); bech32 is BIP 173 (age, Nostr),
base58check BIP 32; an access key id of AWS holds the account's number (A. Steele, "AWS Access Key ID formats", 2020;
T. Be'ery, "A short note on AWS KEY ID", 2023); a PyPI token is a macaroon that names its host (warehouse, "API
tokens"); JWT and JWE are RFC 7519 and RFC 7516, Basic is RFC 7617.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable

Check = Callable[[str], bool]

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_CLASSES = (re.compile("[a-z]"), re.compile("[A-Z]"), re.compile("[0-9]"), re.compile("[^A-Za-z0-9]"))
_LEET = str.maketrans("0134578@$!", "oieastbasi")
# What people write where a credential would stand, after folding `s3cr3t` and the like.
_STAND_IN = re.compile(
    r"x{4}|(.)\1{5}|your|example|sample|dummy|placeholder|change[-_]?(?:me|it)|redacted|replace|insert|enter[-_]|todo"
    r"|foobar|fixme|hunter|<|\.\.\.|…|\*\*\*|\$\{|\{\{|%\(|abcdef|qwert|lorem|deadbeef|cafebabe|fake|goes[-_]?here"
)
# What a value may hold, but not consist of.
_WORDS = re.compile(
    r"my|passw(?:or[dt])?|passphrase|pass|secret|super|test|demo|user|admin|api|key|token|value|real|not"
)
_RISING = ("0123456789" * 2, "9876543210" * 2, "abcdefghijklmnopqrstuvwxyz", "abcdef0123456789" * 2)
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NEW_AWS = "QRSTUVWXYZ"


def entropy(value: str) -> float:
    """Shannon's entropy of the characters' frequencies, bits a character; 0.0 for an empty string."""
    size = len(value)
    return -sum(count / size * math.log2(count / size) for count in Counter(value).values())


def kinds(value: str) -> int:
    """How many of these it has: small letters, capitals, digits, others."""
    return sum(found.search(value) is not None for found in _CLASSES)


def made_up(value: str) -> bool:
    """Whether it is a stand-in, as `sk-xxxx`, `your_api_key_here`, `<token>`, 0123456789 or a vendor's EXAMPLE.

    A long random value is not one because four letters of it happen to spell a word.
    """
    plain = value.lower()
    if _runs_on(plain):
        return True
    for folded in (plain, plain.translate(_LEET)):
        found = _STAND_IN.search(folded)
        if found is not None and ((size := found.end() - found.start()) * 8 >= len(value) or size >= 7):
            return True
        if len(re.sub("[^a-z0-9]", "", _WORDS.sub("", folded))) < 6:
            return True
    return False


def _runs_on(folded: str) -> bool:
    """Whether at least half of it counts up or down, or repeats one short piece."""
    plain = re.sub("[^a-z0-9]", "", folded)
    if len(plain) < 6:
        return not plain
    rising = sum(any(plain[at : at + 4] in row for row in _RISING) for at in range(len(plain) - 3))
    if rising * 2 >= len(plain) - 3:
        return True
    return any(plain[size:] == plain[:-size] for size in range(1, len(plain) // 3 + 1))


def random_looking(value: str, least_bits: float) -> bool:
    """Whether it is neither made up nor as regular as words are: so many bits of entropy a character."""
    return entropy(value) >= least_bits and not made_up(value)


def is_uuid(value: str) -> bool:
    """Whether it is a UUID as they are usually written."""
    return _UUID.fullmatch(value) is not None


# -- checksums: each takes the whole token -----------------------------------------------------------------------------


def crc_base62(token: str) -> bool:
    """`<prefix>_<30 characters><CRC-32 of them, 6 base62 digits>`, whatever is written behind it."""
    body = token.partition("_")[2]
    number, digits = zlib.crc32(body[:30].encode()), ""
    while number:
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits.rjust(6, "0") == body[30:36]


def grafana(token: str) -> bool:
    """`glsa_<32 characters>_<CRC-32 of all before, little-endian hex>`."""
    body, _, told = token.rpartition("_")
    return zlib.crc32(body.encode()).to_bytes(4, "little").hex() == told.lower()


def bech32(token: str) -> bool:
    """`<prefix>1<data and six characters of checksum>`, all in one case (BIP 173)."""
    if token not in (token.lower(), token.upper()):
        return False
    prefix, _, data = token.lower().rpartition("1")
    values = [_BECH32.find(char) for char in data]
    if not prefix or len(values) < 6 or min(values) < 0:
        return False
    spread = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    checksum = 1
    for value in spread + values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator if top >> bit & 1 else 0
    return checksum == 1


def base58check(token: str) -> bool:
    """82 bytes in base58, of which the last four begin the double SHA-256 of the others."""
    number = 0
    for char in token:
        digit = _BASE58.find(char)
        if digit < 0:
            return False
        number = number * 58 + digit
    try:
        raw = number.to_bytes(82, "big")
    except OverflowError:
        return False
    return hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4] == raw[-4:]


def aws_account(token: str) -> bool:
    """Whether the id's base32 holds an account number, twelve digits. Ids of before 2019 hold none."""
    raw = base64.b32decode(token[4:20])
    return token[4] in _NEW_AWS and (int.from_bytes(raw[:6], "big") & 0x7FFFFFFFFF80) >> 7 < 10**12


def pypi(token: str) -> bool:
    """A macaroon of version 2 whose location is pypi.org or test.pypi.org."""
    raw = _b64(token.partition("-")[2][:32])
    return raw is not None and raw[:2] == b"\x02\x01" and b"pypi.org" in raw


def jwt_header(part: str) -> bool:
    """Whether a part is the JOSE header of a signed or encrypted token: a JSON object with `alg` that is not none."""
    raw = _b64(part)
    try:
        header = json.loads(raw) if raw is not None else None
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and isinstance(header.get("alg"), str) and header["alg"].lower() != "none"


def basic_auth(value: str) -> bool:
    """Base64 of `user:password`, printable, with a password that is not made up."""
    raw = _b64(value)
    try:
        text = raw.decode() if raw is not None else ""
    except UnicodeDecodeError:
        return False
    _, colon, password = text.partition(":")
    return bool(colon) and text.isprintable() and len(password) >= 5 and not made_up(password)


def documented_jwt(payload: str) -> bool:
    """Whether it is the payload that the documents of JWT libraries show."""
    raw = _b64(payload)
    return raw is not None and b'"1234567890"' in raw and b"John Doe" in raw


def discord_id(value: str) -> bool:
    """Base64 of a snowflake, 17 to 20 digits: the first part of a bot's token."""
    raw = _b64(value)
    return raw is not None and raw.isdigit() and 17 <= len(raw) <= 20


def _b64(text: str) -> bytes | None:
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
