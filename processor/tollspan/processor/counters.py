"""Counters that every stage of the processor adds to, by name.

In: ``add("receive.requests")`` from any thread. Out: `Counters.snapshot`, read by metrics, shutdown reports and tests.
A counter only grows, and counts from the start of the process; what comes and goes (bytes on disk, queue lengths) is
asked of the stage that holds it. Names are ``<stage>.<what>``, and ``<stage>.<what>.<reason>`` where one thing has
several reasons.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping


class Counters:
    """A thread-safe set of named counters; a name exists from its first `add` on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, int] = {}

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
