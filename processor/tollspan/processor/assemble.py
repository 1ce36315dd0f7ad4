"""Assemble: which token-bearing spans are roll-ups of others, so that no call is billed twice.

An agent, chain or proxy span often repeats the token counts of the calls below it. A token-bearing span with a
token-bearing descendant in its trace is such a roll-up: its tokens are billed on the descendants. So is a model call
that tells no usage, where one below it does: it is the same call, seen twice. Children end before
their parents and mostly arrive first; for the ones that do not, the parent's ledger row, already written as billed,
is written again with a higher revision.

In: the canonical columns of one batch. Out: a mask of roll-ups in this batch and the keys of earlier rows to correct.
State: for a bounded window of recent spans, key → parent key, and which of them are known to have a token-bearing
descendant. Everything is sorted arrays; the one loop is over the depth of the tree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tollspan.pricing.meters import METERS
from tollspan.processor import revisions
from tollspan.processor.identity import U64, Layers, Mask, Rows, ascending, find, member

MAX_DEPTH: Final = 4096
"""Levels that one batch propagates; a deeper chain (or a cycle of parents) ends there."""

MAX_GENERATIONS: Final = 12

USAGE_INCOMPLETE: Final = "usage_incomplete"
USAGE_ESTIMATED: Final = "usage_estimated"
"""Reasons that tell of a row's tokens, and go with them."""

_EMBEDDING: Final = np.uint64(0x5851F42D4C957F2D)
"""Sets the keys of embeddings apart, see `billing_keys`."""


@dataclass(slots=True)
class _Generation:
    """Structure of the spans of some batches, sorted by key, until its time is over."""

    born: float
    keys: U64
    parents: U64
    is_root: Mask


@dataclass(slots=True)
class _Written:
    """Ledger rows of token-bearing spans of one batch, in case a child comes late."""

    born: float
    keys: U64
    rows: Rows
    ledger: pa.Table
    nbytes: int


