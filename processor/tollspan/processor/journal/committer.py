"""The one thread that writes: group commit of appended payloads to the newest segment.

In: tickets from any thread. Out: durable records, told to the journal, and then settled tickets. While one sync runs,
what arrives gathers for the next: under load many appenders share a sync. Whom the last one set free mostly comes again
at once, so the next waits a moment for them, unless that was in vain lately; an appender that is alone never waits.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tollspan.processor.counters import Counters
from tollspan.processor.errors import JournalError
from tollspan.processor.journal.files import no_room, translate
from tollspan.processor.journal.segment import HEADER_BYTES, RECORD_BYTES, Record, Segment
from tollspan.processor.journal.spares import Spares
from tollspan.processor.journal.ticket import Ticket

log = logging.getLogger(__name__)

COMMIT_BYTES: Final = 16 << 20
"""Payload bytes in one sync at the most, so that a burst does not wait for its own end."""
GATHER_S: Final = 0.003
"""How long a sync waits for as many appenders as there were lately. A sync takes about 100 µs of CPU time, and so do
the threads that it wakes one by one."""
MOST_DOUBT: Final = 255
"""Syncs at the most that wait for nobody after others waited in vain."""


class Committer:
    """Writes tickets in the order in which they were handed in.

    Args:
        directory: of the journal.
        journal: the journal's id.
        next_number: of the first segment that it creates.
        segment_bytes: size from which on a new segment is begun.
        lock: the journal's; guards `pending_bytes` and whether segments are sealed.
        on_segment: called with each new segment, before anything is appended to it.
        on_durable: called with the segment and the records that are durable now, before their tickets are settled;
            moves the segment's end.
        counters: counts ``journal.appended``, ``appended_bytes``, ``syncs``, ``refused`` and ``failures``.
        check: called before a segment is created; raises OSError where the directory is not the journal's any more.
        make_room: called when there is no room; True where it removed anything, maybe the segment that is written to.
        spares: files for new segments.
    """

    def __init__(
        self,
        directory: Path,
        journal: bytes,
        next_number: int,
        segment_bytes: int,
        lock: threading.Lock,
        on_segment: Callable[[Segment], None],
        on_durable: Callable[[Segment, list[Record]], None],
        counters: Counters,
        check: Callable[[], None],
        make_room: Callable[[], bool],
        spares: Spares,
    ) -> None:
        self.pending_bytes = 0
        self._spares = spares
        self._check, self._make_room = check, make_room
        self._directory, self._journal, self._counters = directory, journal, counters
        self._next_number, self._segment_bytes = next_number, segment_bytes
        self._on_segment, self._on_durable = on_segment, on_durable
        self._lock = lock
        self._handed_in = threading.Condition(lock)
        self._pending: list[Ticket] = []
        self._newest: Segment | None = None
        self._closing = False
        # Tickets in the last sync, those that came while it ran, and for how many the thread is to be woken.
        self._shared = self._came = 0
        self._wanted = 1
        # For how many more syncs nobody is waited for, and for how many it will be.
        self._left_out = self._doubt = 0
        self._thread = threading.Thread(target=self._run, name="tollspan-journal", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def hand_in(self, ticket: Ticket) -> None:
        """Take a ticket; the caller holds the lock."""
        self._pending.append(ticket)
        self.pending_bytes += size_of(ticket)
        if len(self._pending) >= self._wanted or self.pending_bytes >= COMMIT_BYTES:
            self._handed_in.notify()

    def close(self) -> None:
        """Commit what was handed in and end the thread; idempotent."""
        with self._lock:
            self._closing = True
            self._handed_in.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._pending and not self._closing:
                    self._handed_in.wait()
                if not self._pending:
                    return
                self._gather()
                group, self._pending = self._pending, []
                self._shared = len(group)
            try:
                self._commit(group)
            except Exception as error:
                log.exception("the journal's committer met a fault of its own")
                self._refuse(group, JournalError(f"The journal met a fault of its own: {error}."))

    def _gather(self) -> None:
        """Wait for those that shared the last sync and those that came meanwhile; fewer come, fewer are expected."""
        wanted = self._shared + self._came
        if len(self._pending) >= wanted:
            return
        if self._left_out > 0:
            self._left_out -= 1
            return
        self._wanted = wanted
        end = time.monotonic() + GATHER_S
        while len(self._pending) < wanted and self.pending_bytes < COMMIT_BYTES and not self._closing:
            if not self._handed_in.wait(end - time.monotonic()):
                break
        self._wanted = 1
        # Where senders do not wait for their acks, nobody comes any sooner: then it is tried less and less.
        in_vain = len(self._pending) < wanted
        self._doubt = min(2 * self._doubt + 1, MOST_DOUBT) if in_vain else self._doubt // 2
        self._left_out = self._doubt

    def _commit(self, group: list[Ticket]) -> None:
        """Write, sync and settle ``group``, taking from it what is settled.

        Where there is no room for all, what fits is written: who is refused for want of room was tried alone, or is as
        large as one that was.
        """
        most = len(group)
        while group:
            segment: Segment | None = None
            doing = "starting a segment"
            try:
                segment = self._writable()
                count = min(most, _share(group, self._segment_bytes - segment.end))
                doing = f"writing {segment.path.name}"
                records = segment.append([(ticket.received_ns, ticket.payload) for ticket in group[:count]])
                doing = f"syncing {segment.path.name}"
                segment.sync()
            except OSError as error:
                log.error("journal %s: %s failed: %s", self._directory, doing, error)
                self._counters.add("journal.failures")
                if segment is not None:
                    self._abandon(segment, untrusted=doing.startswith("syncing"))
                if no_room(error) and self._make_room():
                    log.info("journal %s: removed what is released, to make room", self._directory)
                    continue
                if not (no_room(error) and doing.startswith("writing")):
                    self._refuse(group, translate(error, doing))
                    return
                if count > 1:
                    most = count // 2
                    continue
                size = size_of(group[0])
                refused = [ticket for ticket in group if size_of(ticket) >= size]
                group[:] = [ticket for ticket in group if size_of(ticket) < size]
                self._refuse(refused, translate(error, doing))
                continue
            done, group[:count] = group[:count], []
            size = records[-1].end - records[0].start
            with self._lock:
                self.pending_bytes -= size
                self._came = len(self._pending)
            self._on_durable(segment, records)
            self._counters.add_all(
                {"journal.appended": count, "journal.appended_bytes": size - RECORD_BYTES * count, "journal.syncs": 1}
            )
            for ticket in done:
                ticket.settle(None)

    def _writable(self) -> Segment:
        """The segment that the next record goes to: the newest, or one that is created now."""
        newest = self._newest
        if newest is not None and not newest.sealed and newest.end < max(self._segment_bytes, HEADER_BYTES + 1):
            return newest
        if newest is not None and not newest.sealed:
            with contextlib.suppress(OSError):
                # Only tidier: readers stop at the end mark too.
                newest.settle(newest.end)
        self._check()
        number, self._next_number = self._next_number, self._next_number + 1
        segment = Segment.create(self._directory, number, self._journal, self._spares.take())
        if newest is not None:
            with self._lock:
                newest.seal()
        self._newest = segment
        self._on_segment(segment)
        return segment

    def _abandon(self, segment: Segment, *, untrusted: bool) -> None:
        """Cut ``segment`` back to its durable end; give it up if that fails, or if a sync failed."""
        try:
            segment.cut_back()
        except OSError as error:
            log.error("journal %s: cutting %s back failed: %s", self._directory, segment.path.name, error)
            untrusted = True
        if untrusted:
            with self._lock:
                segment.seal()

    def _refuse(self, group: list[Ticket], error: JournalError) -> None:
        with self._lock:
            self.pending_bytes -= sum(map(size_of, group))
        self._counters.add("journal.refused", len(group))
        for ticket in group:
            ticket.settle(error)


def size_of(ticket: Ticket) -> int:
    """Bytes that a ticket takes in a segment."""
    return len(ticket.payload) + RECORD_BYTES


def _share(group: list[Ticket], room: int) -> int:
    """How many tickets, at least one, one sync takes: up to `COMMIT_BYTES` and what the segment has room for."""
    room = min(room, COMMIT_BYTES)
    for count, ticket in enumerate(group):
        room -= size_of(ticket)
        if room < 0:
            return max(1, count)
    return len(group)
