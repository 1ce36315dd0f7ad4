"""``tollspan bills``: what providers charged, beside what was metered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from tollspan.processor.cli.options import Since, Store, Until
from tollspan.processor.cli.output import Format, print_rows, text
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import check_limit, run, window
from tollspan.processor.report import for_people

if TYPE_CHECKING:
    from tollspan.processor.store import Store as OpenStore

EXIT_UNEXPLAINED = 3

bills = typer.Typer(help="Import providers' bills and hold them against what was metered.", no_args_is_help=True)

Shown: TypeAlias = Annotated[Format, typer.Option("--format", help="How to print the rows.")]
Limit: TypeAlias = Annotated[int | None, typer.Option(help="At most so many rows, 1 or more.")]


@bills.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="All files of one export: CSV, CSV.gz or Parquet.")],
    store: Store = "chdb://",
    bill_format: Annotated[
        Literal["focus", "cur", "simple"] | None, typer.Option(help="By default it is seen by the columns.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="YAML: providers and models by the bill's names, tenant_tags, feature_tags.")
    ] = None,
    provider: Annotated[str, typer.Option(help="Provider of all lines, as in the ledger.")] = "",
    bill: Annotated[str, typer.Option(help="Name of the bill. Default: issuer/account/month of each line.")] = "",
    format: Shown = Format.table,
) -> None:
    """Import a bill: FOCUS (CSV, Parquet), AWS CUR 2.0 or legacy, or a simple CSV.

    A simple CSV has the columns date and cost, and what there is of provider, model, category (Usage, Tax, Credit,
    Purchase, Adjustment), tenant, feature, currency, account, issuer, service, sku, description. Whatever is imported
    again for a bill replaces it as a whole. The ledger does not change.

    Exit codes: 0 imported, or it was there already; 1 a file cannot be taken, and nothing was imported.

    Example: tollspan bills import october.parquet --names names.yaml
    """
    from tollspan.processor.billing import import_bills, read_names

    known = None if names is None else read_names(names)
    with _writable(store) as opened:
        done = import_bills(opened, files, bill_format or "", known, provider, bill)
    _show([asdict(each) for each in done], format)


@bills.command("list")
def list_(store: Store = "chdb://", format: Shown = Format.table) -> None:
    """List the bills that are imported.

    Example: tollspan bills list --format json
    """
    from tollspan.processor.billing import bills as imported
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        _show(imported(reader), format)


@bills.command()
def remove(
    bill: Annotated[str, typer.Argument(help="Its name, as `tollspan bills list` has it.")], store: Store = "chdb://"
) -> None:
    """Take a bill out again.

    Example: tollspan bills remove openai/acme/2026-10
    """
    from tollspan.processor.billing import remove as take_out

    with _writable(store) as opened:
        take_out(opened, bill)
    typer.echo(f"{bill} is removed.", err=True)


@bills.command()
def reconcile(
    store: Store = "chdb://",
    since: Since = None,
    until: Until = None,
    by: Annotated[
        Literal["day", "month"], typer.Option(help="A bill with lines for whole months needs month.")
    ] = "day",
    unexplained: Annotated[bool, typer.Option("--unexplained", help="Only rows whose difference has no name.")] = False,
    limit: Limit = None,
    format: Shown = Format.table,
) -> None:
    """Hold what was metered against what was billed, by time, provider and model, and say why they differ.

    Exit codes: 0 every difference has a name; 1 the store cannot be read; 2 wrong usage; 3 some difference has none.

    Example: tollspan bills reconcile --since 2026-10-01 --until 2026-11-01 --format csv
    """
    rows = _asked(store, "bills-reconcile" if by == "day" else "bills-reconcile-by-month", since, until, None, limit)
    open_ = [row for row in rows if row["state"] in ("unexplained", "unmetered", "unbilled", "unpriced")]
    _show((open_ if unexplained else rows)[:limit], format)
    if not rows or format is not Format.table:
        if open_:
            raise typer.Exit(EXIT_UNEXPLAINED)
        return
    known = [row for row in rows if row["difference"] is not None]
    difference = sum((row["difference"] for row in known), Decimal(0))
    rest = sum((row["unexplained"] for row in known if row["unexplained"] is not None), Decimal(0))
    typer.echo(f"Billed less metered {text(difference)} USD; of it without a name {text(rest)} USD.", err=True)
    left = len(rows) - len(known)
    if left:
        typer.echo(f"Not in it: {left} rows (outside of the bills, unpriced, or in another currency).", err=True)
    if open_:
        raise typer.Exit(EXIT_UNEXPLAINED)


@bills.command()
def attribution(
    store: Store = "chdb://",
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    format: Shown = Format.table,
) -> None:
    """Say how much of what was billed can be told to a tenant or feature.

    Example: tollspan bills attribution --since 2026-10-01 --until 2026-11-01
    """
    _show(_asked(store, "bills-attribution", since, until, limit, limit), format)


def _asked(
    store: str, name: str, since: str | None, until: str | None, limit: int | None, given: int | None
) -> list[dict[str, Any]]:
    try:
        start, end = window(since, until)
        check_limit(given)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        return run(reader, name, start, end, limit)


def _show(rows: list[dict[str, Any]], format: Format) -> None:
    if not rows and format is Format.table:
        typer.echo("No rows.", err=True)
        return
    print_rows(for_people(rows) if format in (Format.table, Format.markdown) else rows, format)


@contextmanager
def _writable(url: str) -> Iterator[OpenStore]:
    from tollspan.processor.store import StoreInUse, open_store

    try:
        store = open_store(url, create=False)
    except StoreInUse as error:
        raise StoreInUse(error.message, "Stop it first: this writes to the store.", error.owner) from None
    with store:
        store.migrate()
        yield store
