"""``tollspan token``: a bearer token for a sender, and its line in the senders' file."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def token(
    name: Annotated[str, typer.Argument(metavar="ID", help="The sender's name, in logs and counters.")],
    tenant: Annotated[
        str, typer.Option(help="Whose spans they all are, whatever they say; by default the spans say it.")
    ] = "",
) -> None:
    """Make a bearer token for a sender.

    The token is shown once and kept nowhere; the file of `tollspan serve --senders` has only its hash.

    Example: tollspan token acme-prod --tenant acme
    """
    from tollspan.processor.senders import new_token

    secret, digest = new_token()
    row = [f"id: {json.dumps(name)}", f'sha256: "{digest}"']
    if tenant:
        row.append(f"tenant: {json.dumps(tenant, ensure_ascii=False)}")
    typer.echo("For the sender, in its environment (it is not shown again):")
    typer.echo(f"  OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20{secret}'")
    typer.echo("For the file that `tollspan serve --senders` reads, under 'senders:':")
    typer.echo(f"  - {{{', '.join(row)}}}")
