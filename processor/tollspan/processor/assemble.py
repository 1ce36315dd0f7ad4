"""Assemble: which token-bearing spans are roll-ups of others, so that no call is billed twice.

An agent, chain or proxy span often repeats the token counts of the calls below it. A token-bearing span with a
token-bearing descendant in its trace is such a roll-up: its tokens are billed on the descendants. So is a model call
that tells no usage, where one below it does: it is the same call, seen twice. Children end before
their parents and mostly arrive first; for the ones that do not, the parent's ledger row, already written as billed,
is written again with a higher revision.

In: the canonical columns of one batch. Out: a mask of roll-ups in this batch, and where the earlier rows stand that
have to be corrected. State: for a bounded window of recent spans, key → parent key, which of them are known to have a
token-bearing descendant, and where the billed ones stand in the ledger. `mark` only looks; `learn` takes a batch in,
once its rows are written. Whole arrays at a time; the one loop is over the depth of the tree.

The clock is the journal's: seconds of the instants at which batches were received. So a batch that comes again after a
crash meets what it met the first time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tollspan.pricing.meters import METERS
from tollspan.processor import revisions
from tollspan.processor.decode.fused import kernels
from tollspan.processor.identity import U64, Mask, Rows, ascending, find, member
from tollspan.processor.recent import Generations, Known, faster
from tollspan.processor.recent_log import Record

MAX_DEPTH: Final = 4096
"""Levels that one batch propagates; a deeper chain (or a cycle of parents) ends there."""

USAGE_INCOMPLETE: Final = "usage_incomplete"
USAGE_ESTIMATED: Final = "usage_estimated"
"""Reasons that tell of a row's tokens, and go with them."""

PARENT, CONTENT = 0, 1
"""Columns of `Assembler.spans`."""

NO_PARENT: Final = np.uint64(0)

_EMBEDDING: Final = np.uint64(0x5851F42D4C957F2D)
"""Sets the keys of embeddings apart, see `billing_keys`."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Spans of a batch and where their parents stand in it, for the kernels."""

    walk: Any
    keys: U64
    parents: U64
    slots: npt.NDArray[np.int32]
    up: Rows

    @classmethod
    def of(cls, walk: Any, keys: U64, parents: U64, above: Mask) -> _Batch:
        keys, parents = np.ascontiguousarray(keys), np.ascontiguousarray(parents)
        slots = np.zeros(1 << (2 * len(keys)).bit_length(), np.int32)
        up = np.empty(len(keys), np.int64)
        walk.parent_rows(keys, parents, above, slots, up)
        return cls(walk, keys, parents, slots, up)

    def climb(self, begin: Rows, known: Mask, marked: Mask) -> U64:
        """Keys of parents outside of the batch, ascending; see the kernel."""
        outside = np.empty(len(begin), np.uint64)
        count = self.walk.climb(begin, self.up, self.parents, known, marked, outside)
        return ascending(outside[:count])

    def rows(self, asked: U64) -> Rows:
        """Rows of some keys, -1 where they are not in the batch."""
        found = np.empty(len(asked), np.int64)
        self.walk.rows_of(asked, self.keys, self.slots, found)
        return found


