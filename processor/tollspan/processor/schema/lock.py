"""One migration at a time: a lock that is a table.

ClickHouse has no locks, but creating a table that is there is an error, and on a cluster DDL goes through one queue. So
who creates ``schema_lock`` has the lock; its comment says who that is. The comment is written again before a statement
now and then, which moves the table's modification time: a lock that did not move for `STALE_S` (by the server's clock)
belongs to a process that is gone, and is broken. In an embedded store the directory has one process anyway, so a lock
of another process is broken at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from tollspan.processor.errors import StoreError, StoreUnavailable
from tollspan.processor.store.faults import code_of

if TYPE_CHECKING:
    from tollspan.processor.store import Store

TABLE: Final = "schema_lock"

STALE_S: Final = 300
"""Seconds without a sign of life after which a lock is broken; no statement of ours takes so long."""

ALIVE_S: Final = 20.0
"""Seconds between two signs of life, which are two statements each."""

_EXISTS: Final = (57, 999)
"""TABLE_ALREADY_EXISTS; over a cluster's queue it may come wrapped in KEEPER_EXCEPTION."""


@contextlib.contextmanager
def locked(
    store: Store, wait_s: float = 30.0, every_s: float = ALIVE_S, pause: Callable[[float], object] = time.sleep
) -> Iterator[Callable[[], None]]:
    """Hold the lock.

    Args:
        store: open, with the right to create tables.
        wait_s: how long to wait for somebody else's.
        every_s: seconds between two signs of life at the least.
        pause: waits so many seconds; for tests.

    Yields:
        What is to be called before each statement: says that we are alive, and raises if the lock was lost.

    Raises:
        StoreUnavailable: somebody else has it; the same call may succeed later.
    """
    ours = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
    on = f" ON CLUSTER {store.cluster}" if store.cluster else ""
    until = time.monotonic() + wait_s
    while not _taken(store, on, ours):
        owner, idle_s = held(store) or ("", 0)
        if owner and (idle_s >= STALE_S or (store.embedded and owner.split()[1:2] != [str(os.getpid())])):
            unlock(store)
            continue
        if time.monotonic() >= until:
            raise StoreUnavailable(
                f"The schema of {store.url} is being migrated by another process ({owner or 'unknown'}).",
                f"Try again; a lock without a sign of life for {STALE_S} s is broken, `tollspan schema unlock` does it"
                " now.",
            )
        pause(0.2)

    said = -every_s

    def alive() -> None:
        nonlocal said
        if time.monotonic() - said < every_s:
            return
        said = time.monotonic()
        found = held(store)
        if found is None or found[0] != ours:
            raise StoreUnavailable(f"The lock of {store.url} was taken over by another process.", "Try again.")
        store.execute(f"ALTER TABLE {TABLE}{on} MODIFY COMMENT '{ours}'")

    try:
        yield alive
    finally:
        # Not in the place of what went wrong: a lock that stays is broken by itself.
        with contextlib.suppress(StoreError):
            found = held(store)
            if found is not None and found[0] == ours:
                unlock(store)


def held(store: Store) -> tuple[str, int] | None:
    """Who holds the lock (host, pid and a random part) and for how many seconds without a sign of life; or None."""
    rows = store.rows(
        "SELECT comment, toInt64(dateDiff('second', metadata_modification_time, now())) AS idle FROM system.tables"
        " WHERE database = currentDatabase() AND name = {table:String}",
        {"table": TABLE},
    )
    return (rows[0]["comment"], rows[0]["idle"]) if rows else None


def unlock(store: Store) -> None:
    """Break the lock, whoever holds it; harmless where nobody does."""
    on = f" ON CLUSTER {store.cluster}" if store.cluster else ""
    store.execute(f"DROP TABLE IF EXISTS {TABLE}{on} SYNC")


def _taken(store: Store, on: str, ours: str) -> bool:
    try:
        store.execute(f"CREATE TABLE {TABLE}{on} (none UInt8) ENGINE = Memory COMMENT '{ours}'")
    except StoreError as error:
        if code_of(error.__cause__ or error) in _EXISTS and held(store) is not None:
            return False
        raise
    return True
