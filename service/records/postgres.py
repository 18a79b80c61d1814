"""A database on a PostgreSQL server, by asyncpg: its connections, and what its errors may say.

Connections that the server has closed are replaced before they are used; after an operation ran out of time those from
before are not trusted either, since a host that is gone closes nothing. No message quotes what was to be stored: the
driver's own do, so only their kind is told, but for what goes wrong before any value is sent.
"""

from __future__ import annotations

import ssl
from time import monotonic
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from service.records.place import ServerPlace

CONNECT_TIMEOUT_S = 4.0
_CONNECTIONS = 8
"""Of each process; as many again are made where these are all in use."""
_WAIT_S = 4.0
_LIFE_S = 300.0
"""A connection is made anew after this: the address may mean another server by then."""
_OF_VALUES = ("22", "23")
"""SQLSTATE classes of what is wrong with a row itself: data exceptions and violated constraints."""


class Server:
    """The engine of one server. `distrust` is called when an operation ran out of time."""

    def __init__(self, place: ServerPlace) -> None:
        self._place = place
        self._trusted_since = 0.0
        self.engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            hide_parameters=True,
            pool_size=_CONNECTIONS,
            max_overflow=_CONNECTIONS,
            pool_timeout=_WAIT_S,
            pool_recycle=_LIFE_S,
            pool_use_lifo=True,
        )
        sa.event.listen(self.engine.sync_engine, "connect", self._made)
        sa.event.listen(self.engine.sync_engine, "checkout", self._check)

    def distrust(self) -> None:
        """Use no connection that was made before now."""
        self._trusted_since = monotonic()

    async def _connect(self) -> Any:
        return await asyncpg.connect(
            self._place.dsn,
            password=self._place.password,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={"application_name": "semantic-firewall"},
        )

    def _made(self, _connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["made"] = monotonic()

    def _check(self, connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        driver = connection.driver_connection
        if record.info["made"] < self._trusted_since:
            driver.terminate()
        if driver.is_closed():
            raise DisconnectionError


def is_of_values(error: Exception) -> bool:
    """Whether another row might well have been taken."""
    return _sqlstate(error)[:2] in _OF_VALUES


def reason(error: Exception) -> str:
    """The kind of an error, without any value."""
    cause = _cause(error)
    code = _sqlstate(error)
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    return f"{type(cause).__name__} {code}".strip()


def opening_reason(error: Exception) -> str:
    """What kept a database from being opened, in the server's words where no value can stand in them."""
    cause = _cause(error)
    if isinstance(cause, asyncpg.PostgresError) and not is_of_values(error):
        return str(cause.args[0]) if cause.args else type(cause).__name__
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason or 'failed'}"
    if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
        return cause.strerror or str(cause)
    if isinstance(cause, asyncpg.ClientConfigurationError):
        return str(cause.args[0])
    return reason(error)


def _cause(error: BaseException) -> BaseException:
    """The driver's own exception."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if not isinstance(error, (asyncpg.PostgresError, OSError)) and error.__cause__ is not None:
        return error.__cause__
    return error


def _sqlstate(error: BaseException) -> str:
    return str(getattr(_cause(error), "sqlstate", None) or "")
