"""Texts with a credential of every known format, made up at random by its own rule, and strings that are none."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import uuid
import zlib
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from service.firewall.credential_formats import FORMATS, WEBHOOKS, Format

_ALNUM = string.ascii_letters + string.digits
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def written(pattern: str, rng: random.Random) -> str:
    """A random string that the regular expression matches; look-around is left out."""
    return "".join(_drawn(parser.parse(pattern), rng))


def _drawn(nodes: Any, rng: random.Random) -> Iterator[str]:
    for code, value in nodes:
        if code is codes.LITERAL:
            yield chr(value)
        elif code is codes.IN:
            yield rng.choice([char for item in value for char in _class(item)])
        elif code in (codes.MAX_REPEAT, codes.POSSESSIVE_REPEAT):
            least, most, inner = value
            for _ in range(least if most > 400 else rng.randint(least, most)):
                yield from _drawn(inner, rng)
        elif code is codes.SUBPATTERN:
            yield from _drawn(value[3], rng)
        elif code is codes.BRANCH:
            yield from _drawn(rng.choice(value[1]), rng)


def _class(item: tuple[Any, Any]) -> str:
    code, value = item
    if code is codes.LITERAL:
        return chr(value)
    if code is codes.RANGE:
        return "".join(map(chr, range(value[0], value[1] + 1)))
    return string.digits  # \d is the only class in use


def base62_crc(body: str) -> str:
    """The CRC-32 of the text in six base62 digits."""
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits


def token(form: Format, rng: random.Random) -> str:
    """A token of the format, with a right checksum where that is GitHub's, npm's or Grafana's."""
    prefix = rng.choice(form.prefixes)
    if form.name in ("github token", "npm token"):
        body = "".join(rng.choices(_ALNUM, k=30))
        return prefix + body + base62_crc(body)
    if form.name == "grafana service account":
        body = prefix + "".join(rng.choices(_ALNUM, k=32))
        return f"{body}_{zlib.crc32(body.encode()).to_bytes(4, 'little').hex()}"
    return prefix + written(form.body, rng)


def jwt(rng: random.Random) -> str:
    """A signed token of nobody."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": str(rng.randrange(10**9)), "exp": rng.randrange(10**10)}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "".join(rng.choices(_ALNUM + "-_", k=43))])


def private_key(rng: random.Random, label: str = "RSA PRIVATE KEY") -> str:
    """The form of a private key around random bytes."""
    body = base64.b64encode(rng.randbytes(600)).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----"])


def samples(rng: random.Random) -> Iterator[tuple[str, str, str, str]]:
    """(format, text before, credential, text behind), one for each format."""
    for form in FORMATS:
        if not form.strict:
            yield form.name, "Here it is: ", token(form, rng), " and so on."
    for name, anchor, body in WEBHOOKS:
        yield name, f"Post to https://{anchor}", written(body, rng), " then."
    word = "".join(rng.choices(_ALNUM, k=14)) + "7!x"
    key = "".join(rng.choices(_ALNUM, k=38)) + "4a"
    yield "json web token", "Use ", jwt(rng), " now."
    yield "private key", "The file:\n", private_key(rng), "\nThat is all."
    yield "pgp private key", "Key: ", private_key(rng, "PGP PRIVATE KEY BLOCK"), " done"
    yield "telegram bot token", f"bot {rng.randrange(10**8, 10**9)}:", "AA" + "".join(rng.choices(_ALNUM, k=33)), " ok"
    bot = base64.b64encode(str(rng.randrange(10**17, 10**18)).encode()).decode().rstrip("=")
    yield "discord bot token", f"log in with {bot}.Gx4bQ2.", "".join(rng.choices(_ALNUM, k=38)), " there"
    yield "address with password", "postgresql://app:", word.replace("!", "-"), "@db.internal:5432/main is it"
    for before in ('password = "', "PASSWORD=", '{"db_password": "', "The password is: `", "--password ", "pwd: "):
        yield "password", before, word, '"' if before.endswith('"') else "` it is" if before.endswith("`") else "\nnext"
    words = 'api_key: "', "AWS_SECRET_ACCESS_KEY=", 'client_secret = "', "AccountKey=", "Authorization: Bearer "
    for before in words:
        yield "key behind a word", before, key, '"' if before.endswith('"') else "\nnext"
    pair = base64.b64encode(f"ada:{word}".encode()).decode()
    yield "basic authentication", "curl -H 'Authorization: Basic ", pair, "' there"


def harmless(rng: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, text) of what looks like a credential and is none."""
    digest = hashlib.sha256(rng.randbytes(8)).hexdigest()
    number = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    picture = base64.b64encode(rng.randbytes(3_000)).decode()
    yield "uuid", f"The trace is {number}, see request {number.upper()}."
    yield "uuid", f"token: {number}"
    yield "hash", f'commit {digest[:40]} has sha256 {digest} and etag "{digest[:32]}"'
    yield "hash", f"integrity: sha512-{base64.b64encode(rng.randbytes(64)).decode()}"
    yield "image", f"![dot](data:image/png;base64,{picture})"
    yield "public key", "ssh-ed25519 " + base64.b64encode(rng.randbytes(51)).decode() + " ada@example.com"
    yield "public key", private_key(rng, "PUBLIC KEY")
    yield "certificate", private_key(rng, "CERTIFICATE")
    yield "placeholder", "OPENAI_API_KEY=sk-" + "x" * 48 + ' or api_key = "your_api_key_here", token: <token>'
    yield "placeholder", "AKIAIOSFODNN7EXAMPLE with wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY, password: ********"
    yield (
        "placeholder",
        "ghp_" + "0123456789" * 3 + "abcdef, glpat-XXXXXXXXXXXXXXXXXXXX, postgres://user:password@localhost/db",
    )
    yield "code", 'password = os.environ["DB_PASSWORD2"]\nsecret = get_secret(name_1)\ntoken = response.json()["token"]'
    yield "code", "const apiKey = process.env.API_KEY_V2; api_key = settings.providers[0].api_key_env; pwd = getpass()"
    yield "code", "def check(password: str, token: Token2) -> None: secret_key = config.secret_key_v2"
    yield "prose", "The password is case-sensitive and the token: a short-lived one. Pass: 3 of 4. Secret: none."
    yield "id", "chatcmpl-" + "".join(rng.choices(_ALNUM, k=29)) + " call_" + "".join(rng.choices(_ALNUM, k=24))
