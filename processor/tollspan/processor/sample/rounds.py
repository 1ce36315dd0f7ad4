"""What goes into the engine and comes out of it: `Pending` batches in, `Round`s of decisions out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tollspan.processor.identity import U64, Mask, Rows
from tollspan.processor.sample.memory import Remembered
from tollspan.processor.sample.names import DROPPED
from tollspan.processor.sample.spill import Spilled
from tollspan.processor.sample.types import FULL, Signs

Codes = npt.NDArray[np.int16]


@dataclass(slots=True)
class Pending:
    """Spans of one batch that wait for their traces' decisions, n of them.

    Attributes:
        source: the batch they came from; handed back when nothing of it waits any more.
        bodies: what bodies can be made from; opaque here but for ``select(rows)`` and ``nbytes``.
        trace, span: keys (see `identity`), shape (n,); ids: both words of the trace id, shape (n, 2).
        randomness: of the trace as each span tells it, see `open_traces.explicit`; shape (n,).
        root: the span has no parent.
        signs: what each policy in use saw, by its number: from `TailSampler.look`.
        arrived: seconds, one for the batch, never less than before.
        nbytes: approximate memory of ``bodies``.
    """

    source: Any
    bodies: Any
    trace: U64
    ids: U64
    span: U64
    randomness: U64
    root: Mask
    signs: Mapping[int, Signs]
    arrived: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class Fates:
    """What became of the t traces of a round, arrays of shape (t,).

    Attributes:
        reason: why they are kept, numbers of `names`, `DROPPED` for those that are not.
        threshold: the rule's own; what samplers before us did to a span is not in it.
        matched: ground of the rule that decided, also where chance then dropped the trace.
        full: the threshold without a budget.
        content: `FULL` or `STRIPPED`.
        steered: a budget may thin out what that rule matches.
    """

    reason: Codes
    threshold: U64
    matched: Codes
    full: U64
    content: npt.NDArray[np.int8]
    steered: Mask

    @staticmethod
    def alike(traces: int, reason: int, threshold: int, content: int = FULL) -> Fates:
        """The same for all; for tests and tools."""

        def all_(value: int, kind: type) -> Any:
            return np.full(traces, value, kind)

        return Fates(
            all_(reason, np.int16),
            all_(threshold, np.uint64),
            all_(reason, np.int16),
            all_(threshold, np.uint64),
            all_(content, np.int8),
            all_(False, np.bool_),
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """Decided rows of one batch, m of them.

    Attributes:
        place: its bodies, or where they are spilled.
        rows: positions in them; rows of one trace stand next to each other.
        group: for each row the index of its trace among the decided traces of this round.
        fates: of these traces.
        duplicate: the same span came twice within the round and this is not the first; None: there is none.
        stripped: the bodies' content was given up when memory was short.
    """

    place: Any
    rows: Rows
    group: Rows
    fates: Fates
    duplicate: Mask | None = None
    stripped: bool = False

    @property
    def bodies(self) -> Any:
        """As in `Pending`; read from disk where they are spilled, each time."""
        return self.place.load()[0] if isinstance(self.place, Spilled) else self.place

    @property
    def reason(self) -> Codes:
        """Of each row."""
        return self.fates.reason[self.group]

    @property
    def threshold(self) -> U64:
        """Of each row."""
        return self.fates.threshold[self.group]


@dataclass(slots=True)
class Round:
    """What one tick decided.

    Attributes:
        decisions: by batch; traces: how many; ids: words of their trace ids, shape (traces, 2).
        fates: of the traces.
        earlier: what earlier steps of each came to, see `add_up`; shape (traces, 4).
        finished: sources that wait for nothing more.
        more: others are due already.
    """

    decisions: list[Decision] = field(default_factory=list)
    traces: int = 0
    ids: U64 = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    fates: Fates = field(default_factory=lambda: Fates.alike(0, DROPPED, 0))
    earlier: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    finished: list[Any] = field(default_factory=list)
    more: bool = False
    carry: Callable[[npt.NDArray[np.int64]], None] | None = None

    def add_up(self, totals: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What all steps of the traces come to so far; it is remembered for those that go on.

        Args:
            totals: spans, bytes received, spans kept and bytes stored of each trace in this round, shape (traces, 4).
        """
        so_far: npt.NDArray[np.int64] = totals + self.earlier
        if self.carry is not None:
            self.carry(so_far)
        return so_far


def follow(fates: Fates, rows: Rows, known: Remembered, certain: Mask) -> Rows:
    """Let traces that were decided before follow that, unless a rule keeps them with certainty now and did not before.

    Such a rule also takes the place of a decision by chance that kept the trace: the same late spans are kept with it
    where chance dropped the trace, so they stand for nobody else.

    Args:
        fates: changed.
        rows: of the traces; known, certain: for each of these.

    Returns:
        Those that follow.
    """
    sure = (known.ground > DROPPED) & (known.threshold == 0)
    followers = (known.ground >= 0) & (sure | ~certain)
    at: Rows = rows[followers]
    fates.reason[at] = fates.matched[at] = known.ground[followers]
    fates.threshold[at] = fates.full[at] = known.threshold[followers]
    fates.content[at], fates.steered[at] = known.content[followers], False
    return at
