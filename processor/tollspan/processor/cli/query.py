"""``tollspan query``: named questions to the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from tollspan.processor.cli.options import Since, Store, Until
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import check_limit, find, named_queries, run, window
from tollspan.processor.report import for_people


def query(
    name: Annotated[str | None, typer.Argument(help="Name of the query; --list shows them.")] = None,
    store: Store = "chdb://",
    since: Since = None,
    until: Until = None,
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.table,
    limit: Annotated[int | None, typer.Option(help="At most so many rows, 1 or more.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the queries.")] = False,
) -> None:
    """Ask the ledger a named question, also while `tollspan serve` runs on it.

    Example: tollspan query by-tenant --since 7d --format markdown
    """
    if list_:
        print_rows([{"query": q.name, "answers": q.title} for q in named_queries().values()], format)
        return
    try:
        if name is None:
            raise ConfigError("Which query?", f"One of: {', '.join(named_queries())}.")
        asked = find(name)
        start, end = window(since, until)
        check_limit(limit)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        rows = run(reader, name, start, end, limit)
    if not rows and format is Format.table:
        typer.echo("No rows.", err=True)
        return
    shown = for_people(rows) if format in (Format.table, Format.markdown) and not asked.single else rows
    print_rows(shown, format, title=asked.title, single=asked.single)
