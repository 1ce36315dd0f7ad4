"""``tollspan page``: the page over a store, without a service that takes spans."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tollspan.processor.cli.options import Store


def page(
    store: Store = "chdb://",
    listen: Annotated[
        str, typer.Option(help="Address of the page; port 0 for any free one.", envvar="TOLLSPAN_PAGE")
    ] = "127.0.0.1:8130",
    prices: Annotated[
        Path | None,
        typer.Option(
            "--prices", "--book", envvar="TOLLSPAN_PRICES", help="Your price book (YAML): tells where prices were read."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="TOLLSPAN_TLS_CERT", help="PEM file of the certificate.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="TOLLSPAN_TLS_KEY", help="PEM file of its key.")] = None,
    readers: Annotated[
        Path | None,
        typer.Option(envvar="TOLLSPAN_READERS", help="YAML file of who may look, see 'tollspan token --reader'."),
    ] = None,
    insecure_listen: Annotated[bool, typer.Option(help="Listen beyond loopback without encryption or login.")] = False,
) -> None:
    """Show the page over a store: what inference costs, who caused it, and every figure down to its charges.

    `tollspan serve` shows it too, with what only a running service knows (lag, trouble). Ctrl-C ends it.

    Example: tollspan page --store clickhouse://reader:secret@ch.internal:8443/tollspan?secure=true
    """
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.counters import Counters
    from tollspan.processor.page import Api, Live, Page, Source
    from tollspan.processor.prices_file import Prices
    from tollspan.processor.senders import Readers
    from tollspan.processor.store import connect_for_query, locate
    from tollspan.processor.tls import Tls, TlsFiles

    counters = Counters()
    # Before anything listens: a store that is not there is said now. An embedded one stays ours while this is open.
    with connect_for_query(store):
        book = Prices(prices, counters)
        tls = Tls(TlsFiles(tls_cert, tls_key), counters) if tls_cert is not None and tls_key is not None else None
        admitted = Readers(readers, counters) if readers is not None else None
        shown = Page(
            Source(lambda settings: connect_for_query(store, settings), counters=counters),
            Api(locate(store).url, Live(engine=lambda: book.engine)),
            address=listen,
            tls=tls,
            readers=admitted,
            insecure_listen=insecure_listen,
        )
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        try:
            shown.start()
            book.start()
            if admitted is not None:
                admitted.start()
            Console(stderr=True, highlight=False).print(f"tollspan: the page is at [bold]{shown.url}[/]")
            while not ended.wait(0.5):
                pass
        finally:
            shown.stop()
            book.stop()
            if admitted is not None:
                admitted.stop()
