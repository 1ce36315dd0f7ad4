"""How long calls are waited for: gRPC's threads wait for a body for ever, and a sender who stalls would keep one.

A call is watched from the moment a thread waits for its body until that is there. One that takes too long is
cancelled, which frees its thread; senders try such calls again. The more calls wait at once the shorter the patience:
a crowd of stalled senders holds up others for about `Patience.least_s`, and what lies in memory of bodies that are not
whole is bounded by what the network brings in that time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tollspan.processor.counters import Counters


class Patience:
    """Watches calls that wait.

    Args:
        most_s: seconds that a call may wait while few do.
        least_s: seconds that it may wait however many do.
        few: calls that may wait for ``most_s``; twice as many may wait for half of that, and so on.
        behind: how many calls wait for a thread: while any does, others are waited for no longer than ``least_s``.
        counters: counts ``receive.stalled`` calls that were ended.
        besides: called about four times a second too.
    """

    def __init__(
        self,
        most_s: float,
        least_s: float,
        few: int,
        counters: Counters,
        behind: Callable[[], int] | None = None,
        besides: Callable[[], object] | None = None,
    ) -> None:
        self._most_s, self._least_s, self._few, self._counters = most_s, least_s, few, counters
        self._behind, self._besides = behind or (lambda: 0), besides
        self._waiting: dict[Any, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Calls that wait now."""
        return len(self._waiting)

    @contextmanager
    def watch(self, context: Any) -> Iterator[None]:
        """Watch a call, a ``grpc.ServicerContext``, meanwhile; one that is ended raises where it waits."""
        self.begin(context)
        try:
            yield
        finally:
            self.end(context)

    def begin(self, call: Any) -> None:
        """Watch a call, which has a ``cancel``, until `end`."""
        # No lock: single operations on a dict are atomic, and this is on every request's way.
        self._waiting[call] = time.monotonic()

    def end(self, call: Any) -> None:
        """Watch it no more."""
        self._waiting.pop(call, None)

    def start(self) -> None:
        """Begin to end what waits too long, until `stop`."""
        self._thread = threading.Thread(target=self._run, name="tollspan-patience", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(min(0.25, self._least_s / 2, self._most_s / 4)):
            if self._besides is not None:
                self._besides()
            waiting = list(self._waiting.items())
            if not waiting:
                continue
            behind = self._behind()
            share = 0.0 if behind else min(1.0, self._few / len(waiting))
            now, hurried_s = time.monotonic(), max(self._least_s, self._most_s * share)
            # The oldest first, and no more of them than are in the way: the newest are those that still come.
            in_the_way = max(0, behind, len(waiting) - self._few)
            late = [context for context, since in waiting[:in_the_way] if now - since > hurried_s]
            late += [context for context, since in waiting[in_the_way:] if now - since > self._most_s]
            for context in late:
                if self._waiting.pop(context, None) is not None:
                    self._counters.add("receive.stalled")
                    context.cancel()
