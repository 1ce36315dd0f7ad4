"""Files of the view ``focus``: CSV and Parquet, in pieces, so that memory does not grow with the window.

In: a read-only handle and what to take. Out: a file, and what it holds and leaves out. CSV has every number with all
its decimals, instants as FOCUS writes them, texts in quotes and nothing where a value is null. A file is written beside
its place and moved there when it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tollspan.processor.errors import ConfigError
from tollspan.processor.focus.columns import DECIMALS, TYPES, Column, columns_of
from tollspan.processor.focus.metadata import metadata
from tollspan.processor.queries import Rows, run
from tollspan.processor.queries.window import EARLIEST, LATEST, bound

Format = Literal["csv", "parquet"]

_MINUTE: Final = timedelta(minutes=1)
_CHOSEN: Final = """
FROM (SELECT * FROM focus
    WHERE x_StartTime >= {since:DateTime64(9, 'UTC')} AND x_StartTime < {until:DateTime64(9, 'UTC')}
    AND ({tenant:String} = '' OR SubAccountId = {tenant:String})
    AND ({provider:String} = '' OR (x_ProviderKnown AND ProviderName = {provider:String}))
    AND ({model:String} = '' OR x_Model = {model:String})) AS focus
ORDER BY focus.x_StartTime, focus.x_TraceId, focus.x_SpanId, focus.SkuMeter
"""
_MINUTES: Final = (
    "SELECT toStartOfMinute(start_time)::DateTime64(3, 'UTC') AS minute, sum(length(charges.meter)) AS charges"
    " FROM ledger WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}"
    " GROUP BY minute ORDER BY minute"
)
"""Without FINAL: only how much comes when, and a row that was replaced counts twice at most."""
_AT_ONCE: Final = 250_000
"""Charges that are in memory together, about half a gigabyte with their texts; a minute with more comes whole."""


class Tables(Rows, Protocol):
    """The part of a store or reader that an export uses."""

    def query(self, sql: str, parameters: dict[str, Any] | None = None) -> pa.Table:
        """A SELECT's rows."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is exported.

    Attributes:
        since, until: start times, from ``since`` on and before ``until``; None for an open end.
        tenant, provider, model: only theirs; '' for all.
        account: BillingAccountId, and the provider of what no provider is named for; '' for the store's database.
        account_name: BillingAccountName; '' for none.
        version: of FOCUS, one of `VERSIONS`.
    """

    since: datetime | None = None
    until: datetime | None = None
    tenant: str = ""
    provider: str = ""
    model: str = ""
    account: str = ""
    account_name: str = ""
    version: str = "1.2"

    def parameters(self, since: datetime, until: datetime) -> dict[str, Any]:
        """Of a query on a part of it."""
        return {
            "since": bound(since, EARLIEST),
            "until": bound(until, LATEST),
            "tenant": self.tenant,
            "provider": self.provider,
            "model": self.model,
            "account": self.account,
            "account_name": self.account_name,
        }


@dataclass(slots=True)
class Exported:
    """What a file holds, and what it does not.

    Attributes:
        rows: charges in it.
        billed, effective: sums of BilledCost and EffectiveCost, USD.
        left_out: rows of the query ``focus-left-out`` for the same selection.
    """

    rows: int = 0
    billed: Decimal = Decimal(0)
    effective: Decimal = Decimal(0)
    left_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def charges_left_out(self) -> int:
        return sum(row["charges"] for row in self.left_out)


def export(
    reader: Tables,
    selection: Selection,
    target: Path | BinaryIO,
    fmt: Format,
    progress: Callable[[int], object] = lambda rows: None,
) -> Exported:
    """Write a file.

    Args:
        reader: a `tollspan.processor.store.Reader` or `Store`.
        selection: what of it.
        target: where; a stream is written to as it comes.
        fmt: of the file.
        progress: told rows as they are written.

    Raises:
        ConfigError: the file cannot be written.
        StoreError: see `Reader.query`.
    """
    columns = columns_of(selection.version)
    sql = f"SELECT {', '.join(_taken(column, fmt) for column in columns)}, {_SUMS} {_CHOSEN}"
    done = Exported(left_out=_left_out(reader, selection))
    with _written(target) as out, _writer(out, columns, fmt, selection.version) as write:
        for since, until in _windows(reader, selection):
            table = reader.query(sql, selection.parameters(since, until))
            done.rows += table.num_rows
            done.billed += pc.sum(table["sum_billed"]).as_py() or 0
            done.effective += pc.sum(table["sum_effective"]).as_py() or 0
            write(table.select([column.name for column in columns]))
            progress(table.num_rows)
    return done


_SUMS: Final = "focus.BilledCost AS sum_billed, focus.EffectiveCost AS sum_effective"


def _taken(column: Column, fmt: Format) -> str:
    """The column's expression in the SELECT. CSV takes text that the engine makes: exact, and never as 1E-7."""
    name = f"focus.{column.of or column.name}"
    if column.name == "BillingAccountId":
        name = f"if({{account:String}} = '', {name}, {{account:String}})"
    elif column.name == "BillingAccountName":
        name = "nullIf({account_name:String}, '')"
    elif "ProviderName" in (column.of, column.name) or column.name in ("PublisherName", "InvoiceIssuerName"):
        name = f"if(focus.x_ProviderKnown OR {{account:String}} = '', {name}, {{account:String}})"
    if fmt == "csv":
        if column.kind in DECIMALS:
            name = f"toDecimalString({name}, {DECIMALS[column.kind]})"
        elif column.kind == "instant":
            name = f"formatDateTime({name}, '%Y-%m-%dT%H:%i:%SZ')"
        elif column.kind == "nanoseconds":
            name = f"concat(formatDateTime({name}, '%Y-%m-%dT%H:%i:%S'), '.', leftPad(toString("
            name += f"toUnixTimestamp64Nano(focus.{column.name}) % 1000000000), 9, '0'), 'Z')"
        elif column.kind == "flag":
            name = f"if({name}, 'true', 'false')"
        else:
            name = f"toString({name})"
    elif column.kind == "instant":
        name = f"toDateTime64({name}, 3, 'UTC')"
    return f"{name} AS {column.name}"


