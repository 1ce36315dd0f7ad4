"""Rows as people read them: shares as percent, durations in milliseconds, means rounded, and no column without news."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from tollspan.processor.report.gather import next_stretch
from tollspan.processor.report.sections import Section

_CONSTANT: Final = frozenset({"currency"})
"""Columns that say the same in every row, left out of tables for people."""

_PLACES: Final = (
    *(("cost_per_inference", 9), ("cost_per_1000", 6), ("cost_per_request", 9), ("cost_per_item", 12)),
    # Estimates, of which more places would say nothing.
    *(("forecast_from", 6), ("forecast_to", 6)),
)
"""Columns of quotients → decimal places that people are shown."""

_EXCEPTIONS: Final = frozenset(
    {"unpriced_requests", "unpriced_inferences", "partial_inferences", "failed_calls", "not_billed"}
)
"""Counts that are news only where they are not 0."""
_MORE_EXCEPTIONS: Final = _EXCEPTIONS | {
    *("unpriced_rows", "unpriced_failures", "unpriced_before", "unpriced_bytes", "uncompared_calls", "unknown_seconds")
}
"""The same in a report, which tells them beside its total."""

_SHARES: Final = (
    *("attribution_accuracy", "cold_start_rate", "utilization", "idle_share", "cache_read_share", "efficiency"),
    *("busy_share", "share_of_cost", "cost_share"),
)
_ADDED: Final = ("cost", "priced_inferences", "unpriced_inferences", "partial_inferences")
"""Columns of a breakdown that add up to the total's."""


def for_people(rows: Sequence[Mapping[str, Any]], exceptions: frozenset[str] = _EXCEPTIONS) -> list[dict[str, Any]]:
    """Rows for a table that is read: quotients rounded, instants to the second (UTC), and no column without news.

    Without news are the currency, a column of unknowns (but never the cost: that it is not known is news), and a count
    of exceptions that is 0 in every row.
    """
    dull = {
        name
        for name in (rows[0] if rows else ())
        if name in _CONSTANT
        or (name != "cost" and all(row[name] is None or row[name] == "" for row in rows))
        or (name in exceptions and not any(row[name] for row in rows))
    }
    shown = []
    for row in rows:
        cells = {name: value for name, value in row.items() if name not in dull}
        for name, places in _PLACES:
            if cells.get(name) is not None:
                cells[name] = round(cells[name], places)
        for name, value in cells.items():
            if isinstance(value, datetime):
                cells[name] = f"{value:%Y-%m-%d %H:%M:%S}"
        shown.append(cells)
    return shown


def table(section: Section, report: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """A section's rows for a table that is read, and what is to be said of those it leaves out ('' = nothing).

    Shares are in percent (``…_percent``) and durations in milliseconds (``…_ms``), to three places. A trend is its last
    stretches, other sections their first rows. What is left out of a breakdown is summed up by the difference from the
    total, to the last digit.
    """
    rows, first = report[section.key] or [], first_rows(section, report)
    left, note = len(rows) - len(first), ""
    if left and section.draws == "trend":
        note = f"The last {len(first)} of {len(rows):,}."
    elif left and not section.sums:
        note = f"The first {len(first)} of {len(rows):,}."
    elif left:
        first = [*first, _others(section, report, first, left)]
    return [_units(row) for row in for_people(first, _MORE_EXCEPTIONS)], note


def _others(
    section: Section, report: Mapping[str, Any], first: Sequence[Mapping[str, Any]], left: int
) -> dict[str, Any]:
    """One row for the ``left`` rows of a breakdown that do not stand there."""
    total = report["total"]
    total = {**total, "priced_inferences": total["inferences"] - total["unpriced_inferences"]}
    names = section.by or ()
    rest: dict[str, Any] = {name: "" if name in names else None for name in first[0]}
    for name in _ADDED:
        if name in rest and total[name] is not None:
            rest[name] = total[name] - sum(row[name] for row in first if row[name] is not None)
    return rest | {names[0]: f"({left:,} others)"}


def _units(row: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name in _SHARES:
            cells[f"{name.removesuffix('_share') if name != 'idle_share' else name}_percent"] = _percent(value)
        elif name.endswith(("_ns", "ns_per_item")) or name == "ns":
            cells[name.replace("ns", "ms")] = None if value is None else round(Decimal(int(value)).scaleb(-6), 3)
        else:
            cells[name] = value
    return cells


def _percent(share: Any) -> Decimal | None:
    """A share from 0 to 1 in percent, to three places: it is read beside the sums it is made of."""
    return None if share is None else round(Decimal(str(share)).scaleb(2), 3)


def first_rows(section: Section, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a section that people are shown, as they were answered."""
    rows: list[dict[str, Any]] = report[section.key] or []
    return rows[-section.least :] if section.draws == "trend" else rows[: section.least]


def bars(section: Section, report: Mapping[str, Any]) -> list[Decimal | None]:
    """Length of the bar of each of `first_rows`, from 0 to 1; None for what is unknown. Empty where none are drawn."""
    if not section.bar:
        return []
    sizes = [row[section.bar] for row in first_rows(section, report)]
    most = max((abs(size) for size in sizes if size is not None), default=Decimal(0))
    return [None if size is None else abs(size) / (most or 1) for size in sizes]


def stretches(report: Mapping[str, Any], section: Section) -> list[tuple[date, dict[str, Any] | None]]:
    """A trend without gaps: each stretch of time from the first row to the last, and its row (None: nothing then)."""
    rows = report[section.key] or []
    if not rows:
        return []
    name = next(iter(rows[0]))
    told = {row[name]: row for row in rows}
    at, last, found = rows[0][name], rows[-1][name], []
    while at <= last:
        found.append((at, told.get(at)))
        at = next_stretch(at, name)
    return found
