"""The clock of a device that tells its time by events in its streams (CUDA, HIP).

In: the begin and end of calls. Out: on each call's span ``tollspan.gpu.window``, from the device's reaching the call to
its being done, and ``tollspan.usage.gpu.seconds``, its share where windows of several streams overlap. Where it stands:
behind the `DeviceClock` interface; the driver is behind `Driver`, so that a fake device can stand in for it.

On the hot path two pooled events are recorded, under a lock that nothing else is done in. The rest happens in `poll`:

* Marks wait in the order in which a stream will reach them. When a mark's start is complete the mark is open; when its
  end is, its window is known.
* The horizon is the latest end that is known to be complete. Whatever the device did before that instant had been
  recorded by the host before it was seen complete: after taking the hot path's lock once, a second look finds every
  start and end up to the horizon. So everything up to it can be split, once, and a window that ends before it is final.
* Instants are nanoseconds on one axis for each device, as distances from an anchor event. The driver tells distances
  as 32-bit floats of milliseconds, good to half a microsecond at eight seconds: the anchor is renewed in time.
* Where the process's holding of the device is accounted for (`capacity.py`), what is split is told to it by the host's
  minutes. Where that axis lies on the host's is known within bounds: a device reaches a call after the call was
  recorded, and is done with it before that is seen.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic_ns
from typing import Any, Final, Protocol

from opentelemetry.trace import Span

from tollspan.instrumentation.capacity_minutes import Holding
from tollspan.instrumentation.device_clock import (
    GPU_SECONDS,
    STATUS_DROPPED,
    STATUS_ERROR,
    STATUS_OK,
    STATUS_TIMEOUT,
)
from tollspan.instrumentation.guard import guard, report
from tollspan.instrumentation.torch_resolver import Resolver
from tollspan.instrumentation.torch_sweep import sweep
from tollspan.pricing import attributes

MOST_PENDING: Final = 1024
"""Calls of one device whose time is not known yet; one more is not timed."""
_RENEW_NS: Final = 4_000_000_000
"""How far from its anchor an instant may be before a new anchor is taken."""
_LONGEST_CALL: Final = 3600 * 10**9
"""Nanoseconds after which a call that never ended is forgotten: the program was interrupted between our lines."""
_POLL: Final = "device.poll"
_FINISH: Final = guard("device.finish")


class Event(Protocol):
    """A point in a stream, as ``torch.cuda.Event`` is one."""

    def record(self, stream: Any) -> None: ...

    def query(self) -> bool:
        """Whether the device has passed it. Never called on the hot path."""
        ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds to another event; both are complete."""
        ...


class Driver(Protocol):
    """One device.

    Attributes:
        source: what measures its time, as `GPU_TIME_SOURCE` says it.
    """

    source: str

    def event(self) -> Event: ...

    def stream(self) -> Any:
        """The calling thread's current stream on this device."""
        ...

    def key(self, stream: Any) -> object:
        """Identity of a stream."""
        ...

    def capturing(self) -> bool:
        """Whether the calling thread's current stream is being captured into a graph."""
        ...


class Untimed:
    """Stands for the mark of a call that is not timed."""

    __slots__ = ("begun", "status")

    def __init__(self, status: str, begun: int) -> None:
        self.status = status
        self.begun = begun


class Mark:
    """A timed call. The hot path writes ``end``, ``lost``, ``span``, ``end_time``; the poll everything else."""

    __slots__ = ("begun", "end", "end_time", "lost", "share_ns", "span", "start", "start_ns", "stop_ns", "stream")

    def __init__(self, start: Event, stream: Any, begun: int) -> None:
        self.start = start
        self.stream = stream
        self.begun = begun
        self.end: Event | None = None
        self.lost = False
        self.span: Span | None = None
        self.end_time = 0
        self.start_ns = 0
        self.stop_ns: int | None = None
        self.share_ns = 0


