"""``tollspan report``: one page that a person can read."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from tollspan.processor.cli.options import Since, Store, Until
from tollspan.processor.cli.output import Format
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import dimensions, filters, window
from tollspan.processor.report import build_report, chosen, html_page, print_report

EXIT_BROKEN: Final = 1


class ReportFormat(StrEnum):
    """Formats of a report."""

    table = "table"
    json = "json"
    markdown = "markdown"
    html = "html"
    csv = "csv"  # told apart from a slip of the hand


_SUFFIXES: Final = {
    ".html": ReportFormat.html,
    ".htm": ReportFormat.html,
    ".md": ReportFormat.markdown,
    ".markdown": ReportFormat.markdown,
    ".json": ReportFormat.json,
    ".txt": ReportFormat.table,
}


def report(
    store: Store = "chdb://",
    since: Since = None,
    until: Until = None,
    format: Annotated[
        ReportFormat | None,
        typer.Option(help="table, markdown, json or html (one file that needs nothing else). Default: by --output."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .html, .md, .json or .txt.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Break down by these dimensions in the place of feature, tenant, model and variant."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only rows like this: tenant=acme, tenant!=acme, tenant= (not given). May be repeated."),
    ] = None,
    section: Annotated[
        list[str] | None,
        typer.Option(help="Only these: executive, finops, sre, or trend, forecast, by_tenant, unpriced …"),
    ] = None,
) -> None:
    """Say what inference cost, who caused it and what is not known; with --since also what changed.

    Exit codes: 0 whole; 1 the store could not answer, or not all of it (the page says what is missing); 2 wrong usage.

    Example: tollspan report --since 30d -o october.html

    Example: tollspan report --since 24h --section executive --where environment=prod
    """
    try:
        chosen_format = _format(format, output)
        start, end = window(since, until)
        names = tuple(each.name for each in dimensions(by or ()))
        sections = chosen(section or (), names)
        filters(where or ())
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.store import connect_for_query

    console = Console(stderr=True, highlight=False)
    with connect_for_query(store) as reader, console.status("reading the ledger") as status:
        gathered = build_report(
            reader,
            start,
            end,
            sections=sections,
            where=where or (),
            tolerant=True,
            say=lambda title: status.update(f"reading the ledger: {title}"),
        )
    if output is not None or chosen_format is ReportFormat.html:
        _write(_page(gathered, chosen_format), output)
    else:
        print_report(gathered, Format(chosen_format.value))
    if gathered["errors"]:
        missing, (first, *_) = ", ".join(gathered["errors"]), gathered["errors"].values()
        typer.echo(f"error: The report lacks {missing}. {first}", err=True)
        raise typer.Exit(EXIT_BROKEN)


def _format(asked: ReportFormat | None, output: Path | None) -> ReportFormat:
    """What to make, by option or else by the file's name.

    Raises:
        ConfigError: a report is not made like that, or not there.
    """
    by_name = ReportFormat.table if output is None else _SUFFIXES.get(output.suffix.lower())
    found = asked or by_name
    if found is None:
        raise ConfigError(f"{output}: what is it to be?", f"Name it {', '.join(_SUFFIXES)}, or give --format.")
    if found is ReportFormat.csv:
        raise ConfigError("A report is several tables, csv is for one.", "Use `tollspan query NAME --format csv`.")
    if found is ReportFormat.html and output is None and sys.stdout.isatty():
        raise ConfigError("HTML is nothing for a terminal.", "Give -o report.html.")
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: there is no such folder.", "Make it, or give --output another place.")
    return found


def _page(gathered: dict[str, object], fmt: ReportFormat) -> str:
    if fmt is ReportFormat.html:
        return html_page(gathered)
    with contextlib.redirect_stdout(io.StringIO()) as page:
        print_report(gathered, Format(fmt.value))
    return page.getvalue()


def _write(page: str, output: Path | None) -> None:
    """To a file as a whole, or not at all; without one to the output."""
    if output is None:
        print(page)
        return
    beside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise ConfigError(f"{output} cannot be written: {error.strerror}.", "Give --output another place.") from None
