"""Summaries: one row of the ``traces`` table for each trace that a round decided.

In: the decisions of a round over held spans. Out: idempotent states (min, max), never sums over deliveries, so that a
resend or a replay cannot count a span twice (ARCHITECTURE.md, "traces").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine
from tollspan.processor.bodies import by_number
from tollspan.processor.charge import given, plain
from tollspan.processor.decode import Decoded, Waiting
from tollspan.processor.decode.fused import OnTheWire, joined
from tollspan.processor.decode.tables import with_columns
from tollspan.processor.identity import U64, Mask, Rows
from tollspan.processor.sample import DROPPED, FULL, REASONS, RULES, STRIPPED, Decision, Fates, Round, encode_threshold
from tollspan.processor.sample.content import REMOVED, strip
from tollspan.processor.sample.faster import kernels, read_only
from tollspan.processor.sample.telemetry_cost import RECEIVED, Shares, priced
from tollspan.processor.tracestate import stamp_column

DAY_NS: Final = 86_400 * 10**9
LAST_DAY: Final = 65_535
"""The last day of ClickHouse's Date, in 2149; a span dated later is `invalid`, but has a row like any other."""

CONTENT: Final = {FULL: "full", STRIPPED: REMOVED}
"""What is said of a body's content, by its level."""

PIECE_BYTES: Final = 16 << 20
"""Kept spans that are read, and written, at once: so much on the wire, or one batch of them."""

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a summary needs of n spans.

    Attributes:
        start, end: ns since the epoch, int64 of n. error: status is error, n.
        root: row in ``roots`` of a span without a parent, -1 for the others; int32 of n.
        roots: ``name``, ``service``, ``tenant`` of these.
        incoming: threshold by which a sampler before us chose each span, uint64 of n; None: none did.
        slim: has no body to keep, n; None: all have.
    """

    start: Sizes
    end: Sizes
    error: Mask
    root: npt.NDArray[np.int32]
    roots: pa.Table
    incoming: U64 | None = None
    slim: Mask | None = None

    @classmethod
    def of(
        cls, table: pa.Table, error: Mask, root: Mask, incoming: U64 | None = None, slim: Mask | None = None
    ) -> Facts:
        """From canonical columns.

        Args:
            table: of `Normalized`.
            error: status is error; root: has no parent; shape (n,).
            incoming, slim: as in the attributes.
        """
        rows = np.flatnonzero(root)
        place = np.full(len(root), -1, np.int32)
        place[rows] = np.arange(len(rows))
        at = pa.array(rows)
        roots = pa.table({name: plain(table[name]).take(at) for name in ("name", "service", "tenant")})
        start, end = (np.asarray(table[name]).astype(np.int64, copy=False) for name in ("start_ns", "end_ns"))
        return cls(start, end, error, place, roots, incoming, slim)

    def select(self, rows: Rows) -> Facts:
        """A compact copy of some rows."""
        root = self.root[rows]
        some = np.flatnonzero(root >= 0)
        place = np.full(len(rows), -1, np.int32)
        place[some] = np.arange(len(some))
        roots = self.roots.take(pa.array(root[some])).combine_chunks()
        return Facts(
            self.start[rows],
            self.end[rows],
            self.error[rows],
            place,
            roots,
            None if self.incoming is None else self.incoming[rows],
            None if self.slim is None else self.slim[rows],
        )

    @property
    def nbytes(self) -> int:
        """Approximate memory."""
        arrays = (self.start, self.end, self.error, self.root, self.incoming, self.slim)
        return sum(each.nbytes for each in arrays if each is not None) + int(self.roots.nbytes)


@dataclass(slots=True)
class Held:
    """Span bodies that wait for a decision, with what a summary and a kept row need of them.

    Attributes:
        decoded: the spans, in as little memory as they need.
        facts: see `Facts`; None where nobody makes summaries.
        shares: telemetry bytes of the spans, and whose they are; None where nobody asks.
        costs: `tollspan.processor.forward.costs.Costs` of the spans, with ``cost`` and ``cost_status``, and all of its
            columns where kept spans are sent on.
    """

    decoded: Waiting
    facts: Facts | None
    shares: Shares | None
    costs: Any = None

    def select(self, rows: Rows) -> Held:
        """A compact copy of some rows."""
        facts = self.facts.select(rows) if self.facts is not None else None
        costs = self.costs.select(rows) if self.costs is not None else None
        shares = self.shares.select(rows) if self.shares is not None else None
        return Held(self.decoded.some(rows), facts, shares, costs)

    def stripped(self, rows: Rows) -> Held | None:
        """A copy of some rows without their content; None where bodies are the smaller part of what is in memory."""
        if 2 * self.decoded.nbytes < self.nbytes:
            return None
        made = self.select(rows)
        made.decoded = strip(made.decoded.select(np.arange(len(rows)))).decoded
        return made

    @property
    def nbytes(self) -> int:
        """Approximate memory."""
        return sum(int(part.nbytes) for part in (self.decoded, self.facts, self.shares, self.costs) if part is not None)


class Kept(NamedTuple):
    """Kept spans of a round at one level of content, k of them.

    Attributes:
        spans: read once for all that is made of them, with the threshold in their trace states.
        origins: where they come from, one batch after the other, and which of its rows they are.
        group: number of each one's trace in the round.
        reason: why, number of `sample.names`; threshold: at which, with what samplers before us did.
        content: `FULL` or `STRIPPED`.
        removed: bytes of content that were taken out of each.
    """

    spans: Decoded
    origins: Sequence[tuple[Held, Rows]]
    group: Rows
    reason: npt.NDArray[np.int16]
    threshold: U64
    content: int
    removed: Sizes

    def by_origin(self) -> Iterator[tuple[Held, Rows, slice]]:
        """The origins, with where each one's spans stand in these."""
        start = 0
        for held, rows in self.origins:
            yield held, rows, slice(start, start + len(rows))
            start += len(rows)