@dataclass(slots=True)
class Assembler:
    """Finds roll-ups across batches within a window.

    A roll-up's ledger row always has a revision above every billed one's (see `revisions`), so that resending the
    parent alone, without the child that proved it a roll-up, cannot bill it again.

    Args:
        window_s: how long a span is remembered, in seconds.
        max_spans: bound on remembered spans; the oldest are forgotten first. A child that comes later than that no
            longer corrects its parent's row.

    Attributes:
        spans: of each span the key of its parent, `NO_PARENT` for a root, and its content (see `recent`).
        billed: of each billed row of a token-bearing span, by `billing_keys`: start time, both words of the trace id,
            span id.
        since: everything that was received after this instant is known.
    """

    window_s: float = 900.0
    max_spans: int = 2_000_000
    spans: Known = field(default_factory=lambda: Generations(2))
    billed: Known = field(default_factory=lambda: Generations(4))
    since: float = np.inf
    _ancestors: Known = field(default_factory=lambda: Generations(0, 1 << 22))
    _embeds: bool = False

    def mark(
        self,
        keys: U64,
        parents: U64,
        is_root: Mask,
        tokens: Mask,
        *,
        used: Mask | None = None,
        embeddings: Mask | None = None,
        order: Rows | None = None,
    ) -> tuple[Mask, U64]:
        """Which spans of a batch are roll-ups; nothing is taken in.

        Args:
            keys, parents: span and parent keys, shape (n,); a root's parent key is not looked at.
            is_root: spans without a parent.
            tokens: spans that carry token usage, or should: what can be a roll-up.
            used: spans whose token usage is there, right and above zero, by default all of ``tokens``. Only these make
                roll-ups of their ancestors: usage of nothing accounts for nobody's bill.
            embeddings: spans that embed. An embedding inside a chat call does not account for the call's tokens, so
                these only make roll-ups of each other.
            order: rows by ascending key, where somebody has them.

        Returns:
            (roll-up mask over the batch, keys (see `billing_keys`) newly known to have a token-bearing descendant).
        """
        order = np.argsort(keys) if order is None else order
        sorted_keys = keys[order]
        # A span that names itself as its parent is a root.
        above = ~is_root & (keys != parents)
        used = tokens if used is None else used
        if embeddings is not None and (embeddings & tokens).any():
            self._embeds = True
        carriers = used if embeddings is None else used & ~embeddings
        walk = kernels()
        if walk is not None:
            batch = _Batch.of(walk, keys, parents, above)
            marked, announced = self._climb(batch, carriers, np.uint64(0))
            if embeddings is not None and self._embeds:
                small, more = self._climb(batch, used & embeddings, _EMBEDDING)
                marked, announced = np.where(embeddings, small, marked), ascending(np.concatenate([announced, more]))
            return tokens & marked, announced
        own = keys if embeddings is None else billing_keys(keys, embeddings)
        frontier = parents[(carriers | self._ancestors.member(keys)) & above]
        if self._embeds:
            small = self._ancestors.member(keys ^ _EMBEDDING)
            if embeddings is not None:
                small |= used & embeddings
            frontier = np.concatenate([frontier, parents[small & above] ^ _EMBEDDING])
        frontier = ascending(frontier)
        announced = np.zeros(0, np.uint64)
        for _ in range(MAX_DEPTH):
            frontier = frontier[~(member(frontier, announced) | self._ancestors.member(frontier))]
            if not len(frontier):
                break
            announced = np.union1d(announced, frontier)
            up = self._parents_of(frontier, sorted_keys, order, parents, above)
            if self._embeds:
                also = self._parents_of(frontier ^ _EMBEDDING, sorted_keys, order, parents, above)
                up = np.concatenate([up, also ^ _EMBEDDING])
            frontier = ascending(up)
        return tokens & (self._ancestors.member(own) | member(own, announced)), announced

    def _climb(self, batch: _Batch, carriers: Mask, apart: np.uint64) -> tuple[Mask, U64]:
        """What `mark` does for one sort of calls, by kernels: from row to row where the parent is in the batch, and by
        what is remembered where it is not. Only the second has a bound on its levels.

        Args:
            carriers: spans of that sort that tell usage.
            apart: what sets its keys apart.

        Returns:
            (spans with a carrier below them, keys newly known to have one; ascending).
        """
        known = self._ancestors.member(batch.keys ^ apart)
        marked = np.zeros(len(known), np.bool_)
        frontier = batch.climb(np.flatnonzero(carriers | known), known, marked)
        seen = np.zeros(0, np.uint64)
        for _ in range(MAX_DEPTH):
            frontier = frontier[~(member(frontier, seen) | self._ancestors.member(frontier ^ apart))]
            if not len(frontier):
                break
            seen = np.union1d(seen, frontier)
            _, values = self.spans.find(frontier)
            above = ascending(values[:, PARENT])
            above = above[above != NO_PARENT]
            rows = batch.rows(above)
            inside = rows[rows >= 0]
            inside = inside[~(marked[inside] | known[inside])]
            marked[inside] = True
            frontier = ascending(np.concatenate([above[rows < 0], batch.climb(inside, known, marked)]))
        return marked | known, ascending(np.concatenate([batch.keys[marked], seen]) ^ apart)

    def late(self, announced: U64) -> U64:
        """Where rows stand that were written as billed and are now known to be roll-ups, shape (m, 4); see `billed`."""
        _, places = self.billed.find(announced)
        return places

    def learn(self, keys: U64, spans: U64, announced: U64, billed: U64, places: U64, now: float) -> None:
        """Take a batch in whose rows are written.

        Args:
            keys: ascending, shape (n,).
            spans: shape (n, 2), see `spans`.
            announced: from `mark`.
            billed, places: keys, ascending, shape (m,), and where their rows stand, shape (m, 4); see `billed`.
            now: when the batch was received, seconds.
        """
        if self.since == np.inf:
            self.since = now
        self.spans, self.billed, self._ancestors = faster(self.spans), faster(self.billed), faster(self._ancestors)
        horizon = now - self.window_s
        for known, more, values in (
            (self.spans, keys, spans),
            (self.billed, billed, places),
            (self._ancestors, announced, np.empty((len(announced), 0), np.uint64)),
        ):
            # First, so that what comes finds the room of what goes: a large batch would double all of it.
            known.expire(horizon, self.max_spans - len(more))
            known.add(more, values, now)
            known.expire(horizon, self.max_spans)
        self.since = max(self.since, self.spans.forgotten)

    def recall(self, records: Iterable[Record]) -> U64:
        """Take in what an earlier process put down, on nothing else.

        Returns:
            Where the rows stand that were written as billed and must have been corrected since; see `late`.
        """
        for record in records:
            now = record.received_ns / 1e9
            self.since = record.since_ns / 1e9 if self.since == np.inf else max(self.since, record.since_ns / 1e9)
            self.learn(record.keys, record.spans, record.ancestors, record.billed, record.rows, now)
            self._embeds = True  # perhaps; it only saves a search
        places = [self.late(keys) for _, keys, _ in self._ancestors.batches()]
        found: U64 = np.concatenate([np.zeros((0, 4), np.uint64), *places])
        return found

    def _parents_of(self, frontier: U64, sorted_keys: U64, order: Any, parents: U64, above: Mask) -> U64:
        """Parents of the spans in ``frontier``, as far as those spans are in this batch or in the window."""
        at = find(frontier, sorted_keys)
        rows = order[at[at >= 0]]
        found: U64 = parents[rows][above[rows]]
        rest = frontier[at < 0]
        if len(rest):
            _, values = self.spans.find(rest)
            up = values[:, PARENT]
            found = np.concatenate([found, up[up != NO_PARENT]])
        return found


