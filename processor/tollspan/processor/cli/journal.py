"""``tollspan journal``: a look into a journal, also while its owner runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from tollspan.processor.cli.options import Store
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.errors import ConfigError

journal = typer.Typer(
    help="Look into the journal, where spans are durable before they are acknowledged.", no_args_is_help=True
)

Directory: TypeAlias = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", envvar="TOLLSPAN_JOURNAL", help="The journal; by default that of the store."),
]


@journal.callback()
def _group() -> None:
    """Keeps ``inspect`` a command of its own name although it is the only one."""


@journal.command("inspect")
def inspect_journal(
    directory: Directory = None,
    store: Store = "chdb://",
    records: Annotated[bool, typer.Option("--records", help="List the records instead.")] = False,
    batches: Annotated[bool, typer.Option("--batches", help="List batches frozen and not released instead.")] = False,
    dump: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Print the request of record N as OTLP/JSON.")
    ] = None,
    format: Annotated[Format, typer.Option(help="table, json, csv or markdown.")] = Format.table,
) -> None:
    """Show what a journal holds: segments, records, what waits and since when, and every damaged place.

    Changes nothing and needs no lock. Exit code 1 when records are damaged.

    Example: tollspan journal inspect /var/lib/tollspan/store/journal --format json
    """
    place = journal_of(directory, store)
    if dump is not None:
        _dump(place, dump)
    elif records:
        print_rows(list(_records(place)), format)
    elif batches:
        print_rows(list(_batches(place)), format)
    else:
        _overview(place, format)


def journal_of(directory: Path | None, store: str) -> Path:
    """The journal that was named, or that of a store."""
    if directory is not None:
        return directory
    from tollspan.processor.runtime import journal_directory
    from tollspan.processor.store import Embedded, locate

    location = locate(store)
    return journal_directory(store, location.directory if isinstance(location, Embedded) else None)


def _overview(place: Path, format: Format) -> None:
    from tollspan.processor.inbox import FOLDER as INBOX
    from tollspan.processor.inbox import Inbox
    from tollspan.processor.journal.inspection import inspect
    from tollspan.processor.quarantine import FOLDER, Quarantine

    seen = inspect(place)
    oldest = min((s.first_ns for s in seen.segments if s.waiting_records and s.first_ns), default=None)
    segments: list[dict[str, object]] = [
        {
            "segment": s.name,
            "state": s.state,
            "format": s.format,
            "file_bytes": s.file_bytes,
            "records": s.records,
            "payload_bytes": s.payload_bytes,
            "waiting_records": s.waiting_records,
            "waiting_bytes": s.waiting_bytes,
            "first": _instant(s.first_ns),
            "last": _instant(s.last_ns),
        }
        for s in seen.segments
    ]
    wrong: list[dict[str, object]] = [
        {"file": w.file, "wrong": w.kind, "from_byte": w.start, "to_byte": w.end} for w in seen.wrong
    ]
    inbox, quarantine = Inbox(place / INBOX), Quarantine(place / FOLDER).entries()
    cursor = seen.cursor.position if seen.cursor is not None else None
    summary: dict[str, object] = {
        "journal": str(place),
        "id": seen.journal,
        "owner_pid": seen.owner,
        "released_up_to": f"segment {cursor.segment}, byte {cursor.offset}" if cursor is not None else None,
        "waiting_records": seen.waiting_records,
        "waiting_bytes": seen.waiting_bytes,
        "lag_seconds": round(max(0, time.time_ns() - oldest) / 1e9, 1) if oldest is not None else 0.0,
        "frozen_batches": len(seen.batches),
        "inbox_requests": len(inbox.waiting()),
        "quarantined": len(quarantine),
        "quarantined_spans": sum(entry.spans or 0 for entry in quarantine),
        "kept_aside": len(seen.kept_aside),
        "damaged_places": len(wrong),
    }
    if format is Format.json:
        body = {**summary, "segments": segments, "wrong": wrong, "kept_aside": seen.kept_aside}
        print(json.dumps(body, ensure_ascii=False, indent=2))
    elif format is Format.csv:
        print_rows(segments, format)
    else:
        print_rows([{"what": name.replace("_", " "), "is": value} for name, value in summary.items()], format)
        print_rows(segments, format, title="Segments")
        if wrong:
            print_rows(wrong, format, title="Damaged or torn places")
    if any(w.kind != "torn" for w in seen.wrong):
        raise typer.Exit(1)


def _records(place: Path) -> Iterator[dict[str, object]]:
    from tollspan.processor.journal.inspection import batch_of, inspect, records
    from tollspan.processor.quarantine import describe

    batches = inspect(place).batches
    for record, payload in records(place):
        batch = batch_of(batches, record)
        about = describe(payload)
        yield {
            "number": record.number,
            "segment": record.segment,
            "byte": record.start,
            "bytes": len(payload),
            "received": _instant(record.received_ns),
            "state": "released" if record.released else "frozen" if batch is not None else "waiting",
            "batch": f"{batch.start}-{batch.end}" if batch is not None else "",
            "spans": about["spans"],
            "service": about["service"],
            "tenant": about["tenant"],
        }


def _batches(place: Path) -> Iterator[dict[str, object]]:
    from tollspan.processor.journal.inspection import inspect

    seen = inspect(place)
    for batch in seen.batches:
        yield {
            "token": f"{seen.journal}-{batch.segment}-{batch.start}-{batch.end}",
            "segment": batch.segment,
            "from_byte": batch.start,
            "to_byte": batch.end,
            "bytes": batch.end - batch.start,
        }


def _dump(place: Path, number: int) -> None:
    from tollspan.processor.journal.inspection import payload_of
    from tollspan.processor.otlp_json import from_protobuf

    try:
        document = from_protobuf(payload_of(place, number))
    except ValueError as error:
        raise ConfigError(f"Record {number} cannot be shown: {error}.", "It is kept as it came.") from None
    print(json.dumps(document, ensure_ascii=False, indent=2))


def _instant(ns: int | None) -> str | None:
    if ns is None:
        return None
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="milliseconds")
