"""What engine and policy say to each other.

The engine (`sampler`) holds traces and finds out when one is due; a `Policy` says which are kept, and why. The engine
knows no rule, and the policy no batch:

    policy.look(arrived)  once for each batch that arrives: what the policy will need of each span, as `Signs`
    policy.decide(due)    once for each tick: the Signs of all spans of the traces that are due, to `Verdicts`

Signs are all that stays in memory of a span that waits (its body may be on disk), so every byte of them counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from tollspan.processor.identity import U64, Mask, Rows

if TYPE_CHECKING:
    from tollspan.processor.charge import Charged
    from tollspan.processor.decode import Decoded
    from tollspan.processor.normalize import Normalized
    from tollspan.processor.recall import Identities

FULL: Final = 0
STRIPPED: Final = 1
"""Levels of a kept body: as it came, or without its content (prompts, completions, events)."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A batch as the policy sees it: n spans, new ones only.

    Attributes:
        decoded, normalized: its spans.
        charged: ledger rows; ``charged.rows`` says which span each is.
        who: keys of traces and spans, who has no parent.
    """

    decoded: Decoded
    normalized: Normalized
    charged: Charged
    who: Identities

    def __len__(self) -> int:
        return len(self.decoded)


@dataclass(frozen=True, slots=True)
class Signs:
    """What a policy needs of some spans: columns of equal length, opaque to the engine.

    Attributes:
        columns: name → 1-d array. All Signs that one policy makes have the same names and types.
        length: spans; also where a policy needs no column at all.
    """

    columns: Mapping[str, npt.NDArray[Any]]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def select(self, rows: Rows) -> Signs:
        """A copy for some of the spans."""
        return Signs({name: values[rows] for name, values in self.columns.items()}, len(rows))

    @staticmethod
    def concat(parts: Sequence[Signs]) -> Signs:
        """Several behind each other; at least one."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        return Signs(columns, sum(map(len, parts)))

    @property
    def nbytes(self) -> int:
        """Memory."""
        return sum(values.nbytes for values in self.columns.values())


@dataclass(frozen=True, slots=True)
class Due:
    """Traces that are decided together: t traces, m spans.

    Attributes:
        signs: of all their spans that wait, in no order; of a trace that is decided in steps also those that `fold`
            left of the earlier steps.
        group: trace of each span, 0 … t-1, shape (m,). Every trace has at least one.
        traces: t.
        randomness: 56 bits of each trace, shape (t,).
    """

    signs: Signs
    group: Rows
    traces: int
    randomness: U64


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a policy says of each of t traces.

    Attributes:
        rule: number of the rule that keeps the trace, 0 where it is dropped, int16.
        matched: number of the rule that decided, also where chance then dropped the trace, int16; 0: none matched.
        threshold: that the trace's randomness was compared with, uint64: the rule's own, 0 for certainty. What samplers
            before us did to single spans (``incoming``) is the engine's business, so this does not depend on it.
        full: the threshold that it would have had if no budget steered it, uint64.
        content: `FULL` or `STRIPPED` of the kept, int8.
    """

    rule: npt.NDArray[np.int16]
    matched: npt.NDArray[np.int16]
    threshold: U64
    full: U64
    content: npt.NDArray[np.int8]


class Policy(Protocol):
    """Decides which traces are kept. Its methods are called from the pipeline's thread alone.

    A verdict is a function of the spans' signs, the trace's randomness and levels that do not depend on it, so that
    every replica and every replay decides alike and Σ adjusted count over what is kept has no bias.

    Attributes:
        names: of the rules, by number; the first is '', for what no rule keeps.
        reasons: kind of each rule (``error``, ``slow``, ``probability`` …), '' for the first.
        certain: which rules keep every trace that they match. A late span that one of these matches is kept even where
            its trace was dropped.
        steered: which rules a budget may thin out.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def reasons(self) -> Sequence[str]: ...

    @property
    def certain(self) -> Mask: ...

    @property
    def steered(self) -> Mask: ...

    def look(self, batch: Arrived) -> Signs:
        """What will be needed of each span of a batch."""
        ...

    def decide(self, due: Due) -> Verdicts:
        """Verdicts on all traces of ``due``."""
        ...

    def fold(self, due: Due) -> Signs:
        """One row for each trace that stands for all its spans when the next step of the trace is decided.

        For traces that run longer than the decision can wait: their bodies are written, and this is what is known of
        them then (costs summed, marks together, first start and last end).
        """
        ...
