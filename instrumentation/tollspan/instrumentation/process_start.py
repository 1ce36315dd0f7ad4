"""How long after the start of the process its first inference began.

In: the attributes of the first call of a model on own hardware. Out: they say so, and once in a process also how old it
is. Where it stands: below the modules that make such spans, beside `instances`. Linux tells when a process began (field
22 of ``/proc/self/stat``, on the clock that counts from the start of the system); elsewhere nothing is said, since
Python's own clocks begin when Python does, and the loading of it is part of what is asked.

A forked child is a process of its own, and began when it was forked.
"""

from __future__ import annotations

import os
import time
from itertools import count
from typing import Any, Final

from tollspan.instrumentation.guard import guard
from tollspan.pricing import attributes

_AGE: Final = guard("process_start.age")
_STARTED_FIELD: Final = 22
_COMMAND_FIELD: Final = 2
"""Fields of ``/proc/self/stat`` as proc(5) counts them; the command, in parentheses, may have spaces in it."""

_asked = count()


def age() -> float | None:
    """Seconds since this process began, exact to a tick of the system (10 ms); None where it is not known."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is None:
        return None
    with _AGE:
        try:
            with open("/proc/self/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
        except OSError:  # a system that has none, or keeps it from the process
            return None
        ticks = int(fields[_STARTED_FIELD - _COMMAND_FIELD - 1])
        return max(0.0, round(time.clock_gettime(clock) - ticks / os.sysconf("SC_CLK_TCK"), 3))
    return None


def mark_cold(about: dict[str, Any]) -> None:
    """Marks a model's first call in its span's attributes; where it is the first inference of the whole process, with
    the time that it took the process to come to it."""
    about[attributes.COLD_START] = True
    if next(_asked) == 0:
        seconds = age()
        if seconds is not None:
            about[attributes.COLD_START_SECONDS] = seconds


def _forked() -> None:
    global _asked
    _asked = count()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
