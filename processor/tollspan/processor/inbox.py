"""The inbox: requests that somebody left durable for the process that owns the journal.

A journal has one owner. Whoever else has spans for it (a forked child of a program with the drop-in exporter, a second
program on the same store, `tollspan quarantine replay`) puts them into a folder, one OTLP request a file, and the
owner takes them up: at its start, while it runs, and once more before it stops.

In: requests in protobuf form, by `Inbox.put` or `InboxWriter.append`. Out: payloads in the journal, by `Collection`.
A file is written under another name, synced and renamed, so one that can be seen is whole; its name carries the CRC-32
of its bytes. It is removed after its payload is durable in the journal: a crash in between brings the payload twice,
and the rows land on themselves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tollspan.processor.counters import Counters
from tollspan.processor.errors import JournalError, JournalFull
from tollspan.processor.journal.files import sync_directory, translate, write_all
from tollspan.processor.journal.ticket import Ticket

if TYPE_CHECKING:
    from tollspan.processor.journal import Journal

log = logging.getLogger(__name__)

FOLDER: Final = "inbox"
"""Name of the folder inside a journal's directory."""

MAX_BYTES: Final = 1 << 30
"""Bytes of waiting requests at the most; beyond it `Inbox.put` refuses."""

PENDING_BYTES: Final = 64 << 20
"""Bytes that wait in memory for the disk at the most, in one process."""

GROUP_BYTES: Final = 16 << 20
"""Bytes that share one file at the most."""

POLL_S: Final = 0.5
"""Seconds between two looks into the folder."""

DISK_S: Final = 5.0
"""Longest wait for the journal's disk; the file stays, and comes again."""

LEFTOVER_S: Final = 3600.0
"""Age from which on a half-written file is somebody's who died."""

SUFFIX: Final = ".otlp"
DAMAGED: Final = ".damaged"
"""Ending of files whose bytes are not what was written, or no OTLP request: kept for people to look at."""

_NAME: Final = re.compile(r"\d{20}-\d+-[0-9a-f]{8}-([0-9a-f]{8})\.otlp")


