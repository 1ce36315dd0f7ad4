"""Batches of which spans wait: their bodies and what policies saw in them, in memory or on disk.

In: `Pending` batches. Out: parts of them, whenever traces are decided. What does not fit into memory is spilled as it
comes; the few last spans of a batch are copied out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tollspan.processor.counters import Counters
from tollspan.processor.identity import U64, Mask, Rows, ascending, repeated
from tollspan.processor.sample.faster import kernels, read_only
from tollspan.processor.sample.open_traces import I32, Pool, ranges
from tollspan.processor.sample.rounds import Pending
from tollspan.processor.sample.spill import Spill, Spilled
from tollspan.processor.sample.types import Signs

Seen = dict[int, Signs]
"""What each policy saw, by its number."""

NO_RUNS: Final[I32] = np.zeros(0, np.int32)


@dataclass(slots=True)
class WaitingBatch:
    """A batch of which something waits, or what is folded of the steps of some traces (without bodies and a source).

    Attributes:
        place: bodies and span keys, or where they are spilled; None where there are none.
        order: row of each position that runs and signs count in; None: they are the same.
        seen: signs, or where they are spilled.
        left: spans that wait; total: of so many that there are signs of.
        nbytes: in memory.
        runs: that it had; some may be gone, and others' by now.
        stripped: its bodies have no content any more.
        totals: of the steps that are folded, see `Round.add_up`; shape (total, 4).
    """

    number: int
    source: Any
    place: tuple[Any, U64] | Spilled | None
    order: I32 | None
    seen: Seen | Spilled
    left: int
    total: int
    nbytes: int = 0
    runs: I32 = field(default_factory=lambda: NO_RUNS)
    stripped: bool = False
    totals: npt.NDArray[np.int64] | None = None

    @property
    def signs(self) -> Seen:
        """What policies saw of its spans; read from disk where it is spilled, each time."""
        found: Seen = self.seen.load() if isinstance(self.seen, Spilled) else self.seen
        return found

    @property
    def bodies(self) -> Any:
        """Of all its spans, or where they are spilled."""
        return self.place[0] if isinstance(self.place, tuple) else self.place

    @property
    def spans(self) -> U64:
        """Keys of all its spans."""
        assert self.place is not None
        keys: U64 = (self.place.load() if isinstance(self.place, Spilled) else self.place)[1]
        return keys

    def rows(self, positions: Rows) -> Rows:
        """Rows of bodies."""
        return positions if self.order is None else self.order[positions].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Part:
    """Decided spans of one batch: positions, and for each the number of its trace."""

    batch: WaitingBatch
    positions: Rows
    group: Rows

    @property
    def rows(self) -> Rows:
        """Rows of the batch's bodies."""
        return self.batch.rows(self.positions)

    def select(self, signs: Signs) -> Signs:
        """Those of the decided spans."""
        whole = len(self.positions) == len(signs) and self.positions[0] == 0
        return signs if whole and bool((np.diff(self.positions) == 1).all()) else signs.select(self.positions)


