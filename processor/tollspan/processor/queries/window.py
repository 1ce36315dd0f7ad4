"""Instants that people type: ``--since 24h``, ``--since 2026-11-01``, ``--until 2026-11-20T12:00:00Z``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from tollspan.processor.errors import ConfigError

EARLIEST: Final = datetime(1900, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2262, 1, 1, tzinfo=UTC)
"""What DateTime64(9) can hold, and so an open end of a window."""

_AGE: Final = re.compile(r"([0-9]{1,9})\s*(s|m|h|d|w)")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def instant(text: str | None, option: str = "--since", now: datetime | None = None) -> datetime | None:
    """Read an instant.

    Args:
        text: ISO 8601 instant or date (UTC unless it says otherwise), or an age: ``90s``, ``30m``, ``24h``, ``7d``.
        option: where it was given, for the message.
        now: what an age counts back from.

    Returns:
        An aware instant in UTC, or None for None and empty.

    Raises:
        ConfigError: it is neither.
    """
    if not text:
        return None
    age = _AGE.fullmatch(text.strip())
    try:
        if age is not None:
            back = (now or datetime.now(UTC)) - timedelta(**{_UNITS[age[2]]: int(age[1])})
            return max(back, EARLIEST)
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        return EARLIEST
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} is neither an instant nor an age.",
            "For example 2026-11-01, 2026-11-01T12:00:00Z, 24h or 7d.",
        ) from None


def window(
    since: str | None, until: str | None, now: datetime | None = None
) -> tuple[datetime | None, datetime | None]:
    """Both ends of a window, read by `instant`.

    Raises:
        ConfigError: one cannot be read, or they are the wrong way round.
    """
    start, end = instant(since, "--since", now), instant(until, "--until", now)
    if start is not None and end is not None and start >= end:
        raise ConfigError(f"--since {since} is not before --until {until}.")
    return start, end


def bound(value: datetime | None, default: datetime) -> str:
    """An instant as the text of a ``DateTime64(9, 'UTC')`` parameter; a naive one counts as UTC."""
    found = value or default
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return min(max(found, EARLIEST), LATEST).strftime("%Y-%m-%d %H:%M:%S.%f").rjust(26, "0")
