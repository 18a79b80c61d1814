"""Moments as people and programs write them. Inside the service they are seconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime


def moment_of(written: str | float) -> float:
    """Seconds since the epoch of such a number, or of ISO 8601 (UTC where it names no zone).

    Raises ValueError for what is neither, and for what no calendar has ("nan", "inf").
    """
    try:
        seconds = float(written)
        datetime.fromtimestamp(seconds, UTC)
        return seconds
    except (ValueError, OverflowError, OSError):
        pass
    try:
        moment = datetime.fromisoformat(str(written))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("neither ISO 8601 nor seconds since the epoch") from None


def iso(moment: float | None) -> str | None:
    """ISO 8601 in UTC, to the second; None stays None."""
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