class _Chosen(NamedTuple):
    """Of one batch; as in `Kept`."""

    held: Held
    rows: Rows
    group: Rows
    reason: npt.NDArray[np.int16]
    threshold: U64


def kept_of(decisions: Iterable[Decision]) -> Iterator[Kept]:
    """The spans of a round's decisions that are kept, by level of content, in as few pieces as are handy.

    Each is read when it is asked for.

    Raises:
        OSError: what waits on disk cannot be read.
    """
    # What memory was too short for is without its content already.
    of_level: dict[tuple[int, bool], list[_Chosen]] = {(FULL, False): [], (STRIPPED, True): [], (STRIPPED, False): []}
    for decision in decisions:
        fates, group = decision.fates, decision.group
        keep = (fates.reason != DROPPED)[group]
        if decision.duplicate is not None:
            keep &= ~decision.duplicate
        if not keep.any():
            continue
        held: Held = decision.bodies
        if held.facts is not None and held.facts.slim is not None:
            keep &= ~held.facts.slim[decision.rows]
        rows, group = decision.rows[keep], group[keep]
        if decision.stripped:
            of_level[STRIPPED, False].append(_chosen(held, rows, group, fates))
            continue
        levels = fates.content[group]
        for level in (FULL, STRIPPED):
            some = levels == level
            if some.all():
                of_level[level, level == STRIPPED].append(_chosen(held, rows, group, fates))
            elif some.any():
                of_level[level, level == STRIPPED].append(_chosen(held, rows[some], group[some], fates))
    for (level, take_out), chosen in of_level.items():
        for piece in _pieces([each for each in chosen if len(each.rows)]):
            yield _kept(piece, level, take_out)


def _chosen(held: Held, rows: Rows, group: Rows, fates: Fates) -> _Chosen:
    threshold = fates.threshold[group]
    if held.facts is not None and held.facts.incoming is not None:
        threshold = np.maximum(threshold, held.facts.incoming[rows])
    return _Chosen(held, rows, group, fates.reason[group], threshold)


def _pieces(chosen: Sequence[_Chosen]) -> Iterator[list[_Chosen]]:
    """What is read at once: of some megabytes, and what is on the wire still."""
    piece: list[_Chosen] = []
    size = 0
    for each in chosen:
        waiting = each.held.decoded
        more = int(waiting.places[1].take(each.rows).sum()) if isinstance(waiting, OnTheWire) else PIECE_BYTES
        if piece and size + more > PIECE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(each)
        size += more
    if piece:
        yield piece


def _kept(piece: Sequence[_Chosen], content: int, take_out: bool) -> Kept:
    on_wire = [(each.held.decoded, each.rows) for each in piece if isinstance(each.held.decoded, OnTheWire)]
    chosen = joined(on_wire) if on_wire else piece[0].held.decoded.select(piece[0].rows)
    group, reason, threshold = map(np.concatenate, zip(*(each[2:] for each in piece), strict=True))
    removed = np.zeros(len(group), np.int64)
    if take_out:
        chosen, removed = strip(chosen)
    stamped = stamp_column(chosen.spans["trace_state"], threshold)
    spans = replace(chosen, spans=with_columns(chosen.spans, trace_state=stamped))
    return Kept(spans, [(each.held, each.rows) for each in piece], group, reason, threshold, content, removed)


