"""The log of recent spans: what `assemble` and the filter know, on disk beside the journal, so that it outlives a kill.

In: one `Record` a batch, appended before the batch's ledger rows are inserted and synced before the batch is released.
Out: at the start, the records of every batch that the journal will not hand out again, in order; what is made of them
is exactly what the process before knew at that point, and the batches that do come again are taken in on top, as they
were the first time. So nothing finds itself, and every roll-up and duplicate is told as before.

A folder of files ``recent-NNNNNNNNNN.log``, a new one for each start and each minute, removed when all in them is older
than the window, or beyond the bound on bytes. Integers are little endian. Header of 72 bytes: magic ``TOLLRECT``,
version u32, CRC-32 of what follows, journal id (16 bytes), digest of the store's URL (16 bytes), seed of keys u64,
number of the process u64, 8 bytes of zeros. Then records: marker (8 bytes), length u32, CRC-32 of the body u32; the
body: segment, first byte and end XX

A record that is cut short or damaged ends its file; what is behind it is not known, which is counted. A log of another
journal, store or version is left aside. Not being able to write is no reason to hold spans up: it is counted, and after
a crash less is known. That costs nothing but a parent and its child billed both, which `tollspan reconcile` finds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tollspan.processor.counters import Counters
from tollspan.processor.crc import crc32
from tollspan.processor.identity import U64, new_seed
from tollspan.processor.journal.files import Position, Range, sync_directory, write_all
from tollspan.processor.recent import UNKNOWN

log = logging.getLogger(__name__)

VERSION: Final = 2
_OTHER_CONTENT: Final = 1
"""A version in which contents were hashed otherwise: they are not known (`recent.UNKNOWN`), all else is as now."""
MINUTE_NS: Final = 60 * 10**9

_MAGIC: Final = b"TOLLRECT"
_HEADER: Final = struct.Struct("<8sII16s16sQQ8x")
_MARKER: Final = b"\xa5recent\x5a"
_FRAME: Final = struct.Struct("<8sII")
_BODY: Final = struct.Struct("<QQQqqIIIIII")
_NAME: Final = re.compile(r"recent-(\d{10})\.log")
_BATCH, _VOID = 0, 1
CONTENT: Final = 1
"""Column of ``Record.spans``."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a batch, or a part of one, added.

    Attributes:
        place: of the batch in the journal.
        part: of the batch; '' for all of it.
        received_ns: when the batch was received.
        since_ns: everything that was received after this is known.
        account: figures of the batch, for `accounts`.
        keys, spans: of new spans, ascending, with parent key (0: none) and content.
        ancestors: keys newly known to have a token-bearing descendant, ascending.
        billed, rows: keys of rows that a late child could correct, ascending; and where they stand in the ledger.
    """

    place: Range
    part: str
    received_ns: int
    since_ns: int
    account: Mapping[str, Any]
    keys: U64
    spans: U64
    ancestors: U64
    billed: U64
    rows: U64


@dataclass(slots=True)
class Known:
    """What a log says.

    Attributes:
        seed: keys were mixed with it.
        records: of batches that do not come again, in order.
        attempts: accounts of batches that do come again, as an earlier process meant to write them.
    """

    seed: np.uint64 = field(default_factory=new_seed)
    records: list[Record] = field(default_factory=list)
    attempts: list[Mapping[str, Any]] = field(default_factory=list)


class RecentLog:
    """The folder; `open` before use, by one thread.

    Args:
        folder: made when it is not there.
        journal: the journal's id, 16 bytes.
        store: URL of the store that the rows are in.
        window_s, max_bytes: see `tollspan.processor.recent.RecentSettings`.
        counters: counts ``recent.log_*``.
    """

    def __init__(
        self, folder: Path, journal: bytes, store: str, window_s: float, max_bytes: int, counters: Counters
    ) -> None:
        self.folder, self.counters = folder, counters
        self._journal, self._store = journal, hashlib.sha256(store.encode()).digest()[:16]
        self._window_ns, self._max_bytes = int(window_s * 1e9), max_bytes
        self._seed = np.uint64(0)
        self._process = 1
        self._next = 1
        self._fd = -1
        self._end = 0
        self._minute = -1
        self._dirty = False
        self._gap: int | None = None
        # Finished files: (path, newest time of receipt, bytes), the oldest first.
        self._done: list[tuple[Path, int, int]] = []

    def open(self, cursor: Position) -> Known:
        """Read what is there; files that do not belong here are removed.

        Args:
            cursor: batches that end behind it come again.
        """
        known = Known()
        self._seed = known.seed
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            names = sorted(name for name in os.listdir(self.folder) if _NAME.fullmatch(name))
        except OSError as error:
            self._failed(error, 0)
            return known
        records: list[tuple[int, Record, int]] = []
        for name in names:
            self._next = max(self._next, int(name[7:17]) + 1)
            try:
                self._read(self.folder / name, records, known)
            except OSError as error:
                log.warning("%s cannot be read: %s", self.folder / name, error)
                self.counters.add("recent.log_damaged")
        effective = _effective(records)
        known.records = [each for each in effective if (each.place.segment, each.place.end) <= cursor]
        known.attempts = [r.account for _, r, k in records if k == _BATCH and (r.place.segment, r.place.end) > cursor]
        return known

    def append(self, record: Record) -> None:
        """Put a record behind the others; not synced. What goes wrong is counted and logged."""
        self._put(record, _BATCH)

    def void(self, place: Range, part: str, received_ns: int) -> None:
        """Say that the last record of this part came to nothing: its rows were refused."""
        none = np.zeros(0, np.uint64)
        self._put(Record(place, part, received_ns, 0, {}, none, none, none, none, none), _VOID)

    def sync(self) -> None:
        """Make durable what was appended."""
        if not self._dirty or self._fd < 0:
            return
        try:
            os.fdatasync(self._fd)
            self._dirty = False
        except OSError as error:
            self._failed(error, 0)

    def close(self) -> None:
        """Sync and let go; idempotent."""
        self.sync()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- writing -------------------------------------------------------------------------------------------------------

    def _put(self, record: Record, kind: int) -> None:
        try:
            if self._fd < 0 or record.received_ns // MINUTE_NS > self._minute:
                self._turn(record.received_ns)
            part, account = record.part.encode(), json.dumps(record.account).encode() if record.account else b""
            since = record.since_ns if self._gap is None else max(record.since_ns, self._gap)
            arrays = [record.keys, record.spans, record.ancestors, record.billed, record.rows]
            sizes = (len(part), len(account), len(record.keys), len(record.ancestors), len(record.billed))
            head = _BODY.pack(*record.place, record.received_ns, since, kind, *sizes)
            body = [
                head,
                part,
                account,
                *(np.ascontiguousarray(each, "<u8").data.cast("B") for each in arrays if each.size),
            ]
            crc = 0
            for each in body:
                crc = crc32(each, crc)
            frame = _FRAME.pack(_MARKER, sum(map(len, body)), crc)
            self._dirty = True
            self._end = write_all(self._fd, [frame, *body], self._end)  # type: ignore[list-item]
        except OSError as error:
            self._failed(error, record.received_ns)

    def _turn(self, received_ns: int) -> None:
        """Begin a new file and remove the ones that are over."""
        if self._fd >= 0:
            self.sync()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                self._done.append((self._path(self._next - 1), received_ns, self._end))
        horizon = received_ns - self._window_ns
        while self._done and (self._done[0][1] < horizon or sum(size for *_, size in self._done) > self._max_bytes):
            self._done.pop(0)[0].unlink(missing_ok=True)
        path = self._path(self._next)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._next += 1
        body = _HEADER.pack(_MAGIC, VERSION, 0, self._journal, self._store, int(self._seed), self._process)[16:]
        self._end = write_all(self._fd, [_FRAME.pack(_MAGIC, VERSION, crc32(body)), body], 0)
        sync_directory(self.folder)
        self._minute = received_ns // MINUTE_NS

    def _failed(self, error: OSError, received_ns: int) -> None:
        if self._gap is None:
            log.warning("what is known of recent spans is not kept for after a crash: %s", error)
        self.counters.add("recent.log_failures")
        # Nothing is built upon a record that may be half written, and what is not on disk is not known later.
        self._gap = max(received_ns, self._gap or 0)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._done.append((self._path(self._next - 1), received_ns, self._end))

    def _path(self, number: int) -> Path:
        return self.folder / f"recent-{number:010d}.log"

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, path: Path, into: list[tuple[int, Record, int]], known: Known) -> None:
        """Add a file's records."""
        data = path.read_bytes()
        if len(data) < _HEADER.size or crc32(data[16 : _HEADER.size]) != _HEADER.unpack_from(data)[2]:
            # Made in the moment of the crash, or damaged.
            self.counters.add("recent.log_damaged")
            path.unlink()
            return
        magic, version, _, journal, store, seed, process = _HEADER.unpack_from(data)
        known_version = version in (VERSION, _OTHER_CONTENT)
        if magic != _MAGIC or not known_version or journal != self._journal or store != self._store:
            log.warning("%s is another store's, journal's or version's; it is not taken up", path)
            path.unlink()
            return
        self._seed = known.seed = np.uint64(seed)
        self._process = max(self._process, process + 1)
        at, newest = _HEADER.size, 0
        while at < len(data):
            record, kind, at_next = _parse(data, at)
            if record is None:
                log.warning("%s is damaged at byte %d of %d; what is behind is not known", path, at, len(data))
                self.counters.add("recent.log_damaged")
                break
            if version == _OTHER_CONTENT:
                record.spans[:, CONTENT] = UNKNOWN
            into.append((process, record, kind))
            newest, at = max(newest, record.received_ns), at_next
        self._done.append((path, newest, len(data)))