class Inbox:
    """A folder of requests.

    Args:
        directory: made when something is put there.
        max_bytes: bound on what waits.
    """

    def __init__(self, directory: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self._used = 0
        self._counted_at = -1.0

    def put(self, payload: bytes) -> Path:
        """Make a request durable; where it lies then.

        Raises:
            JournalFull: no room in the folder or on the disk.
            JournalError: the folder cannot be written.
        """
        now = time.monotonic()
        if not 0 <= now - self._counted_at < 1.0:
            self._used, self._counted_at = self.size(), now
        if self._used + len(payload) > self.max_bytes:
            raise JournalFull(
                f"Inbox {self.directory} has reached its cap of {self.max_bytes} bytes.",
                "It empties when the program that owns the journal, or `tollspan serve`, runs on the same store.",
            )
        name = f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(4).hex()}-{zlib.crc32(payload):08x}{SUFFIX}"
        path = self.directory / name
        draft = self.directory / f".{name}.tmp"
        try:
            make_private(self.directory)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                write_all(fd, [payload], 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(draft, path)
            sync_directory(self.directory)
        except OSError as error:
            for left in (draft, path):
                # Also the renamed one: it was not acknowledged, and what is not should rather not come.
                with contextlib.suppress(OSError):
                    left.unlink()
            raise translate(error, f"writing to {self.directory}") from error
        self._used += len(payload)
        return path

    def waiting(self) -> list[Path]:
        """Requests that were put and not taken, oldest first."""
        try:
            names = sorted(name for name in os.listdir(self.directory) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []
        return [self.directory / name for name in names]

    def size(self) -> int:
        """Bytes in the folder."""
        try:
            with os.scandir(self.directory) as entries:
                return sum(_size(entry) for entry in entries)
        except FileNotFoundError:
            return 0

    def tidy(self) -> None:
        """Remove what writers that died left half-written."""
        with contextlib.suppress(OSError), os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.name.endswith(".tmp") and time.time() - entry.stat().st_mtime > LEFTOVER_S:
                        os.unlink(entry.path)


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for this user alone."""
    for each in reversed([directory, *directory.parents]):
        if not each.exists():
            each.mkdir(exist_ok=True, mode=0o700)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0  # taken in the meantime


def intact(path: Path, payload: bytes) -> bool:
    """Whether a file of an inbox still has the bytes that its name stands for."""
    match = _NAME.fullmatch(path.name)
    return match is not None and int(match[1], 16) == zlib.crc32(payload)


class InboxWriter:
    """`Inbox.put` on a thread of its own, so that a slow disk holds nobody beyond the time that they wait.

    What comes while one write runs shares the next file: OTLP requests one behind the other are one request.
    The thread starts with the first payload. Where none can be started (the interpreter is at its end) the caller
    writes itself.

    Args:
        inbox: where to.
        pending_bytes: bytes that wait for the disk at the most; beyond it appends are refused.
    """

    def __init__(self, inbox: Inbox, *, pending_bytes: int = PENDING_BYTES) -> None:
        self.inbox = inbox
        self._limit = pending_bytes
        self._lock = threading.Condition()
        self._pending: list[Ticket] = []
        self._pending_bytes = 0
        self._thread: threading.Thread | None = None
        self._closing = False

    def append(self, payload: bytes) -> Ticket:
        """Hand a request over; the ticket is done when it is durable, or refused. Raises nothing."""
        ticket = Ticket(payload, time.time_ns())
        with self._lock:
            if self._closing or self._pending_bytes + len(payload) > self._limit:
                why = "The exporter is shut down." if self._closing else "Too much waits for the disk."
                ticket.settle(JournalFull(why))
                return ticket
            self._pending.append(ticket)
            self._pending_bytes += len(payload)
            self._lock.notify_all()
            started = self._started()
        if not started:
            self._write_pending()
        return ticket

    def close(self, timeout_s: float) -> bool:
        """Write what is pending and end the thread, waiting ``timeout_s`` at the most; True when all is written."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
            return not thread.is_alive()
        return True

    def _started(self) -> bool:
        """Whether a thread writes; the caller holds the lock."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="tollspan-inbox-writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._pending and not self._closing:
                    self._lock.wait()
                if not self._pending:
                    return
            self._write_pending()

    def _write_pending(self) -> None:
        with self._lock:
            group: list[Ticket] = []
            size = 0
            while self._pending and (not group or size + len(self._pending[0].payload) <= GROUP_BYTES):
                group.append(self._pending.pop(0))
                size += len(group[-1].payload)
        if not group:
            return
        failure: JournalError | None = None
        try:
            self.inbox.put(b"".join(ticket.payload for ticket in group))
        except JournalError as error:
            failure = error
        except Exception as error:
            log.exception("the inbox met a fault of its own")
            failure = JournalError(f"The inbox met a fault of its own: {error}.")
        with self._lock:
            self._pending_bytes -= size
        for ticket in group:
            ticket.settle(failure)


class Collection:
    """The owner's side: a thread that brings what lies in inboxes into the journal.

    Args:
        inboxes: where to look.
        journal: where to bring it.
        validate: the reason why bytes are no OTLP request, or None; see `tollspan.processor.decode.validate`.
        counters: counts ``inbox.taken``, ``inbox.bytes``, ``inbox.damaged`` and ``inbox.deferred`` (no room yet).
    """

    def __init__(
        self,
        inboxes: Iterable[Inbox],
        journal: Journal,
        validate: Callable[[bytes], str | None],
        counters: Counters,
    ) -> None:
        self.inboxes = list(inboxes)
        self._journal, self._validate, self._counters = journal, validate, counters
        self._stop = threading.Event()
        self._sweeping = threading.Lock()
        self._told = False
        self._thread = threading.Thread(target=self._run, name="tollspan-inbox", daemon=True)

    def start(self) -> None:
        """Begin to look; at once, and then about twice a second."""
        self._thread.start()

    def stop(self, timeout_s: float = DISK_S) -> None:
        """Look a last time and end; what comes later, or takes longer than this, waits for the next start."""
        end = time.monotonic() + timeout_s
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._sweep(lambda: time.monotonic() < end)

    def _run(self) -> None:
        for inbox in self.inboxes:
            inbox.tidy()
        while not self._stop.is_set():
            try:
                self._sweep(lambda: not self._stop.is_set())
            except Exception:
                log.exception("the inbox met a fault of its own")
                self._counters.add("inbox.faults")
            self._stop.wait(POLL_S)

    def sweep(self) -> int:
        """Bring everything that waits into the journal; how many files that were."""
        return self._sweep(lambda: True)

    def _sweep(self, going_on: Callable[[], bool]) -> int:
        with self._sweeping:
            taken = 0
            for inbox in self.inboxes:
                for path in inbox.waiting():
                    if not going_on() or not self._take(path):
                        return taken
                    taken += 1
            return taken

    def _take(self, path: Path) -> bool:
        """Bring one file into the journal, or out of the way; False when there is no room for any now."""
        try:
            payload = path.read_bytes()
        except FileNotFoundError:
            return True
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error)
            self._counters.add("inbox.damaged")
            return True
        reason = None if intact(path, payload) else "its bytes are not those that were written"
        reason = reason or self._validate(payload)
        if reason is not None:
            log.error("%s is left out: %s", path, reason)
            self._counters.add("inbox.damaged")
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(DAMAGED))
            return True
        try:
            if payload:
                self._journal.append(payload).wait(DISK_S)
        except (JournalError, TimeoutError) as error:
            self._counters.add("inbox.deferred")
            if not self._told:
                self._told = True
                log.warning("what others left in %s waits: %s", path.parent, error)
            return False
        self._told = False
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._counters.add_all({"inbox.taken": 1, "inbox.bytes": len(payload)})
        return True
