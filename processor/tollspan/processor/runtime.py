"""The pipeline with everything it needs: store, price book, journal and the one worker thread.

`tollspan serve` puts a receiver in front of it, the drop-in exporter feeds it from the user's process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import platformdirs

from tollspan.processor.config import RUNTIME, JournalLimits, load, runtime_config
from tollspan.processor.counters import Counters
from tollspan.processor.decode import validate
from tollspan.processor.errors import ConfigError, StoreUnavailable, TollspanError
from tollspan.processor.forward.settings import Endpoint, Forwarding
from tollspan.processor.inbox import FOLDER as INBOX
from tollspan.processor.inbox import Collection, Inbox
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import SAMPLING, Pipeline, Settings
from tollspan.processor.prices_file import Prices
from tollspan.processor.quarantine import FOLDER as QUARANTINE
from tollspan.processor.quarantine import Quarantine, QuarantineLimits
from tollspan.processor.recent import RecentSettings
from tollspan.processor.sample import Plain, Policy
from tollspan.processor.sample.budget import Budget, BudgetSettings
from tollspan.processor.sample.file import SamplingFile, SamplingSettings
from tollspan.processor.sample.levels import Levels
from tollspan.processor.sample.policy import RulePolicy
from tollspan.processor.sample.rules import Sampling
from tollspan.processor.store import Embedded, Location, Server, Store, locate, open_store
from tollspan.processor.write import Writer

if TYPE_CHECKING:
    from tollspan.processor.forward.forwarder import Forwarder

log = logging.getLogger(__name__)

GIVE_UP_S: Final = 2.0
"""Seconds that a call to the store gets to end once it has been given up on."""

RECONNECT_S: Final = 2.0

RECENT: Final = "recent"
"""Folder of the journal for what is known of recent spans."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What a runtime is made from.

    Attributes:
        store: store URL (``chdb://`` for the default embedded one).
        prices: the user's price book, in front of the shipped one; None for the shipped one alone.
        journal: journal directory; None for the one that belongs to the store.
        settings: batching and sampling.
        sampling: rules of sampling.
        budget: what telemetry may take.
        journal_limits: how large the journal may grow.
        drain_s: seconds that a shutdown waits for a store that is away before it leaves the rest in the journal.
        quarantine: how much of what cannot be processed is kept.
        recent: how much is known of recent spans.
        forward, forwarding: where kept spans are sent on to; nowhere by default.
    """

    store: str = "chdb://"
    prices: Path | None = None
    journal: Path | None = None
    settings: Settings = field(default_factory=Settings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    journal_limits: JournalLimits = field(default_factory=JournalLimits)
    drain_s: float = 25.0
    quarantine: QuarantineLimits = field(default_factory=QuarantineLimits)
    recent: RecentSettings = field(default_factory=RecentSettings)
    forward: Endpoint = field(default_factory=Endpoint)
    forwarding: Forwarding = field(default_factory=Forwarding)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RuntimeConfig:
        """From the environment, and the file that ``TOLLSPAN_CONFIG`` names; see `tollspan.processor.config`.

        Raises:
            ConfigError: a setting cannot be used.
        """
        return runtime_config(load(environment=environment, sections=RUNTIME))


def parse_keep(text: str) -> float:
    """A share of traces to keep.

    Raises:
        ConfigError: not a number between 0 and 1.
    """
    try:
        keep = float(text)
    except ValueError:
        keep = -1.0
    if not 0.0 <= keep <= 1.0:
        raise ConfigError(f"keep is {text!r}.", "Give the share of error-free traces to keep, from 0 to 1, e.g. 0.1.")
    return keep


def journal_directory(url: str, store_directory: Path | None) -> Path:
    """Where the journal of a store lies: inside an embedded store, else under the user's data directory."""
    if store_directory is not None:
        return store_directory / "journal"
    root = Path(os.environ.get("TOLLSPAN_DATA_DIR") or platformdirs.user_data_dir("tollspan")) / "journals"
    # Without its password: a new password is the same store, and what waits for it must be found again.
    found, before = (root / hashlib.sha256(text.encode()).hexdigest()[:16] for text in (locate(url).url, url))
    return before if before.is_dir() and not found.is_dir() else found


def shared_inbox(location: Location, journal: Path) -> Path:
    """Where processes that find a store in use leave spans for its owner.

    Beside an embedded store, whose journal may be anywhere, and apart for each database in it; else in the journal.
    """
    return location.directory / INBOX / location.database if isinstance(location, Embedded) else journal / INBOX


class Runtime:
    """Store, journal, prices and worker; `start` before use, `stop` once after.

    Args:
        config: see `RuntimeConfig`.
        counters: shared with whoever feeds the journal.
        wait_for_store: leave connecting to a server to the worker, so that one which is away or silent holds nobody
            up: the journal takes spans in until it answers. Otherwise one that does not answer is an error.

    Raises:
        TollspanError, BookError: the store, the journal, the price book or the sampling file cannot be used; nothing
            stays open.
    """

    def __init__(
        self, config: RuntimeConfig, counters: Counters | None = None, *, wait_for_store: bool = False
    ) -> None:
        self.config = config
        self.counters = counters or Counters()
        self.prices = Prices(config.prices, self.counters)
        self.sampling = SamplingFile(config.sampling.file, config.settings.keep, self.counters)
        location = locate(config.store)
        later = wait_for_store and isinstance(location, Server)
        self._store: Store | None = None if later else _open(config.store)
        home = self._store.directory if self._store is not None else None
        try:
            self.directory = config.journal or journal_directory(config.store, home)
            limits = config.journal_limits
            self.journal = Journal(
                self.directory,
                segment_bytes=limits.segment_bytes,
                max_bytes=limits.max_bytes,
                memory_bytes=limits.memory_bytes,
                pending_bytes=limits.pending_bytes,
                counters=self.counters,
            )
            try:
                self.forwarder = self._forwarder()
            except BaseException:
                self.journal.close()
                raise
        except BaseException:
            if self._store is not None:
                self._store.close()
            raise
        self.levels = Levels(lambda: self._store, self.directory / SAMPLING, self.counters)
        self.budget = Budget(
            config.budget, lambda: self.prices.engine, self.counters, config.settings.decision_timeout_s
        )
        if self.budget.limits:
            self.levels.add(self.budget)
        self.quarantine = Quarantine(self.directory / QUARANTINE, self.counters, config.quarantine)
        self._home = home or self.directory
        # One for what is replayed into this journal, one for other processes on this store.
        folders = dict.fromkeys((self.directory / INBOX, shared_inbox(location, self.directory)))
        self._inbox = Collection(map(Inbox, folders), self.journal, validate, self.counters)
        self._told = ""
        self._writer: Writer | None = None
        self._tuning = threading.Lock()
        self._settings = config.settings
        self._pipeline: Pipeline | None = None
        self._give_up = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tollspan-pipeline", daemon=True)
        self._show()

    def _forwarder(self) -> Forwarder | None:
        """What sends kept spans on, where the configuration says so."""
        config = self.config
        if config.forward.endpoint is None and not config.forwarding.endpoints:
            return None
        # Clients of two protocols are for those who ask for them: a user's program imports this module.
        from tollspan.processor.forward.forwarder import FOLDER, Forwarder

        return Forwarder.of(config.forward, config.forwarding, self.directory / FOLDER, self.counters)

    @property
    def store(self) -> Store:
        """The open store.

        Raises:
            StoreUnavailable: it has not answered yet.
        """
        if self._store is None:
            raise StoreUnavailable(f"Store {self.config.store} has not answered yet.")
        return self._store

    def start(self) -> None:
        """Start the worker (what the journal still held comes first) and watch the files in use."""
        self._thread.start()
        self.prices.start()
        self.sampling.start()
        self.levels.start()
        if self.forwarder is not None:
            self.forwarder.start()
        self._inbox.start()

    def tune(self, settings: Settings) -> None:
        """Sample as other settings say from now on; may be called from any thread."""
        with self._tuning:
            self._settings = settings
            if self._pipeline is not None:
                self._pipeline.tune(settings)
        self.sampling.retune(settings.keep)

    def policy(self, sampling: Sampling) -> Policy:
        """A policy of rules, and the figures that it needs kept up."""
        steered = bool(self.budget.limits)
        if not sampling.file and not steered:
            return Plain(sampling.base.share)
        made = RulePolicy(sampling, self.levels, steered)
        self.levels.want(made.levels_needed)
        return made

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float | None = None) -> dict[str, int]:
        """Finish what was accepted, close everything, and return the counters.

        A store that stays away, or answers nothing, longer than ``timeout_s`` (`RuntimeConfig.drain_s` when None) is
        given up on: the journal keeps the rest. This returns soon after that whatever the store does.
        """
        timeout_s = self.config.drain_s if timeout_s is None else timeout_s
        self._inbox.stop()
        self._stop.set()
        self.prices.stop()
        self.sampling.stop()
        self.levels.stop(GIVE_UP_S)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
            self._give_up.set()
            self._thread.join(GIVE_UP_S)
        if self.forwarder is not None:
            self.forwarder.stop()
        self.journal.close()
        if self._thread.is_alive() or not self.levels.stop(GIVE_UP_S):
            # It hangs in a call to the store; the thread is a daemon, and closing the store under it helps nobody.
            log.warning("the store does not answer; what it has not taken stays in the journal")
        elif self._store is not None:
            self._store.close()
        stats = self.counters.snapshot()
        stats["spans_acked"] = stats.get("decoded.spans", 0) + sum(
            count for name, count in stats.items() if name.startswith("rejected.")
        )
        try:
            (self._home / "stats.json").write_text(json.dumps(stats, indent=2, sort_keys=True) + "\n")
        except OSError as error:
            log.warning("the counters of this run cannot be written down: %s", error)
        return stats

    def _work(self) -> None:
        # Our own calls to the store must not become spans in the user's process.
        from opentelemetry.context import Context, attach
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        attach(Context())
        with suppress_instrumentation():
            store = self._connected()
            if store is None:
                return
            writer = self._writer = Writer(store, self._give_up, self.counters)
            pipeline = Pipeline(
                self.journal,
                writer,
                self.prices.engine,
                self.config.settings,
                self.counters,
                self.quarantine,
                self.config.recent,
            )
            pipeline.forwarder = self.forwarder
            pipeline.retention_s = int(self.config.budget.retention_s)
            self.prices.follow(pipeline.use)
            self.sampling.follow(lambda sampling: pipeline.sampler.use(self.policy(sampling)))
            with self._tuning:
                pipeline.tune(self._settings)
                self._pipeline = pipeline
            pipeline.recall(self.directory / RECENT, store.url)
            pipeline.take_back()
            pipeline.run(self._stop)

    def _connected(self) -> Store | None:
        """The store, once it answers; None when it is time to stop and it has not."""
        told = ""
        while self._store is None:
            try:
                self._store = _open(self.config.store)
            except TollspanError as error:
                # Also one that refuses us: a login can be mended on either side, and what is acknowledged has to go
                # somewhere.
                if str(error) != told:
                    told = self._told = str(error)
                    level = logging.WARNING if isinstance(error, StoreUnavailable) else logging.ERROR
                    log.log(level, "%s Spans wait in the journal until it takes them.", error)
                if self._stop.wait(RECONNECT_S):
                    return None
            else:
                if told:
                    log.warning("store %s answers", self._store.url)
        return self._store

    @property
    def store_trouble(self) -> str:
        """Why nothing gets into the store just now; empty while it answers. Spans are taken all the same."""
        if self._store is None:
            return self._told or "it has not answered yet"
        return self._writer.away if self._writer is not None else ""

    def _show(self) -> None:
        """Gauges of what this holds."""
        gauge, journal = self.counters.gauge, self.journal
        gauge("store.up", lambda: int(not self.store_trouble))
        gauge("pipeline.up", lambda: int(self.alive))
        gauge("prices.reload_error", lambda: int(bool(self.prices.error)))
        gauge("sampling_file.reload_error", lambda: int(bool(self.sampling.error)))
        gauge("sampling.levels.stale", lambda: int(bool(self.levels.trouble)))
        gauge("journal.disk_bytes", lambda: journal.state().disk_bytes)
        gauge("journal.spare_bytes", lambda: journal.state().spare_bytes)
        gauge("journal.cap_bytes", lambda: journal.state().cap_bytes)
        gauge("inbox.waiting_bytes", lambda: sum(inbox.size() for inbox in self._inbox.inboxes))
        gauge("quarantine.bytes", self.quarantine.size)
        gauge("journal.free_bytes", lambda: shutil.disk_usage(self.directory).free)
        gauge("lag.bytes", lambda: journal.state().waiting_bytes)
        gauge("lag.spans", self._lag_spans)
        gauge("lag.seconds", self._lag_s)
        for name in ("open_traces", "waiting_spans", "waiting_bytes", "forced"):
            gauge(f"sampling.{name}", partial(self._sampling, name))

    def _sampling(self, name: str) -> int | None:
        """A fact of the sampler; None before there is one."""
        return None if self._pipeline is None else int(getattr(self._pipeline.sampler, name))

    def _lag_s(self) -> float:
        oldest = self.journal.state().oldest_ns
        return 0.0 if oldest is None else max(0.0, round((time.time_ns() - oldest) / 1e9, 3))

    def _lag_spans(self) -> int | None:
        """An estimate: nobody counts the spans of bytes that are not decoded."""
        waiting = self.journal.state().waiting_bytes
        if not waiting:
            return 0
        spans, size = self.counters.get("decoded.spans"), self.counters.get("decoded.bytes")
        return round(waiting * spans / size) if size else None

    @property
    def connected(self) -> bool:
        """Whether the store has answered."""
        return self._store is not None


def _open(url: str) -> Store:
    """A migrated store."""
    store = open_store(url, create=True)
    try:
        store.migrate()
    except BaseException:
        store.close()
        raise
    return store
