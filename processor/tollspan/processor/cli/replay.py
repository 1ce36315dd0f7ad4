"""``tollspan replay``: a usage trace as OTLP spans."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tollspan.processor.errors import ConfigError
from tollspan.processor.otlp_client import Access, OtlpClient
from tollspan.processor.replay import (
    SpanMaker,
    SpanTemplate,
    batches_in_time,
    batches_now,
    send,
)
from tollspan.processor.usage_trace import TraceFormat, parse_instant, read_usage_trace


class Speed(StrEnum):
    """How fast a trace is replayed."""

    max = "max"
    realtime = "realtime"


class Protocol(StrEnum):
    """Ways of OTLP."""

    grpc = "grpc"
    http = "http/protobuf"


class Compression(StrEnum):
    """Of requests."""

    none = "none"
    gzip = "gzip"
    zstd = "zstd"


def replay(
    file: Annotated[Path, typer.Argument(help="The usage trace.")],
    provider: Annotated[str, typer.Option(help="GenAI provider that served the calls, e.g. openai.")],
    model: Annotated[str, typer.Option(help="Model that served the calls, e.g. gpt-5-mini.")],
    trace_format: Annotated[TraceFormat, typer.Option("--format", help="Format of the trace.")] = TraceFormat.azure_llm,
    to: Annotated[
        str, typer.Option(help="OTLP receiver, host:port; with https:// in front where it is under TLS.")
    ] = "127.0.0.1:4317",
    protocol: Annotated[
        Protocol | None, typer.Option(help="HTTP by default at port 4318 or with a path in --to, else gRPC.")
    ] = None,
    token: Annotated[str, typer.Option(envvar="TOLLSPAN_TOKEN", help="Bearer token, see 'tollspan token'.")] = "",
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authority of the receiver's certificate.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM file of a certificate to show (mTLS).")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Send unencrypted, also to another machine.")] = False,
    compression: Annotated[Compression, typer.Option(help="Of requests; zstd over HTTP only.")] = Compression.none,
    start: Annotated[
        str | None, typer.Option(help="Move the first call to this instant, and all others by as much.")
    ] = None,
    speed: Annotated[Speed, typer.Option(help="As fast as the receiver takes it, or at the trace's pace.")] = Speed.max,
    service_name: Annotated[str, typer.Option(help="service.name of the spans.")] = "tollspan-replay",
    tenant: Annotated[str, typer.Option(help="Tenant of the spans.")] = "",
) -> None:
    """Send a usage trace to an OTLP receiver, one span for each call in it.

    Trace and span ids come from the file's content, so the same file sent again is not counted twice. The traces do
    not say how long a call took: spans end where they start. Exit code 1 when any span was refused or not delivered.

    Example: tollspan replay azure_llm_code_2023.csv --provider openai --model gpt-5-mini --start 2026-11-01T00:00:00Z
    """
    try:
        start_ns = None if start is None else parse_instant(start)
    except ValueError as error:
        raise ConfigError(f"--start: {error}.") from None
    trace = read_usage_trace(file, trace_format)
    maker = SpanMaker(trace, SpanTemplate(provider, model, service_name, tenant, start_ns))
    batches = batches_now(len(trace)) if speed is Speed.max else batches_in_time(trace.start_ns)

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("replaying"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("spans"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    access = Access(
        protocol=protocol.value if protocol is not None else None,
        token=token,
        ca=ca,
        cert=cert,
        key=key,
        insecure=insecure,
        compression=compression.value,
    )
    with OtlpClient(to, access=access) as client:
        client.connect()
        began = time.monotonic()
        with bar:
            task = bar.add_task("replay", total=len(trace))
            outcome = send(maker, batches, client, progress=lambda spans: bar.advance(task, spans))
        took = time.monotonic() - began

    print(f"spans sent {outcome.sent}, accepted {outcome.accepted}, refused {outcome.refused} ({took:.1f} s)")
    for reason in outcome.reasons:
        console.print(f"receiver: {reason}", highlight=False, markup=False)
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.refused:
        raise typer.Exit(1)
