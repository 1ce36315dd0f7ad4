"""Write: Arrow tables and a batch's token to rows in ``ledger``, ``traces`` and ``spans``.

In: tables by column name from `charge`, `sample` and `summarize`, and the token that the journal froze. Out: rows in
the store, once. Each table is one synchronous insert whose token is made of the batch's, so an insert whose reply was
lost is repeated with the same identity and changes nothing the second time. While the store is away the same insert is
tried again, for as long as it takes: nothing is ever dropped for having failed often.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from tollspan.processor.errors import StoreError, StoreUnavailable, StoreUnfit
from tollspan.processor.schema import SCHEMAS

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 30.0
"""Pauses between tries: doubled each time up to the longest, and a random part of that (between half and all)."""

REFUSED_PAUSE_S: Final = 5.0
"""Longest pause between two tries of a store that refuses everything for a reason that it does not name."""

T = TypeVar("T")

_TEXTS: Final = pa.list_(pa.string())
_CODED: Final = pa.dictionary(pa.int32(), pa.string())
_CODED_TEXTS: Final = pa.list_(_CODED)
_MAP: Final = pa.map_(pa.string(), pa.string())
_CODED_MAPS: Final = (pa.map_(_CODED, pa.string()), pa.map_(_CODED, _CODED))


class Counts(Protocol):
    """What the writer counts with: `tollspan.processor.counters.Counters`, or nothing."""

    def add(self, name: str, count: int = 1) -> None:
        """Add to a named counter."""


class Inserts(Protocol):
    """The part of `tollspan.processor.store.Store` that is used here."""

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        """Insert rows under a token."""

    def query(self, sql: str) -> pa.Table:
        """Rows of a SELECT."""


class Writer:
    """Puts a batch's tables into the store.

    Args:
        store: where to.
        stop: set when waiting for a store that is away has to end; the batch is then not written.
        counters: gets ``write.rows.<table>``, ``write.inserts`` and ``write.retries``.
        pause: waits so many seconds or until ``stop`` is set; for tests.
    """

    def __init__(
        self,
        store: Inserts,
        stop: threading.Event,
        counters: Counts | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.store, self.stop, self.counters = store, stop, counters
        self._pause = pause or stop.wait
        self.away = ""
        """Why the store did not answer the last insert; empty while it does."""

    def write(self, token: str, ledger: pa.Table | None, spans: pa.Table | None, traces: pa.Table | None) -> None:
        """Insert up to three tables; return when all are in the store.

        Args:
            token: identity of the batch; each table's insert has the token ``<token>:<table>``.
            ledger, spans, traces: rows, see `conform`; None or empty for none.

        Raises:
            StoreUnavailable: ``stop`` was set while the store was away. Tables before the one that failed are written;
                the same call with the same token later completes the rest.
            StoreError: the store refuses the rows, or they do not fit their table; trying again will not help.
        """
        # Money first: if this stops half-way, what is missing are bodies and summaries, which come again.
        for name, rows in (("ledger", ledger), ("traces", traces), ("spans", spans)):
            if rows is not None and rows.num_rows:
                self._insert(name, conform(rows, name), f"{token}:{name}")

    def put(self, table: str, rows: pa.Table, token: str) -> None:
        """Insert into any table of `SCHEMAS`; otherwise as `write`."""
        if rows.num_rows:
            self._insert(table, conform(rows, table), token)

    def read(self, sql: str) -> pa.Table:
        """Rows of a SELECT, as they are when all that was written is in the store.

        Raises:
            StoreUnavailable: ``stop`` was set while the store was away.
            StoreError: the store refuses the query.
        """
        return self._patiently(lambda: self.store.query(sql))

    def rest(self) -> None:
        """Wait before a store that refuses everything is asked again.

        Raises:
            StoreUnavailable: ``stop`` is set.
        """
        if self.stop.is_set():
            raise StoreUnavailable("The store refuses everything, and it is time to stop.")
        self._pause(random.uniform(REFUSED_PAUSE_S / 2, REFUSED_PAUSE_S))

    def _insert(self, table: str, rows: pa.Table, token: str) -> None:
        self._patiently(lambda: self.store.insert(table, rows, token))
        self._count("write.inserts", 1)
        self._count(f"write.rows.{table}", rows.num_rows)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call the store until it answers, and takes what is in order."""
        longest = FIRST_PAUSE_S
        since = time.monotonic()
        failures = 0
        while True:
            try:
                answer = call()
            except (StoreUnavailable, StoreUnfit) as error:
                failures += 1
                self.away = str(error)
                self._count("write.retries", 1)
                if failures & (failures - 1) == 0:
                    # The first, second, fourth, eighth … time: a long outage does not fill the log.
                    log.warning("%s (try %d, away for %.0f s)", error, failures, time.monotonic() - since)
                if self.stop.is_set():
                    raise error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error)) from error
                self._pause(random.uniform(longest / 2, longest))
                longest = min(longest * 2, LONGEST_PAUSE_S)
            else:
                self.away = ""
                break
        if failures:
            log.warning("store is back after %d tries and %.0f s", failures, time.monotonic() - since)
        return answer

    def _count(self, name: str, count: int) -> None:
        if self.counters is not None:
            self.counters.add(name, count)


def conform(rows: pa.Table, table: str) -> pa.Table:
    """Rows with exactly the columns of a table, in its order and of its types.

    Args:
        rows: columns by name. Strings may be dictionaries, and null where the column says '' for not given.
        table: a name in `SCHEMAS`.

    Raises:
        StoreError: a column is missing, unknown, of a type that does not fit, or null where that is not allowed.
    """
    schema = SCHEMAS[table]
    unknown = set(rows.column_names) - set(schema.names)
    missing = set(schema.names) - set(rows.column_names)
    if unknown or missing:
        wrong = [f"no {name}" for name in sorted(missing)] + [f"unknown {name}" for name in sorted(unknown)]
        raise StoreError(f"Rows for {table} do not have its columns: {', '.join(wrong)}.")
    columns, fields = [], []
    for field in schema:
        try:
            column = _column(rows[field.name], field)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise StoreError(f"Rows for {table}: column {field.name} does not fit: {error}.") from error
        if not field.nullable and column.null_count:
            raise StoreError(f"Rows for {table}: column {field.name} has {column.null_count} nulls.")
        columns.append(column)
        fields.append(pa.field(field.name, column.type, nullable=field.nullable))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _column(column: Any, field: pa.Field) -> Any:
    if field.type == _TEXTS and column.type == _CODED_TEXTS:
        return column  # dictionaries go fastest inside of lists too
    if field.type == _MAP and column.type in _CODED_MAPS:
        return column
    if field.type == pa.string():
        if pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type) and not column.null_count:
            # As it is: into a LowCardinality column a dictionary goes fastest.
            return column
        column = column.cast(pa.string())
        return column if field.nullable or not column.null_count else pc.fill_null(column, "")
    return column if column.type == field.type else column.cast(field.type)
