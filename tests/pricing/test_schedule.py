"""Hours of a price: by the clock on the wall of a time zone, exactly where it is put forward and back."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.pricing.schedule import DAY, WEEK, Schedule, instant_text, week_of

HOUR = DAY // 24
MINUTE = HOUR // 60
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ZONES = (
    "UTC",
    "Asia/Shanghai",
    "Asia/Kolkata",
    "Europe/London",
    "Europe/Dublin",  # whose summer is its standard time
    "America/New_York",
    "America/St_Johns",  # half an hour off, and changed at one minute past midnight once
    "America/Sao_Paulo",  # changed at midnight: days that began at 01:00
    "Australia/Lord_Howe",  # changes by half an hour
    "Pacific/Apia",  # left out 30 December 2011
    "Pacific/Kwajalein",  # left out 21 August 1993
    "Africa/Casablanca",  # changes around Ramadan
    "Africa/Monrovia",  # was 44 minutes and 30 seconds off until 1972
)


def ns(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1) * 1000


def oracle(schedule: Schedule, at: int) -> bool:
    """What a person does: look at the clock in the zone, then at the list."""
    local = (EPOCH + timedelta(seconds=at // 10**9)).astimezone(ZoneInfo(schedule.tz))
    midnight = datetime(local.year, local.month, local.day)
    inside = (local.replace(tzinfo=None) - midnight) // timedelta(seconds=1) * 10**9 + at % 10**9
    week_time = local.weekday() * DAY + inside
    return local.date() not in schedule.exceptions and any(a <= week_time < b for a, b in schedule.stretches)


def changes(zone: str, year: int) -> list[int]:
    """Days (since the epoch) of a year at whose ends the zone's offsets differ."""
    first = (date(year, 1, 1) - date(1970, 1, 1)).days
    offsets = [(EPOCH + timedelta(days=first + n)).astimezone(ZoneInfo(zone)).utcoffset() for n in range(367)]
    return [first + n for n in range(366) if offsets[n] != offsets[n + 1]]


