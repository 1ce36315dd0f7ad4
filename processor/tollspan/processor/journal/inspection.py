"""A look into a journal from outside: what is in it and how it stands, without changing or locking anything.

In: a directory, also one whose owner is running. Out: an `Inspection`; `records` walks the records one by one, and
`payload_of` gives one request. A running journal moves while it is looked at: segments that go are left out, and what
is being written behind the last whole record of the newest segment is not called damage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tollspan.processor.errors import ConfigError
from tollspan.processor.journal.batchlog import read_batches
from tollspan.processor.journal.files import Cursor, Range, format_of, load_cursor, owner_of
from tollspan.processor.journal.segment import (
    HEADER_BYTES,
    Damage,
    End,
    Record,
    Segment,
    segment_numbers,
    segment_path,
)


class Place(NamedTuple):
    """A record: ``number`` counts from 1 through the journal; ``released`` where it lies before the cursor."""

    number: int
    segment: int
    start: int
    end: int
    received_ns: int
    released: bool


class Wrong(NamedTuple):
    """Bytes that are not as they should be.

    ``kind``: ``damaged`` (records are lost), ``torn`` (a write that was cut short; nothing of it was acknowledged),
    ``header`` (the records are read all the same), ``unreadable``, or the name of a file that is damaged.
    """

    file: str
    kind: str
    start: int
    end: int


@dataclass(slots=True)
class SegmentView:
    """A segment.

    Attributes:
        name: of its file.
        format: None where the header does not tell.
        records, payload_bytes: whole records and what they hold.
        file_bytes: size of the file.
        waiting_records, waiting_bytes: those behind the cursor.
        first_ns, last_ns: when the first and the last were received, ns since the epoch.
        state: ``released``, ``open`` (the newest of a journal in use) or ``waiting``.
    """

    name: str
    format: int | None
    records: int = 0
    payload_bytes: int = 0
    file_bytes: int = 0
    waiting_records: int = 0
    waiting_bytes: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    state: str = "waiting"


@dataclass(slots=True)
class Inspection:
    """How a journal stands.

    Attributes:
        directory: where it is.
        owner: pid of the process that has it open, 0 when that is not told; None: nobody.
        journal: its id, empty where no file tells.
        cursor: everything before it is released; None: it cannot be read. Saved about once a second, so the
            running journal may be further.
        segments: ascending.
        batches: frozen, and not before the cursor.
        wrong: places that are not as they should be.
        kept_aside: ``*.damaged`` files.
    """

    directory: Path
    owner: int | None
    journal: str = ""
    cursor: Cursor | None = None
    segments: list[SegmentView] = field(default_factory=list)
    batches: list[Range] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)
    kept_aside: list[str] = field(default_factory=list)

    @property
    def waiting_records(self) -> int:
        """Records that are not released."""
        return sum(each.waiting_records for each in self.segments)

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes that are not released."""
        return sum(each.waiting_bytes for each in self.segments)


def inspect(directory: Path) -> Inspection:
    """Read a whole journal, every CRC included.

    Raises:
        ConfigError: there is no journal, or it has a format that this version does not know.
    """
    seen = Inspection(_existing(directory), owner_of(directory))
    _read_state(seen)
    numbers = segment_numbers(directory)
    for number in numbers:
        opened = _opened(directory, number, seen)
        if opened is None:
            continue
        segment, view = opened
        newest = number == numbers[-1]
        _walk(segment, view, seen, newest)
        if newest and seen.owner is not None:
            view.state = "open"
        elif not view.waiting_records:
            view.state = "released"
        seen.segments.append(view)
    return seen


def records(directory: Path) -> Iterator[tuple[Place, bytes]]:
    """Every whole record with its payload, in order.

    Raises:
        ConfigError: as `inspect`.
    """
    seen = Inspection(_existing(directory), None)
    _read_state(seen)
    number = 0
    for segment_number in segment_numbers(directory):
        opened = _opened(directory, segment_number, seen)
        if opened is None:
            continue
        segment, _ = opened
        try:
            for found in segment.records(HEADER_BYTES, segment.end):
                if isinstance(found, Record):
                    number += 1
                    released = _released(seen, segment_number, found.end)
                    place = Place(number, segment_number, found.start, found.end, found.received_ns, released)
                    yield place, found.payload
        finally:
            segment.close()


