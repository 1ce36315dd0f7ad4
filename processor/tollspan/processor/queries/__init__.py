"""Named queries over the ledger: the ``.sql`` files of this folder, each with the parameters since, until and limit.

In: a read-only handle and a window of start times. Out: rows. The same text answers on an embedded store, through its
SQL port and on a server. A file's first comment line says what it answers; ``-- single`` and ``-- limit: N`` lines say
that it is one row, and how many rows are shown unless asked otherwise.

What the words mean, in every file: an *inference* is a row of kind ``inference`` that is billed here (neither
``rollup`` nor ``not_billed``); it is *unpriced* when its status is ``unpriced`` or ``invalid``, and then no cost
contains it. A cost is the exact sum of what is priced; it is NULL when there is something without a price and nothing
with one, and 0 when there is nothing at all. Model loads and feature reads add to costs and are no inferences. The
costs of a breakdown's rows add up to the total's.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any, Final, Protocol

from tollspan.processor.errors import ConfigError
from tollspan.processor.queries.window import EARLIEST, LATEST, bound, instant, window

__all__ = ["NO_LIMIT", "NamedQuery", "Rows", "check_limit", "find", "instant", "named_queries", "run", "window"]

NO_LIMIT: Final = 2**63 - 1

_LIMIT: Final = re.compile(r"^-- limit: (\d+)$", re.MULTILINE)
_SINGLE: Final = re.compile(r"^-- single$", re.MULTILINE)


class Rows(Protocol):
    """The part of a store or reader that queries use."""

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT."""


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """One file.

    Attributes:
        name: as on the command line.
        title: what it answers.
        sql: its text.
        single: it has exactly one row.
        limit: rows shown unless asked otherwise.
    """

    name: str
    title: str
    sql: str
    single: bool
    limit: int


@functools.cache
def named_queries() -> dict[str, NamedQuery]:
    """All queries by name."""
    found = {}
    for item in sorted(resources.files(__package__).iterdir(), key=lambda item: item.name):
        if item.name.endswith(".sql"):
            name, sql = item.name.removesuffix(".sql"), item.read_text(encoding="utf-8")
            limit = _LIMIT.search(sql)
            found[name] = NamedQuery(
                name=name,
                title=sql.splitlines()[0].removeprefix("-- "),
                sql=sql,
                single=_SINGLE.search(sql) is not None,
                limit=int(limit[1]) if limit else NO_LIMIT,
            )
    return found


def find(name: str) -> NamedQuery:
    """The query of that name.

    Raises:
        ConfigError: there is none; names the nearest ones.
    """
    known = named_queries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See `tollspan query --list`."
        raise ConfigError(f"There is no query {name!r}.", hint)
    return known[name]


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
) -> list[dict[str, Any]]:
    """Run a named query.

    Args:
        reader: a `tollspan.processor.store.Reader` or `Store`.
        name: of the query.
        since, until: start times taken, from ``since`` on and before ``until``; None for an open end.
        limit: rows at most; None for the query's own default.

    Returns:
        Rows in the query's order; money as Decimal, instants as aware datetimes, unknowns as None.

    Raises:
        ConfigError: no such query, or a limit below 1.
        StoreError: see `Reader.query`.
    """
    query = find(name)
    check_limit(limit)
    parameters: dict[str, Any] = {
        "since": bound(since, EARLIEST),
        "until": bound(until, LATEST),
    }
    if not query.single:
        parameters["limit"] = query.limit if limit is None else limit
    return reader.rows(query.sql, parameters)
