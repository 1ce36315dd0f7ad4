"""One segment file: header, records, appending with sync, reading behind damage. Format: see the package."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tollspan.processor.crc import crc32
from tollspan.processor.journal.files import VERSION, check_version, sync_directory, write_all

_MAGIC: Final = b"TOLLSPAN"
_HEADER: Final = struct.Struct("<8sIQ16s8sI")
_RECORD: Final = struct.Struct("<8sQIII")
_NAME: Final = re.compile(r"segment-(\d{10,})\.log")
_END: Final = (1 << 32) - 1
HEADER_BYTES: Final = _HEADER.size
"""Offset of a segment's first record."""
RECORD_BYTES: Final = _RECORD.size
"""What a record takes beside its payload."""
PAYLOAD_LIMIT: Final = _END - 1
"""Bytes in a payload at the most; the length above it marks the end."""
_WINDOW: Final = 1 << 20
_PAGE: Final = 4096
"""A file that is used again has a size of whole pages, until what is written has grown beyond it."""


class Record(NamedTuple):
    """A payload, file bytes ``[start, end)`` with its header; ``received_ns`` since the epoch."""

    start: int
    end: int
    received_ns: int
    payload: bytes


class Damage(NamedTuple):
    """Bytes ``[start, end)`` that are not a whole record; at ``end`` stands the next record, or nothing at all.

    ``headed``: at ``start`` stands a whole header of this segment's.
    """

    start: int
    end: int
    headed: bool = False


class End(NamedTuple):
    """The end mark, at ``end``: what stands behind it is no record of this segment."""

    end: int


def segment_numbers(directory: Path) -> list[int]:
    """Numbers of the segments in ``directory``, ascending."""
    return sorted(int(m[1]) for name in os.listdir(directory) if (m := _NAME.fullmatch(name)))


def segment_path(directory: Path, number: int) -> Path:
    """Where segment ``number`` lies."""
    return directory / f"segment-{number:010d}.log"


