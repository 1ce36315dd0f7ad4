"""Tail sampling: which traces keep their span bodies.

Cost is in the ledger before this stage runs; it decides only the fate of bodies. A trace is decided when its root has
ended and ``wait_s`` has passed since, or ``timeout_s`` after its first span. The first rule that matches wins: a trace
with an error is kept with certainty; of the rest a share ``keep`` is kept by comparing the trace id's randomness with a
threshold, as OpenTelemetry's consistent probability sampling does, so every replica and every replay decides alike.
The threshold goes onto kept spans (``ot=th`` in tracestate); an incoming ``rv`` or ``th`` is honoured.

In: span structure of a batch, with a handle on its bodies. Out: `Decision`s over rows of earlier batches, and one
summary row for each decided trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tollspan.processor.identity import U64, Mask, Rows, distinct, find, repeated

RANDOM_BITS: Final = 56
"""Bits of trace randomness, and the scale of thresholds (OpenTelemetry probability sampling)."""

ALWAYS: Final = 0
"""Threshold that rejects nothing."""

REASONS: Final = ("", "error", "probability")
DROPPED, ERROR, PROBABILITY = range(3)


def threshold(keep: float) -> int:
    """Rejection threshold for a share of traces to keep, 0 ≤ keep ≤ 1, on the scale of 2^56."""
    return int(min(max(round((1.0 - keep) * 2**RANDOM_BITS), 0), 2**RANDOM_BITS))


def encode_threshold(value: int) -> str:
    """``th`` as in tracestate: hexadecimal without trailing zeros, ``0`` when everything is kept."""
    return f"{value:014x}".rstrip("0") or "0"


def adjusted_count(value: int) -> float:
    """How many spans a kept one stands for: the inverse of its probability."""
    return float(2**RANDOM_BITS / (2**RANDOM_BITS - value))


@dataclass(slots=True)
class Pending:
    """Rows of one batch that wait for their traces' decisions.

    Attributes (arrays of shape (n,), n rows waiting):
        source: the batch the rows came from; handed back with decisions and when nothing waits any more.
        bodies: what bodies can be made from; opaque here but for ``select(rows)`` and ``nbytes``.
        rows: position of each waiting row in ``bodies``.
        trace, span: keys (see `identity`).
        randomness: 56-bit trace randomness, ``incoming``: threshold that a sampler before us applied, 0 if none.
        root, error: the span has no parent; the span's status is error.
        arrived: monotonic seconds, one for the batch.
        nbytes: approximate memory of ``bodies``.
    """

    source: Any
    bodies: Any
    rows: Rows
    trace: U64
    span: U64
    randomness: U64
    incoming: U64
    root: Mask
    error: Mask
    arrived: float
    nbytes: int
    total: int = 0

    def __post_init__(self) -> None:
        self.total = self.total or len(self.rows)

    def remove(self, gone: Mask) -> None:
        """Forget the rows that were decided."""
        stay = ~gone
        for name in ("rows", "trace", "span", "randomness", "incoming", "root", "error"):
            setattr(self, name, getattr(self, name)[stay])


@dataclass(frozen=True, slots=True)
class Decision:
    """Decided rows of one pending batch.

    Attributes (shape (m,)):
        bodies: as in `Pending`; rows: positions in it.
        group: for each row the index of its trace among the decided traces of this round.
        reason: code into `REASONS`, 0 for dropped; ``threshold``: effective threshold of a kept row.
        duplicate: the same span came twice within the round and this is not the first.
    """

    bodies: Any
    rows: Rows
    group: npt.NDArray[np.int64]
    reason: npt.NDArray[np.int8]
    threshold: U64
    duplicate: Mask


@dataclass(slots=True)
class Round:
    """What one tick decided: `Decision`s by batch, the number of traces, and the sources that wait for nothing more."""

    decisions: list[Decision] = field(default_factory=list)
    traces: int = 0
    finished: list[Any] = field(default_factory=list)


class Memory:
    """Decisions of traces already decided, for spans that come late: sorted keys in a few generations.

    Bounded by ``limit`` traces at about 17 bytes each; the oldest generation is forgotten first.
    """

    def __init__(self, limit: int = 1_000_000) -> None:
        self.limit = limit
        self._generations: list[tuple[U64, npt.NDArray[np.int8], U64]] = []

    def add(self, keys: U64, reason: npt.NDArray[np.int8], thresholds: U64) -> None:
        """Remember decisions; ``keys`` ascending and unique."""
        self._generations.insert(0, (keys, reason, thresholds))
        if len(self._generations) > 8:
            merged = self._generations[:5]
            all_keys = np.concatenate([g[0] for g in merged])
            # Newest first: np.unique keeps the first occurrence, the latest decision.
            unique, first = np.unique(all_keys, return_index=True)
            reasons = np.concatenate([g[1] for g in merged])[first]
            self._generations[:5] = [(unique, reasons, np.concatenate([g[2] for g in merged])[first])]
        while len(self._generations) > 1 and sum(len(g[0]) for g in self._generations) > self.limit:
            self._generations.pop()

    def recall(self, keys: U64) -> tuple[npt.NDArray[np.int8], U64]:
        """(reason code or -1 where unknown, threshold) for each key."""
        reason = np.full(len(keys), -1, np.int8)
        thresholds = np.zeros(len(keys), np.uint64)
        for known, codes, values in self._generations:
            open_ = np.flatnonzero(reason < 0)
            if not len(open_):
                break
            at = find(keys[open_], known)
            hit = open_[at >= 0]
            reason[hit] = codes[at[at >= 0]]
            thresholds[hit] = values[at[at >= 0]]
        return reason, thresholds


class TailSampler:
    """Holds spans until their traces are decided.

    Args:
        keep: share of error-free traces whose bodies are kept, 0 to 1.
        wait_s: seconds between the end of a root's arrival and its trace's decision.
        timeout_s: seconds after which a trace without a root is decided on what there is.
        max_bytes: bound on held bodies; beyond it the oldest batches' traces are decided early (counted in
            ``forced``). Cost is not touched by this.
    """

    def __init__(
        self, keep: float, *, wait_s: float = 1.0, timeout_s: float = 30.0, max_bytes: int = 512 << 20
    ) -> None:
        if not 0.0 <= keep <= 1.0:
            raise ValueError(f"keep must be between 0 and 1, not {keep}")
        self.threshold = threshold(keep)
        self.wait_s, self.timeout_s, self.max_bytes = wait_s, timeout_s, max_bytes
        self.forced = 0
        self._pending: list[Pending] = []
        self._memory = Memory()
        self._next_look = -np.inf

    def tune(self, keep: float, wait_s: float, timeout_s: float) -> None:
        """Decide by other settings from the next `tick` on; may be called from any thread."""
        self.threshold, self.wait_s, self.timeout_s = threshold(keep), wait_s, timeout_s

    @property
    def waiting_spans(self) -> int:
        """Spans that wait for a decision."""
        return sum(len(p.rows) for p in list(self._pending))

    @property
    def waiting_bytes(self) -> int:
        """Memory of what waits, about."""
        return sum(p.nbytes for p in list(self._pending))

    def offer(self, pending: Pending) -> None:
        """Take a batch in; `tick` decides."""
        self._pending.append(pending)

    def tick(self, now: float, *, everything: bool = False) -> Round:
        """Decide what is due at ``now`` (monotonic seconds), or all of it (shutdown)."""
        out = Round()
        # A look sorts all that waits; half the wait between looks keeps that to a few for each span.
        crowded = sum(p.nbytes for p in self._pending) > self.max_bytes
        if not self._pending or (now < self._next_look and not everything and not crowded):
            return out
        self._next_look = now + self.wait_s / 2
        trace = np.concatenate([p.trace for p in self._pending])
        if len(trace):
            self._decide(trace, now, everything, crowded, out)
        still: list[Pending] = []
        for pending in self._pending:
            if len(pending.rows):
                still.append(self._shrunk(pending))
            else:
                out.finished.append(pending.source)
        self._pending = still
        return out

    def _decide(self, trace: U64, now: float, everything: bool, crowded: bool, out: Round) -> None:
        parts = self._pending
        sizes = [len(p.rows) for p in parts]
        arrived = np.repeat(np.array([p.arrived for p in parts]), sizes)
        root = np.concatenate([p.root for p in parts])
        error = np.concatenate([p.error for p in parts])
        keys, first, group = distinct(trace)
        count = len(keys)

        born = np.full(count, np.inf)
        np.minimum.at(born, group, arrived)
        rooted = np.full(count, np.inf)
        np.minimum.at(rooted, group[root], arrived[root])
        failed = np.zeros(count, np.bool_)
        failed[group[error]] = True

        known, known_threshold = self._memory.recall(keys)
        due = (rooted + self.wait_s <= now) | (born + self.timeout_s <= now) | (known >= 0)
        if everything:
            due[:] = True
        elif crowded:
            due |= self._overdue(parts, born, out)
        if not due.any():
            return

        randomness = np.concatenate([p.randomness for p in parts])[first]
        incoming = np.zeros(count, np.uint64)
        np.maximum.at(incoming, group, np.concatenate([p.incoming for p in parts]))
        own = np.maximum(incoming, np.uint64(self.threshold))
        by_chance = randomness >= own
        reason = np.where(failed, ERROR, np.where(by_chance, PROBABILITY, DROPPED)).astype(np.int8)
        effective = np.where(failed, incoming, own)
        # A late span follows its trace's decision, but an error is never dropped for having come late.
        follow = (known >= 0) & ~((known == DROPPED) & failed)
        reason = np.where(follow, known, reason)
        effective = np.where(follow, known_threshold, effective)
        fresh = due & ~follow
        self._memory.add(keys[fresh], reason[fresh], effective[fresh])

        number = np.cumsum(due) - 1
        out.traces = int(due.sum())
        leaving = due[group]
        # Spans of one trace leave together, so a duplicate's first is among them.
        duplicate = np.zeros(len(trace), np.bool_)
        duplicate[leaving] = repeated(np.concatenate([p.span for p in parts])[leaving])
        start = 0
        for pending, size in zip(parts, sizes, strict=True):
            mine = slice(start, start + size)
            start += size
            gone = leaving[mine]
            if not gone.any():
                continue
            of = group[mine][gone]
            out.decisions.append(
                Decision(
                    pending.bodies, pending.rows[gone], number[of], reason[of], effective[of], duplicate[mine][gone]
                )
            )
            pending.remove(gone)

    def _overdue(self, parts: list[Pending], born: npt.NDArray[np.float64], out: Round) -> Mask:
        """Traces of the oldest batches, until what is left fits into ``max_bytes``."""
        left = sum(p.nbytes for p in parts)
        horizon = -np.inf
        for pending in sorted(parts, key=lambda p: p.arrived):
            if left <= self.max_bytes:
                break
            left -= pending.nbytes
            horizon = pending.arrived
        overdue = born <= horizon
        self.forced += int(overdue.sum())
        return overdue

    @staticmethod
    def _shrunk(pending: Pending) -> Pending:
        """Copy the last few waiting rows out, so that one slow trace does not hold a whole batch in memory."""
        if len(pending.rows) * 4 > pending.total:
            return pending
        pending.bodies = pending.bodies.select(pending.rows)
        pending.nbytes = pending.bodies.nbytes
        pending.rows = np.arange(len(pending.rows), dtype=np.int64)
        pending.total = len(pending.rows)
        return pending
