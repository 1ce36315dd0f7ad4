"""What every stage of the processor counts and times, by name.

In: ``add("receive.requests")`` from any thread. Out: `Counters.snapshot`, read by metrics, shutdown reports and tests.
A counter only grows, and counts from the start of the process; what comes and goes (bytes on disk, queue lengths) is a
gauge: a function that is asked when somebody looks (``gauge("journal.bytes", lambda: …)``). Times go into histograms
(``histogram("pipeline.stage", "decode").observe(seconds)``). Names are ``<stage>.<what>``, and
``<stage>.<what>.<reason>`` where one thing has several reasons; `metrics` says what each means.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of a histogram's buckets."""


class Observed(NamedTuple):
    """What a histogram has seen: how many in each bucket and above the last bound, their sum, least and most."""

    counts: tuple[int, ...]
    total: float
    least: float
    most: float


class Histogram:
    """Times in buckets; safe to use from several threads, about 0.4 µs a call."""

    __slots__ = ("_counts", "_least", "_lock", "_most", "_total", "bounds")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = self._most = 0.0
        self._least = float("inf")
        self._lock = threading.Lock()

    def observe(self, seconds: float) -> None:
        """Put a time in."""
        bucket = bisect_left(self.bounds, seconds)
        with self._lock:
            self._counts[bucket] += 1
            self._total += seconds
            if seconds < self._least:
                self._least = seconds
            if seconds > self._most:
                self._most = seconds

    def observed(self) -> Observed:
        """All that was put in so far."""
        with self._lock:
            return Observed(tuple(self._counts), self._total, self._least, self._most)


class Laps:
    """A stopwatch over the stages of one thread: each `lap` is the time since the one before it."""

    __slots__ = ("_counters", "_name", "_of", "_since")

    def __init__(self, counters: Counters, name: str) -> None:
        self._of: dict[str, Histogram] = {}
        self._counters, self._name = counters, name
        self._since = perf_counter()

    def start(self) -> None:
        """Time from now on; what passed until now belongs to no stage."""
        self._since = perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = perf_counter()
        known = self._of.get(stage)
        if known is None:
            known = self._of[stage] = self._counters.histogram(self._name, stage)
        known.observe(now - self._since)
        self._since = now


class Counters:
    """A thread-safe set of named counters, gauges and histograms; a counter exists from its first `add` on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, int] = {}
        self._gauges: dict[str, Callable[[], float | None]] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def add(self, name: str, count: int = 1) -> None:
        """Add ``count`` (0 makes the name appear in snapshots before anything is counted).

        Raises:
            ValueError: ``count`` is negative.
        """
        if count < 0:
            raise ValueError(f"counter {name} cannot go down (got {count})")
        with self._lock:
            self._values[name] = self._values.get(name, 0) + count

    def add_all(self, counts: Mapping[str, int]) -> None:
        """Add several at once: no snapshot sees some of them without the others.

        Raises:
            ValueError: one of the counts is negative; nothing is added then.
        """
        for name, count in counts.items():
            if count < 0:
                raise ValueError(f"counter {name} cannot go down (got {count})")
        with self._lock:
            for name, count in counts.items():
                self._values[name] = self._values.get(name, 0) + count

    def get(self, name: str) -> int:
        """The count so far, 0 for a name that nothing was added to."""
        with self._lock:
            return self._values.get(name, 0)

    def snapshot(self) -> dict[str, int]:
        """All counters at one instant, sorted by name."""
        with self._lock:
            return dict(sorted(self._values.items()))

    def gauge(self, name: str, read: Callable[[], float | None]) -> None:
        """Have ``read`` asked for the value of a gauge; None where there is none just now. The last one given holds."""
        with self._lock:
            self._gauges[name] = read

    def gauges(self) -> dict[str, float]:
        """What is the case now, sorted by name. A gauge whose function fails is left out, and counted."""
        with self._lock:
            readers = sorted(self._gauges.items())
        found = {}
        for name, read in readers:
            try:
                value = read()
            except Exception:
                log.debug("gauge %s cannot be read", name, exc_info=True)
                self.add("metrics.unread_gauges")
                continue
            if value is not None:
                found[name] = value
        return found

    def histogram(self, name: str, part: str = "") -> Histogram:
        """The histogram of a name, one for each of its parts; made when it is first asked for."""
        with self._lock:
            found = self._histograms.get((name, part))
            if found is None:
                found = self._histograms[name, part] = Histogram()
            return found

    def histograms(self) -> dict[tuple[str, str], Histogram]:
        """All histograms by name and part."""
        with self._lock:
            return dict(sorted(self._histograms.items()))
