"""``tollspan query``: named questions to the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from tollspan.processor.cli.options import Since, Store, Until
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import (
    DIMENSIONS,
    NamedQuery,
    check_limit,
    dimensions,
    dimensions_of,
    filters,
    find,
    named_queries,
    nothing,
    run,
    window,
)
from tollspan.processor.report import for_people


def query(
    name: Annotated[str | None, typer.Argument(help="Name of the query; --list shows them.")] = None,
    store: Store = "chdb://",
    since: Since = None,
    until: Until = None,
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.table,
    limit: Annotated[int | None, typer.Option(help="At most so many rows, 1 or more.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Break down by this dimension (tenant, model, day ...); several with commas, or repeated."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only rows like this: tenant=acme, tenant!=acme, tenant= (not given). May be repeated."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Value of a parameter of the query, name=value; --explain lists them."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what the figure means, how it is computed, and show its SQL.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the queries.")] = False,
) -> None:
    """Ask the ledger a named question, also while `tollspan serve` runs on it.

    Example: tollspan query cost-per-inference --by tenant,model --where environment=prod --since 7d --format markdown
    """
    if list_:
        print_rows([_listed(each) for each in named_queries().values()], format)
        return
    try:
        if name is None:
            raise ConfigError("Which query?", f"One of: {', '.join(named_queries())}.")
        asked = find(name)
        start, end = window(since, until)
        check_limit(limit)
        sql, values = asked.text(dimensions(by, asked.allowed) if by else None, filters(where or [], asked.allowed))
        if not explain:
            asked.given(set_ or [])
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if explain:
        _explain(asked, sql, values, format)
        return
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        rows = run(reader, name, start, end, limit, by or None, where or [], set_ or [])
        why = "" if rows else nothing(reader, asked.name)
    if not rows:
        typer.echo(why, err=True)
        if format is Format.table:
            return
    shown = for_people(rows) if format in (Format.table, Format.markdown) and not asked.single else rows
    print_rows(shown, format, title=asked.title, single=asked.single)


def _listed(query: NamedQuery) -> dict[str, object]:
    parts = dimensions_of(query)
    return {
        "query": query.name,
        "answers": query.title,
        "measure": query.measure,
        "by": "" if not parts else "any dimension" if len(parts) == len(DIMENSIONS) else ", ".join(parts),
    }


def _explain(query: NamedQuery, sql: str, values: dict[str, str], format: Format) -> None:
    said = {
        "query": query.name,
        "answers": query.title,
        "definition": query.definition,
        "formula": query.formula,
        "unit": query.unit,
        "pitfalls": list(query.pitfalls),
        "notes": query.notes,
        "dimensions": list(dimensions_of(query)),
        "filters": query.filterable,
        "asks": {name: {"default": default, "about": about} for name, (default, about) in query.asks.items()},
        "parameters": values,
        "sql": sql,
    }
    if format is Format.json:
        print_rows([said], format, single=True)
        return
    if format is Format.csv:
        typer.echo("error: an explanation is no table. Use table, markdown or json.", err=True)
        raise typer.Exit(2)
    mark = "**" if format is Format.markdown else ""
    typer.echo(f"{mark}{query.name}{mark}: {query.title}\n")
    for part in ("definition", "formula", "unit", "notes"):
        if said[part]:
            typer.echo(f"{mark}{part}{mark}: {said[part]}\n")
    for pitfall in query.pitfalls:
        typer.echo(f"- {pitfall}")
    if query.pitfalls:
        typer.echo()
    if said["dimensions"]:
        typer.echo(f"{mark}--by{mark}:")
        for name in dimensions_of(query):
            typer.echo(f"- {name}: {DIMENSIONS[name].about}")
        typer.echo()
    for name, (default, about) in query.asks.items():
        typer.echo(f"--set {name}=…  {about}" + (f" (default {default})" if default else ""))
    if query.asks:
        typer.echo()
    if values:
        typer.echo("".join(f"{mark}{name}{mark} = {value!r}\n" for name, value in values.items()))
    typer.echo(f"```sql\n{sql}```" if mark else sql)
