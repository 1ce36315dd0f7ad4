"""What is known of repricings: which rows, what changes, and the record of it in the store.

A row of ``repricings`` stands for a run of `tollspan reprice` that wrote. It is recorded with its plan before the first
row of the ledger is written, and again when all are.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from tollspan.processor.errors import StoreError
from tollspan.processor.periods import Period
from tollspan.processor.queries.window import EARLIEST, LATEST, bound
from tollspan.processor.revisions import MAX_REPRICING

if TYPE_CHECKING:
    from tollspan.processor.store import Store

NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""``finished_at`` of a run that has not finished."""

_TYPES: Final = {
    "number": "UInt16",
    "run": "String",
    "started_at": "DateTime64(3, 'UTC')",
    "finished_at": "DateTime64(3, 'UTC')",
    "since": "DateTime64(9, 'UTC')",
    "until": "DateTime64(9, 'UTC')",
    "tenant": "String",
    "model": "String",
    "book_version": "String",
    "rows": "UInt64",
    "unpriced_before": "UInt64",
    "unpriced_after": "UInt64",
    "old_total": "Decimal(38, 12)",
    "new_total": "Decimal(38, 12)",
    "totals": "String",
}
"""Columns of ``repricings``."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is priced again.

    Attributes:
        period: start times.
        tenant: only this one's rows; '' for all.
        model: only this model's, as served or, where the answer named none, as asked for; '' for all.
    """

    period: Period
    tenant: str = ""
    model: str = ""

    def parameters(self, since: datetime | None = None, until: datetime | None = None) -> dict[str, Any]:
        """Of a query on (a part of) it."""
        return {
            "since": bound(since or self.period.since, EARLIEST),
            "until": bound(until or self.period.until, LATEST),
            "tenant": self.tenant,
            "model": self.model,
        }


@dataclass(slots=True)
class Totals:
    """Before and after, of some rows. A cost is the sum of what has a price; rows with a cost are counted beside it."""

    rows: int = 0
    changed: int = 0
    old_cost: Decimal = Decimal(0)
    new_cost: Decimal = Decimal(0)
    costed_before: int = 0
    costed_after: int = 0
    unpriced_before: int = 0
    unpriced_after: int = 0
    lost: int = 0
    """Rows that have a price now and would have none, or a part of one."""

    def add(self, other: Totals) -> None:
        """Count other rows in."""
        for name in NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def row(self) -> dict[str, object]:
        """For people and programs: a cost is None where something has no price and nothing has one."""
        old = None if self.unpriced_before and not self.costed_before else self.old_cost
        new = None if self.unpriced_after and not self.costed_after else self.new_cost
        return {
            "old_cost": old,
            "new_cost": new,
            "difference": None if old is None or new is None else new - old,
            "rows": self.rows,
            "changed": self.changed,
            "unpriced_before": self.unpriced_before,
            "unpriced_after": self.unpriced_after,
        }


NAMES: Final = tuple(entry.name for entry in fields(Totals))

Key = tuple[str, str, str]
"""Tenant, provider and model, '' where a row does not say."""


@dataclass(slots=True)
class Plan:
    """What a repricing changes.

    Attributes:
        by: totals by tenant, provider and model.
        unreadable: rows of the selection that were written before the ledger kept everything that a price is chosen
            by; they are left as they are, and are in no total.
    """

    by: dict[Key, Totals] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def total(self) -> Totals:
        """Of everything."""
        whole = Totals()
        for part in self.by.values():
            whole.add(part)
        return whole


def unfinished(store: Store, book_version: str, selection: Selection) -> tuple[dict[str, Any], Plan] | None:
    """The last repricing, if it broke off and was the same."""
    rows = store.rows("SELECT * FROM repricings FINAL WHERE number = (SELECT max(number) FROM repricings)")
    rows = [row for row in rows if row["finished_at"] == NEVER]
    if len(rows) != 1:
        return None
    (row,) = rows
    same = (
        (row["since"], row["until"]) == (selection.period.since, selection.period.until)
        and (row["tenant"], row["model"]) == (selection.tenant, selection.model)
        and row["book_version"] == book_version
    )
    return (row, _read(row["totals"])) if same else None