def is_model(meter: str) -> bool:
    """Whether a meter is of what a roll-up repeats: the model's part of the bill, and a call's share of overhead."""
    known = METERS.get(meter)
    return known is not None and known.component in ("model", "overhead")


def billing_keys(keys: U64, embeddings: Mask) -> U64:
    """Keys under which spans are looked up as roll-ups: embeddings stand apart from everything else."""
    return np.where(embeddings, keys ^ _EMBEDDING, keys)


def correct(row: dict[str, Any]) -> dict[str, Any]:
    """A billed ledger row as the roll-up it turned out to be: what its descendants are billed for is gone.

    That is every charge of the model: tokens, and fees of the same call. Others, CPU time say, stay with their cost.
    """
    columns = [name for name in row if name.startswith("charges.")]
    keep = [i for i, meter in enumerate(row["charges.meter"]) if not is_model(meter)]
    fixed = dict(row)
    if not row["revised"]:
        fixed |= {"revised": True, "arrival_cost": row["cost"]}
    for name in columns:
        fixed[name] = [row[name][i] for i in keep]
    costs = [cost for cost in fixed["charges.cost"] if cost is not None]
    fixed["cost"] = sum(costs, Decimal(0)) if costs else None
    states = set(fixed["charges.status"])
    if not keep:
        fixed["cost_status"] = "rollup"
    elif not states & {"unpriced", "ambiguous"}:
        fixed["cost_status"] = states.pop() if states in ({"free"}, {"included"}) else "priced"
    else:
        fixed["cost_status"] = "partial" if costs else "unpriced"
    reasons = [each for each in row["cost_reasons"].split(",") if each not in ("", USAGE_INCOMPLETE, USAGE_ESTIMATED)]
    fixed["cost_reasons"] = ",".join([*reasons, "rollup"])
    fixed["revision"] = revisions.rolled_up(row["revision"])
    return fixed
