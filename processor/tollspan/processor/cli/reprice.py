"""``tollspan reprice`` and ``tollspan close``: prices of the past, and when they are final."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tollspan.processor.cli.options import Store, Until
from tollspan.processor.cli.output import Format, plain, print_rows, text
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import window

if TYPE_CHECKING:
    from tollspan.processor.reprice import Outcome
    from tollspan.processor.repricings import Selection


def reprice(
    since: Annotated[
        str, typer.Option(help="What started from here on: 2026-11-01, an ISO instant, or an age (24h, 7d).")
    ],
    until: Until = None,
    store: Store = "chdb://",
    book: Annotated[
        Path | None,
        typer.Option(
            "--book", "--prices", envvar="TOLLSPAN_PRICES", help="Your price book (YAML), in front of the shipped one."
        ),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Only this tenant's calls.")] = "",
    model: Annotated[str, typer.Option(help="Only this model's calls.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change and write nothing.")] = False,
    allow_unpriced: Annotated[
        bool, typer.Option("--allow-unpriced", help="Also where a call would lose the price that it has.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How to print the totals.")] = Format.table,
) -> None:
    """Price what is in the ledger again with the book as it is now, and show old and new totals.

    Prices of calls never change by themselves; this is how they do. Closed months refuse (`tollspan close`).

    Example: tollspan reprice --since 2026-11-01 --until 2026-12-01 --book prices.yaml --dry-run
    """
    try:
        start, end = window(since, until)
        if start is None:
            raise ConfigError("--since is empty.", "Give the start of what is to be priced again, e.g. 2026-11-01.")
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    # Here, so that the other commands do not wait for the libraries.
    from tollspan.pricing import PriceEngine, load_book, shipped_book
    from tollspan.processor.periods import Period, closed
    from tollspan.processor.reprice import Outcome, survey
    from tollspan.processor.reprice import reprice as write
    from tollspan.processor.repricings import Selection

    engine = PriceEngine(shipped_book() if book is None else load_book(book))
    selection = Selection(Period(start, end or datetime.now(UTC)), tenant, model)
    with _opened(store, to_write=not dry_run) as opened, _progress() as advance:
        if dry_run:
            outcome = Outcome(survey(opened, engine, selection, advance))
            final = closed(opened, selection.period)
        else:
            outcome = write(opened, engine, selection, allow_unpriced=allow_unpriced, progress=advance)
            final = []
    _print(outcome, selection, engine.book_version, dry_run, format)
    if final:
        typer.echo(f"closed: {', '.join(map(str, final))}; without --dry-run this is refused", err=True)


def close(
    month: Annotated[str | None, typer.Option(help="Calendar month in UTC, for example 2026-10.")] = None,
    reopen: Annotated[bool, typer.Option("--reopen", help="Open it again.")] = False,
    note: Annotated[str, typer.Option(help="Kept with it, for example the invoice's number.")] = "",
    store: Store = "chdb://",
    format: Annotated[Format, typer.Option(help="How to print the closed periods.")] = Format.table,
) -> None:
    """Close a month, so that nothing prices it again; without --month, list what is closed.

    Spans that arrive late for a closed month are still recorded; the list counts them, and the view late_arrivals
    shows each.

    Example: tollspan close --month 2026-10 --note "invoice 1042"
    """
    from tollspan.processor import periods
    from tollspan.processor.report import for_people

    if month is None:
        if reopen or note:
            typer.echo("error: Which month? Give --month 2026-10.", err=True)
            raise typer.Exit(2)
        with _opened(store, to_write=False) as opened:
            rows = periods.overview(opened)
        if not rows and format is Format.table:
            typer.echo("Nothing is closed.", err=True)
            return
        print_rows(for_people(rows) if format in (Format.table, Format.markdown) else rows, format, title="Closed")
        return
    try:
        period = periods.month(month)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    with _opened(store, to_write=True) as opened:
        if reopen:
            periods.reopen(opened, period, note)
            typer.echo(f"{period} is open again.", err=True)
        elif periods.close(opened, period, note):
            typer.echo(f"{period} is closed.", err=True)
        else:
            typer.echo(f"{period} was closed before; nothing changed.", err=True)


@contextmanager
def _opened(url: str, to_write: bool) -> Iterator[Any]:
    """The store: migrated, to write; or a reader, also while a service has it.

    Raises:
        StoreInUse: another process has it, and this one needs to write.
    """
    from tollspan.processor.store import StoreInUse, connect_for_query, open_store

    if not to_write:
        with connect_for_query(url) as reader:
            yield reader
        return
    try:
        store = open_store(url, create=False)
    except StoreInUse as error:
        raise StoreInUse(error.message, "Stop it first: this writes to the ledger.", error.owner) from None
    with store:
        store.migrate()
        yield store


@contextmanager
def _progress() -> Iterator[Callable[[int], object]]:
    """A line on the terminal that counts rows; nothing where there is none."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,} rows"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pricing again", total=None)
        yield lambda rows: progress.advance(task, rows)


def _print(outcome: Outcome, selection: Selection, book_version: str, dry_run: bool, fmt: Format) -> None:
    plan = outcome.plan
    rows = [
        {"tenant": tenant or None, "provider": provider or None, "model": model or None, **totals.row()}
        for (tenant, provider, model), totals in sorted(plan.by.items(), key=lambda item: (-item[1].changed, item[0]))
    ]
    total = plan.total.row()
    if fmt is Format.json:
        whole = {
            "dry_run": dry_run,
            "repricing": outcome.number,
            "resumed": outcome.resumed,
            "since": selection.period.since,
            "until": selection.period.until,
            "book_version": book_version,
            "currency": "USD",
            "total": total,
            "unreadable_rows": plan.unreadable,
            "by_tenant_and_model": rows,
        }
        print(json.dumps(plain(whole), ensure_ascii=False, indent=2))
        return
    if rows or fmt is Format.table:
        print_rows(rows, fmt, title="By tenant and model")
    # A document gets the sentences too; a table of values is for a program, which reads no sentence.
    for line in _sentences(outcome, total, dry_run, book_version):
        typer.echo(f"\n{line}" if fmt is Format.markdown else line, err=fmt is Format.csv)


def _sentences(outcome: Outcome, total: Mapping[str, object], dry_run: bool, book_version: str) -> Iterator[str]:
    yield (
        f"{text(total['old_cost'])} USD → {text(total['new_cost'])} USD ({_signed(total['difference'])}), "
        f"{text(total['changed'])} of {text(total['rows'])} rows change, unpriced {text(total['unpriced_before'])} → "
        f"{text(total['unpriced_after'])}, book version {book_version}"
    )
    if outcome.plan.unreadable:
        yield (
            f"{text(outcome.plan.unreadable)} rows stay as they are: they were written before the ledger kept all that "
            "a price is chosen by"
        )
    if outcome.number is not None:
        done = "completed, which had broken off" if outcome.resumed else "written"
        yield f"repricing {outcome.number} {done}"
    elif dry_run:
        yield "nothing was written (--dry-run)"
    else:
        yield "nothing to write"


def _signed(amount: object) -> str:
    return text(amount) if amount is None or str(amount).startswith("-") else f"+{text(amount)}"