def begin(store: Store, book_version: str, selection: Selection, plan: Plan) -> dict[str, Any]:
    """Take the next number and record the plan under it.

    A number is a run's own if the run finds no other claim to it once its own is written. Of two runs that claim one
    number, whichever writes later finds the other's claim, so that both never keep it, whatever their clocks say. One
    that finds another gives the number up: the first of them by time tries the next, the others end. (On replicas, that
    holds as far as a read sees what any of them has acknowledged: ``insert_quorum`` and
    ``select_sequential_consistency``.)

    Raises:
        StoreError: another run claimed the number in the same moment, or there are no more numbers. Nothing else was
            written.
    """
    while True:
        entry = _claim(store, book_version, selection, plan)
        claims = store.rows(
            "SELECT DISTINCT started_at, run FROM repricings WHERE number = {number:UInt16} ORDER BY started_at, run",
            {"number": entry["number"]},
        )
        if [claim["run"] for claim in claims] == [entry["run"]]:
            return entry
        # A claim that is given up stands as a run that is over and wrote nothing: nobody completes it.
        record(store, {**entry, **_figures(Plan()), "finished_at": datetime.now(UTC)})
        if claims[0]["run"] != entry["run"]:
            raise StoreError(
                f"Another repricing took number {entry['number']} in the same moment.",
                "Run the command again when that one is done.",
            )


def _claim(store: Store, book_version: str, selection: Selection, plan: Plan) -> dict[str, Any]:
    """The plan as it was recorded under the next number."""
    (last,) = store.rows("SELECT max(number) AS number FROM repricings")
    number = last["number"] + 1
    if number > MAX_REPRICING:
        raise StoreError(f"The store has seen {MAX_REPRICING} repricings; a revision has room for no more.")
    entry: dict[str, Any] = {
        "number": number,
        "run": uuid.uuid4().hex,
        "started_at": datetime.now(UTC),
        "finished_at": NEVER,
        "since": selection.period.since,
        "until": selection.period.until,
        "tenant": selection.tenant,
        "model": selection.model,
        "book_version": book_version,
        **_figures(plan),
    }
    record(store, entry)
    return entry


def _figures(plan: Plan) -> dict[str, Any]:
    """Columns that a plan fills."""
    total = plan.total
    return {
        "rows": total.changed,
        "unpriced_before": total.unpriced_before,
        "unpriced_after": total.unpriced_after,
        "old_total": total.old_cost,
        "new_total": total.new_cost,
        "totals": _written(plan),
    }


def record(store: Store, entry: Mapping[str, Any]) -> None:
    """Write a repricing down; the row with the later ``finished_at`` counts."""
    values = {name: bound(value, NEVER) if isinstance(value, datetime) else value for name, value in entry.items()}
    places = ", ".join(f"{{{name}:{kind}}}" for name, kind in _TYPES.items())
    store.execute(f"INSERT INTO repricings ({', '.join(_TYPES)}) SELECT {places}", values)


def _written(plan: Plan) -> str:
    """A plan as JSON text; money as strings."""
    by = [[*key, [str(getattr(totals, name)) for name in NAMES]] for key, totals in sorted(plan.by.items())]
    return json.dumps({"unreadable": plan.unreadable, "by": by}, ensure_ascii=False)


def _read(text: str) -> Plan:
    """The plan that `_written` wrote."""
    found = json.loads(text)
    by = {}
    for tenant, provider, model, values in found["by"]:
        kinds = [type(getattr(Totals(), name)) for name in NAMES]
        by[(tenant, provider, model)] = Totals(*(kind(value) for kind, value in zip(kinds, values, strict=True)))
    return Plan(by, found["unreadable"])