class WaitingBatches:
    """All batches of which something waits, the oldest first.

    Args:
        runs: of `OpenTraces`; where rows of a batch move, they are told.
        max_bytes: bound on what is in memory; what is beyond is spilled.
        spill: where it goes; None: nowhere.
        strip: makes bodies without content of some rows of bodies, or None where that saves little; None where it is
            of no use.
        counters: counts ``sampling.content_shed``.
    """

    def __init__(
        self,
        runs: Pool,
        max_bytes: int,
        spill: Spill | None,
        strip: Callable[[Any, Rows], Any] | None,
        counters: Counters,
    ) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self.folded = 0
        """Traces of which earlier steps are held."""
        self.counters = counters
        self._runs, self._spill, self._strip = runs, spill, strip
        self._batches: dict[int, WaitingBatch] = {}
        self._next = 0
        self._spent: list[Spilled] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[WaitingBatch]:
        return iter(list(self._batches.values()))

    def __getitem__(self, number: int) -> WaitingBatch:
        return self._batches[number]

    def take(self, pending: Pending, order: Rows | None) -> WaitingBatch:
        """Hold what a batch brought, on disk if memory is full.

        Args:
            order: of its rows, such that each trace's stand next to each other; None: they do.
        """
        seen = dict(pending.signs)
        if order is not None:
            seen = {number: each.select(order) for number, each in seen.items()}
        count = len(pending.trace)
        batch = self._put(
            WaitingBatch(
                self._next,
                pending.source,
                (pending.bodies, pending.span),
                None if order is None else order.astype(np.int32),
                seen,
                count,
                count,
            )
        )
        self._weigh(batch, pending.nbytes)
        if self.nbytes > self.max_bytes and self._spill is not None:
            self._spilled(batch, self._spill)
        return batch

    def fold(self, seen: Seen, count: int) -> WaitingBatch:
        """Hold what is known of the earlier steps of some traces, a row each."""
        batch = self._put(WaitingBatch(self._next, None, None, None, seen, count, count))
        batch.totals = np.zeros((count, 4), np.int64)
        self._weigh(batch, 0)
        self.folded += count
        return batch

    def leave(self, batch: WaitingBatch, count: int) -> bool:
        """Take decided spans out of account; True if these were the last."""
        batch.left -= count
        if batch.place is None:
            self.folded -= count
        if batch.left:
            if batch.left * 4 <= batch.total:
                self._shrink(batch)
            return False
        del self._batches[batch.number]
        self.nbytes -= batch.nbytes
        self._spent.extend(each for each in (batch.place, batch.seen) if isinstance(each, Spilled))
        return True

    def clean(self) -> None:
        """Give disk back whose bodies nobody needs any more; what earlier rounds gave is not used from now on."""
        for each in self._spent:
            assert self._spill is not None
            self._spill.remove(each)
        self._spent.clear()

    def shed(self, excess: int) -> int:
        """Give up content of the oldest batches to make room; how many bytes that made."""
        made = 0
        if self._strip is not None:
            for batch in self:
                if made >= excess:
                    break
                made += self._stripped(batch, self._strip)
        return made

    def close(self) -> None:
        """Remove files; what still waits comes again from the journal."""
        self.clean()
        for batch in self:
            for each in (batch.place, batch.seen):
                if isinstance(each, Spilled):
                    each.remove()

    def _put(self, batch: WaitingBatch) -> WaitingBatch:
        self._batches[batch.number] = batch
        self._next += 1
        return batch

    def _weigh(self, batch: WaitingBatch, bodies: int) -> None:
        """Take account of what it has in memory.

        Args:
            bodies: bytes of its bodies, 0 where they are on disk.
        """
        keys = batch.place[1].nbytes if isinstance(batch.place, tuple) else 0
        signs = 0 if isinstance(batch.seen, Spilled) else sum(each.nbytes for each in batch.seen.values())
        self.nbytes -= batch.nbytes
        batch.nbytes = bodies + keys + signs
        self.nbytes += batch.nbytes

    def _spilled(self, batch: WaitingBatch, spill: Spill) -> None:
        place = spill.put(batch.place)
        if place is not None:
            # Apart from the bodies: they are read without them, and before.
            batch.place, batch.seen = place, spill.put(batch.seen) or batch.seen
            self._weigh(batch, 0)

    def _shrink(self, batch: WaitingBatch) -> None:
        """Copy the last few waiting rows out, so that one slow trace does not hold a whole batch in memory."""
        columns = self._runs
        batch.runs = batch.runs[columns["batch"][batch.runs] == batch.number]
        counts = columns["count"][batch.runs]
        at = ranges(columns["start"][batch.runs], counts)
        columns["start"][batch.runs] = np.cumsum(counts) - counts
        signs = {number: each.select(at) for number, each in batch.signs.items()}
        if isinstance(batch.seen, Spilled):
            self._spent.append(batch.seen)
        batch.seen, batch.total = signs, batch.left
        if batch.totals is not None:
            batch.totals = batch.totals[at]
        rows, bodies = batch.rows(at), 0
        if isinstance(batch.place, tuple):
            some = batch.place[0].select(rows)
            batch.place, batch.order = (some, batch.place[1][rows]), None
            bodies = int(some.nbytes)
        elif batch.place is not None:
            batch.order = rows.astype(np.int32)
        self._weigh(batch, bodies)

    def _stripped(self, batch: WaitingBatch, strip: Callable[[Any, Rows], Any]) -> int:
        if batch.stripped or not isinstance(batch.place, tuple):
            return 0
        bodies, spans = batch.place
        made, before = strip(bodies, np.arange(len(spans))), batch.nbytes
        if made is None or int(made.nbytes) * 2 > before:
            # Not worth it: there is little content in it.
            return 0
        batch.place, batch.stripped = (made, spans), True
        self._weigh(batch, int(made.nbytes))
        self.counters.add("sampling.content_shed", batch.left)
        return before - batch.nbytes


