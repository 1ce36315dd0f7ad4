"""Named queries over the ledger: the ``.sql`` files of this folder, each with the parameters since, until and limit.

In: a read-only handle, a window of start times, dimensions to break down by and filters. Out: rows. The same text
answers on an embedded store, through its SQL port and on a server. `named` says how a file is written, `dimensions` has
what can be broken down by and filtered by.

What the words mean, in every file: an *inference* is a row of kind ``inference`` that is billed here (neither
``rollup`` nor ``not_billed``); it is *unpriced* when its status is ``unpriced`` or ``invalid``, and then no cost
contains it. A cost is the exact sum of what is priced; it is NULL when there is something without a price and nothing
with one, and 0 when there is nothing at all. Model loads and feature reads add to costs and are no inferences. The
costs of a breakdown's rows add up to the total's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import slices
from tollspan.processor.queries.dimensions import DIMENSIONS, Filter, dimensions, filters
from tollspan.processor.queries.named import NO_LIMIT, NamedQuery, dimensions_of, find, named_queries
from tollspan.processor.queries.window import EARLIEST, LATEST, bound, instant, window

__all__ = [
    "DIMENSIONS",
    "NO_LIMIT",
    "Filter",
    "NamedQuery",
    "Rows",
    "check_limit",
    "dimensions",
    "dimensions_of",
    "extent",
    "filters",
    "find",
    "instant",
    "named_queries",
    "nothing",
    "run",
    "window",
]


class Rows(Protocol):
    """The part of a store or reader that queries use."""

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT."""


def check_limit(limit: int | None) -> None:
    """Refuse a number of rows that shows none.

    Raises:
        ConfigError: it is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit} would show no rows.", "Give 1 or more, or leave it out.")


def run(
    reader: Rows,
    name: str,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = None,
    by: Sequence[str] | None = None,
    where: Sequence[str] = (),
    parameters: Sequence[str] = (),
    **chosen: str,
) -> list[dict[str, Any]]:
    """Run a named query.

    Args:
        reader: a `tollspan.processor.store.Reader` or `Store`.
        name: of the query.
        since, until: start times taken, from ``since`` on and before ``until``; None for an open end.
        limit: rows at most; None for the query's own default.
        by: names of dimensions, see `dimensions`; None for the query's own.
        where: filters as they are typed, see `filters`.
        parameters: values of the query's own parameters as they are typed, ``name=value``.
        chosen: values that are bound as they are, in the place of what the query's name has chosen.

    Returns:
        Rows in the query's order; money as Decimal, instants as aware datetimes, unknowns as None.

    Raises:
        ConfigError: no such query, dimension, filter or parameter, or a limit below 1.
        StoreError: see `Reader.query`.
    """
    query = find(name)
    check_limit(limit)
    chosen_by, passing = None if by is None else dimensions(by, query.allowed), filters(where, query.allowed)
    free = slices.alone(reader, since, until) if query.sliceable else ()
    sql, values = query.text(chosen_by, passing, free)
    bound_values: dict[str, Any] = {
        "since": bound(since, EARLIEST),
        "until": bound(until, LATEST),
        **query.given(parameters),
        **values,
        **chosen,
    }
    if not query.single:
        bound_values["limit"] = query.limit if limit is None else limit
    return reader.rows(sql, bound_values)


def extent(reader: Rows) -> tuple[datetime, datetime] | None:
    """First and last start time in the ledger; None when it is empty."""
    # Without FINAL: replaced rows have the same start.
    (row,) = reader.rows("SELECT count() AS n, min(start_time) AS first, max(start_time) AS last FROM ledger")
    return (row["first"], row["last"]) if row["n"] else None


def nothing(reader: Rows, asked: str) -> str:
    """Why there are no rows, as far as it can be told.

    Args:
        reader: as in `run`.
        asked: what nothing answers, as a sentence names it.
    """
    held = extent(reader)
    if held is None:
        return "No rows: the ledger is empty. `tollspan doctor` says whether spans arrive."
    first, last = (f"{each:%Y-%m-%d %H:%M:%S} UTC" for each in held)
    return f"No rows: nothing in this window answers {asked}. The ledger goes from {first} to {last}."