class EventClock:
    """`DeviceClock` of one device.

    Args:
        driver: the device.
        resolver: calls `poll` until nothing is pending.
        most_pending: calls whose time may be unknown at once.
        now: the host's monotonic clock, ns.

    Attributes:
        holding: what the process holds of the device, where that is accounted for.
        busy_ns: nanoseconds that calls were open in: the sum of all shares so far.
        dropped: calls that were not timed because too many were pending.
    """

    def __init__(
        self,
        driver: Driver,
        resolver: Resolver,
        most_pending: int = MOST_PENDING,
        now: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._driver = driver
        self._resolver = resolver
        self._most = most_pending
        self._now = now
        self.busy_ns = 0
        self.dropped = 0
        self._broken = False
        self._start()
        resolver.add(self)
        if hasattr(os, "register_at_fork"):
            forget = weakref.WeakMethod(self._start)
            os.register_at_fork(after_in_child=lambda: (start := forget()) is not None and start())

    def _start(self) -> None:
        """Begins with nothing pending; also in a forked child, whose parent has its calls."""
        # Reentrant: the garbage collector may run a model in a destructor of the user's at any line.
        self._lock = threading.RLock()
        self._pool: deque[Event] = deque(maxlen=2 * self._most)
        self._waiting: dict[object, deque[Mark]] = {}
        self._open: list[Mark] = []
        self._known: list[Mark] = []  # final, but for the span that is to tell it
        self._pending = 0
        self._held = 0
        self._anchor: Event | None = None
        self._anchor_ns = 0
        self._horizon: int | None = None
        self.holding: Holding | None = None
        self._offset: int | None = None  # of this device's axis on the host's
        self._lossy = False

    # -- the hot path --------------------------------------------------------------------------------------------------

    def capturing(self) -> bool:
        # A capture anywhere forbids to others more than can be told from here.
        return self._resolver.captures > 0 or self._driver.capturing()

    def captured(self) -> bool:
        """Whether a call that begins now becomes part of a graph, and is not executed."""
        return self._driver.capturing()

    def begin(self, stream: object | None = None) -> object:
        if self._broken:
            return self._untimed(STATUS_ERROR)
        if self._pending >= self._most:
            self.dropped += 1
            self._lossy = True
            return self._untimed(STATUS_DROPPED)
        driver = self._driver
        if stream is None:
            stream = driver.stream()
        key = driver.key(stream)
        mark = Mark(self._event(), stream, self._now())
        with self._lock:  # so that marks of a stream wait in the order in which the stream reaches them
            mark.start.record(stream)
            waiting = self._waiting.get(key)
            if waiting is None:
                waiting = self._waiting[key] = deque()
            waiting.append(mark)
            self._pending += 1
        return mark

    def end(self, mark: object | None) -> None:
        if not isinstance(mark, Mark):
            return
        try:
            event = self._event()
            with self._lock:
                event.record(mark.stream)
                mark.end = event
        except BaseException:
            mark.lost = True
            self._unknown(mark.begun, STATUS_ERROR)
            raise

    def settle(self, mark: object | None, span: Span, end_time: int) -> bool:
        if not isinstance(mark, Mark) or mark.lost or mark.end is None:
            status = mark.status if isinstance(mark, Untimed) else STATUS_ERROR
            span.set_attribute(attributes.GPU_TIME_STATUS, status)
            if isinstance(mark, (Mark, Untimed)):
                self._unknown(mark.begun, status)
            return False
        self._resolver.watch(span)
        mark.end_time = end_time
        with self._lock:
            self._held += 1
        mark.span = span  # from here on it is the poll's
        self._resolver.wake()
        return True

    def _event(self) -> Event:
        try:
            return self._pool.pop()
        except IndexError:
            return self._driver.event()

    def _untimed(self, status: str) -> Untimed:
        now = self._now()
        self._unknown(now, status)
        return Untimed(status, now)

    def _unknown(self, since: int, status: str) -> None:
        """What the device did since then is not known to the last nanosecond."""
        holding = self.holding
        if holding is not None:
            holding.unknown(since, self._now(), status)

    # -- off the hot path ----------------------------------------------------------------------------------------------

    def oldest(self) -> int | None:
        """When the oldest call began whose time is not told to the holding yet, on the host's clock."""
        with self._resolver.asking, self._lock:
            waiting = [mark for queue in self._waiting.values() for mark in queue]
            return min((mark.begun for mark in (*waiting, *self._open) if not mark.lost), default=None)

    def drain(self, seconds: float) -> None:
        self._resolver.drain(seconds)

    @property
    def held(self) -> int:
        """Spans that wait for their time."""
        return self._held

    def poll(self) -> int:
        done: list[Mark] = []
        with self._resolver.asking:
            if self._held and not self._broken and not self._resolver.paused():
                try:
                    self._advance()
                    done = self._settled()
                except Exception as error:  # noqa: BLE001
                    # The driver's errors last: nothing that is recorded after one is ever complete.
                    report(_POLL, error)
                    self._broken = True
            failed = self._taken(lambda mark: mark.span is not None or mark.lost) if self._broken else []
        self._finish(done, STATUS_OK)
        self._finish(failed, STATUS_ERROR)
        if self._lossy:  # those that were not timed are worked on among those that are
            self._unknown(self._now(), STATUS_DROPPED)
            self._lossy = self._pending > 0
        return self._held

    def expire(self) -> None:
        """Ends the spans of calls that the device has not finished: there is no time left to wait for it."""
        with self._resolver.asking:
            late = self._taken(lambda mark: mark.span is not None)
        self._finish(late, STATUS_TIMEOUT)

    def _advance(self) -> None:
        """Moves the horizon to the latest end that is complete, and splits what lies before it."""
        self._look()
        ends = [mark for mark in self._open if mark.stop_ns is not None]
        if not ends:
            return
        last = max(ends, key=_stop)
        with self._lock:
            pass  # whoever was about to tell of an event that the device has passed, has done so now
        self._look()
        until = _stop(last)
        since = self._horizon if self._horizon is not None else min(mark.start_ns for mark in self._open)
        if until > since:
            self._split(since, until)
            self._horizon = until
        else:
            until = since
        self._known += [mark for mark in self._open if mark.stop_ns is not None and mark.stop_ns <= until]
        self._open = [mark for mark in self._open if mark.stop_ns is None or mark.stop_ns > until]
        if until - self._anchor_ns > _RENEW_NS and last.end is not None:
            self._renew(last.end, _stop(last))

    def _split(self, since: int, until: int) -> None:
        """Shares out what lies between two instants, and tells the holding of each minute's part."""
        holding = self.holding
        if holding is None or self._offset is None:
            self.busy_ns += sweep(self._open, since, until)
            return
        offset = self._offset
        for begin, end in holding.pieces(since + offset, until + offset):
            union = sweep(self._open, begin - offset, end - offset)
            self.busy_ns += union
            holding.add(begin, union)

    def _look(self) -> None:
        """Finds which starts and ends the device has passed."""
        for key, waiting in list(self._waiting.items()):
            while waiting and (waiting[0].lost or waiting[0].start.query()):
                mark = waiting[0]
                if mark.lost:
                    self._forget(mark)
                else:
                    mark.start_ns = self._instant(mark.start)
                    self._open.append(mark)
                    earliest = mark.begun - mark.start_ns
                    self._offset = earliest if self._offset is None else max(self._offset, earliest)
                waiting.popleft()  # not before: the driver may refuse, and whoever waits has to be found then
            with self._lock:
                if not waiting and self._waiting.get(key) is waiting:
                    del self._waiting[key]
        now = self._now()
        for mark in tuple(self._open):
            if mark.lost or (mark.end is None and now - mark.begun > _LONGEST_CALL):
                self._open.remove(mark)
                self._forget(mark)
            elif mark.stop_ns is None and mark.end is not None and mark.end.query():
                # The distance between the two is more precise than that to the anchor.
                mark.stop_ns = mark.start_ns + max(0, _nanoseconds(mark.start.elapsed_time(mark.end)))
                latest = self._now() - mark.stop_ns
                self._offset = latest if self._offset is None else min(self._offset, latest)

    def _instant(self, event: Event) -> int:
        """Where a complete event is on this device's axis, in nanoseconds."""
        if self._anchor is None:
            self._anchor = event
            return self._anchor_ns
        instant = self._anchor_ns + _nanoseconds(self._anchor.elapsed_time(event))
        if instant - self._anchor_ns > _RENEW_NS:
            self._renew(event, instant)
        return instant

    def _renew(self, event: Event, instant: int) -> None:
        old, self._anchor, self._anchor_ns = self._anchor, event, instant
        if old is not None and not any(old is mark.start or old is mark.end for mark in (*self._open, *self._known)):
            self._pool.append(old)  # its own call is over, and has kept it back for us

    def _settled(self) -> list[Mark]:
        done = [mark for mark in self._known if mark.span is not None]
        self._known = [mark for mark in self._known if mark.span is None]
        for mark in done:
            self._pool.extend(e for e in (mark.start, mark.end) if e is not None and e is not self._anchor)
        return done

    def _taken(self, which: Callable[[Mark], bool]) -> list[Mark]:
        """Takes marks out of everything."""
        with self._lock:
            waiting = [mark for queue in self._waiting.values() for mark in queue]
            taken = [mark for mark in (*waiting, *self._open, *self._known) if which(mark)]
            gone = {id(mark) for mark in taken}
            for queue in self._waiting.values():
                kept = [mark for mark in queue if id(mark) not in gone]
                queue.clear()
                queue.extend(kept)
            self._open = [mark for mark in self._open if id(mark) not in gone]
            self._known = [mark for mark in self._known if id(mark) not in gone]
        return taken

    def _forget(self, mark: Mark) -> None:
        self._unknown(mark.begun, STATUS_ERROR)
        with self._lock:
            self._pending -= 1

    def _finish(self, marks: Iterable[Mark], status: str) -> None:
        """Puts what is known on the spans and ends them. Outside of every lock: what hears of it is the user's."""
        for mark in marks:
            if status != STATUS_OK:
                self._unknown(mark.begun, status)
            about: dict[str, Any] = {attributes.GPU_TIME_STATUS: status}
            if status == STATUS_OK and mark.stop_ns is not None:
                about[attributes.GPU_TIME_SOURCE] = self._driver.source
                about[attributes.GPU_WINDOW] = (mark.stop_ns - mark.start_ns) / 1e9
                about[GPU_SECONDS] = mark.share_ns / 1e9
                if self.holding is not None and self.holding.shared is not None:
                    about[attributes.GPU_SHARED] = self.holding.shared
            with _FINISH:
                if mark.span is not None:
                    try:
                        mark.span.set_attributes(about)
                    finally:
                        mark.span.end(mark.end_time)
            with self._lock:
                self._pending -= 1
                self._held -= mark.span is not None


def _stop(mark: Mark) -> int:
    assert mark.stop_ns is not None
    return mark.stop_ns


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1_000_000)
