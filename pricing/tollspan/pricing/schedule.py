"""Schedules: the hours in which a price holds, in a time zone, with days on which it does not.

In: a time zone, stretches of the local week, local dates that are excepted. Out: whether an instant is inside, for one
instant (`Schedule.holds`) and for a million (`Schedule.holds_many`), by the same edges.

What decides is the clock on the wall in the zone: an hour that the zone's clocks repeat is inside both times, one that
they skip is never there. A schedule in UTC without exceptions repeats by the week. Any other is worked out one UTC day
at a time, because a zone's offset changes by the government's calendar and not by a rule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SECOND: Final = 10**9
DAY: Final = 86_400 * SECOND
WEEK: Final = 7 * DAY

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MONDAY: Final = 4 * DAY
"""The first Monday after the epoch, a Thursday, in ns."""
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_DAY_S: Final = 86_400
_KEPT_DAYS: Final = 4096
"""Days whose edges one schedule remembers: eleven years in a row."""
_CLOSE_DAYS: Final = 400
"""Instants in a stretch of so many days need not be sorted into days first."""
_FEW_EDGES: Final = 32
_INT64: Final = (-(2**63), 2**63 - 1)
_CYCLE_DAYS: Final = 146_097
"""The calendar repeats after 400 years, which are whole weeks."""
_DATED_DAYS: Final = (date(1, 1, 4).toordinal() - _EPOCH_ORDINAL, date(9999, 12, 28).toordinal() - _EPOCH_ORDINAL)
"""First and last UTC day whose local dates, and those beside it, can be told in any zone."""

Edges = tuple[int, ...]
"""Ascending instants at which a schedule begins, ends, begins ...: after an odd number of them it holds."""


@dataclass(frozen=True)
class Schedule:
    """Hours of the week in a time zone, without some dates. Equal ones are equal and have one hash.

    Attributes:
        stretches: half-open stretches of the local week, ns since Monday 00:00, sorted and disjoint, those that touch
            joined.
        tz: IANA name of the time zone.
        exceptions: local dates on which nothing of it holds.
    """

    stretches: tuple[tuple[int, int], ...]
    tz: str = "UTC"
    exceptions: frozenset[date] = frozenset()

    def holds(self, at: int) -> bool:
        """Whether the instant (ns since the epoch) is inside. Any int is an instant: what lies outside the years 1 to
        9999 is as the same day of a year inside, whole cycles of the calendar away."""
        if self._weekly is not None:
            return bisect_right(self._weekly, at % WEEK) % 2 == 1
        day, inside = divmod(at, DAY)
        return bisect_right(self._edges(day), inside) % 2 == 1

    def holds_many(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`holds` of each of n instants."""
        import numpy as np

        if not at.size:
            return np.zeros(at.shape, bool)
        if self._weekly is not None:
            return _inside(self._weekly, at % WEEK)
        first, last = int(at.min()) // DAY, int(at.max()) // DAY
        days: Iterable[int] = range(first, last + 1)
        if last - first >= _CLOSE_DAYS:
            days = np.unique(at // DAY).tolist()
        edges = [day * DAY + edge for day in days for edge in self._edges(day)]
        low, high = _INT64  # an edge out of range is passed by all or by none
        return _inside([max(edge, low) for edge in edges if edge <= high], at)

    @cached_property
    def _weekly(self) -> Edges | None:
        """Edges in the week from the epoch's Thursday, where every week is like it."""
        if self.tz != "UTC" or self.exceptions:
            return None
        return _flat(week_of((start + _MONDAY, end + _MONDAY) for start, end in self.stretches))

    @cached_property
    def _by_weekday(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Stretches of each day from Monday, ns since its midnight."""
        days: list[tuple[tuple[int, int], ...]] = []
        for midnight in range(0, WEEK, DAY):
            cut = ((max(start - midnight, 0), min(end - midnight, DAY)) for start, end in self.stretches)
            days.append(tuple((start, end) for start, end in cut if start < end))
        return tuple(days)

    @cached_property
    def _kept(self) -> dict[int, Edges]:
        return {}

    def _edges(self, day: int) -> Edges:
        first, last = _DATED_DAYS
        if not first <= day <= last:
            day -= _CYCLE_DAYS * ((day - last) // _CYCLE_DAYS + 1 if day > last else (day - first) // _CYCLE_DAYS)
        found = self._kept.get(day)
        if found is None:
            if len(self._kept) >= _KEPT_DAYS:
                self._kept.clear()
            found = self._kept[day] = _flat(_joined(self._work_out(day)))
        return found

    def stretches_of(self, day: int) -> list[tuple[int, int]]:
        """Stretches of a UTC day (days since the epoch) in which it holds, ns since its midnight."""
        edges = self._edges(day)
        return list(zip(edges[::2], edges[1::2], strict=True))

    def _work_out(self, day: int) -> Iterator[tuple[int, int]]:
        for since, until, offset in _offsets(ZoneInfo(self.tz), day):
            for local in range((since + offset) // DAY, (until + offset - 1) // DAY + 1):
                on = date.fromordinal(_EPOCH_ORDINAL + day + local)
                if on in self.exceptions:
                    continue
                midnight = local * DAY - offset
                for start, end in self._by_weekday[on.weekday()]:
                    start, end = max(start + midnight, since), min(end + midnight, until)
                    if start < end:
                        yield start, end


def _offsets(zone: ZoneInfo, day: int) -> Iterator[tuple[int, int, int]]:
    """Stretches of a UTC day with one offset from UTC: (from, to, offset), ns, the first two since its midnight.

    There are at most two: in none of tzdata's 599 zones (2026-11) do two changes lie closer together than 95 hours.
    """
    midnight = _EPOCH + timedelta(days=day)

    def offset(second: int) -> int:
        away = (midnight + timedelta(seconds=second)).astimezone(zone).utcoffset()
        assert away is not None  # a ZoneInfo always has one
        return away // timedelta(seconds=1)

    before, after = 0, _DAY_S
    early, late = offset(before), offset(after)
    if early == late:
        yield 0, DAY, early * SECOND
        return
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (middle, after) if offset(middle) == early else (before, middle)
    yield 0, after * SECOND, early * SECOND
    yield after * SECOND, DAY, late * SECOND


def week_of(stretches: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Stretches of a week, ns since its beginning, as a `Schedule` holds them: what runs past the end stands at the
    beginning, sorted, those that overlap or touch joined."""
    cut: list[tuple[int, int]] = []
    for start, end in stretches:
        first = start // WEEK * WEEK
        cut.extend(((start - first, min(end - first, WEEK)), (0, min(end - first - WEEK, WEEK))))
    return _joined((start, end) for start, end in cut if start < end)


def _joined(stretches: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Half-open stretches sorted, those that overlap or touch joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def _flat(stretches: Iterable[tuple[int, int]]) -> Edges:
    return tuple(edge for stretch in stretches for edge in stretch)


def _inside(edges: Sequence[int], at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each instant has an odd number of edges behind it."""
    import numpy as np

    if len(edges) > _FEW_EDGES:
        return (np.searchsorted(np.array(edges, np.int64), at, side="right") & 1).astype(bool)
    odd = np.zeros(at.shape, bool)
    for edge in edges:  # each flips what is behind it: for a few, faster than a search
        odd ^= at >= edge
    return odd


def instant_text(at: int) -> str:
    """An instant as errors and ids show it: a date where it is the first one of a day in UTC."""
    text = (_EPOCH + timedelta(microseconds=at // 1000)).isoformat().removesuffix("+00:00")
    return text.removesuffix("T00:00:00") if text.endswith("T00:00:00") else f"{text}Z"