@dataclass(slots=True)
class Assembler:
    """Finds roll-ups across batches within a window.

    A roll-up's ledger row always has a revision above every billed one (see `revisions`), so that resending the parent
    alone, without the child that proved it a roll-up, cannot bill it again.

    Args:
        window_s: how long the structure of a span is remembered, in seconds.
        max_spans: bound on remembered spans; the oldest are forgotten first.
        max_bytes: bound on remembered ledger rows, likewise. A child that comes later than that no longer corrects its
            parent's row.
    """

    window_s: float = 900.0
    max_spans: int = 2_000_000
    max_bytes: int = 256 << 20
    _generations: list[_Generation] = field(default_factory=list)
    _written: deque[_Written] = field(default_factory=deque)
    _written_bytes: int = 0
    _written_keys: Layers = field(default_factory=Layers)
    _ancestors: Layers = field(default_factory=Layers)
    _embeds: bool = False

    def mark(
        self,
        keys: U64,
        parents: U64,
        is_root: Mask,
        tokens: Mask,
        now: float,
        *,
        used: Mask | None = None,
        embeddings: Mask | None = None,
    ) -> tuple[Mask, U64]:
        """Take a batch's structure in.

        Args:
            keys, parents: span and parent keys, shape (n,); a root's parent key is not looked at.
            is_root: spans without a parent.
            tokens: spans that carry token usage, or should: what can be a roll-up.
            now: monotonic seconds.
            used: spans whose token usage is there, right and above zero, by default all of ``tokens``. Only these make
                roll-ups of their ancestors: usage of nothing accounts for nobody's bill.
            embeddings: spans that embed. An embedding inside a chat call does not account for the call's tokens, so
                these only make roll-ups of each other.

        Returns:
            (roll-up mask over the batch, keys (see `billing_keys`) newly known to have a token-bearing descendant).
        """
        self._expire(now)
        order = np.argsort(keys)
        sorted_keys = keys[order]
        # A span that names itself as its parent is a root.
        is_root = is_root | (keys == parents)
        used = tokens if used is None else used
        if embeddings is not None and (embeddings & tokens).any():
            self._embeds = True
        own = keys if embeddings is None else billing_keys(keys, embeddings)

        passed_on = self._ancestors.member(own)
        above = ~is_root
        carriers = used if embeddings is None else used & ~embeddings
        frontier = parents[(carriers | self._ancestors.member(keys)) & above]
        if self._embeds:
            small = (used & embeddings) if embeddings is not None else np.zeros(len(keys), np.bool_)
            passing = self._ancestors.member(keys ^ _EMBEDDING)
            frontier = np.concatenate([frontier, parents[(small | passing) & above] ^ _EMBEDDING])
        frontier = ascending(frontier)
        announced = np.zeros(0, np.uint64)
        for _ in range(MAX_DEPTH):
            frontier = frontier[~(member(frontier, announced) | self._ancestors.member(frontier))]
            if not len(frontier):
                break
            announced = np.union1d(announced, frontier)
            frontier = self._step_up(frontier, sorted_keys, order, parents, is_root)
        self._ancestors.add(announced, now)
        rollups = tokens & (passed_on | member(own, announced))
        self._generations.append(_Generation(now, sorted_keys, parents[order], is_root[order]))
        self._compact()
        return rollups, announced

    def remember(self, keys: U64, ledger: pa.Table, billed: Mask, now: float) -> None:
        """Keep the ledger rows of token-bearing spans that were billed, in case a child of theirs comes late.

        Args:
            keys: key of each ledger row, see `billing_keys`.
            ledger: the rows of a batch.
            billed: which of them to keep.
            now: monotonic seconds.
        """
        rows = np.flatnonzero(billed)
        if len(rows):
            if 2 * len(rows) < len(billed):
                # Copying costs more than carrying along a few rows too many, but not than most of the table.
                ledger, rows = ledger.take(pa.array(rows)), np.arange(len(rows), dtype=np.int64)
            keys = keys[billed]
            self._written.append(_Written(now, keys, rows, ledger, ledger.nbytes))
            self._written_bytes += self._written[-1].nbytes
            self._written_keys.add(ascending(keys), now)

    def corrections(self, announced: U64, schema: pa.Schema) -> pa.Table | None:
        """Ledger rows written earlier that are now known to be roll-ups, with a higher revision; None if none are.

        Late children are rare, so this one place works row by row.
        """
        found: list[dict[str, Any]] = []
        late = announced[self._written_keys.member(announced)]
        for written in self._written if len(late) else ():
            hit = member(written.keys, late)
            if hit.any():
                found.extend(correct(row) for row in written.ledger.take(pa.array(written.rows[hit])).to_pylist())
                written.keys, written.rows = written.keys[~hit], written.rows[~hit]
        return pa.Table.from_pylist(found, schema=schema) if found else None

    def dump(self, now: float) -> tuple[dict[str, Any], list[pa.Table]]:
        """What is known, as arrays by name and the ledger rows that may have to be corrected, for `revived`.

        Args:
            now: monotonic seconds.
        """
        self._expire(now)
        arrays: dict[str, Any] = {"embeds": np.array(self._embeds)}
        for number, generation in enumerate(self._generations):
            arrays |= {
                f"generation.{number}.age": np.array(now - generation.born),
                f"generation.{number}.keys": generation.keys,
                f"generation.{number}.parents": generation.parents,
                f"generation.{number}.is_root": generation.is_root,
            }
        for number, (born, keys) in enumerate(self._ancestors.layers()):
            arrays |= {f"ancestors.{number}.age": np.array(now - born), f"ancestors.{number}.keys": keys}
        tables = []
        for number, written in enumerate(self._written):
            arrays |= {f"written.{number}.age": np.array(now - written.born), f"written.{number}.keys": written.keys}
            tables.append(written.ledger.take(pa.array(written.rows)))
        return arrays, tables

    @classmethod
    def revived(cls, arrays: Mapping[str, Any], tables: Sequence[pa.Table], now: float) -> Assembler:
        """An assembler that knows what another did.

        Args:
            arrays, tables: see `dump`.
            now: monotonic seconds of this process at the time of the dump.

        Raises:
            KeyError, ValueError: they do not belong together.
        """
        made = cls(_embeds=bool(arrays["embeds"]))

        def numbered(kind: str) -> Iterator[tuple[float, str]]:
            for number in range(len(arrays)):
                if f"{kind}.{number}.age" not in arrays:
                    return
                yield now - float(arrays[f"{kind}.{number}.age"]), f"{kind}.{number}"

        for born, name in numbered("generation"):
            parts = (arrays[f"{name}.{part}"] for part in ("keys", "parents", "is_root"))
            made._generations.append(_Generation(born, *parts))
        for born, name in numbered("ancestors"):
            made._ancestors.add(arrays[f"{name}.keys"], born)
        for (born, name), table in zip(numbered("written"), tables, strict=True):
            keys = arrays[f"{name}.keys"]
            if len(keys) != table.num_rows:
                raise ValueError(f"{len(keys)} keys for {table.num_rows} rows")
            rows = np.arange(table.num_rows, dtype=np.int64)
            made._written.append(_Written(born, keys, rows, table, table.nbytes))
            made._written_bytes += table.nbytes
            made._written_keys.add(ascending(keys), born)
        return made

    def _step_up(self, frontier: U64, sorted_keys: U64, order: Any, parents: U64, is_root: Mask) -> U64:
        """Parents of the spans in ``frontier``, as far as those spans are in this batch or in the window."""
        up = self._parents_of(frontier, sorted_keys, order, parents, is_root)
        if self._embeds:
            small = self._parents_of(frontier ^ _EMBEDDING, sorted_keys, order, parents, is_root)
            up = np.concatenate([up, small ^ _EMBEDDING])
        return ascending(up)

    def _parents_of(self, frontier: U64, sorted_keys: U64, order: Any, parents: U64, is_root: Mask) -> U64:
        found = []
        at = find(frontier, sorted_keys)
        rows = order[at[at >= 0]]
        found.append(parents[rows][~is_root[rows]])
        rest = frontier[at < 0]
        for generation in self._generations:
            if not len(rest):
                break
            at = find(rest, generation.keys)
            hit = at[at >= 0]
            found.append(generation.parents[hit][~generation.is_root[hit]])
            rest = rest[at < 0]
        return np.concatenate(found)

    def _expire(self, now: float) -> None:
        horizon = now - self.window_s
        self._generations = [g for g in self._generations if g.born >= horizon]
        while len(self._generations) > 1 and sum(len(g.keys) for g in self._generations) > self.max_spans:
            self._generations.pop(0)
        remembered = sum(len(w.keys) for w in self._written)
        while self._written and (
            self._written[0].born < horizon
            or (len(self._written) > 1 and (remembered > self.max_spans or self._written_bytes > self.max_bytes))
        ):
            oldest = self._written.popleft()
            remembered -= len(oldest.keys)
            self._written_bytes -= oldest.nbytes
        if len(self._written_keys) > 2 * remembered + 100_000:
            # Mostly keys of rows that are forgotten. Exactly those that are left, for a missing one is a wrong bill.
            self._written_keys = Layers()
            if self._written:
                self._written_keys.add(ascending(np.concatenate([w.keys for w in self._written])), now)
        self._ancestors.expire(horizon, self.max_spans)

    def _compact(self) -> None:
        """Merge the younger half when there are too many generations: searches cost one step for each."""
        if len(self._generations) <= MAX_GENERATIONS:
            return
        half = len(self._generations) // 2
        younger = self._generations[half:]
        keys = np.concatenate([g.keys for g in younger])
        order = np.argsort(keys, kind="stable")
        merged = _Generation(
            younger[-1].born,
            keys[order],
            np.concatenate([g.parents for g in younger])[order],
            np.concatenate([g.is_root for g in younger])[order],
        )
        self._generations[half:] = [merged]


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
