"""The engine of tail sampling: holds spans until their traces are decided, and knows no rule.

Cost is in the ledger before this stage runs; it decides only the fate of bodies. A trace is decided

* when its root has come and ``wait_s`` has passed since;
* ``timeout_s`` after its first span, or when it has ``max_trace_spans`` that wait. If its root has not come by then it
  may go on: it is decided in steps, and what the policy's `fold` keeps of the earlier ones is judged with the later
  ones, until the root comes or it has been quiet for ``quiet_s``;
* at once where it was decided before: late spans follow what is remembered (`memory`), but for a rule that keeps with
  certainty: what matches that is kept with the rest of the trace;
* early, the oldest first, where memory is short and what waits (`waiting`) cannot be put on disk or stripped.

In: `Pending`, a batch's span structure with a handle on its bodies and what the policy saw in them. Out: `Round`, what
one tick decided. Cost of a tick: of what it decides (`open_traces`). One thread.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tollspan.processor.counters import Counters
from tollspan.processor.identity import U64, Mask, Rows, trace_keys
from tollspan.processor.sample.faster import kernels
from tollspan.processor.sample.in_use import PoliciesInUse
from tollspan.processor.sample.memory import Memory
from tollspan.processor.sample.open_traces import I32, KNOWN, ROOTED, STEPPED, TICKS, OpenTraces, ranges
from tollspan.processor.sample.plain import Plain
from tollspan.processor.sample.rounds import Decision, Pending, Round, follow
from tollspan.processor.sample.spill import Spill
from tollspan.processor.sample.thresholds import RANDOM_BITS
from tollspan.processor.sample.types import Arrived, Policy, Signs
from tollspan.processor.sample.waiting import NO_RUNS, Part, WaitingBatch, WaitingBatches, duplicates, traces_of

MOST_FOLDED: Final = 250_000
"""Traces whose root has not come and of which only folded steps are left; the oldest beyond are forgotten, and their
later spans are judged by themselves. About 200 bytes each."""

MOST_AT_ONCE: Final = 1 << 18
"""Spans that one tick decides, so that what is made of them stays small; the next tick goes on."""

_RANDOM: Final = np.uint64(2**RANDOM_BITS - 1)


class TailSampler:
    """Holds spans until their traces are decided.

    Args:
        policy: decides which are kept.
        wait_s: seconds between the arrival of a root and its trace's decision.
        timeout_s: seconds after which a trace without a root is decided on what there is.
        quiet_s: seconds without a span after which such a trace is over.
        max_bytes: bound on what waits in memory; what is beyond is spilled.
        max_spans: bound on spans that wait; beyond it the oldest are decided early (counted in ``forced``).
        max_trace_spans: spans of one trace that wait for one decision.
        spill: where bodies go; None: nowhere.
        strip: makes bodies without content of some rows of bodies; None where that is of no use.
        memory: of decisions; of this process alone by default.
        counters: counts ``sampling.*``.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        wait_s: float = 5.0,
        timeout_s: float = 30.0,
        quiet_s: float = 900.0,
        max_bytes: int = 512 << 20,
        max_spans: int = 10_000_000,
        max_trace_spans: int = 100_000,
        spill: Spill | None = None,
        strip: Callable[[Any, Rows], Any] | None = None,
        memory: Memory | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.wait_s, self.timeout_s, self.quiet_s = wait_s, timeout_s, quiet_s
        self.max_spans, self.max_trace_spans = max_spans, max_trace_spans
        self.counters = counters or Counters()
        self.memory = Memory(counters=self.counters) if memory is None else memory
        self.forced = 0
        self.waiting_spans = 0
        self.open = OpenTraces()
        self.waiting = WaitingBatches(self.open.runs, max_bytes, spill, strip, self.counters)
        self.policies = PoliciesInUse(policy, self.counters)
        self._base = math.nan
        self._finished: list[Any] = []

    @property
    def policy(self) -> Policy:
        """By which traces that begin now are judged."""
        return self.policies.policy

    def use(self, policy: Policy) -> None:
        """Judge traces that begin from now on by another policy; may be called from any thread."""
        self.policies.use(policy)

    def tune(self, keep: float, wait_s: float, timeout_s: float) -> None:
        """Decide by other settings from now on; may be called from any thread.

        Args:
            keep: share of the rest, where no rules were given.
            wait_s, timeout_s: as above, for spans that come from now on.
        """
        plain, now = Plain(keep), self.policy
        if isinstance(now, Plain) and now.threshold != plain.threshold:
            self.use(plain)
        self.wait_s, self.timeout_s = wait_s, timeout_s

    def look(self, batch: Arrived) -> dict[int, Signs]:
        """What the policies in use see in a batch, for `Pending.signs`."""
        return self.policies.look(batch)

    @property
    def short(self) -> bool:
        """Whether more waits than may."""
        return self.waiting.nbytes > self.waiting.max_bytes or self.waiting_spans > self.max_spans

    @property
    def open_traces(self) -> int:
        """Traces that wait for a decision, or go on after one."""
        return len(self.open)

    @property
    def waiting_bytes(self) -> int:
        """Memory of what waits, about."""
        return self.waiting.nbytes + self.open.nbytes

    # -- in ------------------------------------------------------------------------------------------------------------

    def offer(self, pending: Pending) -> None:
        """Take a batch in; `tick` decides."""
        count = len(pending.trace)
        if not count:
            self._finished.append(pending.source)
            return
        now = self._tick_of(pending.arrived, math.ceil)
        first, starts, counts, order, random, rooted = traces_of(pending.trace, pending.randomness, pending.root)

        open_ = self.open
        keys = trace_keys(pending.ids[first], self.memory.seed)
        found = open_.index.find(keys)
        new = found < 0
        fresh = np.flatnonzero(new)
        if len(fresh):
            made = open_.open(keys[fresh], pending.ids[first[fresh]], now, self.policies.current)
            self.policies.opened(len(made))
            open_.slots["flags"][made[self.memory.recall(keys[fresh]).ground >= 0]] = KNOWN
            found[fresh] = made
        slots = found.astype(np.int32)

        batch = self.waiting.take(pending, order)
        batch.runs = open_.add_runs(batch.number, slots, starts, counts)
        self.waiting_spans += count
        open_.set_due(slots, self._arrive(now, slots, new, counts, random, rooted))

    def _arrive(
        self, now: int, slots: I32, new: Mask, counts: Rows, random: U64, rooted: Mask
    ) -> npt.NDArray[np.integer[Any]]:
        """Put down that spans of some traces came; when each is due.

        Args:
            slots: of t traces. new: whether they began.
            counts, random, rooted: of what came, see `traces_of`.
        """
        columns = self.open.slots
        wait, timeout = round(self.wait_s * TICKS), round(self.timeout_s * TICKS)
        if (compiled := kernels()) is not None:
            out = np.empty(len(slots), np.int32)
            times = np.array([now, wait, timeout, self.max_trace_spans, ROOTED, KNOWN, STEPPED])
            of_slots = [columns[name] for name in ("last", "random", "waiting", "flags", "due")]
            compiled.arrive(slots, new, counts, random, rooted, times, *of_slots, out)
            return out
        columns["last"][slots] = now
        columns["random"][slots] = np.maximum(columns["random"][slots], random)
        waiting = columns["waiting"][slots] + counts
        columns["waiting"][slots] = waiting
        flags = columns["flags"][slots]
        # Its first root begins the wait.
        ended = rooted & (flags & ROOTED == 0)
        flags[rooted] |= ROOTED
        columns["flags"][slots] = flags

        due = np.where(new, now + timeout, columns["due"][slots])
        soon = ended | (flags & STEPPED != 0)
        due = np.where(soon, np.minimum(due, now + wait), due)
        at_once = (flags & (KNOWN | STEPPED) == KNOWN) | (waiting >= self.max_trace_spans)
        return np.where(at_once, np.minimum(due, now), due)

    def _tick_of(self, seconds: float, whole: Callable[[float], int]) -> int:
        if math.isnan(self._base):
            self._base = math.floor(seconds)
        return whole((seconds - self._base) * TICKS)

    # -- out -----------------------------------------------------------------------------------------------------------

    def tick(self, now: float, *, everything: bool = False) -> Round:
        """Decide what is due at ``now`` (seconds as in `Pending.arrived`), or all of it (shutdown).

        What an earlier round gave must not be used any more. Where the round says that there is ``more``, call again.
        """
        self.waiting.clean()
        out = Round(finished=self._finished)
        self._finished = []
        if not len(self.open):
            return out
        tick = self._tick_of(now, math.floor)
        slots = self.open.all() if everything else self.open.come_up(tick)
        overdue = NO_RUNS if everything else self._overdue()
        if len(overdue):
            slots = np.union1d(slots, overdue)
        waiting = self.open.slots["waiting"]
        idle = waiting[slots] == 0
        if idle.any():
            self._forget(slots[idle])
            slots = slots[~idle]
        if len(slots):
            if int(waiting[slots].sum()) > MOST_AT_ONCE:
                slots, out.more = self._first(slots, tick), True
            self._decide(slots, tick, everything, out)
        return out

    def _first(self, slots: I32, tick: int) -> I32:
        """As many of the slots as one round takes, batch by batch; the others are due in the next."""
        newest = self.open.runs["batch"][self.open.slots["head"][slots]]
        slots = slots[np.argsort(newest, kind="stable")]
        waiting = self.open.slots["waiting"][slots]
        later = np.cumsum(waiting) - waiting > MOST_AT_ONCE
        self.open.set_due(slots[later], tick)
        first: I32 = slots[~later]
        return first

    def _decide(self, slots: I32, tick: int, everything: bool, out: Round) -> None:
        columns = self.open.slots
        runs, owner, parts = self._parts_of(slots)
        policies, flags = columns["policy"][slots], columns["flags"][slots]
        # Maybe still running: its root is missing.
        stepping = (flags & ROOTED == 0) & (flags & (KNOWN | STEPPED) != KNOWN) & (not everything)
        stepping &= policies == self.policies.current
        randomness = columns["random"][slots] & _RANDOM
        fates, certain, folded = self.policies.judge(policies, parts, randomness, stepping)

        fresh = np.ones(len(slots), np.bool_)
        before = np.flatnonzero(flags & (KNOWN | STEPPED))
        if len(before):
            known = self.memory.recall(columns["key"][slots[before]])
            fresh[follow(fates, before, known, certain[before])] = False
        self.memory.add(columns["key"][slots[fresh]], fates.reason[fresh], fates.threshold[fresh], fates.content[fresh])

        out.traces, out.fates, out.ids = len(slots), fates, columns["id"][slots]
        out.earlier = np.zeros((len(slots), 4), np.int64)
        repeats = duplicates(parts, np.bincount(owner, minlength=len(slots)) > 1)
        for part, repeat in zip(parts, repeats, strict=True):
            batch = part.batch
            if batch.place is not None:
                out.decisions.append(Decision(batch.bodies, part.rows, part.group, fates, repeat, batch.stripped))
            elif batch.totals is not None:
                out.earlier[part.group] += batch.totals[part.positions]

        self.waiting_spans -= int(columns["waiting"][slots].sum())
        self.open.free_runs(runs)
        self._close(slots[~stepping])
        out.carry = self._step(slots, stepping, folded, tick)
        self._leave(parts, out)

    def _step(
        self, slots: I32, stepping: Mask, folded: Signs | None, tick: int
    ) -> Callable[[npt.NDArray[np.int64]], None] | None:
        """Keep those traces open that may go on; what takes their totals."""
        at = np.flatnonzero(stepping)
        going = slots[at]
        if folded is None:
            self._close(going)
            return None
        columns, count = self.open.slots, len(at)
        columns["head"][going] = -1
        columns["waiting"][going] = 0
        columns["flags"][going] |= STEPPED
        batch = self.waiting.fold({self.policies.current: folded}, count)
        batch.runs = self.open.add_runs(batch.number, going, np.arange(count), np.ones(count, np.int64))
        self.open.set_due(going, tick + round(self.quiet_s * TICKS))
        self.counters.add("sampling.steps", count)
        self._forget_oldest()

        def carry(totals: npt.NDArray[np.int64]) -> None:
            if batch.total == count:
                batch.totals = totals[at]

        return carry

    def _forget_oldest(self) -> None:
        """Hold the bound on folded steps."""
        excess = self.waiting.folded - MOST_FOLDED
        for batch in self.waiting if excess > 0 else ():
            if batch.place is None:
                slots = self._slots_of(batch)
                quiet = slots[self.open.slots["waiting"][slots] == 0]
                self._forget(quiet)
                self.counters.add("sampling.steps_forgotten", len(quiet))
                excess -= len(quiet)
            if excess <= 0:
                break

    def _forget(self, slots: I32) -> None:
        """Close traces of which nothing waits."""
        runs, _, parts = self._parts_of(slots)
        self.open.free_runs(runs)
        self._close(slots)
        self._leave(parts, Round())

    def _slots_of(self, batch: WaitingBatch) -> I32:
        """Traces of which something waits in a batch."""
        alive = batch.runs[self.open.runs["batch"][batch.runs] == batch.number]
        slots: I32 = self.open.runs["slot"][alive]
        return slots

    def _close(self, slots: I32) -> None:
        if len(slots):
            self.policies.closed(self.open.slots["policy"][slots])
            self.open.close(slots)

    def _leave(self, parts: list[Part], out: Round) -> None:
        for part in parts:
            if self.waiting.leave(part.batch, len(part.positions)) and part.batch.place is not None:
                out.finished.append(part.batch.source)

    def _parts_of(self, slots: I32) -> tuple[I32, Rows, list[Part]]:
        """Runs of some traces, the number of each one's trace, and all their spans, batch by batch."""
        runs, owner = self.open.runs_of(slots)
        columns = self.open.runs
        # In the order of the batches' rows, so that these are read one after the other.
        order = np.argsort(columns["batch"][runs].astype(np.int64) << 32 | columns["start"][runs])
        runs, owner = runs[order], owner[order]
        number, starts, counts = (columns[name][runs] for name in ("batch", "start", "count"))
        cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(runs)]
        parts = [
            Part(self.waiting[int(number[a])], ranges(starts[a:b], counts[a:b]), np.repeat(owner[a:b], counts[a:b]))
            for a, b in itertools.pairwise(cuts)
            if a < b
        ]
        return runs, owner, parts

    def _overdue(self) -> I32:
        """Make room where there is too little: content of bodies goes first, then the oldest traces are decided early.

        Deciding always makes room, so there is no need to give up bodies that nobody decided on.
        """
        bytes_, spans = self.waiting.nbytes - self.waiting.max_bytes, self.waiting_spans - self.max_spans
        if bytes_ > 0:
            bytes_ -= self.waiting.shed(bytes_)
        found = []
        for batch in self.waiting if bytes_ > 0 or spans > 0 else ():
            if bytes_ <= 0 and spans <= 0:
                break
            if batch.place is None or (spans <= 0 and not batch.nbytes):
                continue
            bytes_ -= batch.nbytes
            spans -= batch.left
            found.append(self._slots_of(batch))
        if not found:
            return NO_RUNS
        slots: I32 = np.unique(np.concatenate(found))
        self.forced += len(slots)
        return slots

    def close(self) -> None:
        """Let go of files; what still waits comes again from the journal."""
        self.waiting.close()
        self.memory.close()
