"""What a process holds and how much of it is at work, minute by minute.

In: who works on a device tells when it did, and for how long. Out: of each minute of the wall clock how much was
allocated, how much was busy, and so how much was idle. Where it stands: pure, below `capacity.py`; the clocks of
devices (`torch_events.py`, ``onnxruntime/devices.py``) report to a `Holding`.

* Instants are nanoseconds of the host's monotonic clock. A minute is aligned to the wall clock when it begins.
* A minute is closed when nothing that was enqueued before its end is still unknown (`Source.oldest`): so every
  nanosecond that a call is given is in some minute, and none is found after its minute was told.
* Laws, to the nanosecond: idle + busy = allocated for every minute whose busy time is known, idle is never below zero,
  and the busy time of all minutes is the sum of what was reported. What does not fit into a minute (a device's clock
  and the host's differ by millionths) is busy time of the next; what does not fit into the last one either makes that
  one ``over``: then two clocks of one device were each given the same time.
* Unknown is never zero: a minute in which a call was not timed has no busy and no idle time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from time import monotonic_ns, time_ns
from typing import Any, Final, Protocol

MINUTE_NS: Final = 60_000_000_000
OK: Final = "ok"
PENDING: Final = "pending"
SHARED: Final = "shared"
OVER: Final = "over"
"""States of a minute, see `attributes.CAPACITY_STATUS`; the others are those of a call's device time."""
_MOST_OPEN: Final = 90
"""Minutes that wait for a call to end; the oldest of more is told without its busy time."""
_STEP_NS: Final = 1_000_000_000
"""By how much the wall clock may go another way than the monotonic one before a minute takes its time from it anew."""


class Source(Protocol):
    """Who reports busy time."""

    def oldest(self) -> int | None:
        """When the oldest call was enqueued whose time is not reported yet; None where there is none."""
        ...

    def drain(self, seconds: float) -> None:
        """Waits for what is not reported yet, ``seconds`` at most."""
        ...


class Minute:
    """A minute of a holding that is not told yet.

    Attributes:
        begun, end: host's monotonic clock, ns.
        wall: when it began, ns since the epoch.
        busy: ns that were reported for it.
        unknown: why its busy time is not known; None where it is.
        samples, percents: how often somebody looked how much the device had to do, and the sum of what was seen.
    """

    __slots__ = ("begun", "busy", "end", "percents", "samples", "unknown", "wall")

    def __init__(self, begun: int, wall: int) -> None:
        self.begun = begun
        self.wall = wall
        self.end = begun + MINUTE_NS - wall % MINUTE_NS
        self.busy = 0
        self.unknown: str | None = None
        self.samples = self.percents = 0

    @property
    def utilized(self) -> int | None:
        """Nanoseconds by those samples; None where nobody looked."""
        return (self.end - self.begun) * self.percents // (100 * self.samples) if self.samples else None


@dataclass(frozen=True, slots=True)
class Closed:
    """A minute, or the part of one that was held. Nanoseconds.

    Attributes:
        wall: its begin, since the epoch.
        length: from begin to end.
        allocated: what was held: its length times the holding's share.
        busy: what was at work; None where that is not known.
        idle: the rest; None where that is not known.
        status: ``ok`` or why something is not known.
        utilized: at work by samples of the whole device; None where there are none.
    """

    wall: int
    length: int
    allocated: int
    busy: int | None
    idle: int | None
    status: str
    utilized: int | None = None


