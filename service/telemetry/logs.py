"""JSON lines on standard error. What may stand in them is a list of names: everything else is dropped.

Prompts, replies, secrets and header values must not reach a log by anybody's mistake, so nothing that could carry
them is written: no exception's message, no unknown key, no other library's arguments.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import msgspec
import structlog

ALLOWED_KEYS = frozenset(
    {
        *("event", "level", "logger", "timestamp", "request_id", "code", "status", "error", "at", "dropped"),
        *(
            "tenant",
            "key_id",
            "protected_id",
            "provider",
            "protocol",
            "action",
            "category",
            "guard",
            "count",
            "host",
            "port",
        ),
        *("execution_provider", "artifact", "version", "duration_ms", "workers", "reasons"),
    }
)
MAX_VALUE_CHARS = 300
_FRAMES = 6
_OWN_MESSAGES = frozenset({"uvicorn", "uvicorn.error"})
"""Loggers of other libraries whose messages are written with their arguments: addresses, ports, process ids."""


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's logging to `stream` (standard error) as JSON lines."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, _foreign_event],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _place_only, allow_only, _render],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "asyncio", "aiohttp", "litestar"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        # Below "info" these write headers and addresses with queries, whatever our own level is.
        logger.setLevel(max(root.level, logging.INFO))
    for name in ("uvicorn.access", "aiohttp.access", "sqlalchemy.engine", "aiosqlite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def allow_only(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Keep the allowed keys, shortened; count the others in `dropped`."""
    kept = {key: _short(value) for key, value in event.items() if key in ALLOWED_KEYS}
    dropped = len(event) - len(kept)
    return kept | {"dropped": dropped} if dropped else kept


def places(error: BaseException) -> list[str]:
    """Where an exception came from, as `file:line`, innermost last; its message may quote a prompt and stays out."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]


def _place_only(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    info = event.pop("exc_info", None)
    event.pop("stack_info", None)
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else None
    if info is True:
        error = sys.exc_info()[1]
    if error is not None:
        event["error"] = type(error).__name__
        event["at"] = places(error)
    return event


def _foreign_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Another library's message: its template without the arguments, and the first line of that.

    asyncio, for one, puts the repr of tasks and exceptions, and with them texts, into what follows the first line.
    """
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        own = record.name in _OWN_MESSAGES and record.exc_info is None
        text = str(event.get("event", "")) if own else str(record.msg)
        event["event"] = text.partition("\n")[0]
    return event


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MAX_VALUE_CHARS].encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_short(item) for item in value[:MAX_VALUE_CHARS]]
    return type(value).__name__


def _render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    return msgspec.json.encode(event).decode()
