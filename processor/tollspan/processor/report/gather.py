"""Gathering a report: the sections' queries, asked one after the other.

In: a read-only handle, a window, filters. Out: plain data; money as Decimal, unknown as None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from tollspan.processor.errors import ConfigError, StoreError
from tollspan.processor.queries import Rows, nothing, run
from tollspan.processor.report.sections import SECTIONS, Section

GRAINS: Final = (
    (timedelta(hours=3), "minute"),
    (timedelta(days=4), "hour"),
    (timedelta(days=120), "day"),
    (timedelta(days=730), "week"),
)
"""A window up to this long → the stretches in which its trend is told; longer ones go by month."""
ANOMALY_DAYS: Final = 4
"""Days from which on days stand out from days, and not hours from hours."""


def build_report(
    reader: Rows,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    sections: Sequence[Section] = SECTIONS,
    where: Sequence[str] = (),
    tolerant: bool = False,
    say: Callable[[str], object] = lambda title: None,
) -> dict[str, Any]:
    """Gather the report.

    Args:
        reader: a `tollspan.processor.store.Reader` or `Store`.
        since, until: start times taken; None for an open end.
        sections: what to ask.
        where: filters as in `tollspan.processor.queries.filters`.
        tolerant: a section that the store cannot answer is left out and told; the totals it has to answer.
        say: told the title of each section before it is asked.

    Returns:
        ``since``, ``until`` (aware datetimes or None), ``where``, ``made_at``, ``sections`` (those asked), ``nothing``
        (why there is nothing, or None), ``moved`` (rows came while it was gathered), ``total`` and ``telemetry`` (one
        row each; None where telemetry is not told), for each section's key its rows, ``errors`` (key → what the store
        said) and ``not_told`` (key → why it was not asked); rows are None for both. Money as Decimal; None is unknown.

    Raises:
        ConfigError: a filter cannot be read.
        StoreError: see `Reader.query`.
    """
    total = run(reader, "total", since, until, where=where)[0]
    report: dict[str, Any] = {
        "since": since,
        "until": until,
        "where": list(where),
        "made_at": datetime.now(UTC),
        "sections": tuple(sections),
        "nothing": None,
        "moved": False,
        "total": total,
        "telemetry": None,
        "errors": {},
        "not_told": {},
    }

    def answer(key: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except ConfigError as error:  # the filters were read above: this query does not know one of them
            report["not_told"][key] = str(error)
        except StoreError as error:
            if not tolerant:
                raise
            report["errors"][key] = str(error)
        return None

    report["telemetry"] = answer("telemetry", lambda: run(reader, "telemetry", since, until, where=where)[0])
    if total["ledger_rows"] == 0:
        report["nothing"] = nothing(reader, "what was asked")
        report |= {each.key: [] for each in sections}
        return report
    for each in sections:
        say(each.title)
        report[each.key] = answer(each.key, lambda each=each: _rows(reader, each, report))  # type: ignore[misc]
    again = answer("total", lambda: run(reader, "total", since, until, where=where)[0]) if sections else total
    report["moved"] = again is not None and again != total
    return report


def _rows(reader: Rows, section: Section, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one section; ConfigError where it cannot be told."""
    since, until, where = report["since"], report["until"], report["where"]
    if section.before and since is None:
        raise ConfigError("There is no window before this one.", "Give --since.")
    name, by = section.query, section.by
    if section.draws == "trend":
        by = (grain(report),)
    if name == "anomalies" and length(report) < timedelta(days=ANOMALY_DAYS):
        name = "anomalies-by-hour"
    start = None if section.open_start else since
    rows = run(reader, name, start, until, section.limit, by, where, section.parameters)
    if section.keep:
        # By part they come in the order of their names.
        rows = [row for row in rows if row["component"] == section.keep]
        rows.sort(key=lambda row: (row["cost"] is None, -(row["cost"] or 0)))
        rows = [{name: value for name, value in row.items() if name != "component"} for row in rows]
    return rows


def length(report: dict[str, Any]) -> timedelta:
    """How long the window is; where an end is open, how long there are rows."""
    total = report["total"]
    start: datetime = report["since"] or total["first_start"]
    end: datetime = report["until"] or total["last_start"]
    return max(end - start, timedelta(0))


def grain(report: dict[str, Any]) -> str:
    """The dimension by which the window's trend is told."""
    return next((name for longest, name in GRAINS if length(report) <= longest), "month")


def next_stretch(at: date, name: str) -> date:
    """The stretch of time that follows the one which begins at ``at``, an instant or a date as `grain` makes them."""
    if name == "month":
        return (at.replace(day=1) + timedelta(days=32)).replace(day=1)
    return at + {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}.get(
        name, timedelta(weeks=1)
    )
