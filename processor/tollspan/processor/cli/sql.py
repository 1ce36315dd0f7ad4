"""``tollspan sql``: raw SQL, read-only and within limits."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Final

import pyarrow as pa
import typer

from tollspan.processor.cli.options import Store
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.errors import ConfigError, StoreError

PRINTED: Final = tuple(each.value for each in Format)
"""Formats that are made here, with money as exact text; any other is ClickHouse's own."""

BINARY: Final = re.compile(
    r"arrow|arrowstream|avro|bson\w*|capnproto|msgpack|native|npy|orc|parquet|protobuf\w*|rowbinary\w*"
)

_FORMAT: Final = re.compile(r"\bFORMAT\s+([A-Za-z]\w*)\s*(?:SETTINGS\b[^;]*)?\Z", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z]\w*")


def sql(
    statement: Annotated[str | None, typer.Argument(help="One statement; - or nothing reads it from stdin.")] = None,
    store: Store = "chdb://",
    format: Annotated[
        str,
        typer.Option(
            help="table, json, csv or markdown, or any format of ClickHouse: JSONEachRow, Parquet, Vertical …"
        ),
    ] = "table",
    param: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for {NAME:Type} in the statement; may come again.")
    ] = None,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds that it may take.")] = 60,
    memory: Annotated[int, typer.Option(min=1, help="MiB of memory that it may take.")] = 2048,
    result: Annotated[int, typer.Option(min=1, help="MiB that the answer may have.")] = 256,
) -> None:
    """Ask the tables in SQL, also while `tollspan serve` runs on them. Nothing can be changed by it.

    `tollspan schema columns` says what there is. Tables that say so are read with FINAL. A service and its SQL port
    allow for 60 s, 2 GiB and 256 MiB at the most.

    Example: tollspan sql "SELECT model, sum(cost) FROM ledger FINAL GROUP BY model" --format json
    """
    try:
        text = _text(statement)
        parameters = dict(_pair(each) for each in param or ())
        if not _NAME.fullmatch(format):
            raise ConfigError(f"--format {format!r} is no format.", f"One of {', '.join(PRINTED)}, or ClickHouse's.")
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    named = _FORMAT.search(text)
    wanted = named[1] if named else format
    if BINARY.fullmatch(wanted.lower()) and sys.stdout.isatty():
        typer.echo(f"error: {wanted} is not for a terminal. Send it to a file: > FILE", err=True)
        raise typer.Exit(2)
    limits = {
        "max_execution_time": str(timeout),
        "max_memory_usage": str(memory * 2**20),
        "max_result_bytes": str(result * 2**20),
        "result_overflow_mode": "throw",
    }
    ours = named is None and wanted in PRINTED
    body = _ask(store, text, None if named else "Arrow" if ours else wanted, limits, parameters)
    if not ours:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
        return
    from tollspan.processor.store import as_rows

    # A statement without rows, USE for one, answers with nothing.
    rows = as_rows(pa.ipc.open_file(pa.py_buffer(body)).read_all()) if body else []
    if not rows and wanted == Format.table:
        typer.echo("No rows.", err=True)
        return
    print_rows(rows, Format(wanted))


def _text(statement: str | None) -> str:
    if statement is None and sys.stdin.isatty():
        raise ConfigError("Which statement?", 'For example: tollspan sql "SHOW TABLES".')
    text = (sys.stdin.read() if statement in (None, "-") else str(statement)).strip().removesuffix(";").rstrip()
    if not text:
        raise ConfigError("The statement is empty.", 'For example: tollspan sql "SHOW TABLES".')
    return text


def _pair(given: str) -> tuple[str, str]:
    name, sign, value = given.partition("=")
    if not sign or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ConfigError(f"--param {given!r} is not NAME=VALUE.", "For example: --param tenant=acme.")
    return name, value


def _ask(url: str, text: str, form: str | None, limits: dict[str, str], parameters: dict[str, str]) -> bytes:
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.sqlfront.front import LIMITS, SqlFront
    from tollspan.processor.store import Embedded, connect_for_query, locate, lock, open_store

    where = locate(url)
    if isinstance(where, Embedded) and lock.holder(where.directory) is None:
        with open_store(url, create=False) as store:
            given = {f"param_{name}": value for name, value in parameters.items()}
            del limits["result_overflow_mode"]
            return SqlFront(store).ask(text, form or "TabSeparated", {**limits, **given})
    if isinstance(where, Embedded):
        del limits["result_overflow_mode"]
        limits = {name: str(min(int(value), LIMITS[name])) for name, value in limits.items()}
    with connect_for_query(url) as reader:
        try:
            return reader.raw(text, form, limits, parameters)
        except StoreError as error:
            if "READONLY" in str(error) and "setting" in str(error):
                return reader.raw(text, form, {}, parameters)
            raise
