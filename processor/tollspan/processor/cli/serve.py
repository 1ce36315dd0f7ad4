"""``tollspan serve``: receive spans, price them, keep the ledger."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.errors import ConfigError
from tollspan.processor.logs import LogFormat, LogLevel, LogSettings, set_up
from tollspan.processor.memory import keep_freed_memory, spare_pandas
from tollspan.processor.values import nearest

if TYPE_CHECKING:
    from tollspan.processor.config import Config
    from tollspan.processor.service import Service

log = logging.getLogger(__name__)

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of a command whose options are all the settings there are: they are not listed before they are asked for, because
that imports the whole service."""


def serve(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", envvar="TOLLSPAN_CONFIG", help="YAML file of settings.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="chdb:// (embedded), chdb:///DIR or clickhouse://user:pass@host/db. [env: TOLLSPAN_STORE]"),
    ] = None,
    listen: Annotated[str | None, typer.Option(help="OTLP/gRPC address; 127.0.0.1:4317 by default.")] = None,
    http: Annotated[
        str | None, typer.Option(help="OTLP/HTTP address; 'off' for none; 127.0.0.1:4318 by default.")
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(
            help="Read-only SQL port of an embedded store, ClickHouse's HTTP interface; 'off' for none; "
            "127.0.0.1:8123 by default."
        ),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(help="Web page of what inference costs; 'off' for none; 127.0.0.1:8130 by default."),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(
            "--prices", "--book", help="Your price book (YAML), in front of the shipped one. [env: TOLLSPAN_PRICES]"
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Share of error-free traces whose bodies are kept, 0 to 1; 0.1 by default. [env: TOLLSPAN_KEEP]"
        ),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Journal directory; by default beside the store. [env: TOLLSPAN_JOURNAL]")
    ] = None,
    decision_wait: Annotated[
        str | None, typer.Option(help="Time between a root's end and its trace's sampling decision; 5s by default.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate, for both OTLP ports.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key, without a password.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities of senders' certificates (mTLS).")
    ] = None,
    senders: Annotated[
        Path | None, typer.Option(help="YAML file of who may send, see 'tollspan token'. [env: TOLLSPAN_SENDERS]")
    ] = None,
    insecure_listen: Annotated[
        bool | None,
        typer.Option("--insecure-listen/--no-insecure-listen", help="Listen beyond loopback without encryption."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help=f"Least urgent messages to show: {', '.join(LogLevel)}; info by default.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help=f"{' or '.join(LogFormat)} (one object a line); text by default.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the effective settings as YAML, and where each was given.")
    ] = False,
    list_settings: Annotated[bool, typer.Option("--list-settings", help="List all settings there are.")] = False,
    format: Annotated[Format, typer.Option(help="How to print the list of settings.")] = Format.table,
) -> None:
    """Receive spans over OTLP, price them exactly and write them to ClickHouse.

    Every setting is an option too, a line in the YAML file and a variable: journal.max_bytes is --journal-max-bytes and
    TOLLSPAN_JOURNAL_MAX_BYTES; --list-settings shows them all. What comes first holds: option, variable, file, default.

    Example: tollspan serve --prices prices.yaml --keep 0.1
    """
    keep_freed_memory()
    spare_pandas()
    # The service's libraries take a second to import; other commands should not wait for them.
    from tollspan.processor.config import listed, load, service_config
    from tollspan.processor.decode import fused
    from tollspan.processor.service import Service

    if list_settings:
        print_rows(listed(), format)
        return
    flags = {
        name: str(value)
        for name, value in (
            ("store", store), ("listen", listen), ("http", http), ("sql", sql), ("page", page), ("prices", prices),
            ("keep", keep), ("journal", journal), ("decision_wait", decision_wait), ("tls.cert", tls_cert),
            ("tls.key", tls_key), ("tls.client_ca", tls_client_ca), ("senders", senders),
            ("insecure_listen", insecure_listen), ("log.level", log_level), ("log.format", log_format),
        )
        if value is not None
    }  # fmt: skip
    try:
        flags |= more_flags(context.args)

        def read_again() -> Config:
            return load(config, flags=flags)

        loaded = read_again()
        if print_config:
            print(loaded.as_yaml(), end="")
            return
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    set_up(loaded.get(LogSettings))
    for warning in loaded.warnings:
        log.warning("%s", warning)
    service = Service(service_config(loaded), loaded, read_again)
    service.heed_signals()
    service.start()
    told = service.addresses()
    if loaded.get(LogSettings).format is LogFormat.json:
        log.info("serving", extra=told)
    else:
        _greet(told, service)
    stats = service.wait()
    counts = {
        "accepted": stats.get("receive.spans", 0),
        "billable": stats.get("ledger.rows", 0),
        "bodies_kept": stats.get("sampled.kept_spans", 0),
    }
    if loaded.get(LogSettings).format is LogFormat.json:
        log.info("stopped", extra=counts)
    else:
        Console(stderr=True, highlight=False).print(
            f"tollspan: stopped; {counts['accepted']:,} spans accepted, {counts['billable']:,} billable, "
            f"{counts['bodies_kept']:,} bodies kept"
        )
    fused.leave()


