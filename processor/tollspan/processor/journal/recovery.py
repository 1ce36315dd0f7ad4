"""What a journal finds when it is opened: its identity, its segments, where to go on, and which batches were frozen."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError
from tollspan.processor.journal.batchlog import BatchLog
from tollspan.processor.journal.files import (
    Cursor,
    Position,
    Range,
    check_version,
    format_of,
    load_cursor,
    lock_directory,
    reserve,
    save_cursor,
    sync_directory,
    unlock,
    unusable,
)
from tollspan.processor.journal.segment import HEADER_BYTES, Segment, segment_numbers, segment_path
from tollspan.processor.journal.spares import Spares

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A recovered journal.

    Attributes:
        journal: the journal's id, 16 bytes.
        segments: ascending, all sealed: an opened journal appends to a new one.
        cursor: where reading begins.
        saved: the cursor as it is on disk.
        frozen: batches to hand out again, in order.
        next_number: for the next segment.
        batches: the log that further batches are frozen in.
        lock_fd: holds the lock.
    """

    journal: bytes
    segments: list[Segment]
    cursor: Position
    saved: Position
    frozen: list[Range]
    next_number: int
    batches: BatchLog
    lock_fd: int

    def offset_in(self, segment: Segment) -> int:
        """The part of ``segment`` that lies before the cursor, in bytes."""
        if segment.number != self.cursor.segment:
            return segment.end if segment.number < self.cursor.segment else 0
        return min(self.cursor.offset, segment.end)


def recover(directory: Path, counters: Counters) -> Found:
    """Lock ``directory``, creating it if needed, cut off a torn tail, and find out what is there.

    Raises:
        ConfigError: see `Journal`.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise unusable(directory, error) from error
    lock_fd = lock_directory(directory)
    try:
        return _recover(directory, lock_fd, counters)
    except OSError as error:
        unlock(lock_fd)
        raise unusable(directory, error) from error
    except BaseException:
        unlock(lock_fd)
        raise


def _recover(directory: Path, lock_fd: int, counters: Counters) -> Found:
    numbers = segment_numbers(directory)
    _check_versions(directory, numbers)
    segments, ids = _open_segments(directory, numbers, counters)
    try:
        saved = load_cursor(directory)
    except (ValueError, KeyError, TypeError) as error:
        # Going on from the oldest segment loses nothing: what was written already comes again under the same tokens.
        log.error("journal %s: cursor.json is damaged (%s); everything on disk comes again", directory, error)
        counters.add("journal.damaged_files")
        saved = None
    journal = saved.journal if saved is not None else next(iter(ids.values()), os.urandom(16))
    foreign = [number for number, each in ids.items() if each != journal]
    if foreign:
        raise ConfigError(
            f"{segment_path(directory, foreign[0])} belongs to another journal.", "Move it out of this directory."
        )
    first = segments[0].number if segments else max(numbers, default=0) + 1
    start = Position(first, HEADER_BYTES)
    cursor = max(saved.position, start) if saved is not None else start
    if segments:
        _cut_torn_tail(segments[-1], cursor, directory, counters)

    batches = BatchLog(directory, journal)
    frozen = [each for each in batches.open() if Position(each.segment, each.start) >= cursor]
    if batches.damaged:
        log.error("journal %s: batches.log is damaged; some payloads come in other batches", directory)
        counters.add("journal.damaged_files")
    used = [*numbers, *(each.segment for each in frozen)]
    if saved is None:
        save_cursor(directory, Cursor(journal, cursor))
    else:
        used.append(saved.position.segment)
        reserve(directory / "cursor.json")
    sync_directory(directory)
    return Found(
        journal=journal,
        segments=segments,
        cursor=cursor,
        saved=cursor if saved is None else saved.position,
        frozen=frozen,
        next_number=max(used, default=0) + 1,
        batches=batches,
        lock_fd=lock_fd,
    )


def _check_versions(directory: Path, numbers: list[int]) -> None:
    """Refuse a journal of which any file has a format that is not known, before any of it is changed.

    Damage is no version: what fails its CRC is dealt with later.

    Raises:
        ConfigError: there is such a file.
    """
    with contextlib.suppress(ValueError, KeyError, TypeError):
        load_cursor(directory)
    for path in (*(segment_path(directory, number) for number in numbers), directory / "batches.log"):
        with contextlib.suppress(FileNotFoundError):
            version = format_of(path)
            if version is not None:
                check_version(directory, version)


def _open_segments(directory: Path, numbers: list[int], counters: Counters) -> tuple[list[Segment], dict[int, bytes]]:
    """The segments that can be read, and the journal ids of those whose header is whole."""
    segments: list[Segment] = []
    ids: dict[int, bytes] = {}
    for number in numbers:
        path = segment_path(directory, number)
        if path.stat().st_size < HEADER_BYTES:
            # The process died while it created this file; nothing in it was ever acknowledged.
            counters.add("journal.torn_bytes", path.stat().st_size)
            path.unlink()
            continue
        opened = Segment.open(directory, number)
        if opened is None:
            log.error("journal %s: %s cannot be read and is set aside", directory, path.name)
            counters.add_all({"journal.corrupt_records": 1, "journal.corrupt_bytes": path.stat().st_size})
            path.rename(path.with_suffix(".damaged"))
            continue
        segment, journal = opened
        if segment.damaged:
            log.error("journal %s: the header of %s is damaged; its records are read", directory, path.name)
            counters.add("journal.damaged_files")
        segments.append(segment)
        if journal:
            ids[number] = journal
    return segments, ids


def _cut_torn_tail(segment: Segment, cursor: Position, directory: Path, counters: Counters) -> None:
    """End ``segment`` at its end mark, or behind its last good record where that is missing.

    What stays is synced: it may be in the page cache only.
    """
    start = min(cursor.offset, segment.end) if cursor.segment == segment.number else HEADER_BYTES
    good, torn = segment.torn(start)
    if torn:
        log.warning("journal %s: torn tail of %s cut off: %d bytes", directory, segment.path.name, torn)
        counters.add("journal.torn_bytes", torn)
    segment.settle(good)
    segment.rest()


def remove(segment: Segment, spares: Spares | None = None, room: int = 0) -> None:
    """Remove a released segment; one in which a record could not be read is kept aside for people to look at.

    Args:
        segment: nobody reads or writes it any more.
        spares: may keep its file.
        room: bytes that all of them may take.
    """
    segment.close()
    try:
        if segment.damaged:
            segment.path.rename(segment.path.with_suffix(".damaged"))
        elif spares is None or not spares.keep(segment.path, segment.end, room):
            segment.path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("journal: %s cannot be removed: %s", segment.path, error)