class Holding:
    """What the process holds of one device, or of the CPUs.

    Args:
        about: attributes of its spans.
        share: how much of a second of it is allocated to this process in a second: a part of a device, or several
            CPUs; None where nobody said, which is the whole of it.
        now, wall: the monotonic clock and the wall clock, ns.

    Attributes:
        share: as above; may change, and holds from the next minute that is closed.
        shared: whether other processes were seen on it; None where nobody can tell.
        now: the monotonic clock, ns.
        begun: when it was taken, by that clock.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        share: Fraction | None = None,
        now: Callable[[], int] = monotonic_ns,
        wall: Callable[[], int] = time_ns,
    ) -> None:
        self.about = dict(about)
        self.share = share
        self.shared: bool | None = None
        self.now = now
        self._wall = wall
        self._sources: list[Source] = []
        self._lock = threading.RLock()
        self._carried = 0
        self.begun = now()
        self._minutes = [Minute(self.begun, wall())]

    def reported_by(self, source: Source) -> None:
        """Calls that ``source`` has not reported keep their minute open."""
        with self._lock:
            if source not in self._sources:
                self._sources.append(source)

    # -- who reports ---------------------------------------------------------------------------------------------------

    def pieces(self, since: int, until: int) -> list[tuple[int, int]]:
        """``[since, until)`` cut where minutes end."""
        with self._lock:
            self._reach()
            ends = [minute.end for minute in self._minutes if since < minute.end < until]
        return list(zip([since, *ends], [*ends, until], strict=True))

    def add(self, at: int, nanoseconds: int) -> None:
        """The device was busy for ``nanoseconds`` from ``at`` on, all of them in one minute (`pieces`)."""
        if not nanoseconds:
            return
        with self._lock:
            self._reach()
            minute = self._minutes[0]  # also for what comes after its own was told, which a clock's jump may do
            for each in self._minutes:
                if each.begun > at:
                    break
                minute = each
            minute.busy += nanoseconds

    def spread(self, since: int, until: int, nanoseconds: int) -> None:
        """``nanoseconds`` of busy time, evenly over ``[since, until)``."""
        told, length = 0, max(1, until - since)
        for begin, end in self.pieces(since, max(until, since + 1)):
            due = nanoseconds * (end - since) // length
            self.add(begin, due - told)
            told = due

    def unknown(self, since: int, until: int, why: str) -> None:
        """What the device did for some call between these instants is not known."""
        with self._lock:
            self._reach()
            for minute in self._minutes:
                if minute.begun <= until and since < minute.end and minute.unknown is None:
                    minute.unknown = why

    def sampled(self, percent: int) -> None:
        """So much the device had to do just now, for whomever."""
        with self._lock:
            self._reach()
            self._minutes[-1].samples += 1
            self._minutes[-1].percents += percent

    def untimed(self, why: str) -> None:
        """What the device does now is not known."""
        now = self.now()
        self.unknown(now, now, why)

    # -- who tells -----------------------------------------------------------------------------------------------------

    @property
    def next_end(self) -> int:
        """When the minute ends that is now."""
        with self._lock:
            return self._minutes[-1].end

    @property
    def waits(self) -> bool:
        """Whether a minute that is over is not told yet."""
        with self._lock:
            return len(self._minutes) > 1

    def close(self) -> list[Closed]:
        """The minutes that are over, and of which everything is known."""
        now = self.now()
        # Before our lock: a source asks for it inside its own. What begins from here on begins after every minute that
        # is over now.
        oldest = [each for source in tuple(self._sources) if (each := source.oldest()) is not None]
        with self._lock:
            self._reach(now)
            return self._told(min([now, *oldest]))

    def finish(self, seconds: float) -> list[Closed]:
        """All minutes that are left, the last one as far as it goes: the process lets go of it.

        Args:
            seconds: how long to wait for what is not reported yet.
        """
        sources = tuple(self._sources)
        for source in sources:
            source.drain(seconds)
        told = self.close()
        open_still = any(source.oldest() is not None for source in sources)
        with self._lock:
            self._reach()
            *before, last = self._minutes
            last.end = max(self.now(), last.begun)
            for minute in (*before, last) if open_still else before:
                minute.unknown = minute.unknown or PENDING
            told += [self._closed(minute, minute is last) for minute in self._minutes if minute.end > minute.begun]
            self._minutes = [Minute(last.end, last.wall + last.end - last.begun)]
        return told

    # -- within --------------------------------------------------------------------------------------------------------

    def _reach(self, now: int | None = None) -> None:
        """Begins the minutes up to now."""
        if now is None:
            now = self.now()
        while (last := self._minutes[-1]).end <= now:
            wall = last.wall + last.end - last.begun
            true = self._wall() - (self.now() - last.end)
            self._minutes.append(Minute(last.end, true if abs(true - wall) > _STEP_NS else wall))

    def _told(self, until: int) -> list[Closed]:
        told = []
        while len(self._minutes) > 1 and (self._minutes[0].end <= until or len(self._minutes) > _MOST_OPEN):
            minute = self._minutes.pop(0)
            if minute.end > until:
                minute.unknown = minute.unknown or PENDING
            told.append(self._closed(minute))
        return told

    def _closed(self, minute: Minute, last: bool = False) -> Closed:
        length = minute.end - minute.begun
        share = Fraction(1) if self.share is None else self.share
        allocated = length * share.numerator // share.denominator
        had = minute.busy + self._carried
        fits = had if last else min(had, allocated)
        self._carried = had - fits
        busy: int | None = fits
        idle: int | None = max(0, allocated - fits)
        status = OVER if fits > allocated else OK
        if minute.unknown is not None:
            busy, idle, status = None, None, minute.unknown
        elif self.shared and self.share is None:
            # Each process would take the whole of what is idle for its own.
            idle, status = None, SHARED
        return Closed(minute.wall, length, allocated, busy, idle, status, minute.utilized)


def untimed(clock: object, why: str) -> None:
    """A call on the device of ``clock`` will not be timed: what the device does in this minute is not known.

    Args:
        clock: a `DeviceClock`, of a device that is held or not; may be None.
        why: a call's `GPU_TIME_STATUS`.
    """
    for each in getattr(clock, "clocks", (clock,)):
        holding = getattr(each, "holding", None)
        captured = getattr(each, "captured", None)
        # What is captured into a graph is not executed.
        if holding is not None and (captured is None or not captured()):
            holding.untimed(why)
