"""The service behind ``tollspan serve``: runtime, OTLP receivers and, on an embedded store, the SQL front.

Starts in the order in which a request needs things and stops in the reverse order: first no new requests, then the
pipeline drains, then the store closes.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tollspan.processor.decode import validate
from tollspan.processor.errors import StoreUnavailable
from tollspan.processor.intake import Intake
from tollspan.processor.memory import settle_objects
from tollspan.processor.metrics import exposition
from tollspan.processor.receive import Receiver
from tollspan.processor.receive_http import HttpReceiver
from tollspan.processor.runtime import Runtime, RuntimeConfig
from tollspan.processor.senders import Senders
from tollspan.processor.sqlfront import SqlFront
from tollspan.processor.store import remove_service_file, write_service_file
from tollspan.processor.tls import Tls, TlsFiles

log = logging.getLogger(__name__)

PRICES: Final = "tollspan.prices"
"""Name in the gRPC health service: NOT_SERVING while the price book's file is broken and the last good one in use."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Settings of `tollspan serve`.

    Attributes:
        runtime: store, prices, journal, sampling.
        listen: OTLP/gRPC address, ``host:port``; port 0 chooses one.
        http: OTLP/HTTP address; None for none.
        tls: certificate of both; None for no encryption.
        sql: address of the read-only SQL port; None for no SQL port. Only an embedded store has one.
        senders: file of who may send, by bearer token; None: everybody who can connect.
        insecure_listen: allow addresses other than loopback without TLS.
        grace_s: seconds that requests in flight get at shutdown.
    """

    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    listen: str = "127.0.0.1:4317"
    http: str | None = "127.0.0.1:4318"
    tls: TlsFiles | None = None
    senders: Path | None = None
    sql: str | None = "127.0.0.1:8123"
    insecure_listen: bool = False
    grace_s: float = 5.0


class Service:
    """A running processor.

    Raises (from `start`):
        TollspanError, BookError: something cannot be opened; whatever was open is closed again.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.grpc_address = ""
        self.http_address = ""
        self.sql_address = ""

    def start(self) -> None:
        """Open everything and begin to accept spans."""
        config = self.config
        self.runtime = runtime = self._runtime(config.runtime)
        self._front: SqlFront | None = None
        self._http: HttpReceiver | None = None
        self._receiver: Receiver | None = None
        self._senders: Senders | None = None
        try:
            tls = Tls(config.tls, runtime.counters) if config.tls is not None else None
            intake = Intake(runtime.journal, validate=validate, counters=runtime.counters)
            senders = self._senders = Senders(config.senders, runtime.counters) if config.senders is not None else None
            receiver = Receiver(
                intake, address=config.listen, tls=tls, senders=senders, insecure_listen=config.insecure_listen
            )
            self._receiver = receiver
            if config.sql is not None and self._embedded:
                front = SqlFront(
                    runtime.store, address=config.sql, insecure_listen=config.insecure_listen, metrics=self.metrics
                )
                self.sql_address = front.start()
                self._front = front
            self.grpc_address = receiver.start()
            if config.http is not None:
                http = HttpReceiver(
                    intake,
                    address=config.http,
                    tls=tls,
                    senders=senders,
                    insecure_listen=config.insecure_listen,
                    metrics=self.metrics,
                )
                self.http_address = http.start()
                self._http = http
            runtime.prices.watch_health(lambda good: receiver.report(PRICES, good))
            if senders is not None:
                senders.start()
            runtime.start()
        except BaseException:
            self._hang_up()
            runtime.stop()
            raise
        settle_objects()
        if self._embedded:
            addresses = {"grpc": self.grpc_address, "http": self.http_address, "sql": self.sql_address}
            write_service_file(runtime.store, {"pid": os.getpid(), **addresses})

    def metrics(self) -> str:
        """Prometheus text: the counters, and whether the price book's file is broken."""
        gauges = {"prices.reload_error": int(bool(self.runtime.prices.error))}
        return exposition(self.runtime.counters.snapshot(), gauges)

    def stop(self) -> dict[str, int]:
        """Refuse new spans, finish the accepted ones, close the store; returns the counters."""
        if self._receiver is not None:
            self._receiver.drain(self.config.grace_s)
        self._hang_up()
        if self._embedded:
            remove_service_file(self.runtime.store)
        return self.runtime.stop()

    @staticmethod
    def _runtime(config: RuntimeConfig) -> Runtime:
        """The runtime, also where a server does not answer yet: services start in any order, and spans come at once."""
        try:
            return Runtime(config)
        except StoreUnavailable:
            return Runtime(config, wait_for_store=True)

    @property
    def _embedded(self) -> bool:
        return self.runtime.connected and self.runtime.store.embedded

    def _reload(self) -> None:
        self.runtime.prices.reload()
        if self._senders is not None:
            self._senders.reload()

    def _hang_up(self) -> None:
        """Close every port that is open."""
        for each in (self._http, self._receiver, self._front, self._senders):
            if each is not None:
                each.stop()

    def wait(self) -> dict[str, int]:
        """Serve until SIGTERM or SIGINT, then `stop`; SIGHUP has the price book and the senders read again."""
        done = threading.Event()
        signal.signal(signal.SIGHUP, lambda *_: self._reload())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: done.set())
        done.wait()
        return self.stop()
