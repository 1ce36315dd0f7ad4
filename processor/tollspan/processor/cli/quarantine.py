"""``tollspan quarantine``: spans that the line could do nothing with, to be read, replayed or dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from tollspan.processor.cli.inputs import EXIT_USAGE
from tollspan.processor.cli.journal import journal_of
from tollspan.processor.cli.options import Store
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.errors import TollspanError

if TYPE_CHECKING:
    from tollspan.processor.quarantine import Entry, Quarantine

quarantine = typer.Typer(help="Read, replay or drop spans that could not be processed.", no_args_is_help=True)

Journal: TypeAlias = Annotated[
    Path | None,
    typer.Option("--journal", envvar="TOLLSPAN_JOURNAL", help="The journal directory; by default that of the store."),
]
Id: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The entry's id, or as much as makes it clear.")]
SomeId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The entry's id, or as much as makes it clear.")]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="All entries.")]
Rows: TypeAlias = Annotated[Format, typer.Option("--format", help="table, json, csv or markdown.")]


@quarantine.command("list")
def list_entries(store: Store = "chdb://", journal: Journal = None, format: Rows = Format.table) -> None:
    """List what is in quarantine, oldest first.

    Example: tollspan quarantine list --format json
    """
    shown = ("id", "time", "reason", "tenant", "service", "spans", "bytes", "detail")
    print_rows([{name: asdict(each)[name] for name in shown} for each in _opened(store, journal).entries()], format)


@quarantine.command()
def show(
    name: Id,
    store: Store = "chdb://",
    journal: Journal = None,
    format: Annotated[
        Format, typer.Option("--format", help="table: what is known; json: that and the request as OTLP/JSON.")
    ] = Format.table,
) -> None:
    """Show one entry.

    Example: tollspan quarantine show 3f2a --format json
    """
    from tollspan.processor.otlp_json import from_protobuf

    folder = _opened(store, journal)
    entry = folder.entry(name)
    if format is not Format.json:
        print_rows([{"what": key, "is": value} for key, value in asdict(entry).items()], format)
        return
    try:
        request: object = from_protobuf(folder.payload(entry))
    except ValueError as error:
        request = str(error)
    print(json.dumps({**asdict(entry), "request": request}, ensure_ascii=False, indent=2))


@quarantine.command()
def replay(name: SomeId = "", every: All = False, store: Store = "chdb://", journal: Journal = None) -> None:
    """Bring entries into the line again; a running service takes them up without a restart.

    What fails again comes back here. Exit code 1 when one could not be brought.

    Example: tollspan quarantine replay --all
    """
    folder = _opened(store, journal)
    _each(_chosen(folder, name, every), "replayed", folder.replay)
    typer.echo("A running service takes them up within a second; otherwise the next start does.", err=True)


@quarantine.command()
def drop(
    name: SomeId = "",
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = "chdb://",
    journal: Journal = None,
) -> None:
    """Forget entries for good: their spans are then in no bill.

    Example: tollspan quarantine drop 3f2a --yes
    """
    folder = _opened(store, journal)
    chosen = _chosen(folder, name, every)
    spans = sum(entry.spans or 0 for entry in chosen)
    if chosen and not yes:
        typer.confirm(f"Forget {spans} spans in {len(chosen)} entries?", abort=True)
    _each(chosen, "dropped", folder.drop)


def _opened(store: str, journal: Path | None) -> Quarantine:
    from tollspan.processor.quarantine import FOLDER, Quarantine

    return Quarantine(journal_of(journal, store) / FOLDER)


def _chosen(folder: Quarantine, name: str, every: bool) -> list[Entry]:
    if bool(name) == every:
        typer.echo("error: Give the id of an entry, or --all for all of them.", err=True)
        raise typer.Exit(EXIT_USAGE)
    return folder.entries() if every else [folder.entry(name)]


def _each(entries: list[Entry], done: str, action: Callable[[Entry], object]) -> None:
    failed = False
    count = 0
    for entry in entries:
        try:
            action(entry)
        except TollspanError as error:
            typer.echo(f"error: {entry.id}: {error}", err=True)
            failed = True
        else:
            count += 1
    print(f"{done} {count}")
    if failed:
        raise typer.Exit(1)
