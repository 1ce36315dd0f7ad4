"""Reprice: the ledger of a period priced again with the book of today, in two passes.

The first pass only reads and tells what would change; it is all that a dry run does. Its figures are recorded in
``repricings`` before the second pass writes the rows that change, each with a revision that outranks every price of an
arrival (`revisions`). The number of the repricing is part of that revision, so a run that broke off is completed by
the same command: it takes the same number, finds what is written already to be as it should, and writes the rest.

Rows are read, priced (`recharge`) and written as Arrow, slices of time of at most `SLICE_ROWS` rows; nothing loops over
rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine
from tollspan.processor.charge import plain
from tollspan.processor.errors import TollspanError
from tollspan.processor.periods import refuse_closed
from tollspan.processor.recharge import Recharged, recharge
from tollspan.processor.repricings import NAMES, Key, Plan, Selection, Totals, begin, record, unfinished
from tollspan.processor.schema import LEDGER

if TYPE_CHECKING:
    from tollspan.processor.store import Store

SLICE_ROWS: Final = 200_000
"""Rows read at once: some hundred megabytes at the most."""

_COLUMNS: Final = ", ".join(f"`{name}`" for name in LEDGER.names)
_WHERE: Final = "start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}"
_FILTERS: Final = (
    "({tenant:String} = '' OR tenant = {tenant:String})"
    " AND ({model:String} = '' OR model = {model:String} OR (model = '' AND request_model = {model:String}))"
)


class Reads(Protocol):
    """The part of a store or reader that is used for reading."""

    def query(self, sql: str, parameters: dict[str, Any] | None = None) -> pa.Table:
        """Rows of a SELECT as Arrow."""

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a run.

    Attributes:
        plan: what changes.
        number: of the repricing; None when nothing was written.
        resumed: it completed a run that had broken off.
    """

    plan: Plan
    number: int | None = None
    resumed: bool = False


def survey(
    reader: Reads, engine: PriceEngine, selection: Selection, progress: Callable[[int], object] = lambda rows: None
) -> Plan:
    """Find out what would change; nothing is written.

    Args:
        reader: a store or a reader.
        engine: prices as of its book's version.
        selection: which rows.
        progress: called with the number of rows done, slice by slice.
    """
    old = f"FINAL WHERE {_WHERE} AND {_FILTERS} AND isNull(arrived_at)"
    plan = Plan(unreadable=_count(reader, old, selection.parameters()))
    for recharged in _slices(reader, engine, selection):
        for key, totals in _totals(recharged).items():
            plan.by.setdefault(key, Totals()).add(totals)
        progress(recharged.rows.num_rows)
    return plan


def reprice(
    store: Store,
    engine: PriceEngine,
    selection: Selection,
    *,
    allow_unpriced: bool = False,
    progress: Callable[[int], object] = lambda rows: None,
) -> Outcome:
    """Price again and write what changes.

    Args:
        store: open and migrated.
        engine, selection, progress: see `survey`; progress counts every row twice, once for each pass.
        allow_unpriced: also take prices away where the book has none.

    Raises:
        PeriodClosed: the selection touches a closed period; nothing is written.
        TollspanError: prices would be lost and ``allow_unpriced`` is not set; nothing is written.
        StoreUnavailable: the store went away. The same call again completes the repricing.
    """
    refuse_closed(store, selection.period)
    begun = unfinished(store, engine.book_version, selection)
    if begun is None:
        plan = survey(store, engine, selection, progress)
        total = plan.total
        if total.lost and not allow_unpriced:
            raise TollspanError(
                f"{total.lost:,} rows would lose a price that they have. Nothing was written.",
                "Give the price book that they were priced with (--book FILE), or pass --allow-unpriced.",
            )
        if not total.changed:
            return Outcome(plan)
        entry = begin(store, engine.book_version, selection, plan)
    else:
        entry, plan = begun
    number = int(entry["number"])
    for recharged in _slices(store, engine, selection):
        # Rows land on themselves, whatever is repeated: the token is only for a repeat by the client itself.
        store.insert("ledger", recharged.revised(number), f"reprice-{number}-{uuid.uuid4().hex}")
        progress(recharged.rows.num_rows)
    record(store, {**entry, "finished_at": datetime.now(UTC)})
    return Outcome(plan, number, resumed=begun is not None)


def _slices(reader: Reads, engine: PriceEngine, selection: Selection) -> Iterator[Recharged]:
    for since, until in _parts(reader, selection, selection.period.since, selection.period.until):
        rows = reader.query(
            f"SELECT {_COLUMNS} FROM ledger FINAL WHERE {_WHERE} AND {_FILTERS} AND isNotNull(arrived_at)",
            selection.parameters(since, until),
        )
        if rows.num_rows:
            yield recharge(rows, engine)


def _parts(
    reader: Reads, selection: Selection, since: datetime, until: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """Halves of halves of the period, until each has few enough rows."""
    count = _count(reader, f"WHERE {_WHERE}", selection.parameters(since, until))
    middle = since + (until - since) / 2
    if count <= SLICE_ROWS or until - since < timedelta(milliseconds=1):
        if count:
            yield since, until
        return
    yield from _parts(reader, selection, since, middle)
    yield from _parts(reader, selection, middle, until)


def _count(reader: Reads, sql: str, parameters: dict[str, Any]) -> int:
    return int(reader.rows(f"SELECT count() AS n FROM ledger {sql}", parameters)[0]["n"])


def _totals(recharged: Recharged) -> dict[Key, Totals]:
    """Totals of a slice, by key."""
    rows = recharged.rows
    old, new = plain(rows["cost_status"]), recharged.column("cost_status")
    whole, lacking = pa.array(["priced", "free", "included"]), pa.array(["unpriced", "partial"])
    table = pa.table(
        {
            "tenant": plain(rows["tenant"]),
            "provider": plain(rows["provider"]),
            "model": pc.if_else(pc.equal(rows["model"], ""), rows["request_model"], rows["model"]),
            "changed": pa.array(recharged.changed.astype(np.int64)),
            "old_cost": plain(rows["cost"]),
            "new_cost": recharged.column("cost"),
            "costed_before": pc.cast(pc.is_valid(plain(rows["cost"])), pa.int64()),
            "costed_after": pc.cast(pc.is_valid(recharged.column("cost")), pa.int64()),
            "unpriced_before": pc.cast(pc.equal(old, "unpriced"), pa.int64()),
            "unpriced_after": pc.cast(pc.equal(new, "unpriced"), pa.int64()),
            "lost": pc.cast(pc.and_(pc.is_in(old, whole), pc.is_in(new, lacking)), pa.int64()),
        }
    )
    summed = [name for name in NAMES if name != "rows"]
    groups = table.group_by(["tenant", "provider", "model"]).aggregate(
        [([], "count_all"), *((name, "sum") for name in summed)]
    )
    found = {}
    for group in groups.to_pylist():
        sums = {name: group[f"{name}_sum"] for name in summed if group[f"{name}_sum"] is not None}
        found[(group["tenant"], group["provider"], group["model"])] = Totals(rows=group["count_all"], **sums)
    return found