class Segment:
    """A segment: its file, its marker, and how far it is durable.

    Attributes:
        number: ascending in the order of arrival, never used twice in a journal.
        marker: 8 bytes in front of each of its records.
        end: offset behind the last durable record; the bytes up to here are what counts.
        sealed: nothing is appended any more.
        damaged: a record of it could not be read.
    """

    def __init__(self, path: Path, number: int, marker: bytes, end: int, write_fd: int = -1) -> None:
        self.path, self.number, self.marker, self.end = path, number, marker, end
        self.sealed = write_fd < 0
        self.damaged = False
        # The committer writes while the worker reads, so each has a descriptor and closes it when it is done.
        self._write_fd = write_fd
        self._read_fd = -1
        self._file = _identity(os.fstat(write_fd)) if write_fd >= 0 else None

    @classmethod
    def create(cls, directory: Path, number: int, journal: bytes, spare: tuple[Path, int] | None = None) -> Segment:
        """Create an empty segment, durable with its directory entry.

        Args:
            directory: of the journal.
            number: of the segment.
            journal: the journal's id.
            spare: a file to write into, with a descriptor of it, which becomes the segment's; see `Spares.take`.

        Raises:
            OSError: it cannot be created; nothing is left behind, not the spare file either.
        """
        path, marker = segment_path(directory, number), os.urandom(8)
        made, fd = spare or (path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            if spare is not None:
                # Until it is certain that this is no segment any more, nothing in it is written over.
                sync_directory(directory)
                os.ftruncate(fd, -(-os.fstat(fd).st_size // _PAGE) * _PAGE)
            body = _HEADER.pack(_MAGIC, VERSION, number, journal, marker, 0)[:-4]
            write_all(fd, [body + crc32(body).to_bytes(4, "little"), _record(marker, 0, _END, 0)], 0)
            os.fsync(fd)
            if spare is not None:
                if os.path.lexists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
                os.rename(made, path)
                made = path
            sync_directory(directory)
        except BaseException:
            os.close(fd)
            made.unlink(missing_ok=True)
            raise
        return cls(path, number, marker, HEADER_BYTES, fd)

    @classmethod
    def open(cls, directory: Path, number: int) -> tuple[Segment, bytes] | None:
        """An existing segment, sealed, with its journal id; None if the file is no segment that can be read.

        A damaged header is survived when the first record is whole: the marker stands there too (the id is empty then).

        Raises:
            ConfigError: the segment has a format that this version does not know.
            OSError: the file cannot be opened.
        """
        path = segment_path(directory, number)
        with path.open("rb") as file:
            head, size = file.read(HEADER_BYTES + 8), os.fstat(file.fileno()).st_size
        journal, marker = b"", head[HEADER_BYTES:]
        damaged = True
        if len(head) >= HEADER_BYTES:
            magic, version, stated, name, own, crc = _HEADER.unpack_from(head)
            if crc32(head[: HEADER_BYTES - 4]) == crc and magic == _MAGIC:
                check_version(directory, version)
                damaged = stated != number
                journal, marker = name, own
        segment = cls(path, number, marker, size)
        segment.damaged = damaged
        readable = not damaged or (len(marker) == 8 and isinstance(segment.read(HEADER_BYTES, size), Record))
        segment.close()
        return (segment, journal) if readable else None

    def torn(self, start: int) -> tuple[int, int]:
        """Where the records behind ``start`` end, and how many bytes of a write that was cut short stand there."""
        good = torn = start
        for found in self.records(start, self.end):
            if isinstance(found, End):
                return found.end, 0
            if not isinstance(found, Damage):
                good = torn = found.end
            elif not self.former(found):
                torn = found.end
        return good, torn - good

    def former(self, damage: Damage) -> bool:
        """Whether ``damage``, where the file ends without an end mark, is what the file held before."""
        return damage.end == self.end and not damage.headed and not self.end % _PAGE

    def append(self, payloads: Sequence[tuple[int, bytes]]) -> list[Record]:
        """Write ``(received_ns, payload)`` pairs behind `end`, without sync; `end` stays where it is.

        Raises:
            OSError: some or all of it is not written; call `cut_back`.
        """
        buffers: list[bytes] = []
        records: list[Record] = []
        at = self.end
        for received_ns, payload in payloads:
            buffers += (_record(self.marker, received_ns, len(payload), crc32(payload)), payload)
            records.append(Record(at, at + RECORD_BYTES + len(payload), received_ns, payload))
            at = records[-1].end
        # The next append writes over the end mark.
        buffers.append(_record(self.marker, 0, _END, 0))
        write_all(self._write_fd, buffers, self.end)
        return records

    def sync(self) -> None:
        """Make what `append` wrote durable; whoever knows that readers are told moves `end` behind it.

        Raises:
            OSError: it is unknown what is durable, or the file is gone from its place. Call `cut_back` and `seal`.
        """
        os.fdatasync(self._write_fd)
        # ext4 that dies while a sync runs may say that all is well though nothing is on disk; it opens none any more.
        fd = os.open(self.path, os.O_RDONLY)
        try:
            found = _identity(os.fstat(fd))
        finally:
            os.close(fd)
        # A removed file is written and synced without complaint; nobody would ever read it again.
        if found != self._file:
            raise OSError(errno.ESTALE, "the file was replaced by another one")

    def cut_back(self) -> None:
        """Remove what stands behind `end`."""
        os.ftruncate(self._write_fd, self.end)

    def settle(self, end: int) -> None:
        """Cut the file off at ``end`` and sync it: nothing more will be appended."""
        self.end = end
        fd = os.open(self.path, os.O_RDWR)
        try:
            os.ftruncate(fd, end)
            os.fsync(fd)
        finally:
            os.close(fd)

    def seal(self) -> None:
        """Append nothing more."""
        self.sealed = True
        if self._write_fd >= 0:
            os.close(self._write_fd)
            self._write_fd = -1

    def read(self, offset: int, limit: int) -> Record | Damage | End:
        """The record at ``offset``, or the damage that begins there, or the end; looks at nothing behind ``limit``."""
        if self._read_fd < 0:
            self._read_fd = os.open(self.path, os.O_RDONLY)
        head = _read(self._read_fd, offset, min(RECORD_BYTES, limit - offset))
        parsed = self._header(head)
        if parsed is None:
            return Damage(offset, self._next_record(offset + 1, limit))
        received_ns, length, crc = parsed
        if length == _END:
            return End(offset)
        end = offset + RECORD_BYTES + length
        if end > limit:
            return Damage(offset, self._next_record(offset + 1, limit), headed=True)
        payload = _read(self._read_fd, offset + RECORD_BYTES, length)
        if len(payload) != length or crc32(payload) != crc:
            return Damage(offset, end, headed=True)
        return Record(offset, end, received_ns, payload)

    def records(self, start: int, end: int) -> Iterator[Record | Damage | End]:
        """Everything in ``[start, end)``, in order, without gaps, up to the end mark if there is one."""
        found: Record | Damage | End | None = None
        while start < end and not isinstance(found, End):
            found = self.read(start, end)
            yield found
            start = found.end

    def rest(self) -> None:
        """Close the file for reading; a later `read` opens it again."""
        if self._read_fd >= 0:
            os.close(self._read_fd)
            self._read_fd = -1

    def close(self) -> None:
        """Close the file altogether; idempotent."""
        self.seal()
        self.rest()

    def _header(self, head: bytes) -> tuple[int, int, int] | None:
        """Time of receipt, payload length and payload CRC; None if ``head`` is no whole record header."""
        if len(head) < RECORD_BYTES:
            return None
        marker, received_ns, length, crc, own = _RECORD.unpack(head)
        if marker != self.marker or crc32(head[:-4]) != own:
            return None
        return received_ns, length, crc

    def _next_record(self, offset: int, limit: int) -> int:
        """Offset of the first whole record header in ``[offset, limit)``, or ``limit``."""
        while offset < limit:
            # Windows overlap by a header, so that one that straddles two of them is seen whole.
            window = _read(self._read_fd, offset, min(_WINDOW + RECORD_BYTES, limit - offset))
            at = window.find(self.marker)
            while 0 <= at < _WINDOW:
                if self._header(window[at : at + RECORD_BYTES]) is not None:
                    return offset + at
                at = window.find(self.marker, at + 1)
            if len(window) <= _WINDOW:
                break
            offset += _WINDOW
        return limit


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _record(marker: bytes, received_ns: int, length: int, crc: int) -> bytes:
    """The header of a record."""
    head = _RECORD.pack(marker, received_ns, length, crc, 0)[:-4]
    return head + crc32(head).to_bytes(4, "little")


def _read(fd: int, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset``, fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    while 0 < len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
