"""Closed periods: months whose figures are final.

In: a store's ``closed_periods``. Out: what is closed, and what came for it afterwards. A closed period refuses to be
priced again (`reprice`). Spans that arrive late for it are written like all others, as nothing may be lost, and are
listed by the view ``late_arrivals``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.queries import Rows
from tollspan.processor.queries.window import EARLIEST, LATEST, bound

if TYPE_CHECKING:
    from tollspan.processor.store import Store

_MONTH: Final = re.compile(r"([0-9]{4})-([0-9]{2})")


@dataclass(frozen=True, slots=True)
class Period:
    """Start times from ``since`` on and before ``until``, aware instants in UTC."""

    since: datetime
    until: datetime

    def __str__(self) -> str:
        if self == month(f"{self.since:%Y-%m}"):
            return f"{self.since:%Y-%m}"
        return f"{self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M}"


class PeriodClosed(TollspanError):
    """What was asked for would change the figures of a closed period."""


def month(text: str) -> Period:
    """A calendar month in UTC, written ``2026-10``.

    Raises:
        ConfigError: it is none.
    """
    match = _MONTH.fullmatch(text.strip())
    if match is None or not 1 <= int(match[2]) <= 12 or not EARLIEST.year <= int(match[1]) < LATEST.year:
        raise ConfigError(f"{text!r} is no month.", "Write it as 2026-10.")
    year, number = int(match[1]), int(match[2])
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    return Period(datetime(year, number, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC))


def closed(reader: Rows, within: Period | None = None) -> list[Period]:
    """Closed periods in order; with ``within``, those that share an instant with it."""
    asked = within or Period(EARLIEST, LATEST)
    rows = reader.rows(
        "SELECT since, until FROM closed_periods FINAL WHERE closed = 1"
        " AND since < {until:DateTime64(9, 'UTC')} AND until > {since:DateTime64(9, 'UTC')} ORDER BY since, until",
        _bounds(asked),
    )
    return [Period(row["since"], row["until"]) for row in rows]


def overview(reader: Rows) -> list[dict[str, Any]]:
    """A row for each closed period: its name, when and why it was closed, and how many rows came for it since."""
    late = {
        (row["period_since"], row["period_until"]): row
        for row in reader.rows(
            "SELECT period_since, period_until, count() AS late_rows, sum(cost) AS late_cost FROM late_arrivals"
            " GROUP BY period_since, period_until"
        )
    }
    shown = []
    for row in reader.rows(
        "SELECT since, until, changed_at, note FROM closed_periods FINAL WHERE closed = 1 ORDER BY since, until"
    ):
        after = late.get((row["since"], row["until"]), {"late_rows": 0, "late_cost": None})
        period = Period(row["since"], row["until"])
        shown.append(
            {
                "period": str(period),
                "closed_at": row["changed_at"],
                "note": row["note"],
                "late_rows": after["late_rows"],
                "late_cost": after["late_cost"],
            }
        )
    return shown


def close(store: Store, period: Period, note: str = "", now: datetime | None = None) -> bool:
    """Close a period; False if it is closed already, which keeps its first instant.

    Raises:
        ConfigError: it is not over yet.
    """
    if period.until > (now or datetime.now(UTC)):
        raise ConfigError(f"{period} is not over yet (it ends on {period.until:%Y-%m-%d}, UTC).", "Close it after.")
    if period in closed(store, period):
        return False
    _record(store, period, 1, note)
    return True


def reopen(store: Store, period: Period, note: str = "") -> None:
    """Open a closed period again.

    Raises:
        ConfigError: it is not closed.
    """
    if period not in closed(store, period):
        there = ", ".join(map(str, closed(store))) or "none"
        raise ConfigError(f"{period} is not closed.", f"Closed are: {there}.")
    _record(store, period, 0, note)


def refuse_closed(reader: Rows, period: Period) -> None:
    """Stop what would change closed figures.

    Raises:
        PeriodClosed: names the closed periods that ``period`` touches.
    """
    found = closed(reader, period)
    if found:
        names = ", ".join(map(str, found))
        raise PeriodClosed(
            f"Closed: {names}. Nothing was written.",
            "Leave the closed time out (--since, --until), or open it again: tollspan close --month YYYY-MM --reopen.",
        )


def _record(store: Store, period: Period, state: int, note: str) -> None:
    store.execute(
        "INSERT INTO closed_periods (since, until, closed, changed_at, note) SELECT {since:DateTime64(9, 'UTC')},"
        " {until:DateTime64(9, 'UTC')}, {state:UInt8}, now64(3, 'UTC'), {note:String}",
        {**_bounds(period), "state": state, "note": note},
    )


def _bounds(period: Period) -> dict[str, Any]:
    return {"since": bound(period.since, EARLIEST), "until": bound(period.until, LATEST)}
