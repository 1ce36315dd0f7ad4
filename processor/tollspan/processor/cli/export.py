"""``tollspan export``: the ledger for other programs."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from tollspan.processor.cli.inputs import EXIT_UNPRICED
from tollspan.processor.cli.options import Since, Store, Until
from tollspan.processor.cli.output import Format as Shown
from tollspan.processor.cli.output import print_rows, text
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import window

export = typer.Typer(help="Write the ledger for other programs.", no_args_is_help=True)


@export.callback()
def _group() -> None:
    """Write the ledger for other programs."""


@export.command()
def focus(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write: .csv or .parquet. Default: CSV to the terminal."),
    ] = None,
    store: Store = "chdb://",
    since: Since = None,
    until: Until = None,
    tenant: Annotated[str, typer.Option(help="Only this tenant's charges.")] = "",
    provider: Annotated[str, typer.Option(help="Only this provider's charges.")] = "",
    model: Annotated[str, typer.Option(help="Only this model's charges.")] = "",
    account: Annotated[
        str, typer.Option(help="BillingAccountId; also the provider of machines of your own. Default: the database.")
    ] = "",
    account_name: Annotated[str, typer.Option(help="BillingAccountName.")] = "",
    version: Annotated[Literal["1.2", "1.3"], typer.Option(help="Version of FOCUS; 1.3 adds columns.")] = "1.2",
    file_format: Annotated[
        Literal["csv", "parquet"] | None, typer.Option("--file-format", help="Where the file's name does not tell it.")
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="Write FOCUS's metadata of the export there too (JSON); Parquet has it inside.")
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Fail, exit code 3, where anything has to be left out.")
    ] = False,
) -> None:
    """Write a FOCUS dataset (FinOps Open Cost and Usage Specification): one row for each charge.

    FOCUS wants a cost in every row, so charges without a price are left out, and listed on the error output
    (`tollspan query focus-left-out` lists them too).

    Exit codes: 0 written; 1 it cannot be; 2 wrong usage; 3 --complete, and something is left out.

    Example: tollspan export focus --since 2026-10-01 --until 2026-11-01 -o october.parquet
    """
    fmt = file_format or _format_of(output)
    try:
        start, end = window(since, until)
        if fmt is None:
            raise ConfigError(f"{output}: is that to be CSV or Parquet?", "Name it .csv or .parquet, or --file-format.")
        if output is None and fmt == "parquet" and sys.stdout.isatty():
            raise ConfigError("Parquet is nothing for a terminal.", "Give --output FILE.")
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    # Here, so that the other commands do not wait for the libraries.
    from tollspan.processor.focus import Selection
    from tollspan.processor.focus import export as write
    from tollspan.processor.focus import metadata as metadata_of
    from tollspan.processor.store import connect_for_query

    selection = Selection(start, end, tenant, provider, model, account, account_name, version)
    with connect_for_query(store) as reader:
        done = write(reader, selection, sys.stdout.buffer if output is None else output, fmt)
    if metadata is not None:
        try:
            metadata.write_text(json.dumps(metadata_of(version), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{metadata} cannot be written: {error.strerror}.", "Give --metadata another place."
            ) from None
    to = "" if output is None else f" to {output}"
    typer.echo(
        f"{text(done.rows)} charges{to}: EffectiveCost {text(done.effective)} USD, BilledCost {text(done.billed)} USD",
        err=True,
    )
    if not done.left_out:
        return
    typer.echo(f"Left out, for they have no price: {text(done.charges_left_out)} charges.", err=True)
    _print_left_out(done.left_out)
    if complete:
        typer.echo(
            "error: It is not complete (--complete). Give what is listed a price and run `tollspan reprice`.", err=True
        )
        raise typer.Exit(EXIT_UNPRICED)


def _print_left_out(rows: list[dict[str, object]], most: int = 20) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        print_rows(rows[:most], Shown.table)
    if len(rows) > most:
        typer.echo(f"… and {len(rows) - most} more: tollspan query focus-left-out", err=True)


def _format_of(output: Path | None) -> Literal["csv", "parquet"] | None:
    found = "csv" if output is None else output.suffix.lower().removeprefix(".")
    return cast(Literal["csv", "parquet"], found) if found in ("csv", "parquet") else None
