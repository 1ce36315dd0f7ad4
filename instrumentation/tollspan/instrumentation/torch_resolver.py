"""Who asks the devices: one thread for all of them, and whoever flushes.

In: clocks with calls whose time is not known yet. Out: their `poll`, until it is. Where it stands: beside
`torch_events.py`. The thread sleeps while nothing is pending. A span that waits for its time is unknown to the tracer
provider, whose flush and shutdown would miss it: so a span processor of ours stands in front of the provider's others.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any, Final, Protocol

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import Span

from tollspan.instrumentation.guard import guard, report

INTERVAL: Final = 0.01
"""Seconds between two looks while something is pending: at 1 ms they cost a small model 3 %, at 20 ms nothing."""
SHUTDOWN: Final = 5.0
"""Seconds that a shutdown waits for the devices."""
_LONGEST_CAPTURE: Final = 300.0
"""Seconds after which a capture that nobody has ended counts as over."""
_WATCH: Final = guard("device.watch")
_LOOP: Final = "device.resolver"


class Polled(Protocol):
    @property
    def held(self) -> int: ...

    def poll(self) -> int: ...

    def expire(self) -> None: ...


class Resolver:
    """Polls clocks while they have something pending.

    Args:
        interval: seconds between polls.
        thread: whether it has a thread of its own; a test that polls by itself needs none.

    Attributes:
        asking: held by whoever asks a device something, and by nobody else for longer than an instant.
        captures: graphs that are being captured in this process now. Nothing is asked meanwhile, since a query from
            any thread may make a capture fail.
    """

    def __init__(self, interval: float = INTERVAL, *, thread: bool = True) -> None:
        self._interval = interval
        self._threaded = thread
        self._clocks: list[Polled] = []
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._last: Callable[[], Any] = lambda: None
        self._start()
        if hasattr(os, "register_at_fork"):
            start = weakref.WeakMethod(self._start)
            os.register_at_fork(after_in_child=lambda: (again := start()) is not None and again())

    def _start(self) -> None:
        self._lock = threading.RLock()
        self.asking = threading.RLock()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self.captures = 0
        self._captured_since = 0.0

    def add(self, clock: Polled) -> None:
        with self._lock:
            self._clocks.append(clock)

    def wake(self) -> None:
        """Something is pending. On the hot path."""
        if self._threaded and not self._work.is_set():
            self._work.set()
            if self._thread is None:
                with self._lock:
                    if self._thread is None:
                        self._thread = threading.Thread(target=self._loop, name="tollspan-device-clock", daemon=True)
                        self._thread.start()

    def held(self) -> int:
        """Spans that wait for their time."""
        return sum(clock.held for clock in self._clocks)

    def poll(self) -> int:
        """Asks every device once; returns how many spans still wait."""
        return sum([clock.poll() for clock in tuple(self._clocks)])

    def drain(self, seconds: float) -> bool:
        """Waits until no span waits, ``seconds`` at most. Returns whether that is so."""
        deadline = monotonic() + seconds
        while self.poll():
            if monotonic() >= deadline:
                return False
            sleep(0.001)
        return True

    def expire(self) -> None:
        """Ends what is still held."""
        for clock in tuple(self._clocks):
            clock.expire()

    # -- graphs --------------------------------------------------------------------------------------------------------

    def paused(self) -> bool:
        """Whether nothing may be asked now."""
        return self.captures > 0 and monotonic() - self._captured_since < _LONGEST_CAPTURE

    def capture_begins(self) -> None:
        """A graph is about to be captured. Returns when nobody asks a device any more."""
        with self.asking:
            self.captures += 1
            self._captured_since = monotonic()

    def capture_ended(self) -> None:
        with self.asking:
            self.captures = max(0, self.captures - 1)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Round a capture."""
        self.capture_begins()
        try:
            yield
        finally:
            self.capture_ended()

    # -- providers -----------------------------------------------------------------------------------------------------

    def watch(self, span: Span) -> None:
        """See to it that the provider of ``span``, which is about to be held, flushes us first."""
        with _WATCH:
            processors = getattr(span, "_span_processor", None)
            if processors is not None:
                self.watch_processors(processors)

    def watch_processors(self, processors: Any) -> None:
        """See to it that the provider whose span processors these are flushes us first."""
        with _WATCH:
            if self._last() is processors:
                return
            with self._lock:
                self._last = weakref.ref(processors)
                if processors in self._watched:
                    return
                self._watched.add(processors)
                first = Drain(self)
                stand_first(processors, first)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            try:
                if self.poll():
                    sleep(self._interval)
                    continue
                self._work.clear()
                if not self.held():  # what came before the line above would not have set it
                    self._work.wait()
            except Exception as error:  # noqa: BLE001
                report(_LOOP, error)
                sleep(self._interval)


def stand_first(processors: Any, ours: SpanProcessor) -> None:
    """Put a span processor in front of a provider's others.

    There is no public way: an exporter that is flushed before us would miss what we end.
    """
    if isinstance(getattr(processors, "_span_processors", None), tuple):
        with processors._lock:
            processors._span_processors = (ours, *processors._span_processors)
    else:
        processors.add_span_processor(ours)


class Drain(SpanProcessor):
    """Hears of a provider's flush and shutdown."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        # Half of the time: the exporters behind us need the rest.
        return self.resolver.drain(timeout_millis / 2000)

    def shutdown(self) -> None:
        self.resolver.drain(SHUTDOWN)
        self.resolver.expire()
