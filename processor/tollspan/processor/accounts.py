"""Accounts: what each batch came to, in the store, for `reconcile` to hold against the ledger.

In: an account a batch, made before its rows are inserted; and what its telemetry came to, once it is decided. Out: rows
of ``batches``, ``late_rows`` and ``telemetry``, several batches in one insert, at the latest before a batch is released
from the journal. Until then the account is in the log of recent spans (`recent_log`), and the batch comes again after a
crash; so no row of the ledger is without an account.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine
from tollspan.processor.counters import Counters
from tollspan.processor.errors import StoreError, StoreUnavailable
from tollspan.processor.identity import Mask
from tollspan.processor.journal import Range
from tollspan.processor.sample.telemetry_cost import Part, rows_of
from tollspan.processor.schema import SCHEMAS
from tollspan.processor.write import Writer

log = logging.getLogger(__name__)

FLUSH_S: Final = 2.0
"""Longest time that an account waits for others to share its insert."""

MOST_WAITING: Final = 100_000
"""Accounts that wait for a store that refuses them; the oldest beyond are given up, counted and logged."""

MOST_TELEMETRY: Final = 10_000
"""The same for what telemetry cost: a table for the parts of batches that were decided between two inserts."""

Account = Mapping[str, Any]
"""Columns of ``batches`` as JSON holds them: instants in ns, money as a string."""


def batch_number(token: str) -> int:
    """What the ledger calls a batch: 64 bits, never 0."""
    return int.from_bytes(hashlib.sha256(token.encode()).digest()[:8], "big") or 1


class Accounts:
    """Accounts of this process, on their way into the store.

    Args:
        writer: puts them there.
        counters: counts ``accounts.*``.
    """

    def __init__(self, writer: Writer, counters: Counters) -> None:
        self.writer, self.counters = writer, counters
        self.attempt = time.time_ns() // 1_000_000
        self._waiting: list[Account] = []
        self._late: list[pa.Table] = []
        self._decided: list[Part] = []
        self._telemetry: list[pa.Table] = []
        self._oldest = np.inf

    def open(
        self, token: str, part: str, place: Range, received_ns: int, journal: bytes, requests: int
    ) -> dict[str, Any]:
        """An account with no figures yet.

        Args:
            token: of the batch.
            part: of it; '' for all.
            place: of the batch in the journal.
            received_ns: when it was received.
            journal: the journal's id.
            requests: payloads in this part.
        """
        numbers = ("spans", "rejected", "malformed", "duplicates", "conflicts", "set_aside", "rows", "costed")
        return {
            "token": token,
            "part": part,
            "attempt": self.attempt,
            "batch": batch_number(token),
            "journal": journal.hex(),
            "segment": place.segment,
            "first_byte": place.start,
            "end_byte": place.end,
            "received_at": received_ns,
            "processed_at": time.time_ns(),
            "requests": requests,
            **dict.fromkeys((*numbers, "rollups", "corrections", "late", "first_start", "last_start"), 0),
            "cost": "0",
            "book_version": "",
        }

    def add(self, account: Account, late: pa.Table | None = None) -> None:
        """Take an account whose rows are written.

        Args:
            late: rows for ``late_rows``.
        """
        self._waiting.append(account)
        if late is not None:
            self._late.append(late)
        self._oldest = min(self._oldest, time.monotonic())

    def add_telemetry(self, parts: Sequence[Part]) -> None:
        """Take what the telemetry of parts of batches comes to whose spans are all decided."""
        if parts:
            self._decided.extend(parts)
            self._oldest = min(self._oldest, time.monotonic())

    def add_attempts(self, accounts: Iterable[Account]) -> None:
        """Take accounts of an earlier process, whose rows may be written or not."""
        self._waiting.extend(accounts)
        if self._waiting:
            self._oldest = -np.inf

    @property
    def waiting(self) -> bool:
        """Whether anything waits to be inserted."""
        return bool(self._waiting or self._decided or self._telemetry)

    @property
    def due(self) -> bool:
        """Whether some have waited long enough."""
        return self.waiting and time.monotonic() - self._oldest >= FLUSH_S

    def flush(self, engine: PriceEngine, retention_s: int) -> None:
        """Insert what waits. A store that refuses accounts holds nothing up: they are tried again with the next.

        Args:
            engine: prices telemetry; retention_s: how long bodies are stored.

        Raises:
            StoreUnavailable: the store is away and it is time to stop.
        """
        if self._decided:
            self._telemetry.append(rows_of(self._decided, engine, retention_s))
            self._decided.clear()
        self._flush_telemetry()
        # What is refused waits as long as the others.
        self._oldest = time.monotonic() if self._telemetry else np.inf
        if not self._waiting:
            return
        self._oldest = time.monotonic()
        try:
            if self._late:
                # Rows land on themselves, so the token is only for a repeat by the client.
                self.writer.put("late_rows", pa.concat_tables(self._late), uuid.uuid4().hex)
                self._late.clear()
            self.writer.put("batches", _table(self._waiting), uuid.uuid4().hex)
        except StoreUnavailable:
            raise
        except StoreError as error:
            self.counters.add("accounts.refused")
            log.error("the store does not take the accounts of %d batches: %s", len(self._waiting), error)
            given_up = max(0, len(self._waiting) - MOST_WAITING)
            if given_up:
                self.counters.add("accounts.given_up", given_up)
                del self._waiting[:given_up]
            del self._late[: max(0, len(self._late) - MOST_WAITING)]
            return
        self._waiting.clear()
        self._oldest = time.monotonic() if self._telemetry else np.inf

    def _flush_telemetry(self) -> None:
        if not self._telemetry:
            return
        try:
            self.writer.put("telemetry", pa.concat_tables(self._telemetry), uuid.uuid4().hex)
        except StoreUnavailable:
            raise
        except StoreError as error:
            self.counters.add("accounts.telemetry_refused")
            log.error("the store does not take what telemetry cost: %s", error)
            given_up = max(0, len(self._telemetry) - MOST_TELEMETRY)
            if given_up:
                self.counters.add("accounts.telemetry_given_up", given_up)
                del self._telemetry[:given_up]
            return
        self._telemetry.clear()


def figures(ledger: pa.Table, book_version: str) -> dict[str, Any]:
    """What the rows of a part come to, for its account.

    Args:
        ledger: rows as they are inserted, without corrections of others.
        book_version: that they were priced with.
    """
    if not ledger.num_rows:
        return {"book_version": book_version}
    cost = ledger["cost"]
    times = pc.min_max(pc.cast(ledger["start_time"], pa.int64())).as_py()
    return {
        "rows": ledger.num_rows,
        "costed": ledger.num_rows - cost.null_count,
        "rollups": int(np.count_nonzero(np.asarray(ledger["revision"]) >> np.uint64(62))),
        "cost": str(pc.sum(cost).as_py() or Decimal(0)),
        "first_start": times["min"],
        "last_start": times["max"],
        "book_version": book_version,
    }


def late_rows(ledger: pa.Table, late: Mask) -> pa.Table | None:
    """Rows for ``late_rows``; None for none.

    Args:
        ledger: rows of a part.
        late: shape (rows,), those that could have been here before.
    """
    if not late.any():
        return None
    rows = ledger.select(SCHEMAS["late_rows"].names).filter(pa.array(late)).combine_chunks()
    # Batches share an insert, and the numbers of their dictionaries differ in width.
    return pa.table({name: _text(rows[name]) for name in rows.column_names})


def _text(column: Any) -> Any:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _table(accounts: Sequence[Account]) -> pa.Table:
    schema = SCHEMAS["batches"]
    columns = []
    for field in schema:
        values = [account[field.name] for account in accounts]
        if pa.types.is_decimal(field.type):
            values = [Decimal(value) for value in values]
        columns.append(
            pa.array(values, pa.int64() if pa.types.is_timestamp(field.type) else field.type).cast(field.type)
        )
    return pa.Table.from_arrays(columns, schema=schema)
