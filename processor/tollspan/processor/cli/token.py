"""``tollspan token``: a bearer token for a sender or a reader, and its line in their file."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def token(
    name: Annotated[str, typer.Argument(metavar="ID", help="The sender's or reader's name, in logs and counters.")],
    tenant: Annotated[
        str, typer.Option(help="Whose spans they all are, whatever they say; by default the spans say it.")
    ] = "",
    reader: Annotated[
        bool, typer.Option("--reader", help="For somebody who asks the SQL port, not for a sender.")
    ] = False,
) -> None:
    """Make a bearer token for a sender, or a password for a reader of the SQL port.

    It is shown once and kept nowhere; the files of `tollspan serve --senders` and `--readers` have only its hash.

    Example: tollspan token acme-prod --tenant acme
    """
    from tollspan.processor.errors import ConfigError
    from tollspan.processor.senders import new_token

    secret, digest = new_token()
    if reader:
        if tenant:
            raise ConfigError("A reader has no tenant.", "The SQL port shows all of the ledger; leave --tenant out.")
        typer.echo("For the reader, as user and password of ClickHouse's HTTP interface (it is not shown again):")
        typer.echo(f"  {name} {secret}")
        typer.echo("For the file that `tollspan serve --readers` reads, under 'readers:':")
        typer.echo(f'  - {{id: {json.dumps(name)}, sha256: "{digest}"}}')
        return
    row = [f"id: {json.dumps(name)}", f'sha256: "{digest}"']
    if tenant:
        row.append(f"tenant: {json.dumps(tenant, ensure_ascii=False)}")
    typer.echo("For the sender, in its environment (it is not shown again):")
    typer.echo(f"  OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20{secret}'")
    typer.echo("For the file that `tollspan serve --senders` reads, under 'senders:':")
    typer.echo(f"  - {{{', '.join(row)}}}")
