"""``batches.log``: which ranges of which segments were handed out as batches. Format: see the package's docstring."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from tollspan.processor.journal.files import VERSION, Range, check_version, replace_in_place, reserve, write_all

_MAGIC: Final = b"TOLLBTCH"
_HEADER: Final = struct.Struct("<8sI16sI")
_ENTRY: Final = struct.Struct("<QQQI")
_RESERVED: Final = 128 << 10
"""Size of a new file, zeros at its end: on a full disk batches must still be frozen, or the journal could not empty."""
_FREE: Final = bytes(_ENTRY.size)


class Entries(NamedTuple):
    """What is on file.

    Attributes:
        journal: the journal's id; None where the header is damaged.
        ranges: as they were frozen.
        slots: entries from the beginning of the file up to the last that is used.
        damaged: entries, or headers, that cannot be read.
    """

    journal: bytes | None
    ranges: list[Range]
    slots: int
    damaged: int

    def apart(self) -> list[Range]:
        """The ranges in the order of the journal, without those that overlap an earlier one."""
        apart: list[Range] = []
        for each in sorted(self.ranges):
            if not apart or apart[-1].segment != each.segment or apart[-1].end <= each.start:
                apart.append(each)
        return apart


def read_batches(path: Path) -> Entries:
    """What ``batches.log`` at ``path`` holds.

    Raises:
        ConfigError: the file has a format that this version does not know.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    head, body = data[: _HEADER.size], data[_HEADER.size :]
    if len(head) < _HEADER.size or zlib.crc32(head[:-4]) != _HEADER.unpack(head)[3]:
        return Entries(None, [], 0, 1)
    magic, version, journal, _ = _HEADER.unpack(head)
    check_version(path.parent, version)
    if magic != _MAGIC:
        return Entries(None, [], 0, 1)
    slots = [body[at : at + _ENTRY.size] for at in range(0, len(body), _ENTRY.size)]
    while slots and slots[-1] == _FREE[: len(slots[-1])]:
        slots.pop()
    entries = [_parse(slot) for slot in slots]
    if entries and entries[-1] is None:
        # A torn last entry was never handed out, so it is no damage.
        entries.pop()
    ranges = [entry for entry in entries if entry is not None]
    return Entries(journal, ranges, len(entries), len(entries) - len(ranges))


class BatchLog:
    """The frozen batches of a journal that are not released.

    `open` before use. Used by one thread at a time.

    Attributes:
        damaged: entries that could not be read on open.
    """

    def __init__(self, directory: Path, journal: bytes) -> None:
        self._path = directory / "batches.log"
        self._journal = journal
        self._fd = -1
        self._entries = 0
        self._compact_at = 0
        self._sound = False
        self.damaged = 0

    def open(self) -> list[Range]:
        """All ranges on file, in the order of the journal, without those that overlap an earlier one.

        An unreadable file gives no ranges: the payloads then come in batches cut anew, under other tokens, and only the
        keys of the rows keep them from counting twice. That is counted in `damaged`.

        Raises:
            ConfigError: the file has a format that this version does not know.
            OSError: it cannot be read.
        """
        try:
            found = read_batches(self._path)
        except FileNotFoundError:
            self.rewrite([])
            return []
        if found.journal is not None and found.journal != self._journal:
            found = Entries(None, [], 0, 1)
        self.damaged += found.damaged
        reserve(self._path)
        if not self.damaged:
            self._continue(found.slots)
        return found.apart()

    def freeze(self, batch: Range, outstanding: Callable[[], Iterable[Range]]) -> None:
        """Make ``batch`` durable; ``outstanding`` gives the others that are not released.

        Raises:
            OSError: it is not; the next call writes the file anew, so a half-written entry is never built upon.
        """
        if not self._sound or self._entries >= self._compact_at:
            try:
                self.rewrite([*outstanding(), batch])
                return
            except OSError:
                if not self._sound:
                    raise
                self._compact_at *= 2
        self._sound = False
        write_all(self._fd, [_entry(batch)], _HEADER.size + self._entries * _ENTRY.size)
        os.fdatasync(self._fd)
        self._entries += 1
        self._sound = True

    def rewrite(self, outstanding: Iterable[Range]) -> None:
        """Replace the file by one that holds ``outstanding`` alone.

        Raises:
            OSError: the old file stands as it was.
        """
        head = _HEADER.pack(_MAGIC, VERSION, self._journal, 0)[:-4]
        entries = [_entry(each) for each in outstanding]
        content = b"".join([head, zlib.crc32(head).to_bytes(4, "little"), *entries])
        replace_in_place(self._path, content.ljust(_RESERVED, b"\0"))
        self._continue(len(entries))

    def _continue(self, entries: int) -> None:
        """Append from now on behind the first ``entries`` of the file that is at the path."""
        self.close()
        self._fd = os.open(self._path, os.O_RDWR)
        self._entries = entries
        # Rewriting is worth its syncs when the reserved room is used up or three quarters of the file are released.
        self._compact_at = max((_RESERVED - _HEADER.size) // _ENTRY.size, 4 * entries)
        self._sound = True

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._sound = False


def _parse(slot: bytes) -> Range | None:
    if len(slot) < _ENTRY.size:
        return None
    segment, start, end, crc = _ENTRY.unpack(slot)
    return Range(segment, start, end) if zlib.crc32(slot[:-4]) == crc and start < end else None


def _entry(batch: Range) -> bytes:
    body = _ENTRY.pack(*batch, 0)[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")