def _parse(data: bytes, at: int) -> tuple[Record | None, int, int]:
    """The record at an offset, its kind and where it ends; None where there is no whole one."""
    if len(data) < at + _FRAME.size + _BODY.size:
        return None, 0, at
    marker, length, crc = _FRAME.unpack_from(data, at)
    start, end = at + _FRAME.size, at + _FRAME.size + length
    if marker != _MARKER or end > len(data) or length < _BODY.size:
        return None, 0, at
    if crc32(memoryview(data)[start:end]) != crc:
        return None, 0, at
    segment, first, stop, received, since, kind, *sizes = _BODY.unpack_from(data, start)
    part_size, account_size, n, a, m = sizes
    at = start + _BODY.size
    part, account = data[at : at + part_size], data[at + part_size : at + part_size + account_size]
    at += part_size + account_size

    def taken(rows: int, width: int) -> U64:
        nonlocal at
        values = np.frombuffer(data, "<u8", rows * width, at).astype(np.uint64)
        at += values.nbytes
        return values.reshape(rows, width) if width > 1 else values

    arrays = taken(n, 1), taken(n, 2), taken(a, 1), taken(m, 1), taken(m, 4)
    record = Record(
        Range(segment, first, stop), part.decode(), received, since, json.loads(account) if account else {}, *arrays
    )
    return record, kind, end


def _effective(read: list[tuple[int, Record, int]]) -> list[Record]:
    """Of what several processes wrote one after the other, what holds: a batch that came again is as it was last."""
    held: list[tuple[int, Record]] = []
    last = 0
    for process, record, kind in read:
        if process != last:
            # This one began here; what others wrote from here on came again.
            held = [each for each in held if each[1].place[:2] < record.place[:2]]
            last = process
        if kind == _VOID:
            held = [e for e in held if e[0] != process or e[1].place != record.place or e[1].part != record.part]
        else:
            held.append((process, record))
    return [record for _, record in held]
