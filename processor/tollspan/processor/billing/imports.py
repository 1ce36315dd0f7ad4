"""Bills in the store: imported, listed, removed.

A bill is replaced as a whole. Its lines are written under the hash of what was imported, and then one row of ``bills``
points at them: an import that breaks off before leaves the bill as it was, and the same import again is a no-op.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from tollspan.processor.billing.lines import LINES, Names, read_lines
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import Rows

if TYPE_CHECKING:
    from tollspan.processor.store import Store


@dataclass(frozen=True, slots=True)
class Imported:
    """One bill of an import.

    Attributes:
        bill: issuer, account and billing period, or the name that was given.
        state: ``new``, ``replaced`` or ``unchanged``.
        format: of the files.
        lines: how many.
        billed: their sum.
        currency: of the sum; several are separated by commas, and the sum is then of no use.
        first_day, last_day: that they are for.
    """

    bill: str
    state: str
    format: str
    lines: int
    billed: Decimal
    currency: str
    first_day: date
    last_day: date


def import_bills(
    store: Store,
    paths: Sequence[Path],
    bill_format: str = "",
    names: Names | None = None,
    provider: str = "",
    bill: str = "",
    now: datetime | None = None,
) -> list[Imported]:
    """Import files that are together one export.

    Args:
        store: open and migrated.
        paths: all files of the export: of a bill that is in several, each alone would replace the others.
        bill_format, names, provider, bill: see `read_lines`.
        now: time of the import.

    Returns:
        Each bill that the files have lines of, by name.

    Raises:
        ConfigError: a file cannot be taken; nothing was imported.
        StoreError: see `Store.insert`.
    """
    read = [read_lines(path, bill_format, names, provider, bill) for path in paths]
    kinds = {kind for _, kind in read}
    if len(kinds) > 1:
        raise ConfigError(
            f"The files are of several formats: {', '.join(sorted(kinds))}.", "Import one export at a time."
        )
    lines = pa.concat_tables(table for table, _ in read)
    lines = lines.set_column(2, LINES.field("line"), pa.array(range(1, lines.num_rows + 1), pa.uint64()))
    known = {row["bill"]: row for row in store.rows("SELECT bill, file, imported_at FROM bills FINAL")}
    done = []
    for name in sorted(pc.unique(lines["bill"]).to_pylist()):
        mine = lines.filter(pc.equal(lines["bill"], name))
        done.append(_import(store, name, mine, kinds.copy().pop(), paths, known.get(name), now or datetime.now(UTC)))
    return done


def _import(
    store: Store,
    name: str,
    lines: pa.Table,
    kind: str,
    paths: Sequence[Path],
    before: dict[str, Any] | None,
    now: datetime,
) -> Imported:
    currencies = ",".join(sorted(pc.unique(lines["currency"]).to_pylist()))
    state = "new" if before is None else "replaced"
    digest = _digest(lines)
    if before is not None and before["file"] == digest:
        state = "unchanged"
    else:
        placed = lines.set_column(1, LINES.field("file"), pa.array([digest] * lines.num_rows, pa.string()))
        # Tokens of this import alone: what an earlier one wrote under the same hash may have been removed since.
        store.insert("billed_lines", placed.cast(LINES), _token("lines", name, digest, now))
        # After the one before it, whatever the clock says: the last import counts.
        at = now if before is None else max(now, before["imported_at"] + timedelta(milliseconds=1))
        row = {
            "bill": name,
            "file": digest,
            "name": ", ".join(path.name for path in paths),
            "format": kind,
            "currency": currencies,
            "lines": lines.num_rows,
            "billed": pc.sum(lines["cost"]).as_py(),
            "first_day": pc.min(lines["day"]).as_py(),
            "last_day": pc.max(lines["day"]).as_py(),
            "imported_at": at,
        }
        store.insert("bills", pa.Table.from_pylist([row], schema=_BILLS), _token("bill", name, digest, at))
        _forget(store, name, digest)
    return Imported(
        name,
        state,
        kind,
        lines.num_rows,
        pc.sum(lines["cost"]).as_py() or Decimal(0),
        currencies,
        pc.min(lines["day"]).as_py(),
        pc.max(lines["day"]).as_py(),
    )


_BILLS = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("bill", "file", "name", "format", "currency")),
        pa.field("lines", pa.uint64(), nullable=False),
        pa.field("billed", pa.decimal128(38, 12), nullable=False),
        pa.field("first_day", pa.date32(), nullable=False),
        pa.field("last_day", pa.date32(), nullable=False),
        pa.field("imported_at", pa.timestamp("ms", "UTC"), nullable=False),
    ]
)


def _digest(lines: pa.Table) -> str:
    """Of what the lines say, so that other names for models are another import, and a copy of a file is the same."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, lines.schema) as writer:
        writer.write_table(lines.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _token(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _forget(store: Store, name: str, but: str) -> None:
    """Free what lines of earlier imports take; they do not count any more."""
    store.execute(
        "ALTER TABLE billed_lines DELETE WHERE bill = {bill:String} AND file != {file:String}",
        {"bill": name, "file": but},
    )


def bills(reader: Rows) -> list[dict[str, Any]]:
    """What is imported, by name."""
    return reader.rows(
        "SELECT bill, format, name AS files, lines, billed, currency, first_day, last_day, imported_at"
        " FROM bills FINAL ORDER BY bill"
    )


def remove(store: Store, name: str) -> None:
    """Take a bill out again.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in {row["bill"] for row in bills(store)}:
        raise ConfigError(f"There is no bill {name!r}.", "`tollspan bills list` shows them.")
    store.execute("ALTER TABLE bills DELETE WHERE bill = {bill:String} SETTINGS mutations_sync = 2", {"bill": name})
    _forget(store, name, "")