def _left_out(reader: Tables, selection: Selection) -> list[dict[str, Any]]:
    asked = {"tenant": selection.tenant, "provider": selection.provider, "model": selection.model}
    where = [f"{name}={value}" for name, value in asked.items() if value]
    return run(reader, "focus-left-out", selection.since, selection.until, where=where)


def _windows(reader: Rows, selection: Selection, at_once: int = _AT_ONCE) -> Iterator[tuple[datetime, datetime]]:
    """Windows that together are the selection's, as far as the ledger has rows there, with so many charges at most."""
    since, until = selection.since or EARLIEST, selection.until or LATEST
    start: datetime | None = None
    end = since
    held = 0
    for row in reader.rows(_MINUTES, {"since": bound(since, EARLIEST), "until": bound(until, LATEST)}):
        if start is not None and held + row["charges"] > at_once:
            yield max(start, since), row["minute"]
            start, held = None, 0
        start = start or row["minute"]
        end, held = row["minute"] + _MINUTE, held + row["charges"]
    if start is not None:
        yield max(start, since), min(end, until)


@contextmanager
def _written(target: Path | BinaryIO) -> Iterator[BinaryIO]:
    """Where bytes go; a file appears when it is whole."""
    if not isinstance(target, Path):
        yield target
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(target)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror or error}.", "Give --output another place."
        ) from None
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _writer(
    out: BinaryIO, columns: tuple[Column, ...], fmt: Format, version: str
) -> Iterator[Callable[[pa.Table], None]]:
    if fmt == "csv":
        out.write((",".join(column.name for column in columns) + "\n").encode())
        quoted = {column.name for column in columns if column.kind not in DECIMALS and column.kind != "flag"}
        yield lambda table: _write_lines(out, table, quoted)
        return
    schema = pa.schema(
        [pa.field(column.name, TYPES[column.kind], nullable=column.nullable) for column in columns],
        metadata={"focus": json.dumps(metadata(version))},
    )
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        yield lambda table: writer.write_table(table.cast(schema))


def _write_lines(out: BinaryIO, table: pa.Table, quoted: set[str]) -> None:
    """Rows as lines of CSV; the columns are texts. Arrow's own writer would quote numbers that are texts, too."""
    if not table.num_rows:
        return
    cells = []
    for name in table.column_names:
        cell = table[name].cast(pa.string())
        if name in quoted:
            cell = pc.binary_join_element_wise('"', pc.replace_substring(cell, '"', '""'), '"', "")
        cells.append(pc.fill_null(cell, ""))
    lines = pc.binary_join_element_wise(*cells, ",")
    for chunk in lines.chunks:
        out.write(("\n".join(chunk.to_pylist()) + "\n").encode())
