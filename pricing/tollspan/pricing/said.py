"""Times as people say them: intervals, hours of the week, and which of them kept a price from applying.

In: intervals, schedules, and prices that were looked at. Out: text.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from tollspan.pricing.resolve import Considered
from tollspan.pricing.rows import Interval, PriceRow
from tollspan.pricing.schedule import DAY, Schedule, instant_text

OUTSIDE_HOURS: Final = "outside its hours"
NOT_IN_FORCE: Final = "not in force at that time"
"""Verdicts of `resolve` on a price that does not hold at an instant."""

_WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def holding(row: PriceRow) -> str:
    """When a row holds, for people: ``from 2026-08-16T16:00:00Z, mon-fri 01:00-04:00 UTC``."""
    hours = f", {hours_text(row.schedule)}" if row.schedule is not None else ""
    return interval_text(row.effective) + hours


def verdict_text(item: Considered, at: int) -> str:
    """What became of a price that was looked at, with the times that decided it."""
    row = item.row
    if row is not None and item.verdict == NOT_IN_FORCE:
        return f"{item.verdict}, but {interval_text(row.effective)}"
    if row is None or item.verdict != OUTSIDE_HOURS:
        return item.verdict
    assert row.schedule is not None
    moment = (_EPOCH + timedelta(microseconds=at // 1000)).astimezone(ZoneInfo(row.schedule.tz))
    excepted = ", an excepted day" if moment.date() in row.schedule.exceptions else ""
    there = f"{_WEEKDAYS[moment.weekday()]} {moment:%Y-%m-%d %H:%M}"
    return f"{item.verdict}, {hours_text(row.schedule)}; it was {there}{excepted}"


def interval_text(interval: Interval) -> str:
    """A half-open interval for people: ``from 2025-06-01 until 2026-01-01``, ``at any time``."""
    parts = []
    if interval.start is not None:
        parts.append(f"from {instant_text(interval.start)}")
    if interval.end is not None:
        parts.append(f"until {instant_text(interval.end)}")
    return " ".join(parts) or "at any time"


def hours_text(schedule: Schedule) -> str:
    """A schedule for people: ``mon-fri 01:00-04:00 06:00-10:00 UTC, except 11 days``."""
    by_day: dict[int, list[str]] = {}
    for day in range(7):
        midnight = day * DAY
        for start, end in schedule.stretches:
            first, last = max(start - midnight, 0), min(end - midnight, DAY)
            if first < last:
                by_day.setdefault(day, []).append(f"{_clock(first)}-{_clock(last)}")
    groups: dict[str, list[int]] = {}
    for day, hours in by_day.items():
        groups.setdefault(" ".join(hours), []).append(day)
    said = "; ".join(f"{_days(days)} {hours}" for hours, days in groups.items())
    days_off = len(schedule.exceptions)
    off = f", except {days_off} {'day' if days_off == 1 else 'days'}" if days_off else ""
    return f"{said} {schedule.tz}{off}"


def _clock(since_midnight: int) -> str:
    minutes = since_midnight // (60 * 10**9)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _days(days: list[int]) -> str:
    if len(days) > 2 and days == list(range(days[0], days[-1] + 1)):
        return f"{_WEEKDAYS[days[0]]}-{_WEEKDAYS[days[-1]]}"
    return ",".join(_WEEKDAYS[day] for day in days)
