"""Where the database is: a file of SQLite, or a PostgreSQL server; what `storage.url` may say, what is shown of it."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from service.errors import ConfigError
from service.settings import Settings

_WANTED = "storage.url: sqlite:///<file> or postgresql://<user>@<host>/<database> is needed"
_OPTIONS = ("host", "sslmode", "sslrootcert", "sslcert", "sslkey")
"""What may follow `?` in an address; each means what it means to libpq."""


class ServerPlace:
    """A database on a PostgreSQL server. Its text, as the shown address, never has the password.

    `dsn` is the address without the password, as the driver reads it. Without a password of its own the driver looks
    for one where libpq does.
    """

    def __init__(self, url: sa.URL, password: str | None = None) -> None:
        # Made anew: `URL.set` cannot take a password away.
        bare = sa.URL.create("postgresql", url.username, None, url.host, url.port, url.database)
        self.dsn = bare.update_query_dict(url.query).render_as_string()
        self.shown = bare.render_as_string()
        self.password = password or None

    def __str__(self) -> str:
        return self.shown

    __repr__ = __str__


Place = Path | ServerPlace


def database_place(settings: Settings) -> Place:
    """The place that `storage.url` names. Raises ConfigError for one that cannot be stored in, without quoting it."""
    scheme, separator, rest = settings.storage.url.partition("://")
    if separator and scheme in {"postgresql", "postgres"}:
        return _server(settings)
    if scheme != "sqlite" or not separator:
        raise ConfigError(_WANTED)
    if settings.storage.password_env:
        raise ConfigError("storage.password_env: only for postgresql://; a file has no password")
    name = rest.removeprefix("/")
    if not rest.startswith("/") or not name or name == ":memory:" or "?" in name:
        raise ConfigError(f"{_WANTED}; a record in memory would be lost with the process")
    return (settings.folder / name).resolve()


def _server(settings: Settings) -> ServerPlace:
    try:
        url = sa.make_url(settings.storage.url)
    except (ArgumentError, ValueError):
        raise ConfigError("storage.url: not an address such as postgresql://user@host:5432/database") from None
    if not url.database or not (url.host or url.query.get("host")):
        raise ConfigError("storage.url: a host and a database are needed: postgresql://user@host:5432/database")
    if unknown := sorted(set(url.query) - set(_OPTIONS)):
        raise ConfigError(f"storage.url: unknown {', '.join(unknown)}; after `?` there may be {', '.join(_OPTIONS)}")
    name = settings.storage.password_env
    if not name:
        return ServerPlace(url, url.password)
    if url.password is not None:
        raise ConfigError("storage.url: a password in the address and storage.password_env; give one of them")
    if name not in os.environ:
        raise ConfigError(f"storage.password_env: environment variable {name} is not set")
    return ServerPlace(url, os.environ[name])
