"""What a policy sees of the traces that are due: sums, durations, counts and levels, all at once.

In: `types.Due` and the `levels` in force. Out: for trace conditions (`conditions`) masks of shape (t,), t traces. Spans
are sorted by trace once, and only if they do not stand so already; every figure of a trace is one reduction over that
order, made when the first condition asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from tollspan.processor.identity import U64, Mask, Rows, find
from tollspan.processor.sample.conditions import KEYS, Condition, Level
from tollspan.processor.sample.types import Due

ROOT: Final = 0
KNOWN_COST: Final = 1
FIRST_BIT: Final = 2
"""Bits of the marks: the span is a root, its cost is known; those of conditions come after."""

MINUTE_NS: Final = 60 * 10**9

LONGEST_CHAIN: Final = 10_000
"""Depth beyond which nobody counts."""

Table = tuple[U64, npt.NDArray[Any]]
"""Keys, ascending, and the figure of each."""


class InForce(Protocol):
    """Levels, as a policy reads them; `tollspan.processor.sample.levels.Levels`."""

    def known(self) -> tuple[int, int]:
        """The first and the last minute with figures of their own: what is before or after is judged by those."""

    def table(self, level: Level, minute: int) -> Table | None:
        """The figures for traces that start in a minute; None where there are none at all."""

    def rates(self, metric: str, minute: int) -> Mapping[str, Table]:
        """Published rates for a minute, by dimension."""


class Traces:
    """t traces that are due.

    Args:
        due: their spans' signs.
        bits: condition of spans → its bit.
        levels: figures in force; None: there are none.
    """

    def __init__(self, due: Due, bits: Mapping[Condition, int], levels: InForce | None) -> None:
        self.due, self._bits, self._levels = due, bits, levels
        self._keys: dict[str, U64] = {}
        group = due.group
        self._order: Rows | None = None
        if len(group) and (group[1:] < group[:-1]).any():
            self._order = np.argsort(group, kind="stable")
            group = group[self._order]
        new = np.ones(len(group), np.bool_)
        np.not_equal(group[1:], group[:-1], out=new[1:])
        self._starts = np.flatnonzero(new)
        self._present = group[self._starts]
        self._group = group

    def __len__(self) -> int:
        return self.due.traces

    # -- columns -------------------------------------------------------------------------------------------------------

    def column(self, name: str) -> npt.NDArray[Any]:
        """A sign of all spans, a trace's next to each other."""
        values = self.due.signs[name]
        return values if self._order is None else values[self._order]

    def reduced(self, ufunc: np.ufunc, values: npt.NDArray[Any], empty: int = 0) -> npt.NDArray[Any]:
        """One value a trace, of values in the order of `column`."""
        found = ufunc.reduceat(values, self._starts) if len(values) else values[:0]
        if len(self._present) == len(self):
            return np.asarray(found)
        out = np.full(len(self), empty, values.dtype)
        out[self._present] = found
        return out

    @cached_property
    def marks(self) -> tuple[U64, ...]:
        """Bits of all spans of a trace together, 64 in each."""
        count = 1 + max(self._bits.values(), default=0) // 64
        return tuple(self.reduced(np.bitwise_or, self.column(f"marks{n}")) for n in range(count))

    def bit(self, number: int) -> Mask:
        """Traces of which some span has a bit."""
        found: Mask = (self.marks[number // 64] >> np.uint64(number % 64)) & np.uint64(1) != 0
        return found

    def span_bit(self, number: int) -> Mask:
        """Spans, in the order of `column`, that have a bit."""
        found: Mask = (self.column(f"marks{number // 64}") >> np.uint64(number % 64)) & np.uint64(1) != 0
        return found

    def marked(self, condition: Condition) -> Mask:
        """Traces of which some span has a condition."""
        return self.bit(self._bits[condition])

    @cached_property
    def first(self) -> npt.NDArray[np.int64]:
        """The earliest start."""
        return self.reduced(np.minimum, self.column("start"))

    @cached_property
    def duration(self) -> npt.NDArray[np.int64]:
        """Ns from the earliest start to the latest end."""
        return np.maximum(self.reduced(np.maximum, self.column("end")) - self.first, 0)

    @cached_property
    def minute(self) -> npt.NDArray[np.int64]:
        """Minute since 1970 whose levels judge the trace: that of its root's start, else of its first span's."""
        roots = self.span_bit(ROOT)
        start = np.where(roots, self.column("start"), np.iinfo(np.int64).max)
        of_root = self.reduced(np.minimum, start)
        return np.asarray(np.where(self.bit(ROOT), of_root, self.first) // MINUTE_NS)

    @cached_property
    def minutes(self) -> list[tuple[int, Rows]]:
        """Minutes with the traces that their figures judge; what is far off in time is judged by the nearest."""
        minute = self.minute if self._levels is None else np.clip(self.minute, *self._levels.known())
        known, number = np.unique(minute, return_inverse=True)
        if len(known) == 1:
            return [(int(known[0]), np.arange(len(self)))]
        order = np.argsort(number, kind="stable")
        ends = np.cumsum(np.bincount(number, minlength=len(known)))
        return [(int(minute), rows) for minute, rows in zip(known, np.split(order, ends[:-1]), strict=True)]

    @cached_property
    def cost(self) -> npt.NDArray[np.int64]:
        """Pico-dollars of what is known, cut at the largest int64."""
        values = self.column("cost")
        found = self.reduced(np.add, values)
        if len(values) and float(np.abs(values).max()) * len(values) > 2.0**62:
            largest = np.iinfo(np.int64).max
            rough = self.reduced(np.add, values.astype(np.float64))
            found = np.where(np.abs(rough) > 2.0**62, np.where(rough < 0, -largest, largest), found)
        return found

    def key(self, dimension: str) -> U64:
        """Key of a trace in a dimension: its root's, or else the largest that any of its spans has."""
        known = self._keys.get(dimension)
        if known is None:
            values = self.column(KEYS[dimension])
            any_of_it = self.reduced(np.maximum, values)
            of_root = self.reduced(np.maximum, np.where(self.span_bit(ROOT), values, np.uint64(0)))
            known = self._keys[dimension] = np.where(of_root != 0, of_root, any_of_it)
        return known

    # -- conditions ----------------------------------------------------------------------------------------------------

    def exceeds(self, values: npt.NDArray[np.int64], over: int | None, above: Level | None) -> Mask:
        """Traces whose value is more than a bound, or than the level of its key."""
        if above is None:
            return values > np.int64(min(over or 0, np.iinfo(np.int64).max))
        level, known = self.level(above)
        return known & (values > level)

    def level(self, level: Level) -> tuple[npt.NDArray[np.int64], Mask]:
        """Figure of each trace's key, and whether there is one."""
        keys = self.key(level.dimension) if level.dimension else np.zeros(len(self), np.uint64)
        out, known = np.zeros(len(self), np.int64), np.zeros(len(self), np.bool_)
        for minute, rows in self.minutes:
            table = self._levels.table(level, minute) if self._levels is not None else None
            if table is None:
                continue
            at = find(keys[rows], table[0])
            found = at >= 0
            out[rows[found]] = table[1][at[found]]
            known[rows[found]] = True
        if level.dimension:
            known &= keys != 0
        return out, known

    def some_call_exceeds(self, above: Level) -> Mask:
        """Traces of which some span cost more than the level of its own key."""
        keys, cost = self.column(KEYS[above.dimension]), self.column("cost")
        dear = np.zeros(len(keys), np.bool_)
        for at, table in self._tables_of_spans(above):
            place = find(keys[at], table[0])
            found = (place >= 0) & (keys[at] != 0)
            bound = table[1][np.where(found, place, 0)] if len(table[1]) else np.zeros(len(at), np.int64)
            dear[at] = found & (cost[at] > bound)
        return self.reduced(np.logical_or, dear)

    def some_rare(self, seen: Level, fewer_than: int) -> Mask:
        """Traces of which some span has a key that fewer traces had than so many. Nothing is rare where nobody
        counted."""
        keys = self.column(KEYS[seen.dimension])
        rare = np.zeros(len(keys), np.bool_)
        for at, table in self._tables_of_spans(seen):
            place = find(keys[at], table[0])
            counts = np.where(place >= 0, table[1][np.where(place >= 0, place, 0)] if len(table[1]) else 0, 0)
            rare[at] = (keys[at] != 0) & (counts < fewer_than)
        return self.reduced(np.logical_or, rare)

    def _tables_of_spans(self, level: Level) -> list[tuple[Rows, Table]]:
        """Spans, in the order of `column`, with the figures that judge them."""
        if self._levels is None:
            return []
        out = []
        for minute, rows in self.minutes:
            table = self._levels.table(level, minute)
            if table is None:
                continue
            if len(self.minutes) == 1:
                at = np.arange(len(self._group))
            else:
                mine = np.zeros(len(self), np.bool_)
                mine[rows] = True
                at = np.flatnonzero(mine[self._group])
            out.append((at, table))
        return out

    def at_least(self, what: str, least: int) -> Mask:
        """Traces that have at least so many of what `conditions.COUNTS` lists."""
        if what in ("spans", "calls", "retries"):
            counts: npt.NDArray[np.int64] = self.reduced(np.add, self.column(what).astype(np.int64))
        elif what == "same_request":
            counts = self.repeats[1]
        elif what == "growing":
            counts = self.runs[0]
        else:
            return self._deep(least)
        return counts >= least

    @cached_property
    def repeats(self) -> tuple[U64, npt.NDArray[np.int64]]:
        """The request that a trace made most often, and how often; 0 and 0 where no request is known."""
        request = self.column("request")
        key, count = np.zeros(len(self), np.uint64), np.zeros(len(self), np.int64)
        said = np.flatnonzero(request)
        if not len(said):
            return key, count
        order = said[np.lexsort((request[said], self._group[said]))]
        group, of = self._group[order], request[order]
        new = np.ones(len(order), np.bool_)
        new[1:] = (group[1:] != group[:-1]) | (of[1:] != of[:-1])
        heads = np.flatnonzero(new)
        times = np.add.reduceat(self.column("repeats")[order].astype(np.int64), heads)
        # The most frequent one of a trace last, so that writing in this order leaves it.
        last = np.lexsort((of[heads], times, group[heads]))
        traces = group[heads][last]
        key[traces], count[traces] = of[heads][last], times[last]
        return key, count

    @cached_property
    def runs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The longest run of calls that take ever more input tokens; tokens of the last call, and the run it ends."""
        tokens = self.column("tokens")
        longest, last, open_ = (np.zeros(len(self), np.int64), np.full(len(self), -1, np.int64),
                                np.zeros(len(self), np.int64))  # fmt: skip
        calls = np.flatnonzero(tokens >= 0)
        if not len(calls):
            return longest, last, open_
        # Calls that began together are no chain: the larger one first, so that it does not rise.
        order = calls[np.lexsort((-tokens[calls], self.column("start")[calls], self._group[calls]))]
        group, took, run = self._group[order], tokens[order], self.column("run")[order].astype(np.int64)
        rises = np.zeros(len(order), np.bool_)
        rises[1:] = (group[1:] == group[:-1]) & (took[1:] > took[:-1])
        total = np.cumsum(run)
        heads = np.flatnonzero(~rises)
        before = np.repeat((total - run)[heads], np.diff(heads, append=len(order)))
        length = total - before
        np.maximum.at(longest, group, length)
        last[group], open_[group] = took, length
        return longest, last, open_

    def _deep(self, least: int) -> Mask:
        """Traces with a span that has at least ``least - 1`` ancestors among the spans that came."""
        span, parent = self.column("span"), self.column("parent")
        order = np.argsort(span)
        at = find(parent, span[order])
        above = np.where(at >= 0, order[np.maximum(at, 0)], -1)
        # A span that is its own parent stands for itself and for nobody above it.
        above[above == np.arange(len(above))] = -1
        deep = np.arange(len(span))
        walking = deep
        for _ in range(min(least, LONGEST_CHAIN) - 1):
            onward = above[deep]
            walking, deep = walking[onward >= 0], onward[onward >= 0]
            if not len(deep):
                break
        found = np.zeros(len(self), np.bool_)
        found[self._group[walking]] = True
        return found if least <= LONGEST_CHAIN else np.zeros(len(self), np.bool_)
