"""How many CPUs the process may use, and how much it used of them.

In: the process's cgroups and affinity, as Linux tells them. Out: virtual CPUs as a fraction, and CPU time reported to a
`Holding`. Where it stands: beside `capacity.py`. Off unless it is asked for: processes of one container each have the
container's whole quota for their own here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath
from time import process_time_ns
from typing import Final

from tollspan.instrumentation.capacity_minutes import Holding

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def cpus(cgroups: Path = _CGROUPS, own: Path = _OWN) -> Fraction:
    """Virtual CPUs allotted to this process: the smallest quota among its cgroups and those around them, its affinity,
    or all of the machine.

    Args:
        cgroups: where cgroups are mounted (version 2, or version 1 with its controller ``cpu``).
        own: which ones are this process's, as ``/proc/self/cgroup``.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return min([Fraction(allowed), *_quotas(cgroups, own)])


def _quotas(cgroups: Path, own: Path) -> Iterator[Fraction]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for folder in _upwards(cgroups, path):
                quota, _, period = _read(folder / "cpu.max").partition(" ")
                yield from _fraction(quota, period or "100000")
        elif "cpu" in controllers.split(","):
            for root in (cgroups / "cpu", cgroups / controllers):
                for folder in _upwards(root, path):
                    yield from _fraction(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """A cgroup's folder and those round it; in a container its path may not be there, and the root is its own."""
    inner = PurePosixPath(path.lstrip("/"))
    for part in (inner, *inner.parents):
        if ".." not in part.parts:
            yield root / part


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _fraction(quota: str, period: str) -> Iterator[Fraction]:
    """Nothing where there is no quota (``max``, -1) or it cannot be read."""
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        yield Fraction(int(quota), int(period))


class CpuTime:
    """`Source` of the process's CPU time, all its threads."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._at = holding.begun
        self._used = process_time_ns()
        self._over = False

    def oldest(self) -> int | None:
        return None if self._over else self._at

    def drain(self, seconds: float) -> None:
        self.report()
        self._over = True

    def report(self) -> None:
        """Tells what was used since the last time, evenly over the time between."""
        now, used = self._holding.now(), process_time_ns()
        self._holding.spread(self._at, now, used - self._used)
        self._at, self._used = now, used
