"""Tokens with a prefix or a structure of their own: the formats, JSON Web Tokens, bot tokens."""

from __future__ import annotations

import re
from functools import partial

from service.firewall import credential_checks as checks
from service.firewall.credential_formats import Format
from service.firewall.credential_sights import CAP, MORE, RUN, Read, Sight, Wait

_JWT_HEADER = 1_024
_JWT_CAP = 8_192
_MORE_JWT = re.compile(r"[0-9A-Za-z_.-]*")


def read_format(form: Format, body: re.Pattern[str], prefix: str, text: str, at: int, ended: bool) -> Read:
    """A token of a format whose prefix stands at `at`."""
    if not text.startswith(prefix, at):
        return None
    run = RUN.match(text, at, at + CAP)
    end = run.end() if run is not None else at
    if end == len(text) and end - at < CAP and not ended:
        return Wait(at)
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
    grows = partial(grow, MORE) if found.end() - at == CAP else None
    return Sight(form.name, at, found.end(), score, grows)


def grow(more: re.Pattern[str], text: str, at: int, ended: bool) -> tuple[int, bool]:
    """How far a run of a token's characters goes on."""
    found = more.match(text, at)
    end = found.end() if found is not None else at
    return end, end == len(text) and not ended


def read_jwt(text: str, at: int, ended: bool) -> Read:
    """A JSON Web Token that begins at `at`."""
    if not text.startswith("eyJ", at):
        return None
    run = _MORE_JWT.match(text, at)
    end = run.end() if run is not None else at
    open_ = end == len(text) and not ended
    parts = text[at:end].split(".")
    if len(parts) == 1:
        return Wait(at) if open_ and end - at < _JWT_HEADER else None
    if len(parts[0]) > _JWT_HEADER or not checks.jwt_header(parts[0]):
        return None
    long = len(parts) == 2 and len(parts[1]) > _JWT_CAP
    signed = len(parts) >= 3 and (len(parts[2]) >= 16 or (len(parts) >= 5 and len(parts[3]) >= 16))
    if not long and not signed:
        return Wait(at) if open_ and end - at < 2 * _JWT_CAP else None
    if checks.documented_jwt(parts[1]):
        return None
    last, _ = _grow_jwt(text, at, ended)
    return Sight("json web token", at, last, 1.0, _grow_jwt if open_ else None)


def _grow_jwt(text: str, at: int, ended: bool) -> tuple[int, bool]:
    end, open_ = grow(_MORE_JWT, text, at, ended)
    # A full stop behind it ends the sentence.
    return at + len(text[at:end].rstrip(".-")), open_


def read_behind(name: str, anchor: str, body: re.Pattern[str], text: str, at: int, ended: bool) -> Read:
    """What `body` finds right behind the anchor, where it looks random."""
    start = at + len(anchor)
    run = RUN.match(text, start, start + CAP)
    end = run.end() if run is not None else start
    if end == len(text) and end - start < CAP and not ended:
        return Wait(start)
    found = body.match(text, start, end)
    if found is None or not checks.random_looking(found.group(), 3.0):
        return None
    return Sight(name, start, found.end(), 0.9)


_TELEGRAM = re.compile(r"AA[0-9A-Za-z_-]{33}(?![0-9A-Za-z])")
_BOT_ID = re.compile(r"(?<!\d)\d{8,10}\Z")


def read_telegram(text: str, at: int, ended: bool) -> Read:
    """A Telegram bot token whose colon stands at `at`."""
    if not text.startswith(":AA", at) or not _BOT_ID.search(text, max(0, at - 11), at):
        return None
    return read_behind("telegram bot token", ":", _TELEGRAM, text, at, ended)


DISCORD = re.compile(r"\.[\w-]{6}\.", re.ASCII)
DISCORD_ID = re.compile(r"(?<![\w-])[MNO][\w-]{22,28}\Z", re.ASCII)
_DISCORD_END = re.compile(r"[\w-]{27,40}", re.ASCII)


def read_discord(text: str, at: int, ended: bool) -> Read:
    """A Discord bot token whose last part begins at `at`."""
    return read_behind("discord bot token", "", _DISCORD_END, text, at, ended)
