"""CPU time of one measured call, and whose time it is.

In: the begin and the end of a call that runs on the calling thread (a torch module, an ONNX Runtime session). Out: the
CPU time it took, in nanoseconds, with its source. Where it stands: below every module of this package that meters
``cpu.seconds``; all of them share the one `CPU`, because "the only call in flight" is a statement about the process.

A runtime spreads one call over its own worker threads, which the calling thread's clock does not see (measured with two
intra-op threads: 1.16 s of 2.34 s). The clock of the whole process does see them, and everybody else's threads as well.
So:

* ``process``: no other measured call overlapped this one. The process's CPU time during the call, workers included;
  what the program's unmeasured threads used meanwhile is in it too.
* ``thread``: another one did. The calling thread's CPU time alone: never somebody else's, and a lower bound.

A call made inside a measured call on the same thread is no second one in flight, and what it used is its own: it is
taken off the outer one, so that of a model that calls another each says what it used itself, and nothing counts twice.

A call that runs on threads of the runtime while its caller goes on (`CpuClock.begin_apart`) has no thread to ask: it
has the process's time where nothing else was in flight, and none otherwise.
"""

from __future__ import annotations

import os
from threading import get_ident
from time import process_time_ns, thread_time_ns
from typing import Final, Literal

Source = Literal["process", "thread"]


class CpuMark:
    """A call in flight: made by `CpuClock.begin`, read once by `CpuClock.end`."""

    __slots__ = ("alone", "ended", "outer", "process_ns", "thread_ns")

    process_ns: int
    thread_ns: int

    def __init__(self, outer: CpuMark | None) -> None:
        self.outer = outer
        self.alone = True
        self.ended = False


class CpuClock:
    """Counts the measured calls in flight and reads the clock that is true for each.

    Lock-free: single dict operations are atomic, with and without the interpreter lock. A call enters the dict before
    it looks who else is there, and reads its last clock before it leaves, so of two calls whose intervals overlap the
    later one always sees the earlier, and marks both.
    """

    __slots__ = ("_in_flight",)

    def __init__(self) -> None:
        self._in_flight: dict[int, CpuMark] = {}
        # Threads do not survive a fork, their calls in flight do: the child would never be alone again.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._in_flight.clear)

    @property
    def in_flight(self) -> int:
        """Threads that are inside a measured call now."""
        return len(self._in_flight)

    def begin(self) -> CpuMark:
        """Starts the clocks for a call on this thread."""
        in_flight = self._in_flight
        thread = get_ident()
        outer = in_flight.get(thread)
        mark = CpuMark(outer)
        in_flight[thread] = mark
        if outer is None and len(in_flight) > 1:
            for other in tuple(in_flight.values()):
                other.alone = False
        mark.process_ns = process_time_ns()
        mark.thread_ns = thread_time_ns()
        return mark

    def end(self, mark: CpuMark) -> tuple[int, Source]:
        """CPU time since `begin`, in nanoseconds, and which clock it is of. To be called on the thread that began.

        What measured calls inside this one used is not in it.
        """
        process_ns = process_time_ns() - mark.process_ns
        self.cancel(mark)
        alone, outer = mark.alone, mark.outer
        if alone and outer is None:
            return process_ns, "process"
        thread_ns = thread_time_ns() - mark.thread_ns
        if outer is not None:
            if not alone:
                outer.alone = False  # whoever came meanwhile saw only the innermost
            while outer is not None:
                # As if it had begun so much later: each has taken off what the others inside it used.
                outer.thread_ns += thread_ns
                outer.process_ns += process_ns
                alone = alone and outer.alone
                outer = outer.outer
        if alone:
            return process_ns, "process"
        return thread_ns, "thread"

    def begin_apart(self) -> CpuMark:
        """Starts the clock for a call that runs on other threads than this one, and may outlast what this one does."""
        mark = CpuMark(None)
        self._in_flight[~id(mark)] = mark  # negative: no thread's
        if len(self._in_flight) > 1:
            for other in tuple(self._in_flight.values()):
                other.alone = False
        mark.process_ns = process_time_ns()
        return mark

    def end_apart(self, mark: CpuMark) -> int | None:
        """CPU time of the process since `begin_apart`, in nanoseconds; None where another call was in flight."""
        process_ns = process_time_ns() - mark.process_ns
        self._in_flight.pop(~id(mark), None)
        return process_ns if mark.alone else None

    def cancel(self, mark: CpuMark) -> None:
        """Takes back a `begin` whose call will not be measured after all."""
        mark.ended = True
        thread = get_ident()
        if self._in_flight.get(thread) is not mark:
            return
        outer = mark.outer
        while outer is not None and outer.ended:  # before the one inside it, as generators may
            outer = outer.outer
        if outer is None:
            del self._in_flight[thread]
        else:
            self._in_flight[thread] = outer


CPU: Final = CpuClock()
"""The process's own."""


def seconds(nanoseconds: int) -> float:
    """Nanoseconds as the wire's double: the nearest to a whole number of them, so that the receiver gets them back."""
    return nanoseconds / 1e9