minutes = st.integers(0, 7 * 24 * 60 - 1)
stretches = st.lists(st.tuples(minutes, st.integers(1, 3 * 24 * 60)), min_size=1, max_size=5).map(
    lambda found: week_of((start * MINUTE, (start + length) * MINUTE) for start, length in found)
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Schedule, list[int]]:
    """A schedule, and instants: on days on which its zone's clocks are changed, at edges, and anywhere."""
    zone = draw(st.sampled_from(ZONES))
    days = [day for year in (1972, 1993, 2011, draw(st.integers(1975, 2037))) for day in changes(zone, year)]
    near = st.sampled_from(days or [20_000]).flatmap(lambda day: st.integers((day - 1) * DAY, (day + 2) * DAY))
    whole = near.map(lambda at: at // (30 * MINUTE) * 30 * MINUTE)
    anywhere = st.integers(-(2**63), 2**63 - 1)
    ats = draw(st.lists(st.one_of(near, whole, whole.map(lambda at: at - 1), anywhere), min_size=1, max_size=30))
    local = [(EPOCH + timedelta(seconds=at // 10**9)).astimezone(ZoneInfo(zone)).date() for at in ats]
    exceptions = draw(st.frozensets(st.sampled_from(local), max_size=2))
    return Schedule(draw(stretches), zone, exceptions), ats


@settings(max_examples=400, deadline=None)
@given(cases())
def test_one_instant_many_instants_and_the_clock_on_the_wall_agree(case: tuple[Schedule, list[int]]) -> None:
    schedule, ats = case
    expected = [oracle(schedule, at) for at in ats]
    assert [schedule.holds(at) for at in ats] == expected
    assert schedule.holds_many(np.array(ats, np.int64)).tolist() == expected


@pytest.mark.parametrize("zone", ZONES)
def test_every_hour_of_two_years_is_as_the_clock_says(zone: str) -> None:
    schedule = Schedule(((0, 9 * HOUR), (2 * DAY + 2 * HOUR, 3 * DAY + 30 * MINUTE), (6 * DAY, WEEK)), zone)
    start = ns("2010-12-31T00:00:00Z")
    ats = [start + n * 15 * MINUTE for n in range(2 * 366 * 96)]
    assert schedule.holds_many(np.array(ats, np.int64)).tolist() == [oracle(schedule, at) for at in ats]


def test_an_hour_that_is_skipped_is_never_there_and_one_that_is_repeated_is_there_twice() -> None:
    small_hours = Schedule(week_of((day * DAY + 2 * HOUR, day * DAY + 3 * HOUR) for day in range(7)), "Europe/Berlin")
    forward, back = ns("2026-03-29T00:00:00Z"), ns("2026-10-25T00:00:00Z")
    assert not any(small_hours.holds(forward + n * MINUTE) for n in range(6 * 60))
    assert [small_hours.holds(back + n * HOUR) for n in range(4)] == [True, True, False, False]
    assert small_hours.holds(back + 2 * HOUR - 1)
    assert not small_hours.holds(back + 2 * HOUR)


def test_exceptions_are_dates_of_the_zone() -> None:
    always = ((0, WEEK),)
    schedule = Schedule(always, "Asia/Shanghai", frozenset({date(2026, 10, 1)}))
    begin, end = ns("2026-10-01T00:00:00+08:00"), ns("2026-10-02T00:00:00+08:00")
    assert [schedule.holds(at) for at in (begin - 1, begin, end - 1, end)] == [True, False, False, True]
    in_utc = Schedule(always, "UTC", frozenset({date(2026, 10, 1)}))
    begin, end = ns("2026-10-01T00:00:00Z"), ns("2026-10-02T00:00:00Z")
    assert [in_utc.holds(at) for at in (begin - 1, begin, end - 1, end)] == [True, False, False, True]


@pytest.mark.parametrize(("zone", "offset"), [("UTC", 0), ("Asia/Shanghai", 8)])
def test_hours_begin_and_end_on_the_nanosecond(zone: str, offset: int) -> None:
    schedule = Schedule(((9 * HOUR, 10 * HOUR),), zone)  # of Monday
    begin = ns("2026-11-23T09:00:00Z") - offset * HOUR
    ats = [begin - 1, begin, begin + HOUR - 1, begin + HOUR]
    assert [schedule.holds(at) for at in ats] == [False, True, True, False]
    assert schedule.holds_many(np.array(ats, np.int64)).tolist() == [False, True, True, False]


def test_deepseek_s_peak_hours() -> None:
    peak = Schedule(
        week_of((day * DAY + a * HOUR, day * DAY + b * HOUR) for day in range(5) for a, b in ((1, 4), (6, 10))),
        "UTC",
        frozenset({date(2026, 10, 1)}),
    )
    cases = {
        "2026-11-20T01:00:00Z": True,
        "2026-11-20T03:59:59.999999Z": True,
        "2026-11-20T04:00:00Z": False,
        "2026-11-20T09:59:00Z": True,
        "2026-11-21T02:00:00Z": False,  # a Saturday
        "2026-10-01T02:00:00Z": False,  # a holiday
        "2026-10-02T02:00:00Z": True,
    }
    assert {text: peak.holds(ns(text)) for text in cases} == cases


@pytest.mark.parametrize("hours", [1, 24])
def test_instants_may_be_centuries_apart(hours: int) -> None:
    """With few hours a day and with many: they are compared in two ways."""
    schedule = Schedule(
        week_of((day * DAY + n * HOUR, day * DAY + n * HOUR + 50 * MINUTE) for day in range(7) for n in range(hours)),
        "Europe/Paris",
    )
    ats = np.array([-(2**63), 0, 2**63 - 1], np.int64)
    assert schedule.holds_many(ats).tolist() == [oracle(schedule, at) for at in ats.tolist()]
    assert schedule.holds_many(np.array([], np.int64)).tolist() == []


def test_what_a_schedule_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.pricing.schedule._KEPT_DAYS", 8)
    schedule = Schedule(((0, 9 * HOUR),), "Europe/Paris")
    ats = [day * DAY for day in range(20_000, 20_100)]
    assert [schedule.holds(at) for at in ats] == [oracle(schedule, at) for at in ats]
    assert len(schedule._kept) <= 8


def test_equal_schedules_are_one() -> None:
    one = Schedule(((0, 9 * HOUR),), "Europe/Paris", frozenset({date(2026, 1, 1)}))
    other = Schedule(((0, 9 * HOUR),), "Europe/Paris", frozenset({date(2026, 1, 1)}))
    one.holds(0)
    assert {one} == {other}
    assert one != Schedule(((0, 9 * HOUR),), "Europe/Paris")


def test_a_week_is_sorted_wrapped_and_joined() -> None:
    assert week_of([(6 * DAY, WEEK + HOUR), (3 * DAY, 4 * DAY), (HOUR, 2 * HOUR)]) == (
        (0, 2 * HOUR),
        (3 * DAY, 4 * DAY),
        (6 * DAY, WEEK),
    )
    assert week_of([(0, 3 * WEEK)]) == ((0, WEEK),)


def test_instants_for_people() -> None:
    assert instant_text(ns("2026-10-01T00:00:00Z")) == "2026-10-01"
    assert instant_text(ns("2026-10-01T12:30:00+02:00")) == "2026-10-01T10:30:00Z"


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_million_instants_are_a_matter_of_milliseconds(zone: str) -> None:
    """Thirty on the machine it was written on; the bound leaves room for one that is busy."""
    hours = week_of((day * DAY + a * HOUR, day * DAY + b * HOUR) for day in range(5) for a, b in ((1, 4), (6, 10)))
    schedule = Schedule(hours, zone)
    start = ns("2026-11-01T00:00:00Z")
    at = np.random.default_rng(1).integers(start, start + 5 * DAY, 1_000_000)
    began = time.perf_counter()
    schedule.holds_many(at)
    assert time.perf_counter() - began < 0.3


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York", "Pacific/Kiritimati"])
@pytest.mark.parametrize("at", [-(2**63), 2**63 - 1, -(2**70), 2**70, -(10**30), 10**30])
def test_every_int_is_an_instant(zone: str, at: int) -> None:
    always = Schedule(((0, WEEK),), zone)
    assert always.holds(at)
    weekend = Schedule(week_of([(5 * DAY, WEEK)]), zone)
    assert weekend.holds(at) == weekend.holds(at + WEEK)
    if abs(at) < 2**63:
        assert weekend.holds_many(np.array([at], np.int64)).tolist() == [weekend.holds(at)]


def test_a_day_of_the_year_12000_is_the_weekday_that_it_is() -> None:
    """400 years are whole weeks: 12 000-01-01 is the weekday of 2000-01-01, a Saturday."""
    cycle = 146_097 * DAY
    saturday = Schedule(week_of([(5 * DAY, 6 * DAY)]), "Asia/Shanghai")
    noon = ns("2000-01-01T04:00:00+00:00")
    assert [saturday.holds(noon + 25 * cycle + day * DAY) for day in range(-1, 2)] == [False, True, False]
