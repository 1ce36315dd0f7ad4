"""The journal: appends go to the committer, and what is durable comes back as batches for the worker.

In: `Journal.append` from any thread. Out: `Journal.next_batch` and `Journal.release`, for one worker. Payloads that
were just appended reach the worker from memory; when it lags behind, from disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, JournalError, JournalFull
from tollspan.processor.journal import recovery
from tollspan.processor.journal.committer import Committer, size_of
from tollspan.processor.journal.files import (
    Cursor,
    Position,
    Range,
    check_place,
    check_room,
    no_room,
    save_cursor,
    translate,
    unlock,
)
from tollspan.processor.journal.payloads import OnDisk
from tollspan.processor.journal.segment import HEADER_BYTES, PAYLOAD_LIMIT, RECORD_BYTES, Damage, End, Record, Segment
from tollspan.processor.journal.spares import SPARE_BYTES, Spares
from tollspan.processor.journal.ticket import OnDone, Ticket

log = logging.getLogger(__name__)

CURSOR_INTERVAL_S: Final = 1.0
"""Least time between two saves of the cursor. What it does not hold yet comes again after a crash, with its tokens."""
AMPLE_BYTES: Final = 4 << 20
"""A disk with so much room is not full."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Payloads that are processed together.

    Attributes:
        token: names exactly these payloads, now and after any restart.
        payloads: in the order of arrival.
        position: their byte range.
        received_ns: when the first of them was received, ns since the epoch.
        replayed: they were appended before this process opened the journal.
        stored: the same payloads on disk, where they stay until the batch is released.
    """

    token: str
    payloads: list[bytes]
    position: Range
    received_ns: int = 0
    replayed: bool = False
    stored: OnDisk | None = None


class JournalState(NamedTuple):
    """How a journal stands.

    Attributes:
        disk_bytes: of all its segments; cap_bytes: what they may grow to.
        spare_bytes: of files that segments to come are written into.
        waiting_bytes: durable and not yet handed out.
        oldest_ns: when the oldest payload that is not released was received, ns since the epoch; None when there is
            none, or when only its place on disk is known.
    """

    disk_bytes: int
    cap_bytes: int
    spare_bytes: int
    waiting_bytes: int
    oldest_ns: int | None


class Journal:
    """A durable queue of payloads in a directory; one process's at a time.

    Args:
        directory: created if it does not exist; on a local disk.
        segment_bytes: size from which on a new segment is begun.
        max_bytes: cap on all segments together; appends beyond it are refused with `JournalFull`. Room comes back by
            whole segments, so segments are at most a quarter of it.
        memory_bytes: payloads held for the worker at the most; beyond it they are read from disk.
        pending_bytes: payloads that wait for their sync at the most; beyond it appends are refused.
        spare_bytes: files of released segments kept for new ones at the most, and at most a quarter of ``max_bytes``.
        counters: counts ``journal.*``; one of its own when None.

    Raises:
        ConfigError: the directory cannot be used, is another process's, or has an unknown format.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        segment_bytes: int = 64 << 20,
        max_bytes: int = 8 << 30,
        memory_bytes: int = 64 << 20,
        pending_bytes: int = 256 << 20,
        spare_bytes: int = SPARE_BYTES,
        counters: Counters | None = None,
    ) -> None:
        if min(segment_bytes, max_bytes, pending_bytes) <= 0 or min(memory_bytes, spare_bytes) < 0:
            raise ConfigError("Sizes of a journal are positive.", "Check segment_bytes, max_bytes and pending_bytes.")
        self.directory = Path(directory)
        self.counters = counters or Counters()
        self._segment_bytes = min(segment_bytes, max(1, max_bytes // 4))
        self._max_bytes, self._memory_bytes, self._pending_limit = max_bytes, memory_bytes, pending_bytes

        found = recovery.recover(self.directory, self.counters)
        self._lock_fd, self._id, self._batches = found.lock_fd, found.journal, found.batches
        self._segments: OrderedDict[int, Segment] = OrderedDict((s.number, s) for s in found.segments)
        self._first_new = found.next_number
        self._replay: deque[Range] = deque(found.frozen)
        self._spares = Spares(self.directory, min(spare_bytes, max_bytes // 4))

        # Guards what follows, and the committer's state; never held during reading and writing.
        self._lock = threading.Lock()
        self._readable = threading.Condition(self._lock)
        self._wanted = 1
        self._read = found.cursor
        self._unread = sum(s.end - max(HEADER_BYTES, found.offset_in(s)) for s in found.segments)
        self._disk_bytes = sum(s.end for s in found.segments)
        self._memory: deque[tuple[int, Record]] = deque()
        self._memory_used = 0
        self._streaming = False
        self._outstanding: OrderedDict[str, Range] = OrderedDict()
        self._received: dict[str, int] = {}
        self._released: set[str] = set()
        self._cursor = found.cursor
        self._closing = self._closed = False

        # Held while a batch is cut, so that batches are frozen one after the other and in order.
        self._reading = threading.Lock()
        self._saving = threading.Lock()
        self._saved, self._saved_at = found.saved, time.monotonic()
        self._committer = Committer(
            self.directory,
            found.journal,
            found.next_number,
            self._segment_bytes,
            self._lock,
            self._begin,
            self._publish,
            self.counters,
            lambda: check_place(self.directory, found.lock_fd),
            self._make_room,
            self._spares,
        )
        try:
            self._committer.start()
        except RuntimeError:
            # The interpreter is at its end and starts no threads: the next process is not to find this in use.
            self._batches.close()
            unlock(self._lock_fd)
            raise

    # -- in ------------------------------------------------------------------------------------------------------------

    def append(self, payload: bytes, on_done: OnDone | None = None) -> Ticket:
        """Hand a payload to the committer.

        Args:
            payload: any bytes, less than 4 GiB.
            on_done: called once with the outcome: by the committer's thread, or by this one when it is refused at once.

        Returns:
            A ticket; every failure is its failure, nothing is raised here.
        """
        ticket = Ticket(payload, time.time_ns(), on_done)
        with self._lock:
            refusal = self._refusal(size_of(ticket))
            if refusal is None:
                self._committer.hand_in(ticket)
        if refusal is not None:
            self.counters.add("journal.refused")
            ticket.settle(refusal)
        return ticket

    def state(self) -> JournalState:
        """How it stands now."""
        with self._lock:
            first = next(iter(self._outstanding), None)
            oldest = self._received.get(first) if first is not None else None
            if first is None and self._memory:
                oldest = self._memory[0][1].received_ns
            return JournalState(self._disk_bytes, self._max_bytes, self._spares.bytes, self._unread, oldest)

    @property
    def id(self) -> bytes:
        """Drawn once per directory, 16 bytes."""
        return self._id

    @property
    def cursor(self) -> Position:
        """Batches that end here or before are released and never come again, not in another process either."""
        with self._lock:
            return self._cursor

    @property
    def closed(self) -> bool:
        """No append is taken any more, and none will be."""
        return self._closing

    def refusal(self, size: int) -> JournalError | None:
        """Why a payload of so many bytes would be refused; None: it is worth trying."""
        with self._lock:
            refusal = self._refusal(size + RECORD_BYTES)
            if refusal is not None or self._spent():
                return refusal
        try:
            # With its end mark.
            check_room(self.directory, min(size, AMPLE_BYTES) + 2 * RECORD_BYTES)
        except OSError as error:
            # An append would remove spare files; what else may be wrong with the disk, it finds out.
            return translate(error, "looking for room") if no_room(error) and not self._spares.bytes else None
        return None

    def _refusal(self, size: int) -> JournalError | None:
        pending = self._committer.pending_bytes
        if self._closing:
            return JournalError("The journal is closed.", "Send again once the service is back.")
        if size - RECORD_BYTES > PAYLOAD_LIMIT:
            return JournalError(f"A payload of {size} bytes does not fit a journal record.", "Send smaller requests.")
        if self._disk_bytes - self._reclaimable() + pending + size > self._max_bytes:
            return JournalFull(
                f"The journal has reached its cap of {self._max_bytes} bytes.",
                "It empties as rows are written: check the store, or raise the cap.",
            )
        if pending and pending + size > self._pending_limit:
            return JournalFull("Too much waits for the disk.", "Send again a little later.")
        return None

    def _reclaimable(self) -> int:
        """Bytes of the newest segment where it is full and all released: it goes when the next one is begun."""
        newest = next(reversed(self._segments.values()), None)
        done = newest is not None and not self._unread and not self._outstanding and newest.end >= self._segment_bytes
        return newest.end if newest is not None and done else 0

    def _begin(self, segment: Segment) -> None:
        """Take in a segment that the committer created."""
        with self._lock:
            self._segments[segment.number] = segment
            self._disk_bytes += segment.end
            self._readable.notify()
        self._remove_released()

    def _publish(self, segment: Segment, records: list[Record]) -> None:
        """Let the worker see durable records, from memory as long as it keeps up."""
        size = records[-1].end - records[0].start
        with self._lock:
            if self._unread == 0:
                self._streaming = True
            if self._streaming and self._memory_used + size <= self._memory_bytes:
                self._memory.extend((segment.number, record) for record in records)
                self._memory_used += size
            else:
                # What is in memory must have no gaps, so nothing more is put there until all of it is handed out.
                self._streaming = False
            segment.end = records[-1].end
            self._unread += size
            self._disk_bytes += size
            if self._unread >= self._wanted:
                self._readable.notify()

    # -- out -----------------------------------------------------------------------------------------------------------

    def next_batch(self, max_bytes: int, timeout: float, linger: float = 0.0) -> Batch | None:
        """The next payloads in order, under a token that is on disk already.

        Args:
            max_bytes: payload bytes at the most, but at least one payload. A batch frozen by an earlier process comes
                as it was frozen.
            timeout: seconds to wait for a first payload.
            linger: seconds to wait for more once there is one, so that small requests share a batch.

        Returns:
            None if nothing came in time, or the journal is closed.

        Raises:
            JournalError: the batch could not be read or frozen; it comes again with the next call.
        """
        with self._reading:
            deadline = time.monotonic() + timeout
            while self._await(1, deadline):
                if linger > 0 and not self._replay:
                    self._await(max_bytes, time.monotonic() + linger)
                try:
                    batch = self._cut(max_bytes)
                except OSError as error:
                    self.counters.add("journal.failures")
                    raise translate(error, "handing out a batch") from error
                if batch is not None:
                    return batch
            self._save_cursor()
            return None

    def _await(self, wanted: int, deadline: float) -> bool:
        """Wait for ``wanted`` unread bytes; True if there is anything to read."""
        with self._lock:
            self._wanted = wanted
            while not self._closing and self._unread < wanted:
                self._advance()
                if self._unread and self._segments[self._read.segment].sealed:
                    # A batch lies in one segment, and this one gets no more.
                    break
                if not self._readable.wait(max(0.0, deadline - time.monotonic())):
                    break
            self._wanted = 1
            return self._unread > 0 and not self._closing

    def _cut(self, max_bytes: int) -> Batch | None:
        """Read and freeze the batch that begins where reading stands; None if only damaged bytes stood there."""
        with self._lock:
            self._advance()
            start = self._read
            segment = self._segments[start.segment]
            end = segment.end
            records = self._peek(max_bytes)
        frozen = self._next_frozen(start)
        if frozen is not None and frozen.start == start.offset:
            return self._again(segment, frozen)
        if records:
            stop = records[-1].end
        else:
            records, stop = self._load(segment, start.offset, frozen.start if frozen else end, max_bytes)
        place = Range(segment.number, start.offset, stop)
        if records:
            self._batches.freeze(place, self._frozen)
        return self._hand_out(place, records, stop)

    def _again(self, segment: Segment, frozen: Range) -> Batch | None:
        """A batch that an earlier process froze, with the same range."""
        stop = min(frozen.end, segment.end)
        if stop < frozen.end:
            log.error("journal %s: %s ends before batch %s", self.directory, segment.path.name, frozen)
            self.counters.add_all({"journal.corrupt_records": 1, "journal.corrupt_bytes": frozen.end - stop})
        records, stop = self._load(segment, frozen.start, stop, None)
        self._replay.popleft()
        return self._hand_out(frozen, records, stop)

    def _peek(self, max_bytes: int) -> list[Record]:
        """Records in memory for one batch; none when memory is empty."""
        taken: list[Record] = []
        for segment, record in self._memory:
            max_bytes -= len(record.payload)
            if segment != self._read.segment or (taken and max_bytes < 0):
                break
            taken.append(record)
        return taken

    def _load(self, segment: Segment, start: int, end: int, max_bytes: int | None) -> tuple[list[Record], int]:
        """Records of ``[start, end)`` on disk up to ``max_bytes``, and where they end. Counts and skips damage."""
        taken: list[Record] = []
        for found in segment.records(start, end):
            if isinstance(found, End):
                break
            if isinstance(found, Damage):
                place = (found.start, found.end, segment.path.name)
                log.error("journal %s: bytes %d to %d of %s are damaged", self.directory, *place)
                self.counters.add_all({"journal.corrupt_records": 1, "journal.corrupt_bytes": found.end - found.start})
                segment.damaged = True
                continue
            if max_bytes is not None:
                max_bytes -= len(found.payload)
                if taken and max_bytes < 0:
                    return taken, found.start
            taken.append(found)
        return taken, end

    def _hand_out(self, place: Range, records: list[Record], stop: int) -> Batch | None:
        """Move reading to ``stop`` and make the batch, if there is anything in it."""
        replayed = place.segment < self._first_new
        token = f"{self._id.hex()}-{place.segment}-{place.start}-{place.end}"
        with self._lock:
            while self._memory and self._memory[0][0] == place.segment and self._memory[0][1].start < stop:
                _, record = self._memory.popleft()
                self._memory_used -= record.end - record.start
            self._unread -= stop - place.start
            self._read = Position(place.segment, stop)
            self._advance()
            segment = self._segments[place.segment]
            if self._read.segment != place.segment:
                segment.rest()
            if records:
                self._outstanding[token] = place
                self._received[token] = records[0].received_ns
        if not records:
            return None
        if replayed:
            self.counters.add("journal.replayed", len(records))
        payloads = [record.payload for record in records]
        return Batch(token, payloads, place, records[0].received_ns, replayed, OnDisk(segment.path, records))

    def _frozen(self) -> list[Range]:
        """Batches that must stay on file: handed out and not released, or frozen earlier and still to come."""
        with self._lock:
            return [*self._outstanding.values(), *self._replay]

    def _next_frozen(self, start: Position) -> Range | None:
        """The next batch frozen by an earlier process, if it lies in the segment that is read now."""
        while self._replay and self._replay[0][:2] < start:
            lost = self._replay.popleft()
            log.error("journal %s: batch %s is not on disk any more", self.directory, lost)
            self.counters.add("journal.lost_batches")
        return self._replay[0] if self._replay and self._replay[0].segment == start.segment else None

    def _advance(self) -> None:
        """Step from the end of a segment that gets no more to the beginning of the next."""
        for number, segment in self._segments.items():
            if number > self._read.segment:
                self._read = Position(number, HEADER_BYTES)
            if number == self._read.segment and not (segment.sealed and self._read.offset >= segment.end):
                return

    def release(self, batch: Batch) -> None:
        """Forget a batch whose rows are written; again is harmless. Its segment goes when all of it is released."""
        with self._lock:
            if batch.token not in self._outstanding or self._closed:
                return
            self._released.add(batch.token)
            while self._outstanding and (first := next(iter(self._outstanding))) in self._released:
                del self._outstanding[first]
                self._received.pop(first, None)
                self._released.remove(first)
        self._remove_released()
        if time.monotonic() - self._saved_at >= CURSOR_INTERVAL_S:
            self._save_cursor()

    def save(self) -> None:
        """Put on disk what is released, so that it does not come again after a crash; what cannot be saved does."""
        self._save_cursor()

    def _remove_released(self) -> None:
        """Delete segments that lie before the cursor. The newest stays: its number must not be given again."""
        with self._lock:
            self._move_cursor()
            newest = next(reversed(self._segments), 0)
            gone = [s for n, s in self._segments.items() if n < min(self._cursor.segment, newest)]
            for segment in gone:
                del self._segments[segment.number]
                self._disk_bytes -= segment.end
            room = self._max_bytes // 2 - self._disk_bytes
        for segment in gone:
            recovery.remove(segment, self._spares, room)

    def _spent(self) -> bool:
        """Whether all of it is released and anything is in it: an append that finds no room makes some then."""
        done = not self._unread and not self._outstanding
        return done and any(segment.end > HEADER_BYTES for segment in self._segments.values())

    def _make_room(self) -> bool:
        """Remove spare files, or all segments, the newest too, if all of them is released and anything is in them.

        Called by the committer, so nothing is added meanwhile. The cursor is on disk before and names the newest
        segment, so that its number is not given again.
        """
        if self._spares.clear():
            return True
        with self._lock:
            if not self._spent():
                return False
        if not self._save_cursor():
            return False
        with self._lock:
            gone = list(self._segments.values())
            self._segments.clear()
            self._disk_bytes -= sum(segment.end for segment in gone)
        for segment in gone:
            recovery.remove(segment)
        return True

    def _move_cursor(self) -> None:
        """Set the cursor to the first byte that is not released."""
        self._advance()
        first = next(iter(self._outstanding.values()), None)
        self._cursor = self._read if first is None else Position(*first[:2])

    def _save_cursor(self) -> bool:
        """Save the cursor if it moved; True if what is on disk is as it stands.

        Not being able to is no failure: more comes again after a crash.
        """
        with self._saving:
            self._spares.age()
            with self._lock:
                self._move_cursor()
                cursor = self._cursor
            self._saved_at = time.monotonic()
            if cursor == self._saved or self._closed:
                return cursor == self._saved
            try:
                save_cursor(self.directory, Cursor(self._id, cursor))
                self._saved = cursor
                return True
            except OSError as error:
                log.warning("journal %s: the cursor cannot be saved: %s", self.directory, error)
                self.counters.add("journal.failures")
                return False

    # -- state ---------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Counters since the process started (named without ``journal.``) and the present state.

        State: ``disk_bytes`` and ``segments`` on disk, ``spare_bytes`` of files kept for new ones, ``unread_bytes``
        durable but not handed out, ``pending_bytes`` waiting for their sync, ``memory_bytes`` held for the worker,
        ``outstanding`` batches not released.
        """
        with self._lock:
            return {name: self.counters.get(f"journal.{name}") for name in _COUNTED} | {
                "disk_bytes": self._disk_bytes,
                "spare_bytes": self._spares.bytes,
                "segments": len(self._segments),
                "unread_bytes": self._unread,
                "pending_bytes": self._committer.pending_bytes,
                "memory_bytes": self._memory_used,
                "outstanding": len(self._outstanding) - len(self._released),
            }

    def close(self) -> None:
        """Make durable what was appended, save the cursor and let go of the directory; idempotent."""
        with self._lock:
            self._closing = True
            self._readable.notify_all()
        self._committer.close()
        with self._reading:
            if self._closed:
                return
            self._save_cursor()
            with self._lock:
                self._closed = True
            self._batches.close()
            self._spares.clear()
            for segment in self._segments.values():
                segment.close()
            unlock(self._lock_fd)


_COUNTED: Final = (
    "appended",
    "appended_bytes",
    "syncs",
    "refused",
    "failures",
    "replayed",
    "torn_bytes",
    "corrupt_records",
    "corrupt_bytes",
    "damaged_files",
    "lost_batches",
)
