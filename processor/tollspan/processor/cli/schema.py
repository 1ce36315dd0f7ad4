"""``tollspan schema``: the tables, in operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tollspan.processor.cli.options import Store
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollspan.processor.schema.ttl import Change

schema = typer.Typer(help="The tables: DDL, migrations, retention, roles, columns.", invoke_without_command=True)

Cluster = Annotated[str, typer.Option(help="Name of the cluster in remote_servers; a single node otherwise.")]
Apply = Annotated[bool, typer.Option("--apply", help="Do it; without this it is only shown.")]
Printed = Annotated[Format, typer.Option(help="How to print the rows.")]


@schema.callback()
def ddl(
    context: typer.Context,
    cluster: Cluster = "",
    database: Annotated[str, typer.Option(help="Database of the tables.")] = "tollspan",
) -> None:
    """Print the DDL, for a single node or a cluster; see the commands for what else there is.

    Example: tollspan schema --cluster main > schema.sql
    """
    if context.invoked_subcommand is not None:
        return
    from tollspan.processor.schema import ddl as statements

    try:
        for statement in statements(cluster=cluster, database=database):
            typer.echo(f"{statement};\n")
    except ValueError as error:
        raise ConfigError(f"{error}.") from None


@schema.command()
def status(store: Store = "chdb://", format: Printed = Format.table) -> None:
    """Which migrations a store has, also while `tollspan serve` runs on it. Exit code 1 when some are missing.

    Example: tollspan schema status --format json
    """
    from tollspan.processor.schema import plan
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        found = plan(reader)
    print_rows(
        [
            {
                "migration": str(each.migration),
                "state": "pending" if each.applied_at is None else "applied",
                "applied_at": each.applied_at,
                "checksum": each.migration.checksum[:12],
            }
            for each in found
        ],
        format,
    )
    if any(each.applied_at is None for each in found):
        raise typer.Exit(1)


@schema.command()
def migrate(
    store: Store = "chdb://",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the statements and run none.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for another process that migrates.")] = 30.0,
) -> None:
    """Bring the tables up to date. `tollspan serve` does the same at its start, where its account may.

    A run that breaks off is completed by the next one. On a cluster give the store as
    clickhouse://…/tollspan?cluster=NAME.

    Example: tollspan schema migrate --store clickhouse://admin@ch:8123/tollspan --dry-run
    """
    from tollspan.processor.schema import migrate as bring_up_to_date
    from tollspan.processor.schema import plan, spread
    from tollspan.processor.store import Server, connect_for_query, locate, open_store

    if dry_run:
        where = locate(store)
        with connect_for_query(store) as reader:
            missing = [each.migration for each in plan(reader) if each.applied_at is None]
        for migration in missing:
            typer.echo(f"-- {migration}")
            for statement in migration.statements:
                for each in spread(statement, where.cluster if isinstance(where, Server) else "", where.database):
                    typer.echo(f"{each};\n")
        typer.echo(f"{len(missing)} to do, nothing done (--dry-run).", err=True)
        return
    with open_store(store) as opened:
        names = bring_up_to_date(opened, wait_s=wait)
    for name in names:
        typer.echo(name)
    typer.echo(f"{len(names)} applied." if names else "Up to date.", err=True)


@schema.command()
def ttl(
    store: Store = "chdb://",
    spans: Annotated[str | None, typer.Option(help="Bodies: 7d, 6w, 18m (months), 5y, or never.")] = None,
    traces: Annotated[str | None, typer.Option(help="Summaries of traces.")] = None,
    ledger: Annotated[str | None, typer.Option(help="Ledger, and the accounts that prove it.")] = None,
    apply: Apply = False,
    format: Printed = Format.table,
) -> None:
    """Show how long rows are kept, and what a change would do; --apply makes it.

    A tier's rows go in the background, ledger and spans as whole months and days. What is gone is gone: a ledger that
    is shorter than your closed months cannot be reconciled.

    Example: tollspan schema ttl --spans 7d --ledger 5y
    """
    from tollspan.processor.schema import ttl as times
    from tollspan.processor.store import connect_for_query, open_store

    given = {"spans": spans, "traces": traces, "ledger": ledger}
    try:
        wanted = {tier: times.retention(text, f"--{tier}") for tier, text in given.items() if text is not None}
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if apply and wanted:
        with open_store(store, create=False) as opened:
            found = times.changes(opened, wanted)
            _print_changes(found, format)
            for change in found:
                times.apply(opened, change)
        typer.echo(f"Changed {sum(bool(each.statements) for each in found)} tables.", err=True)
        return
    with connect_for_query(store) as reader:
        found = times.changes(reader, wanted)
    _print_changes(found, format)
    for change in found:
        for statement in change.statements:
            typer.echo(f"{statement};", err=True)
    if wanted:
        typer.echo("Nothing is changed: add --apply.", err=True)


@schema.command()
def roles(
    store: Store = "chdb://",
    database: Annotated[str | None, typer.Option(help="Database of the tables; by default the store's.")] = None,
    cluster: Cluster = "",
    writer: Annotated[str, typer.Option(help="Name of the role that writes.")] = "tollspan_writer",
    reader: Annotated[str, typer.Option(help="Name of the role that reads.")] = "tollspan_reader",
    writer_user: Annotated[list[str] | None, typer.Option(help="User that gets the writer's role.")] = None,
    reader_user: Annotated[list[str] | None, typer.Option(help="User that gets the reader's role.")] = None,
    apply: Apply = False,
) -> None:
    """Print the statements that make a role that only writes and one that only reads; --apply runs them.

    The users have to exist. `tollspan serve` needs the writer's role; Grafana, `tollspan query` and people
    need the reader's.

    Example: tollspan schema roles --writer-user tollspan --reader-user grafana
    """
    from tollspan.processor.schema.roles import roles as statements
    from tollspan.processor.store import Server, locate, open_store

    where = locate(store)
    cluster = cluster or (where.cluster if isinstance(where, Server) else "")
    users = [(writer, name) for name in writer_user or ()] + [(reader, name) for name in reader_user or ()]
    made = statements(database or where.database, writer, reader, cluster, users)
    if not apply:
        for statement in made:
            typer.echo(f"{statement};")
        return
    if not isinstance(where, Server):
        raise ConfigError(
            "An embedded store has no accounts: its SQL port is read-only.",
            "Name a server: --store clickhouse://admin@host:8123/tollspan.",
        )
    with open_store(store, create=False) as opened:
        for statement in made:
            opened.execute(statement)
    typer.echo(f"{len(made)} statements run.", err=True)


@schema.command()
def columns(
    table: Annotated[str | None, typer.Argument(help="Only this table.")] = None,
    store: Store = "chdb://",
    format: Printed = Format.table,
) -> None:
    """What each table and column is.

    Example: tollspan schema columns ledger
    """
    from tollspan.processor.schema.reference import markdown, tables
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        found = tables(reader, table)
    if format is Format.markdown:
        typer.echo(markdown(found), nl=False)
        return
    print_rows(
        [
            {"table": each.name, "column": column.name, "type": column.type, "what": column.comment}
            for each in found
            for column in each.columns
        ],
        format,
    )


@schema.command()
def unlock(store: Store = "chdb://") -> None:
    """Break the lock of a migration whose process is gone.

    Example: tollspan schema unlock --store clickhouse://admin@ch:8123/tollspan
    """
    from tollspan.processor.schema.lock import held
    from tollspan.processor.schema.lock import unlock as break_lock
    from tollspan.processor.store import open_store

    with open_store(store, create=False) as opened:
        owner = held(opened)
        break_lock(opened)
    typer.echo(
        "Nobody had it." if owner is None else f"It was held by {owner[0]}, {owner[1]} s without a sign of life."
    )


def _print_changes(found: Sequence[Change], format: Format) -> None:
    print_rows(
        [
            {
                "tier": each.tier,
                "table": each.table,
                "kept": each.now,
                "will_be_kept": each.wanted,
                "rows": each.rows,
                "rows_too_old": each.going,
            }
            for each in found
        ],
        format,
    )
