"""``tollspan serve``: receive spans, price them, keep the ledger."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tollspan.processor.cli.options import Store
from tollspan.processor.errors import ConfigError
from tollspan.processor.memory import keep_freed_memory


class LogLevel(StrEnum):
    """What `logging` calls its levels."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"
    critical = "critical"


def serve(
    store: Store = "chdb://",
    listen: Annotated[str, typer.Option(help="OTLP/gRPC address.")] = "127.0.0.1:4317",
    http: Annotated[str, typer.Option(help="OTLP/HTTP address; 'off' for none.")] = "127.0.0.1:4318",
    sql: Annotated[
        str, typer.Option(help="Read-only SQL port of an embedded store, ClickHouse's HTTP interface; 'off' for none.")
    ] = "127.0.0.1:8123",
    prices: Annotated[
        Path | None,
        typer.Option(
            "--prices", "--book", envvar="TOLLSPAN_PRICES", help="Your price book (YAML), in front of the shipped one."
        ),
    ] = None,
    keep: Annotated[
        str, typer.Option(envvar="TOLLSPAN_KEEP", help="Share of error-free traces whose bodies are kept, 0 to 1.")
    ] = "0.1",
    journal: Annotated[
        Path | None, typer.Option(envvar="TOLLSPAN_JOURNAL", help="Journal directory; by default beside the store.")
    ] = None,
    decision_wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds between a root's end and its trace's sampling decision.")
    ] = 5.0,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="TOLLSPAN_TLS_CERT", help="PEM file of the certificate, for both OTLP ports.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="TOLLSPAN_TLS_KEY", help="PEM file of its key, without a password.")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="TOLLSPAN_TLS_CLIENT_CA", help="PEM file of the authorities of senders' certificates (mTLS)."
        ),
    ] = None,
    senders: Annotated[
        Path | None,
        typer.Option(envvar="TOLLSPAN_SENDERS", help="YAML file of who may send, see 'tollspan token'."),
    ] = None,
    insecure_listen: Annotated[
        bool, typer.Option("--insecure-listen", help="Listen beyond loopback without encryption.")
    ] = False,
    log_level: Annotated[
        LogLevel, typer.Option(case_sensitive=False, help="Least urgent messages to show.")
    ] = LogLevel.info,
) -> None:
    """Receive spans over OTLP, price them exactly and write them to ClickHouse.

    Example: tollspan serve --prices prices.yaml --keep 0.1
    """
    keep_freed_memory()
    # The service's libraries take a second to import; other commands should not wait for them.
    from tollspan.processor.pipeline import Settings
    from tollspan.processor.runtime import RuntimeConfig, parse_keep
    from tollspan.processor.service import Service, ServiceConfig
    from tollspan.processor.store import locate
    from tollspan.processor.tls import TlsFiles

    logging.basicConfig(level=log_level.value.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # They print a traceback for every refused connection; our own line says what is wrong and what to do.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # It tells of its start and its end as if it were the service.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if (tls_cert is None) != (tls_key is None) or (tls_client_ca is not None and tls_cert is None):
        raise ConfigError(
            "TLS needs a certificate and its key.",
            "Give --tls-cert and --tls-key together, --tls-client-ca beside both.",
        )
    tls = TlsFiles(tls_cert, tls_key, tls_client_ca) if tls_cert is not None and tls_key is not None else None
    settings = Settings(keep=parse_keep(keep), decision_wait_s=decision_wait)
    config = ServiceConfig(
        runtime=RuntimeConfig(store=store, prices=prices, journal=journal, settings=settings),
        listen=listen,
        http=None if http == "off" else http,
        tls=tls,
        senders=senders,
        sql=None if sql == "off" else sql,
        insecure_listen=insecure_listen,
    )
    service = Service(config)
    service.start()
    console = Console(stderr=True, highlight=False)
    over = " over TLS" if tls is not None else ""
    console.print(f"tollspan: spans in at [bold]{service.grpc_address}[/] (OTLP/gRPC{over})")
    if service.http_address:
        scheme = "https" if tls is not None else "http"
        console.print(f"tollspan: spans in at [bold]{scheme}://{service.http_address}/v1/traces[/] (OTLP/HTTP)")
    if service.sql_address:
        console.print(f"tollspan: SQL at [bold]http://{service.sql_address}/[/] (ClickHouse HTTP, read-only)")
    share = f"{100 * settings.keep:g} % of the other traces"
    waits = "" if service.runtime.connected else ", which does not answer yet: spans wait in the journal"
    console.print(f"tollspan: ledger in {locate(store).url}{waits}", soft_wrap=True)
    console.print(f"tollspan: full spans kept of every trace with an error and of {share}")
    stats = service.wait()
    console.print(
        f"tollspan: stopped; {stats.get('spans_acked', 0):,} spans accepted, {stats.get('ledger.rows', 0):,} billable, "
        f"{stats.get('sampled.kept_spans', 0):,} bodies kept"
    )
