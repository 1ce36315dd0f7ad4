"""Who an instant of a device belongs to, when several calls are open in it.

In: windows of calls on one device, in nanoseconds of the device. Out: each call's share. Where it stands: pure, below
`torch_events.py`. The law: the shares of all windows add up to the length of their union, to the nanosecond, in however
many steps the sweep goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Window(Protocol):
    """A call's time on the device.

    Attributes:
        start_ns: when it began.
        stop_ns: when it ended; None: it is still open at every instant that is swept.
        share_ns: what it was given so far.
    """

    start_ns: int
    stop_ns: int | None
    share_ns: int


def sweep(windows: Iterable[Window], since: int, until: int) -> int:
    """Splits each instant of ``[since, until)`` equally among the windows open in it, and adds to their shares. What an
    equal split leaves over, less than a nanosecond each, goes to those that began first.

    Returns:
        Nanoseconds in which at least one window was open.
    """
    opening: dict[int, list[Window]] = {}
    closing: dict[int, list[Window]] = {}
    for window in windows:
        begins = max(window.start_ns, since)
        ends = until if window.stop_ns is None else min(window.stop_ns, until)
        if begins < ends:
            opening.setdefault(begins, []).append(window)
            closing.setdefault(ends, []).append(window)
    active: dict[int, Window] = {}
    union = last = 0
    for instant in sorted(opening.keys() | closing.keys()):
        if active:
            union += instant - last
            part, left = divmod(instant - last, len(active))
            for place, window in enumerate(active.values()):
                window.share_ns += part + (place < left)
        for window in closing.get(instant, ()):
            active.pop(id(window), None)
        for window in opening.get(instant, ()):
            active[id(window)] = window
        last = instant
    return union
