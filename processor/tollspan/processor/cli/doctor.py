"""``tollspan doctor``: check the whole path, and say what is wrong and what to do."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.cli.serve import more_flags
from tollspan.processor.errors import ConfigError


def doctor(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", envvar="TOLLSPAN_CONFIG", help="YAML file of settings.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Areas to look at, with commas: config,ready,ports,tls,…; all otherwise."),
    ] = None,
    send: Annotated[bool, typer.Option("--send/--no-send", help="Send a test span, which costs 0.")] = True,
    token: Annotated[
        str, typer.Option(envvar="TOLLSPAN_TOKEN", help="Bearer token to send it with.", show_default=False)
    ] = "",
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authority of the service's certificate.")] = None,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds that it may take until it is in the ledger.")] = 30.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is wrong.")] = False,
    format: Annotated[Format, typer.Option(help="How to print the findings.")] = Format.table,
) -> None:
    """Check everything between a program and its ledger; give it the settings that 'tollspan serve' gets.

    Looks at the configuration, ports, certificates, senders, prices, sampling rules, the journal and its disk, the
    store, clocks, a test span's way, and what this environment would instrument. Exit code 0: all is well, perhaps with
    warnings; 1: something is wrong; 2: it was used wrongly.

    Example: tollspan doctor --config /etc/tollspan/tollspan.yaml --format json
    """
    from tollspan.processor.config import load
    from tollspan.processor.doctor import AREAS, FAIL, OK, SKIP, WARN, Asked, Finding, examine
    from tollspan.processor.logs import LogLevel, LogSettings, set_up
    from tollspan.processor.values import nearest

    # Libraries that complain of what is found here would only repeat it.
    set_up(LogSettings(level=LogLevel.critical))
    areas = None if only is None else [each.strip() for each in only.split(",") if each.strip()]
    for area in areas or ():
        if area not in AREAS:
            typer.echo(f"error: {area} is no area{nearest(area, AREAS)} One of: {', '.join(AREAS)}.", err=True)
            raise typer.Exit(2)
    try:
        flags = more_flags(context.args)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    try:
        loaded = load(config, flags=flags)
    except ConfigError as error:
        lines = [line.strip() for line in str(error).splitlines() if not line.endswith("settings cannot be used:")]
        findings = [Finding("config.settings", FAIL, line, "tollspan serve --list-settings") for line in lines]
    else:
        asked = Asked(token, str(ca) if ca is not None else None, send, wait, dict(os.environ))
        with Console(stderr=True).status("looking …"):
            findings = list(examine(loaded, asked, areas))
    counts = Counter(each.status for each in findings)
    shown = [each for each in findings if not quiet or each.status in (FAIL, WARN)]
    rows = [{"check": f.check, "status": f.status, "found": f.found, "do": f.do} for f in shown]
    print_rows(rows, format)
    if format is Format.table:
        said = ", ".join(f"{counts[status]} {status}" for status in (OK, WARN, FAIL, SKIP) if counts[status])
        typer.echo(said, err=True)
    if counts[FAIL]:
        raise typer.Exit(1)