def payload_of(directory: Path, number: int) -> bytes:
    """The payload of record ``number``, as `records` counts.

    Raises:
        ConfigError: there is no such record.
    """
    last = 0
    for place, payload in records(directory):
        if place.number == number:
            return payload
        last = place.number
    raise ConfigError(f"Journal {directory} has no record {number}.", f"It has {last}; see --records.")


def batch_of(batches: list[Range], place: Place) -> Range | None:
    """The frozen batch that a record belongs to."""
    for batch in batches:
        if batch.segment == place.segment and batch.start <= place.start and place.end <= batch.end:
            return batch
    return None


def _existing(directory: Path) -> Path:
    try:
        names = set(os.listdir(directory))
    except OSError as error:
        raise ConfigError(f"Journal {directory} cannot be read: {error.strerror}.", "Name its directory.") from None
    if not names & {"cursor.json", "batches.log"} and not segment_numbers(directory):
        raise ConfigError(f"{directory} is no journal.", "A store's is in its folder 'journal'; name that.")
    return directory


def _read_state(seen: Inspection) -> None:
    directory = seen.directory
    try:
        try:
            seen.cursor = load_cursor(directory)
        except (ValueError, KeyError, TypeError):
            # A file that its owner has replaced twice while it was read is being written over; damage stays.
            seen.cursor = load_cursor(directory)
    except (ValueError, KeyError, TypeError):
        seen.wrong.append(Wrong("cursor.json", "cursor.json", 0, (directory / "cursor.json").stat().st_size))
    if seen.cursor is not None:
        seen.journal = seen.cursor.journal.hex()
    try:
        found = read_batches(directory / "batches.log")
        if found.damaged:
            found = read_batches(directory / "batches.log")
    except FileNotFoundError:
        return
    if found.damaged:
        seen.wrong.append(Wrong("batches.log", "batches.log", 0, (directory / "batches.log").stat().st_size))
    start = seen.cursor.position if seen.cursor is not None else None
    seen.batches = [each for each in found.apart() if start is None or (each.segment, each.start) >= start]
    seen.kept_aside = sorted(name for name in os.listdir(directory) if name.endswith(".damaged"))


def _opened(directory: Path, number: int, seen: Inspection) -> tuple[Segment, SegmentView] | None:
    path = segment_path(directory, number)
    view = SegmentView(path.name, None)
    try:
        view.file_bytes = path.stat().st_size
        view.format = format_of(path)
        opened = Segment.open(directory, number) if view.file_bytes >= HEADER_BYTES else None
    except FileNotFoundError:
        return None  # released in the meantime
    if opened is None:
        kind = "unreadable" if view.file_bytes >= HEADER_BYTES else "torn"
        seen.wrong.append(Wrong(path.name, kind, 0, view.file_bytes))
        return None
    segment, journal = opened
    if segment.damaged:
        seen.wrong.append(Wrong(path.name, "header", 0, HEADER_BYTES))
    seen.journal = seen.journal or journal.hex()
    return segment, view


def _walk(segment: Segment, view: SegmentView, seen: Inspection, newest: bool) -> None:
    """Count the records of a segment, and find what is wrong with it."""
    damages: list[Damage] = []
    ended = False
    whole = HEADER_BYTES
    try:
        for found in segment.records(HEADER_BYTES, segment.end):
            if isinstance(found, Damage):
                damages.append(found)
            elif isinstance(found, End):
                ended, whole = True, found.end
            else:
                whole = found.end
                size = len(found.payload)
                view.records += 1
                view.payload_bytes += size
                view.first_ns = view.first_ns or found.received_ns
                view.last_ns = found.received_ns
                if not _released(seen, segment.number, found.end):
                    view.waiting_records += 1
                    view.waiting_bytes += size
    except FileNotFoundError:
        return  # released in the meantime
    finally:
        segment.close()
    if damages and not segment.path.exists():
        return  # released in the meantime, and maybe written over
    for damage in damages:
        if newest and not ended and damage.start >= whole:
            # Behind the last whole record without an end mark: a write that was cut short, or is going on now.
            if seen.owner is None and not segment.former(damage):
                seen.wrong.append(Wrong(view.name, "torn", damage.start, damage.end))
        else:
            seen.wrong.append(Wrong(view.name, "damaged", damage.start, damage.end))


def _released(seen: Inspection, segment: int, end: int) -> bool:
    return seen.cursor is not None and (segment, end) <= seen.cursor.position
