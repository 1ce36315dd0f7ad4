"""How long rows are kept, by tier: bodies for days, the ledger for years. Changed by explicit ALTER, never by a start.

In: a store and the retention that a person wants. Out: what holds, what would change and what would go at once, then
the statements. Nothing here is a setting of the service: a TTL belongs to the tables, and outlives a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tollspan.processor.errors import ConfigError, StoreError
from tollspan.processor.schema.cluster import LOCAL, SHARDED
from tollspan.processor.schema.migrate import Rows, spread

if TYPE_CHECKING:
    from tollspan.processor.store import Store


@dataclass(frozen=True, slots=True)
class Kept:
    """A table of a tier.

    Attributes:
        table: its name.
        column: by which rows grow old.
        whole_parts: drop a part when all of it is old, which costs nothing; for tables that are parted by this time.
    """

    table: str
    column: str
    whole_parts: bool = True


TIERS: Final[dict[str, tuple[Kept, ...]]] = {
    "spans": (Kept("spans", "Timestamp"),),
    "traces": (Kept("traces", "start_time", whole_parts=False),),
    # What reconcile holds against each other goes together.
    "ledger": (
        Kept("ledger", "start_time"),
        Kept("batches", "received_at"),
        Kept("late_rows", "start_time"),
        Kept("telemetry", "minute"),
    ),
}
"""What is kept for one time together."""

NEVER: Final = "never"

_AGE: Final = re.compile(r"([1-9][0-9]{0,4})\s*(d|w|m|y)", re.IGNORECASE)
_UNITS: Final = {"d": ("Day", "DAY"), "w": ("Week", "WEEK"), "m": ("Month", "MONTH"), "y": ("Year", "YEAR")}
_TTL: Final = re.compile(r"\bTTL .*? \+ toInterval(Day|Week|Month|Year)\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Change:
    """What a table keeps, and is to keep.

    Attributes:
        tier, table: which.
        now, wanted: ``7d``, ``5y``, ``never``; wanted is the same as now where nothing was asked.
        rows: rows of the table, None where it is empty or not there.
        going: rows that are older than ``wanted`` now, and go with the next merges.
        statements: what brings it about; empty where nothing changes.
    """

    tier: str
    table: str
    now: str
    wanted: str
    rows: int
    going: int
    statements: tuple[str, ...]


def retention(text: str, option: str) -> str:
    """A retention as people type it, in its one spelling: ``7d``, ``6w``, ``18m``, ``5y`` or ``never``.

    Raises:
        ConfigError: it is none.
    """
    if text.strip().lower() == NEVER:
        return NEVER
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{option} {text!r} is no retention.", "For example 7d, 6w, 18m (months), 5y, or never to keep all."
        )
    return f"{int(match[1])}{match[2].lower()}"


def changes(reader: Rows, wanted: Mapping[str, str]) -> list[Change]:
    """What holds for each table and what would change; only reads.

    Args:
        reader: a store or reader.
        wanted: tier → retention, see `retention`; tiers that are not in it stay.

    Raises:
        ConfigError: no such tier.
        StoreError: the tables are not there.
    """
    for tier in wanted:
        if tier not in TIERS:
            raise ConfigError(f"There is no tier {tier!r}.", f"One of: {', '.join(TIERS)}.")
    found = []
    for tier, tables in TIERS.items():
        for kept in tables:
            now = _now(reader, kept.table)
            then = wanted.get(tier, now)
            count, going = 0, 0
            if then == now:
                (row,) = reader.rows(f"SELECT count() AS n FROM {kept.table}")
                count = row["n"]
            else:
                old = "0" if then == NEVER else f"{kept.column} < now() - INTERVAL {_interval(then)}"
                (row,) = reader.rows(f"SELECT count() AS n, countIf({old}) AS going FROM {kept.table}")
                count, going = row["n"], row["going"]
            found.append(Change(tier, kept.table, now, then, count, going, _statements(kept, now, then)))
    return found


def apply(store: Store, change: Change) -> None:
    """Bring a change about. Rows go with the next merges, in the background."""
    for statement in change.statements:
        for each in spread(statement, store.cluster, store.database):
            store.execute(each)


def _now(reader: Rows, table: str) -> str:
    names = [table + LOCAL, table] if table in SHARDED else [table]
    rows = reader.rows(
        "SELECT name, engine_full FROM system.tables"
        " WHERE database = currentDatabase() AND name IN {names:Array(String)} ORDER BY length(name) DESC",
        {"names": names},
    )
    if not rows:
        raise StoreError(f"There is no table {table} yet.", "`tollspan schema migrate` or `tollspan serve` makes it.")
    match = _TTL.search(rows[0]["engine_full"])
    if match is None:
        return NEVER
    (unit,) = [short for short, (name, _) in _UNITS.items() if name == match[1]]
    return f"{match[2]}{unit}"


def _interval(text: str) -> str:
    return f"{text[:-1]} {_UNITS[text[-1]][1]}"


def _statements(kept: Kept, now: str, then: str) -> tuple[str, ...]:
    if now == then:
        return ()
    if then == NEVER:
        return (f"ALTER TABLE {kept.table} REMOVE TTL",)
    whole = (f"ALTER TABLE {kept.table} MODIFY SETTING ttl_only_drop_parts = 1",) if kept.whole_parts else ()
    return (*whole, f"ALTER TABLE {kept.table} MODIFY TTL toDateTime({kept.column}) + INTERVAL {_interval(then)}")