def _greet(told: Mapping[str, str], service: Service) -> None:
    """Say to a person where spans go in and where the ledger is."""
    console = Console(stderr=True, highlight=False)
    over = " over TLS" if service.config.tls is not None else ""
    console.print(f"tollspan: spans in at [bold]{told['grpc']}[/] (OTLP/gRPC{over})")
    if told["http"]:
        scheme = "https" if over else "http"
        console.print(f"tollspan: spans in at [bold]{scheme}://{told['http']}/v1/traces[/] (OTLP/HTTP)")
    if told["sql"]:
        console.print(f"tollspan: SQL at [bold]{service.sql_url}[/] (ClickHouse HTTP, read-only)")
    if told["page"]:
        console.print(f"tollspan: the page is at [bold]{told['page']}[/]")
    share = f"{100 * service.config.runtime.settings.keep:g} % of the other traces"
    waits = "" if service.runtime.connected else ", which does not answer yet: spans wait in the journal"
    console.print(f"tollspan: ledger in {told['store']}{waits}", soft_wrap=True)
    if file := service.config.runtime.sampling.file:
        console.print(f"tollspan: full spans kept as {file} says", soft_wrap=True)
    else:
        console.print(f"tollspan: full spans kept of every trace with an error and of {share}")


def more_flags(arguments: Iterable[str]) -> dict[str, str]:
    """Options that are settings, as name → text: ``--journal-max-bytes 8GiB``, ``--x=y``, ``--no-x`` for a switch.

    Raises:
        ConfigError: an option that is no setting, that lacks its value, or that is there twice.
    """
    from tollspan.processor.config import settings
    from tollspan.processor.sections import flag

    known = {flag(name): each for each in settings() for name in (each.name, *each.aliases)}
    switches = {f"--no-{text.removeprefix('--')}": each for text, each in known.items() if each.boolean}
    found: dict[str, str] = {}
    problems: list[str] = []
    rest = list(arguments)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        setting = known.get(word) or switches.get(word)
        if setting is None:
            problems.append(f"{word} is no option of this command{nearest(word, [*known, *switches])}")
            # Its value, if it has one, is not a mistake of its own.
            if not equals and rest and not rest[0].startswith("-"):
                rest.pop(0)
            continue
        if setting.boolean and not equals:
            value = "false" if word in switches else "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                problems.append(f"{word} lacks its value")
                continue
            value = rest.pop(0)
        if setting.name in found:
            problems.append(f"{word} is there twice")
        found[setting.name] = value
    if problems:
        raise ConfigError(f"{'; '.join(problems)}.", "`--list-settings` shows all settings.")
    return found
