"""``tollspan loaded``: fully loaded cost, with idle time and overhead shared out by a named policy."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from tollspan.processor.cli.options import Since, Store, Until
from tollspan.processor.cli.output import Format, print_rows, text
from tollspan.processor.errors import ConfigError
from tollspan.processor.loaded import Bills, Payer, Policy, fully_loaded, read_reservations
from tollspan.processor.queries import check_limit, window
from tollspan.processor.report import for_people


def loaded(
    store: Store = "chdb://",
    since: Since = None,
    until: Until = None,
    by: Annotated[Payer, typer.Option(help="Who pays.")] = "tenant",
    policy: Annotated[Policy, typer.Option(help="How idle time and overhead are shared out.")] = "proportional",
    idle: Annotated[Policy | None, typer.Option(help="Another policy for idle time.")] = None,
    reservations: Annotated[
        Path | None,
        typer.Option(help="YAML for the policy reservation: payer: weight, e.g. acme: 2.5. '' = the platform."),
    ] = None,
    bills: Annotated[
        Bills,
        typer.Option(help="Share out what imported bills charge too: taxes, credits, adjustments; all: purchases too."),
    ] = "no",
    limit: Annotated[int | None, typer.Option(help="At most so many rows, 1 or more.")] = None,
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.table,
) -> None:
    """Show what each payer costs with its share of idle machines and overhead; the rows add up to the whole.

    proportional: idle time by busy seconds on the same devices and service, overhead by direct cost. reservation: by
    the weights given, whoever was busy. platform: nobody's, in the row without a name.

    Exit codes: 0 shown; 1 the store cannot be read; 2 wrong usage.

    Example: tollspan loaded --since 2026-10-01 --until 2026-11-01 --idle reservation --reservations gpus.yaml
    """
    try:
        start, end = window(since, until)
        check_limit(limit)
        if "reservation" in (policy, idle) and reservations is None:
            raise ConfigError("The policy reservation needs to know what is reserved.", "Give --reservations FILE.")
        weights = {} if reservations is None else read_reservations(reservations)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        rows = fully_loaded(reader, start, end, by, idle or policy, policy, weights, bills)
    if not rows and format is Format.table:
        typer.echo("No rows.", err=True)
        return
    shown = [{(by if name == "payer" else name): value for name, value in row.items()} for row in rows[:limit]]
    print_rows(for_people(shown) if format in (Format.table, Format.markdown) else shown, format)
    if format is Format.table:
        _tell(rows)


def _tell(rows: list[dict[str, Any]]) -> None:
    whole = sum((row["loaded_cost"] for row in rows if row["loaded_cost"] is not None), Decimal(0))
    unpriced = sum(row["unpriced_rows"] for row in rows)
    typer.echo(f"Together {text(whole)} USD.", err=True)
    if unpriced:
        typer.echo(f"Not in it: {text(unpriced)} charges or calls without a price (tollspan query unpriced).", err=True)
