"""``tollspan report``: one page that a person can read."""

from __future__ import annotations

from typing import Annotated

import typer

from tollspan.processor.cli.options import Since, Store, Until
from tollspan.processor.cli.output import Format
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import window
from tollspan.processor.report import build_report, print_report


def report(
    store: Store = "chdb://",
    since: Since = None,
    until: Until = None,
    format: Annotated[Format, typer.Option(help="table, markdown or json.")] = Format.table,
) -> None:
    """Print what inference cost, who caused it and what is not known.

    Example: tollspan report --since 24h --format markdown
    """
    try:
        if format is Format.csv:
            raise ConfigError("A report is several tables, csv is for one.", "Use `tollspan query NAME --format csv`.")
        start, end = window(since, until)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        gathered = build_report(reader, start, end)
    print_report(gathered, format)
