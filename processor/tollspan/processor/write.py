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
from typing import Any, Final, NamedTuple, Protocol, TypeVar

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
_MAP: Final = pa.map_(pa.string(), pa.string())
_WORDS: Final = pa.dictionary(pa.int32(), pa.string())
_CODED_MAPS: Final = (pa.map_(_WORDS, pa.string()), pa.map_(_WORDS, _WORDS))


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
                self._insert(name, conform(rows, name, spoken=True), f"{token}:{name}")

    def put(self, table: str, rows: pa.Table, token: str) -> None:
        """Insert into any table of `SCHEMAS`; otherwise as `write`."""
        if rows.num_rows:
            self._insert(table, conform(rows, table, spoken=True), token)

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


def conform(rows: pa.Table, table: str, *, spoken: bool = False) -> pa.Table:
    """Rows with exactly the columns of a table, in its order and of its types.

    Args:
        rows: columns by name. Strings may be dictionaries, and null where the column says '' for not given.
        table: a name in `SCHEMAS`.
        spoken: leave out columns in which no row says anything: what is not inserted is '' or null (no column of ours
            has another default), and need neither be written nor read.

    Raises:
        StoreError: a column is missing, unknown, of a type that does not fit, or null where that is not allowed.
    """
    schema = SCHEMAS[table]
    given = rows.column_names
    if len(given) != len(schema) or set(given) != set(schema.names):
        wrong = [f"no {name}" for name in sorted(set(schema.names) - set(given))]
        wrong += [f"unknown {name}" for name in sorted(set(given) - set(schema.names))]
        wrong += [f"{name} twice" for name in sorted(set(given)) if given.count(name) > 1]
        raise StoreError(f"Rows for {table} do not have its columns: {', '.join(wrong)}.")
    by_name = dict(zip(given, rows.columns, strict=True))
    columns, fields = [], []
    for field in _FIELDS[table]:
        column = by_name[field.name]
        try:
            column = _column(column, field)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise StoreError(f"Rows for {table}: column {field.name} does not fit: {error}.") from error
        nulls = column.null_count
        if nulls and not field.nullable:
            raise StoreError(f"Rows for {table}: column {field.name} has {nulls} nulls.")
        if spoken and _says_nothing(column, nulls):
            continue
        columns.append(column)
        fields.append(pa.field(field.name, column.type, nullable=field.nullable))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


class _Field(NamedTuple):
    """A column of a table; looked at for every column of every batch, and Arrow's own takes long to ask."""

    name: str
    type: Any
    id: int
    nullable: bool


_FIELDS: Final = {
    table: [_Field(field.name, field.type, field.type.id, field.nullable) for field in schema]
    for table, schema in SCHEMAS.items()
}
_STRING: Final = pa.string().id
_CODED: Final = pa.dictionary(pa.int8(), pa.string()).id
_LIST: Final = _TEXTS.id


def _column(column: Any, field: _Field) -> Any:
    type_ = column.type
    if field.id == _STRING:
        if type_.id == _CODED and type_.value_type.id == _STRING and not column.null_count:
            # As it is, whatever its numbers' width: into a LowCardinality column a dictionary goes fastest.
            return column
        column = column.cast(pa.string())
        return column if field.nullable or not column.null_count else pc.fill_null(column, "")
    if field.id == _LIST and type_.id == _LIST:
        inner = type_.value_type
        if inner.id == _CODED and inner.value_type.id == _STRING and field.type.value_type.id == _STRING:
            return column  # dictionaries go fastest inside of lists too
    if type_ == field.type or (field.id == _MAP.id and field.type == _MAP and type_ in _CODED_MAPS):
        return column
    return column.cast(field.type)


def _says_nothing(column: Any, nulls: int) -> bool:
    """Whether each value is null, or ''."""
    if nulls:
        return bool(nulls == len(column))
    if column.type.id != _CODED or column.num_chunks != 1:
        return False
    words = column.chunk(0).dictionary
    return len(words) == 1 and not words[0].as_py()