def grouped(trace: U64) -> tuple[Rows, Rows, Rows, Rows | None]:
    """Traces of a batch.

    Returns:
        For each trace the row of its first span, where its rows start and how many there are; and the rows in the order
        that this counts in, None where each trace's rows stand next to each other already.
    """
    new = np.ones(len(trace), np.bool_)
    np.not_equal(trace[1:], trace[:-1], out=new[1:])
    heads = np.flatnonzero(new)
    lengths = np.diff(heads, append=len(trace))
    keys = trace[heads]
    if len(ascending(keys)) == len(keys):
        return heads, heads, lengths, None
    by = np.argsort(keys, kind="stable")
    in_order = keys[by]
    begins = np.ones(len(by), np.bool_)
    np.not_equal(in_order[1:], in_order[:-1], out=begins[1:])
    order = ranges(heads[by], lengths[by])
    counts = np.add.reduceat(lengths[by], np.flatnonzero(begins))
    starts = np.cumsum(counts) - counts
    return order[starts], starts, counts, order


def traces_of(
    trace: U64, randomness: U64, root: Mask
) -> tuple[Rows, Rows, Rows, Rows | None, U64, npt.NDArray[np.bool_]]:
    """Traces of a batch: as `grouped`, and for each its highest randomness and whether a row of it is a root."""
    if (compiled := kernels()) is not None:
        count = len(trace)
        heads, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
        highest, rooted = np.empty(count, np.uint64), np.empty(count, np.bool_)
        read = (read_only(each, np.uint64) for each in (trace, randomness))
        table = np.zeros(1 << (2 * count).bit_length(), np.int32)
        found = compiled.runs(*read, read_only(root, np.bool_), heads, lengths, highest, rooted, table)
        if found >= 0:
            heads = heads[:found].copy()
            return heads, heads, lengths[:found].copy(), None, highest[:found].copy(), rooted[:found].copy()
    first, starts, counts, order = grouped(trace)
    if order is not None:
        randomness, root = randomness[order], root[order]
    return (
        first, starts, counts, order, np.maximum.reduceat(randomness, starts), np.logical_or.reduceat(root, starts),
    )  # fmt: skip


def duplicates(parts: list[Part], several: Mask) -> list[Mask | None]:
    """Which rows of each part are spans that came before.

    Args:
        several: traces that came in several batches, which alone can have any.
    """
    out: list[Mask | None] = [None] * len(parts)
    if not several.any():
        return out
    places, keys = [], []
    for number, part in enumerate(parts):
        at = np.flatnonzero(several[part.group])
        if len(at) and part.batch.place is not None:
            places.append((number, at))
            keys.append(part.batch.spans[part.batch.rows(part.positions[at])])
    if not keys:
        return out
    again = repeated(np.concatenate(keys))
    start = 0
    for number, at in places:
        mine = again[start : start + len(at)]
        start += len(at)
        if mine.any():
            mask = np.zeros(len(parts[number].positions), np.bool_)
            mask[at] = mine
            out[number] = mask
    return out
