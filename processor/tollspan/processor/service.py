"""The service behind ``tollspan serve``: runtime, OTLP receivers, the page and, on an embedded store, the SQL front.

Starts in the order in which a request needs things and stops in the reverse order: first no new requests, then the
pipeline drains, then the store closes.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tollspan.processor import notify
from tollspan.processor.addresses import allow_connections, is_loopback, parse_address
from tollspan.processor.config import Config, ShutdownSettings
from tollspan.processor.decode import fused
from tollspan.processor.errors import ConfigError, StoreUnavailable, TollspanError
from tollspan.processor.intake import Intake, ReceiveSettings
from tollspan.processor.logs import LogSettings, hidden, set_up
from tollspan.processor.memory import settle_objects
from tollspan.processor.metrics import exposition
from tollspan.processor.pipeline import Settings
from tollspan.processor.receive import GrpcSettings, Receiver
from tollspan.processor.receive_http import HttpReceiver, HttpSettings
from tollspan.processor.rejects import Keeper
from tollspan.processor.runtime import Runtime, RuntimeConfig
from tollspan.processor.senders import Readers, Senders
from tollspan.processor.sqlfront import SqlFront
from tollspan.processor.store import locate, remove_service_file, write_service_file
from tollspan.processor.telemetry import Telemetry, TelemetrySettings
from tollspan.processor.tls import Tls, TlsFiles

if TYPE_CHECKING:
    from tollspan.processor.page import Page

log = logging.getLogger(__name__)

PRICES: Final = "tollspan.prices"
SAMPLING: Final = "tollspan.sampling"
"""Names in the gRPC health service: NOT_SERVING while the price book's file, or that of the sampling rules, is broken
and the last good one in use."""
BUDGET: Final = "tollspan.budget"
"""The same, while a budget of telemetry is not held; the log and `tollspan query sampling-budget` say why."""

LOOK_S: Final = 0.5
"""Seconds between two looks for a signal."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Settings of `tollspan serve`.

    Attributes:
        runtime: store, prices, journal, sampling.
        listen: OTLP/gRPC address, ``host:port``; port 0 chooses one.
        http: OTLP/HTTP address; None for none.
        tls: certificate of both; None for no encryption.
        sql: address of the read-only SQL port; None for no SQL port. Only an embedded store has one.
        page: address of the web page; None for none.
        page_anywhere: the page takes another port where that one is taken, as the default may be by a second service.
        senders: file of who may send, by bearer token; None: everybody who can connect.
        readers: file of who may ask the SQL port and see the page; None: everybody who can connect.
        insecure_listen: allow addresses other than loopback without TLS.
        grace_s: seconds that requests in flight get at shutdown.
        telemetry: where our own metrics go.
        receive, grpc, http_settings: of both OTLP ports, and of each.
    """

    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    listen: str = "127.0.0.1:4317"
    http: str | None = "127.0.0.1:4318"
    tls: TlsFiles | None = None
    senders: Path | None = None
    readers: Path | None = None
    sql: str | None = "127.0.0.1:8123"
    page: str | None = "127.0.0.1:8130"
    page_anywhere: bool = True
    insecure_listen: bool = False
    grace_s: float = 5.0
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    receive: ReceiveSettings = field(default_factory=ReceiveSettings)
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    http_settings: HttpSettings = field(default_factory=HttpSettings)


class Service:
    """A running processor.

    Args:
        config: what it is made from.
        settings: the configuration that it comes from, for reloads; None: there is nothing to compare with.
        read_again: reads the configuration anew when SIGHUP asks for it.

    Raises (from `start`):
        TollspanError, BookError: something cannot be opened; whatever was open is closed again.
    """

    def __init__(
        self, config: ServiceConfig, settings: Config | None = None, read_again: Callable[[], Config] | None = None
    ) -> None:
        self.config = config
        self.settings = settings
        self._read_again = read_again
        self._started = False
        self._heeds = False
        # The one kind of queue whose `put` may be interrupted by itself, as a signal's handler is.
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.grpc_address = ""
        self.http_address = ""
        self.sql_address = ""
        self.page_address = ""

    def start(self) -> None:
        """Open everything and begin to accept spans."""
        config = self.config
        allow_connections()
        _check_sizes(config)
        self.runtime = runtime = self._runtime(config.runtime)
        self._front: SqlFront | None = None
        self._sql_way: dict[str, object] = {}
        self._http: HttpReceiver | None = None
        self._page: Page | None = None
        self._receiver: Receiver | None = None
        self._senders: Senders | None = None
        self._readers: Readers | None = None
        self._tls: Tls | None = None
        self._intake: Intake | None = None
        self._telemetry: Telemetry | None = None
        runtime.counters.gauge("decode.fused", lambda: int(fused.ready()))
        runtime.counters.gauge("ready", lambda: int(self.readiness()[0] == 200))
        try:
            tls = self._tls = Tls(config.tls, runtime.counters) if config.tls is not None else None
            intake = self._intake = Intake(
                runtime.journal,
                counters=runtime.counters,
                keep=Keeper(runtime.quarantine, runtime.counters),
                max_held_bytes=config.receive.max_held_bytes,
                signals=runtime.forwarder.signals if runtime.forwarder is not None else None,
            )
            senders = self._senders = Senders(config.senders, runtime.counters) if config.senders is not None else None
            receiver = Receiver(
                intake,
                address=config.listen,
                tls=tls,
                senders=senders,
                insecure_listen=config.insecure_listen,
                settings=config.grpc,
            )
            self._receiver = receiver
            if config.readers is not None:
                self._readers = Readers(config.readers, runtime.counters)
                self._readers.start()
            if config.sql is not None and self._embedded:
                self._start_sql(config.sql, tls)
            self.grpc_address = receiver.start()
            if config.http is not None:
                http = HttpReceiver(
                    intake,
                    address=config.http,
                    tls=tls,
                    senders=senders,
                    insecure_listen=config.insecure_listen,
                    settings=config.http_settings,
                    metrics=self.metrics,
                    pages={"/healthz": self.health, "/livez": self.health, "/readyz": self.readiness},
                )
                self.http_address = http.start()
                self._http = http
            if config.page is not None:
                self._start_page(config.page, tls)
            if runtime.forwarder is not None:
                runtime.forwarder.not_to([each for each in (self.grpc_address, self.http_address) if each])
            runtime.prices.watch_health(lambda good: receiver.report(PRICES, good))
            runtime.sampling.watch_health(lambda good: receiver.report(SAMPLING, good))
            runtime.budget.watch_health(lambda good: receiver.report(BUDGET, good))
            if senders is not None:
                senders.start()
            own = (self.grpc_address, self.http_address, self.sql_address, self.page_address)
            self._telemetry = Telemetry(config.telemetry, runtime.counters, own)
            self._telemetry.start()
            runtime.start()
        except BaseException:
            self._hang_up()
            if self._telemetry is not None:
                self._telemetry.stop()
            runtime.stop()
            raise
        self._started = True
        settle_objects()
        # What the compiler leaves behind lives as long as the process.
        fused.prepare_from(config.runtime.settings.compile_bytes, then=settle_objects)
        if self._embedded:
            addresses = {
                "grpc": self.grpc_address,
                "http": self.http_address,
                "sql": self.sql_address,
                "page": self.page_url,
            }
            write_service_file(runtime.store, {"pid": os.getpid(), **addresses, **self._sql_way})

    @property
    def sql_url(self) -> str:
        """Where the SQL port is; '' where there is none."""
        scheme = "https" if "sql_tls" in self._sql_way else "http"
        return f"{scheme}://{self.sql_address}/" if self.sql_address else ""

    def _start_sql(self, address: str, tls: Tls | None) -> None:
        """Open the SQL port; under TLS where somebody logs in, or from elsewhere."""
        config = self.config
        if self._readers is not None:
            self._sql_way["sql_key"] = secrets.token_urlsafe(32)
        if tls is not None and (self._readers is not None or not is_loopback(parse_address(address)[0])):
            self._sql_way["sql_tls"] = True
        front = SqlFront(
            self.runtime.store,
            address=address,
            tls=tls if "sql_tls" in self._sql_way else None,
            readers=self._readers,
            local_key=str(self._sql_way.get("sql_key", "")),
            insecure_listen=config.insecure_listen,
            metrics=self.metrics,
        )
        self.sql_address = front.start()
        self._front = front

    @property
    def page_url(self) -> str:
        """Where a browser finds the page; '' where there is none."""
        return self._page.url if self._page is not None else ""

    def _start_page(self, address: str, tls: Tls | None) -> None:
        """Open the page: under TLS where somebody logs in, or from elsewhere."""
        # Only here: whoever wants no page needs no web framework.
        from tollspan.processor.page import Api, Live, Page, Source

        config, runtime = self.config, self.runtime

        def stop_query(tag: str) -> None:
            if self._embedded:
                runtime.store.execute(f"KILL QUERY WHERE Settings['log_comment'] = '{tag}' ASYNC")

        live = Live(
            engine=lambda: runtime.prices.engine,
            readiness=self.readiness,
            gauges=runtime.counters.gauges,
            telemetry=lambda: (runtime.budget.settings.budget, runtime.budget.trouble),
        )
        api = Api(locate(config.runtime.store).url, live)

        def page(where: str) -> Page:
            # A source each, since a page that does not start stops its own.
            source = Source(lambda settings: runtime.store.reader(settings), stop_query, runtime.counters)
            return Page(
                source, api, address=where, tls=tls, readers=self._readers, insecure_listen=config.insecure_listen
            )

        made = page(address)
        try:
            self.page_address = made.start()
        except ConfigError as error:
            made.stop()
            if not config.page_anywhere:
                raise
            log.info("the page is elsewhere: %s", error.message)
            made = page(f"{address.rpartition(':')[0]}:0")
            self.page_address = made.start()
        self._page = made

    def metrics(self) -> str:
        """Prometheus text of everything that is counted, timed and the case."""
        return exposition(self.runtime.counters)

    def health(self) -> tuple[int, str]:
        """Whether this process should live on, as an HTTP status and what to say.

        Only what a restart mends counts against it: a store that is away or a full disk does not.
        """
        return (200, "ok\n") if self.runtime.alive or not self._started else (503, "the pipeline has died\n")

    def readiness(self) -> tuple[int, str]:
        """Whether spans are taken now. A store that is away is said, and spans wait for it in the journal."""
        trouble = self._intake.trouble if self._intake is not None else "starting"
        lines = ["ok"] if not trouble else [trouble]
        if away := self.runtime.store_trouble:
            lines.append(f"store: {one_line(away).rstrip('.')}; spans wait in the journal")
        if error := self.runtime.prices.error:
            lines.append(f"prices: the file is broken, the last good book is in use: {one_line(error)}")
        if error := self.runtime.sampling.error:
            lines.append(f"sampling: the file is broken, the last good rules are in use: {one_line(error)}")
        if error := self.runtime.levels.trouble:
            lines.append(f"sampling: levels are not renewed, the last ones are in use: {one_line(error)}")
        if error := self.runtime.budget.trouble:
            lines.append(one_line(error))
        if self.runtime.forwarder is not None:
            lines += map(one_line, self.runtime.forwarder.troubles)
        return (503 if trouble else 200), "\n".join(lines) + "\n"

    def stop(self) -> dict[str, int]:
        """Refuse new spans, finish the accepted ones, close the store; returns the counters."""
        if self._receiver is not None:
            self._receiver.drain(self.config.grace_s)
        self._hang_up()
        if self._embedded:
            remove_service_file(self.runtime.store)
        stats = self.runtime.stop()
        if self._telemetry is not None:
            # Last, so that what the drain counted is told too.
            self._telemetry.stop()
        return stats

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

    def reload(self) -> None:
        """Read prices, sampling rules, senders, certificates and settings again; what is broken stays as it was.

        Of the settings those that can change while it runs do; the log says what changed and what needs a restart.
        """
        self.runtime.prices.reload()
        self.runtime.sampling.reload()
        for each in (self._senders, self._readers):
            if each is not None:
                each.reload()
        if self._tls is not None:
            self._tls.reload()
        if self._read_again is None or self.settings is None:
            return
        try:
            new = self._read_again()
        except TollspanError as error:
            log.error("configuration not reloaded, the one in use stays: %s", error)
            self.runtime.counters.add("config.reload_failed")
            return
        changes = self.settings.changes(new)
        for setting, old, now in changes:
            said = (setting.name, setting.shown(old), setting.shown(now), new.where(setting.name))
            if setting.live:
                log.info("setting %s: %s → %s (%s)", *said)
            else:
                log.warning("setting %s: %s → %s (%s) needs a restart; the old one stays in use", *said)
        live = {setting.name for setting, *_ in changes if setting.live}
        self._apply(live, new)
        self.settings.take(new, live)
        self.runtime.counters.add("config.reloaded")
        log.info("configuration read again: %d changed, %d need a restart", len(live), len(changes) - len(live))

    def _apply(self, live: set[str], new: Config) -> None:
        """Make settings hold that changed and need no restart."""
        if any(name.startswith("log.") for name in live):
            set_up(new.get(LogSettings))
        if any(name.startswith("sampling.") for name in live):
            self.runtime.tune(new.get(Settings))
        if "shutdown.grace" in live:
            self.config = replace(self.config, grace_s=new.get(ShutdownSettings).grace_s)

    def _hang_up(self) -> None:
        """Close every port that is open."""
        for each in (self._page, self._http, self._receiver, self._front, self._senders, self._readers):
            if each is not None:
                each.stop()

    def addresses(self) -> dict[str, str]:
        """Where it listens, '' where it does not, and its store; no secret is in it."""
        return {
            "grpc": self.grpc_address,
            "http": self.http_address,
            "sql": self.sql_address,
            "page": self.page_url,
            "store": locate(self.config.runtime.store).url,
        }

    def heed_signals(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP from now on; on the main thread, and before `start`, for whoever sees the
        service ready may stop it at once. What comes is done by `wait`."""
        self._heeds = True
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._signals.put(number))

    def wait(self) -> dict[str, int]:
        """Serve until SIGTERM or SIGINT, then `stop`; SIGHUP reloads. Tells systemd of all of it."""
        if not self._heeds:
            self.heed_signals()
        pause_s = notify.watchdog_s()
        notify.notify("READY=1", "STATUS=takes spans")
        while True:
            try:
                # Never for long: the kernel may hand a signal to another thread, which wakes nobody up here.
                number = self._signals.get(timeout=min(LOOK_S, pause_s or LOOK_S))
            except queue.Empty:
                number = 0
            if number in (signal.SIGTERM, signal.SIGINT):
                break
            if number == signal.SIGHUP:
                notify.reloading()
                self.reload()
                notify.notify("READY=1", "STATUS=takes spans")
            if pause_s is not None and self.runtime.alive:
                # A service whose line has died only looks alive: without this systemd starts it anew.
                notify.notify("WATCHDOG=1")
        # The deadline of a stop is ours, and systemd's may be shorter.
        config = self.config
        budget_s = config.grace_s + config.runtime.drain_s + config.telemetry.timeout_s + 15
        notify.notify("STOPPING=1", "STATUS=drains", f"EXTEND_TIMEOUT_USEC={int(budget_s * 1e6)}")
        return self.stop()


def one_line(text: str, limit: int = 300) -> str:
    """Text for a status page: no passwords, no lines, not too long."""
    return hidden(" ".join(text.split()))[:limit]


def _check_sizes(config: ServiceConfig) -> None:
    """A request that may come has to find room, however often it comes again.

    Raises:
        ConfigError: it never would.
    """
    largest = max(config.grpc.max_request_bytes, config.http_settings.max_request_bytes)
    if config.receive.max_held_bytes < 2 * largest:
        raise ConfigError(
            f"receive.max_held_bytes is {config.receive.max_held_bytes}, and one request may have {largest} bytes.",
            "Give it twice that or more, or lower receive.grpc.max_request_bytes and receive.http.max_request_bytes.",
        )
