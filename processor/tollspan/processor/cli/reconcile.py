"""``tollspan reconcile``: proof that the ledger bills what was acknowledged, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tollspan.processor.cli.journal import journal_of
from tollspan.processor.cli.options import Store, Until
from tollspan.processor.cli.output import Format, plain, print_rows
from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.queries import window

if TYPE_CHECKING:
    from tollspan.processor.reconcile import Report

SETTLE_S: Final = 60.0
"""Where the journal has an owner that runs, batches younger than this are not looked at unless told otherwise."""

CANNOT_TELL: Final = 2


def reconcile(
    store: Store = "chdb://",
    journal: Annotated[
        Path | None,
        typer.Option(envvar="TOLLSPAN_JOURNAL", help="The journal's directory; by default that of the store."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only batches received from here on: 2026-11-01, an ISO instant, or an age (24h, 7d)."),
    ] = None,
    until: Until = None,
    settle: Annotated[
        float | None,
        typer.Option(help="Leave out the last seconds; by default 60 while a service runs on the journal, else 0."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take the bill off rows that are billed beside a span beneath them.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How to print what was found.")] = Format.table,
) -> None:
    """Hold journal, accounts, ledger and what is derived from it against each other, to the last digit.

    Exit code 0: everything agrees; 1: something differs; 2: it could not be looked at. --repair writes roll-ups that
    were missed because a call came more than 15 minutes after its parent; it needs the service to be stopped where the
    store is embedded, and leaves closed months alone.

    Example: tollspan reconcile --since 24h --format json
    """
    try:
        report, repaired = _run(store, journal, window(since, until), settle, repair)
    except TollspanError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(CANNOT_TELL) from None
    _print(report, repaired, format)
    if not report.agrees:
        raise typer.Exit(1)


def _run(
    url: str, journal: Path | None, asked: tuple[Any, Any], settle: float | None, repair: bool
) -> tuple[Report, tuple[int, int] | None]:
    from tollspan.processor.journal.inspection import inspect
    from tollspan.processor.missing import missing_rollups, roll_up
    from tollspan.processor.reconcile import reconcile as compare
    from tollspan.processor.store import StoreInUse, connect_for_query, open_store

    named = journal_of(journal, url)
    place = named if (named / "cursor.json").exists() else None
    if place is None and journal is not None:
        raise ConfigError(f"There is no journal in {journal}.", "Leave --journal out, or name its directory.")
    since, until = asked
    repaired = None
    if repair:
        try:
            store = open_store(url, create=False)
        except StoreInUse as error:
            raise StoreInUse(error.message, "Stop it first: --repair writes to the ledger.", error.owner) from None
        with store:
            store.migrate()
            repaired = roll_up(store, missing_rollups(store, since, until))
    if settle is None:
        settle = SETTLE_S if place is not None and inspect(place).owner is not None else 0.0
    with connect_for_query(url) as reader:
        return compare(reader, place, since=since, until=until, settle_s=settle), repaired


def _print(report: Report, repaired: tuple[int, int] | None, format: Format) -> None:
    if format is Format.json:
        more = {} if repaired is None else {"repaired_rows": repaired[0], "left_in_closed_periods": repaired[1]}
        print(json.dumps({**report.as_dict(), **more}, ensure_ascii=False, indent=2))
        return
    differences = [
        {"kind": each.kind, "where": each.where, "expected": each.expected, "found": each.found, "says": each.text}
        for each in report.differences
    ]
    if format is Format.csv:
        print_rows(differences, format)
        return
    totals = [{"what": name.replace("_", " "), "is": plain(value)} for name, value in report.totals.items()]
    print_rows(totals, format, title="Totals")
    if differences:
        print_rows(differences, format, title="Differences")
    if repaired is not None:
        typer.echo(f"{repaired[0]} rows are roll-ups now; {repaired[1]} stay as they are, in closed months")
    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{len(differences)} differences" if differences else "everything agrees")
