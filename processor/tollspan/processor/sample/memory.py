"""Memory of decisions: what became of a trace, for its spans that come late, also in a later process.

In: the decisions of a tick, put down before anything is done on them, synced before their batches are released. Out:
what was decided of a key, if it is known. Bounded by number; the oldest are forgotten first. In memory that is about 45
bytes a trace, on disk 19.

A folder of files ``decisions-NNNNNNNNNN.log``, a new one at each start and every few megabytes; a start that finds many
makes one of them. Integers are little endian. Header of 32 bytes: magic ``TOLLDECI``, version u32, CRC-32 of the 16
bytes behind it, seed of keys u64, 8 bytes of zeros. Then records: marker (8 bytes), length u32, CRC-32 of the body u32;
the body: n u32, size of the names u32; names as JSON ([[reason, rule], …]); n keys u64, n thresholds u64, n numbers of
names u16, n content levels u8. A record that is cut short or damaged ends its file; what is behind it is not known. Not
being able to write holds nothing up: it is counted, and after a restart late spans are judged by themselves.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import zlib
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tollspan.processor.counters import Counters
from tollspan.processor.identity import U64, new_seed
from tollspan.processor.journal.files import sync_directory, write_all
from tollspan.processor.sample.names import REASONS, RULES, ground
from tollspan.processor.sample.open_traces import I32, KeyIndex, Pool

log = logging.getLogger(__name__)

VERSION: Final = 1
FILE_BYTES: Final = 4 << 20
"""Size from which on a new file is begun."""

MOST_FILES: Final = 16
"""Small files that a start leaves as they are: programs that run for a second leave one each."""

_MAGIC: Final = b"TOLLDECI"
_HEADER: Final = struct.Struct("<8sIIQ8x")
_MARKER: Final = b"\xa5decide\x5a"
_FRAME: Final = struct.Struct("<8sII")
_BODY: Final = struct.Struct("<II")
_NAME: Final = re.compile(r"decisions-(\d{10})\.log")
_WIDTH: Final = 8 + 8 + 2 + 1

Grounds = npt.NDArray[np.int16]
_Record = tuple[U64, Grounds, U64, npt.NDArray[np.int8]]
"""Keys, grounds, thresholds, content levels."""


class Remembered(NamedTuple):
    """What was decided of some keys.

    Attributes:
        ground: see `names`; -1 where nothing is known.
        threshold, content: as in `Verdicts`.
    """

    ground: Grounds
    threshold: U64
    content: npt.NDArray[np.int8]


class Memory:
    """Decisions of the traces that were decided last.

    Args:
        limit: how many traces.
        counters: counts ``sampling.memory_*``.
    """

    def __init__(self, limit: int = 1_000_000, counters: Counters | None = None) -> None:
        self.limit = limit
        self.seed = new_seed()
        """Of the keys; it outlives the process with them."""
        self.counters = counters or Counters()
        self._known = Pool(
            {"key": np.uint64, "threshold": np.uint64, "ground": np.int16, "content": np.int8, "at": np.int32}
        )
        self._index = KeyIndex(self._known)
        # What each round added, the oldest first.
        self._rounds: deque[I32] = deque()
        self._folder: Path | None = None
        self._fd = -1
        self._end = 0
        self._next = 1
        self._dirty = False
        self._failing = False
        # Finished files with how many decisions each has, the oldest first.
        self._done: list[tuple[Path, int]] = []
        self._in_file = 0

    def __len__(self) -> int:
        return len(self._known)

    def open(self, folder: Path) -> None:
        """Take up what earlier processes decided, and put down what this one does; before the first decision."""
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
        except OSError as error:
            self._failed(error)
            return
        records: list[_Record] = []
        for path in paths:
            self._next = max(self._next, int(path.name[10:20]) + 1)
            try:
                records += self._read(path)
            except OSError as error:
                log.warning("%s cannot be read: %s", path, error)
                self.counters.add("sampling.memory_damaged")
        if records:
            # The newest of a key, in the order of the newest.
            keys, grounds, thresholds, content = (np.concatenate(each) for each in zip(*records, strict=True))
            last = np.sort(len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1])[-self.limit :]
            some = keys[last], grounds[last], thresholds[last], content[last]
            self._learn(*some)
            if len(self._done) > MOST_FILES:
                self._merge(some)
        self.counters.add("sampling.memory_recalled", len(self))

    def _merge(self, record: _Record) -> None:
        """Put everything into one new file, and remove the others when that is durable."""
        old, self._done = self._done, []
        self._put(*record)
        self.sync()
        if self._dirty or self._failing:
            self._done = [*old, *self._done]
            return
        for path, _ in old:
            path.unlink(missing_ok=True)

    def add(self, keys: U64, grounds: Grounds, thresholds: U64, content: npt.NDArray[np.int8]) -> None:
        """Remember decisions on distinct keys; a later one on the same key takes its place."""
        if not len(keys):
            return
        self._learn(keys, grounds, thresholds, content)
        if self._folder is not None:
            self._put(keys, grounds, thresholds, content)

    def recall(self, keys: U64) -> Remembered:
        """What is known of each key."""
        out = Remembered(np.full(len(keys), -1, np.int16), np.zeros(len(keys), np.uint64), np.zeros(len(keys), np.int8))
        found = self._index.find(keys)
        rows = np.flatnonzero(found >= 0)
        if len(rows):
            at = found[rows]
            for name, column in out._asdict().items():
                column[rows] = self._known[name][at]
        return out

    def sync(self) -> None:
        """Make durable what was added."""
        if not self._dirty or self._fd < 0:
            return
        try:
            os.fdatasync(self._fd)
            self._dirty = False
        except OSError as error:
            self._failed(error)

    def close(self) -> None:
        """Sync and let go; idempotent."""
        self.sync()
        self._shut()

    def _learn(self, keys: U64, grounds: Grounds, thresholds: U64, content: npt.NDArray[np.int8]) -> None:
        at = self._index.find(keys)
        new = at < 0
        made = self._known.take(int(np.count_nonzero(new)))
        at[new] = made
        self._known["key"][at], self._known["ground"][at] = keys, grounds
        self._known["threshold"][at], self._known["content"][at] = thresholds, content
        self._index.add(made)
        self._rounds.append(made)
        while len(self._known) - len(self._rounds[0]) >= self.limit:
            oldest = self._rounds.popleft()
            self._index.remove(oldest)
            self._known.give(oldest)

    # -- on disk -------------------------------------------------------------------------------------------------------

    def _put(self, keys: U64, grounds: Grounds, thresholds: U64, content: npt.NDArray[np.int8]) -> None:
        used = np.bincount(grounds) > 0
        distinct, numbers = np.flatnonzero(used), (np.cumsum(used) - 1)[grounds]
        names = json.dumps([[REASONS[each], RULES[each]] for each in distinct.tolist()]).encode()
        arrays = [
            np.ascontiguousarray(keys, "<u8"),
            np.ascontiguousarray(thresholds, "<u8"),
            np.ascontiguousarray(numbers, "<u2"),
            np.ascontiguousarray(content, np.int8),
        ]
        body = b"".join([_BODY.pack(len(keys), len(names)), names, *(each.tobytes() for each in arrays)])
        try:
            if self._fd < 0 or self._end > FILE_BYTES:
                self._turn()
            frame = _FRAME.pack(_MARKER, len(body), zlib.crc32(body))
            self._end = write_all(self._fd, [frame, body], self._end)
            self._in_file += len(keys)
            self._dirty = True
            self._failing = False
        except OSError as error:
            self._failed(error)

    def _turn(self) -> None:
        """Begin a new file, and remove those whose decisions are forgotten."""
        assert self._folder is not None
        self.sync()
        self._shut()
        left = sum(count for _, count in self._done)
        while self._done and left - self._done[0][1] >= self.limit:
            path, count = self._done.pop(0)
            left -= count
            path.unlink(missing_ok=True)
        path = self._path()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        body = struct.pack("<Q8x", int(self.seed))
        self._end = write_all(self._fd, [struct.pack("<8sII", _MAGIC, VERSION, zlib.crc32(body)), body], 0)
        sync_directory(self._folder)

    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder / f"decisions-{self._next:010d}.log"

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._done.append((self._path(), self._in_file))
            self._next += 1
            self._in_file = 0

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            log.warning("sampling decisions are not kept for after a restart: %s", error)
        self._failing = True
        self.counters.add("sampling.memory_failures")
        # Nothing is built upon a record that may be half written.
        if self._fd >= 0:
            self._shut()
        else:
            self._next += 1

    def _read(self, path: Path) -> list[_Record]:
        data = path.read_bytes()
        if len(data) < _HEADER.size or zlib.crc32(data[16 : _HEADER.size]) != _HEADER.unpack_from(data)[2]:
            # Made in the moment of the crash, or damaged.
            self.counters.add("sampling.memory_damaged")
            path.unlink()
            return []
        magic, version, _, seed = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != VERSION:
            log.warning("%s is another version's; its decisions are not taken up", path)
            path.unlink()
            return []
        self.seed = np.uint64(seed)
        at = _HEADER.size
        records: list[_Record] = []
        while at < len(data):
            record = _parse(data, at)
            if record is None:
                log.warning("%s is damaged at byte %d of %d; what is behind is not known", path, at, len(data))
                self.counters.add("sampling.memory_damaged")
                break
            records.append(record[0])
            at = record[1]
        self._done.append((path, sum(len(keys) for keys, *_ in records)))
        return records


def _parse(data: bytes, at: int) -> tuple[_Record, int] | None:
    """The record at an offset and where it ends; None where there is no whole one."""
    if len(data) < at + _FRAME.size + _BODY.size:
        return None
    marker, length, crc = _FRAME.unpack_from(data, at)
    at += _FRAME.size
    if marker != _MARKER or at + length > len(data) or zlib.crc32(memoryview(data)[at : at + length]) != crc:
        return None
    count, size = _BODY.unpack_from(data, at)
    if length != _BODY.size + size + count * _WIDTH:
        return None
    end = at + length
    at += _BODY.size
    numbers = np.array([ground(reason, rule) for reason, rule in json.loads(data[at : at + size])], np.int16)
    at += size
    keys = np.frombuffer(data, "<u8", count, at).astype(np.uint64)
    thresholds = np.frombuffer(data, "<u8", count, at + 8 * count).astype(np.uint64)
    of = np.frombuffer(data, "<u2", count, at + 16 * count)
    content = np.frombuffer(data, np.int8, count, at + 18 * count)
    return (keys, numbers[of], thresholds, content), end