def summarize(decided: Round, engine: PriceEngine, stored: Sizes | None = None) -> pa.Table:
    """Rows for the ``traces`` table.

    Args:
        decided: its decisions' ``group`` numbers its traces.
        engine: prices ``telemetry.bytes``; NULL cost when the book has no price for it.
        stored: bytes of the rows of ``spans`` that each trace has; none if None.
    """
    traces, fates = decided.traces, decided.fates
    first = np.full(traces, np.iinfo(np.int64).max)
    last, sums = np.zeros(traces, np.int64), np.zeros((3, traces), np.int64)
    failed = np.zeros(traces, np.uint8)
    stripped = fates.content == STRIPPED
    root = np.full(traces, -1, np.int64)
    roots: list[pa.Table] = []
    known = 0
    for each in decided.decisions:
        held: Held = each.bodies
        facts = held.facts
        assert facts is not None
        assert held.shares is not None
        if each.stripped:
            stripped[each.group] = True
        some = _add(each, facts, held.shares.sizes, first, last, sums, failed)
        if len(some):
            root[each.group[some]] = np.arange(known, known + len(some))
            roots.append(facts.roots.take(pa.array(facts.root[each.rows[some]])))
            known += len(some)
    spans, received, bodies = sums
    kept = (fates.reason != DROPPED) & (bodies > 0)
    now = [spans, received, np.where(kept, bodies, 0), np.zeros(traces) if stored is None else stored]
    spans, received, bodies, stored = decided.add_up(np.column_stack(now).astype(np.int64)).T
    at = pa.array(root, mask=root < 0)
    shown = pa.concat_tables(roots).combine_chunks() if roots else None

    def of_root(name: str) -> Any:
        return pa.array([""] * traces, pa.string()) if shown is None else given(plain(shown[name]).take(at))

    levels = pa.array(fates.threshold).dictionary_encode()
    names = pa.array(["", *(encode_threshold(value) for value in levels.dictionary.to_pylist())], pa.string())
    ground = np.where(kept, fates.reason, DROPPED)
    contents = pa.array(["", CONTENT[FULL], CONTENT[STRIPPED]])
    return pa.table(
        {
            "trace_id": _trace_ids(decided.ids),
            "day": pa.array(np.minimum(first // DAY_NS, LAST_DAY).astype(np.int32)).cast(pa.date32()),
            "start_time": pc.cast(pa.array(first), pa.timestamp("ns", "UTC")),
            "end_time": pc.cast(pa.array(last), pa.timestamp("ns", "UTC")),
            "root_name": of_root("name"),
            "root_service": of_root("service"),
            "tenant": of_root("tenant"),
            "error": pa.array(failed),
            "spans": pa.array(spans.astype(np.uint64)),
            "telemetry_bytes": pa.array(received.astype(np.uint64)),
            "telemetry_cost": priced(engine, RECEIVED, first, received),
            "kept": pa.array(kept.astype(np.uint8)),
            "kept_spans": pa.array(bodies.astype(np.uint64)),
            "keep_reason": by_number(pa.array(REASONS), ground),
            "threshold": by_number(names, np.where(kept, 1 + np.asarray(levels.indices), 0)),
            "keep_rule": by_number(pa.array(RULES), ground),
            "content": by_number(contents, np.where(kept, 1 + stripped, 0)),
            "stored_bytes": pa.array(stored.astype(np.uint64)),
        }
    )


def _add(
    decision: Decision, facts: Facts, sizes: Any, first: Sizes, last: Sizes, sums: Any, failed: npt.NDArray[np.uint8]
) -> Rows:
    """Add spans to what their traces come to.

    Args:
        decision: whose spans.
        facts, sizes: of its batch.
        first, last, sums, failed: by trace, see `compiled.totals`.

    Returns:
        Positions of the roots in the decision's rows, ascending.
    """
    rows, group, again = decision.rows, decision.group, decision.duplicate
    if (compiled := kernels()) is not None:
        slim = _NONE if facts.slim is None else facts.slim
        again = _NONE if again is None else again
        read = rows, group, facts.start, facts.end, facts.error, facts.root, slim, again, sizes
        arrays = (read_only(each, kind) for each, kind in zip(read, _KINDS, strict=True))
        rooted: Rows = np.empty(len(rows), np.int64)
        found = compiled.totals(*arrays, first, last, sums, failed, rooted)
        return rooted[:found]
    # Rows of a trace stand next to each other: there are as many to reduce as traces, not as spans.
    cuts = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
    of = group[cuts]
    np.minimum.at(first, of, np.minimum.reduceat(facts.start[rows], cuts))
    np.maximum.at(last, of, np.maximum.reduceat(facts.end[rows], cuts))
    failed[group[facts.error[rows]]] = 1
    single = np.ones(len(rows), np.bool_) if again is None else ~again
    bodies = single if facts.slim is None else single & ~facts.slim[rows]
    for total, values in zip(sums, (single, np.where(single, sizes[rows], 0), bodies), strict=True):
        np.add.at(total, of, np.add.reduceat(values.astype(np.int64), cuts))
    return np.flatnonzero(facts.root[rows] >= 0)


_NONE: Final = np.zeros(0, np.bool_)
_KINDS: Final = (np.int64, np.int64, np.int64, np.int64, np.bool_, np.int32, np.bool_, np.bool_, np.uint32)


def _trace_ids(ids: U64) -> Any:
    """Trace ids from their words."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(ids.astype(">u8"))])
