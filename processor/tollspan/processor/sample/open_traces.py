"""Open traces: which spans wait, of which trace, and when each trace is due; in arrays, a batch at a time.

A trace has a slot, a batch that waits a number, and the neighbouring rows that a trace has in a batch are a run; runs
of a trace are a linked list, the newest first. So what a batch costs to take in grows with its traces, and what it
costs to decide some traces with their runs: never with what else is open.

    key ──KeyIndex──▶ slot ──head──▶ run ──next──▶ run        slots: born, rooted, due, waiting, randomness …
                                      └─ batch, start, count   due:  bucket of time ──▶ slots

Times are ticks of 1/16 s since the engine began. A slot stands in the bucket of its due tick; when that changes it is
put into the new one too, and where it is met in the old one it is passed over.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tollspan.processor.identity import U64, Rows, ascending
from tollspan.processor.sample.faster import kernels, read_only

TICKS: Final = 16
"""Ticks in a second: a trace is decided up to one of them later than it could be. 32 bits of them are four years."""

NEVER_DUE: Final = 2**31 - 1

ROOTED, KNOWN, STEPPED = 1, 2, 4
"""Flags of a slot: its root has come; its trace was decided before; it was decided in part, and goes on."""

_EMPTY, _GONE = -1, -2

I32 = npt.NDArray[np.int32]


def ranges(starts: npt.NDArray[Any], counts: npt.NDArray[Any]) -> Rows:
    """``starts[0] … starts[0] + counts[0] - 1, starts[1] …``, int64; counts above zero."""
    ends = np.cumsum(counts, dtype=np.int64)
    if not len(ends):
        return np.zeros(0, np.int64)
    out = np.arange(ends[-1])
    out += np.repeat(starts - ends + counts, counts)
    return out


class Pool:
    """Rows of some columns, handed out and taken back; the arrays grow by doubling.

    Args:
        columns: name → type.
    """

    def __init__(self, columns: dict[str, Any], room: int = 1 << 12) -> None:
        self.columns: dict[str, npt.NDArray[Any]] = {name: np.zeros(room, kind) for name, kind in columns.items()}
        self._free: I32 = np.arange(room - 1, -1, -1, dtype=np.int32)
        self._left = room
        self.room = room

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        return self.room - self._left

    def take(self, count: int) -> I32:
        """Numbers of ``count`` rows; what stands in them is old."""
        if count > self._left:
            self._grow(count)
        self._left -= count
        return self._free[self._left : self._left + count].copy()

    def give(self, rows: I32) -> None:
        """Take rows back, each once."""
        self._free[self._left : self._left + len(rows)] = rows
        self._left += len(rows)

    def _grow(self, count: int) -> None:
        room = self.room
        while room - len(self) < count:
            room *= 2
        for name, values in self.columns.items():
            larger = np.zeros((room, *values.shape[1:]), values.dtype)
            larger[: self.room] = values
            self.columns[name] = larger
        free = np.empty(room, np.int32)
        free[: self._left] = self._free[: self._left]
        free[self._left : self._left + room - self.room] = np.arange(room - 1, self.room - 1, -1)
        self._left += room - self.room
        self._free, self.room = free, room

    @property
    def nbytes(self) -> int:
        """Memory."""
        return sum(values.nbytes for values in self.columns.values()) + self._free.nbytes


class KeyIndex:
    """Key → slot: an open-addressing table of slots, at most half full, whole arrays at a time.

    The n-th place of a key is n further than the one before (triangular probing): all keys of a call look at their
    n-th place together, so it is the longest search that counts, and places next to each other do not fill up.

    Args:
        slots: has the column ``key``, and ``at`` for the place of each in the table.
    """

    def __init__(self, slots: Pool) -> None:
        self._slots = slots
        self._table: I32 = np.full(1 << 13, _EMPTY, np.int32)
        self._used = 0
        self._alive = 0

    def find(self, keys: U64) -> Rows:
        """Slot of each key, -1 where there is none."""
        found = np.full(len(keys), -1, np.int64)
        if not self._alive:
            return found
        table, key, mask = self._table, self._slots["key"], len(self._table) - 1
        if (compiled := kernels()) is not None:
            compiled.find(read_only(keys, np.uint64), table, key, found)
            return found
        at = (keys & np.uint64(mask)).astype(np.int64)
        rows, step = np.arange(len(keys)), 0
        while len(rows):
            here = table[at]
            hit = (here >= 0) & (key[here] == keys[rows])
            found[rows[hit]] = here[hit]
            on = np.flatnonzero(~hit & (here != _EMPTY))
            step += 1
            rows, at = rows[on], (at[on] + step) & mask
        return found

    def add(self, slots: I32) -> None:
        """Put slots in, whose keys are distinct and not here."""
        if (self._used + len(slots)) * 2 > len(self._table):
            self._rebuild(len(slots))
        self._put(slots)
        self._alive += len(slots)

    def _put(self, slots: I32) -> None:
        table, mask = self._table, len(self._table) - 1
        place = self._slots["at"]
        if (compiled := kernels()) is not None:
            self._used += compiled.put(slots, table, self._slots["key"], place)
            return
        at = (self._slots["key"][slots] & np.uint64(mask)).astype(np.int64)
        step = 0
        while len(slots):
            here = table[at]
            free = np.flatnonzero(here < 0)
            # Of several that meet at one place the last one gets it.
            table[at[free]] = slots[free]
            won = table[at] == slots
            self._used += int(np.count_nonzero(here[won] == _EMPTY))
            place[slots[won]] = at[won]
            step += 1
            slots, at = slots[~won], (at[~won] + step) & mask

    def remove(self, slots: I32) -> None:
        """Take slots out."""
        self._table[self._slots["at"][slots]] = _GONE
        self._alive -= len(slots)
        if not self._alive:
            self._table[:] = _EMPTY
            self._used = 0

    def slots(self) -> I32:
        """All that are in it."""
        return self._table[self._table >= 0]

    def _rebuild(self, more: int) -> None:
        alive = self.slots()
        size = 1 << 13
        while size < 4 * (len(alive) + more):
            size *= 2
        self._table = np.full(size, _EMPTY, np.int32)
        self._used = 0
        self._put(alive)

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self._table.nbytes


class OpenTraces:
    """Slots, runs and due times.

    Columns of `slots`, one a trace: ``key`` and ``id``; ``random`` (56 bits, above them one that says that a span told
    it); ``born`` and ``last`` (ticks of the first and the newest span), ``due`` (tick), ``head`` (newest run, -1 for
    none), ``waiting`` (spans), ``flags``, ``policy`` (number), ``at`` (place in the index).
    Columns of `runs`: ``batch``, ``start``, ``count``, ``next``, ``slot``. A run that was given back has batch -1.
    """

    def __init__(self) -> None:
        self.slots = Pool(
            {
                "key": np.uint64,
                "id": np.dtype((np.uint64, 2)),
                "random": np.uint64,
                "born": np.int32,
                "last": np.int32,
                "due": np.int32,
                "head": np.int32,
                "waiting": np.int32,
                "at": np.int32,
                "policy": np.int16,
                "flags": np.uint8,
            }
        )
        self.runs = Pool({"batch": np.int32, "start": np.int32, "count": np.int32, "next": np.int32, "slot": np.int32})
        self.index = KeyIndex(self.slots)
        self._buckets: dict[int, list[I32]] = {}

    def __len__(self) -> int:
        return len(self.slots)

    def open(self, keys: U64, ids: U64, now: int, policy: int) -> I32:
        """Slots for keys that have none; distinct."""
        made = self.slots.take(len(keys))
        slots = self.slots
        slots["key"][made], slots["id"][made] = keys, ids
        slots["random"][made], slots["due"][made] = 0, NEVER_DUE
        slots["born"][made] = slots["last"][made] = now
        slots["head"][made], slots["waiting"][made] = -1, 0
        slots["policy"][made], slots["flags"][made] = policy, 0
        self.index.add(made)
        return made

    def close(self, slots: I32) -> None:
        """Give slots back whose runs are given back."""
        self.index.remove(slots)
        self.slots["due"][slots] = NEVER_DUE
        self.slots["flags"][slots] = 0
        self.slots.give(slots)

    def add_runs(self, batch: int, slots: npt.NDArray[Any], starts: npt.NDArray[Any], counts: npt.NDArray[Any]) -> I32:
        """Runs of distinct slots in a batch."""
        made = self.runs.take(len(slots))
        runs, head = self.runs, self.slots["head"]
        runs["batch"][made], runs["start"][made], runs["count"][made] = batch, starts, counts
        runs["next"][made], runs["slot"][made] = head[slots], slots
        head[slots] = made
        return made

    def runs_of(self, slots: I32) -> tuple[I32, Rows]:
        """Runs of slots, and for each the number of its slot among ``slots``."""
        following = self.runs["next"]
        found, owners = [], []
        owner, at = np.arange(len(slots)), self.slots["head"][slots]
        while True:
            more = at >= 0
            if not more.all():
                owner, at = owner[more], at[more]
            if not len(at):
                break
            found.append(at)
            owners.append(owner)
            at = following[at]
        if not found:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        return np.concatenate(found), np.concatenate(owners)

    def free_runs(self, runs: I32) -> None:
        """Give runs back; their slots' heads are the caller's."""
        self.runs["batch"][runs] = -1
        self.runs.give(runs)

    # -- time ----------------------------------------------------------------------------------------------------------

    def set_due(self, slots: I32, ticks: npt.NDArray[Any] | int) -> None:
        """Have slots come up at the given ticks instead of when they were to."""
        due = self.slots["due"]
        at: I32 = np.broadcast_to(np.asarray(ticks, np.int32), len(slots))
        moved = due[slots] != at
        slots, at = slots[moved], at[moved]
        if not len(slots):
            return
        due[slots] = at
        if (at == at[0]).all():
            self._buckets.setdefault(int(at[0]), []).append(slots)
            return
        order = np.argsort(at, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(at[order])) + 1):
            self._buckets.setdefault(int(at[part[0]]), []).append(slots[part])

    def come_up(self, now: int) -> I32:
        """Slots that are due, each once; they are in no bucket any more."""
        numbers = [number for number in self._buckets if number <= now]
        due = self.slots["due"]
        found = []
        for number in sorted(numbers):
            slots = _joined(self._buckets.pop(number))
            slots = slots[due[slots] == number]
            # A slot that was put away and came back is in a bucket twice.
            due[slots] = NEVER_DUE
            found.append(ascending(slots))
        return _joined(found)

    def all(self) -> I32:
        """All slots that are open; they are in no bucket any more."""
        slots = self.index.slots()
        self.slots["due"][slots] = NEVER_DUE
        self._buckets.clear()
        return slots

    @property
    def nbytes(self) -> int:
        """Memory."""
        waiting = sum(each.nbytes for parts in self._buckets.values() for each in parts)
        return self.slots.nbytes + self.runs.nbytes + self.index.nbytes + waiting


def _joined(parts: list[I32]) -> I32:
    if not parts:
        return np.zeros(0, np.int32)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def explicit(values: U64, trace: U64) -> U64:
    """Randomness such that the maximum over a trace's spans is what a span told, if any did: in any order.

    Args:
        values: 56 bits of each span's trace, see `tollspan.processor.tracestate.randomness`; changed in place.
        trace: words of the trace ids, from which it is taken where no span tells it, shape (n, 2).
    """
    told = (values ^ trace[:, 1]) << np.uint64(8) != 0
    if told.any():
        values[told] |= np.uint64(1 << 63)
    return values
