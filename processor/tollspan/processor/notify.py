"""What systemd is told by a service of ``Type=notify``: ready, reloading, stopping, still alive.

In: words. Out: datagrams to the socket that ``NOTIFY_SOCKET`` names (sd_notify(3), read 2026-11-21); without one,
nothing. The watchdog's interval stands in ``WATCHDOG_USEC``; a sign of life is due twice in it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def notify(*lines: str) -> None:
    """Tell systemd, e.g. ``notify("READY=1", "STATUS=serving")``. Whatever goes wrong with that harms nothing."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if where[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        # An @ stands for the zero byte of the abstract namespace.
        line.connect("\0" + where[1:] if where[0] == "@" else where)
        line.sendall("\n".join(lines).encode())


def reloading() -> None:
    """A reload begins; ``READY=1`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_s() -> float | None:
    """Seconds between two signs of life; None where no watchdog waits for them."""
    told, owner = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not told.isdecimal() or int(told) == 0 or (owner and owner != str(os.getpid())):
        return None
    return int(told) / 2e6
