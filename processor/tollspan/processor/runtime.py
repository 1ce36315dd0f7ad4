"""The pipeline with everything it needs: store, price book, journal and the one worker thread.

`tollspan serve` puts a receiver in front of it, the drop-in exporter feeds it from the user's process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import platformdirs

from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, StoreUnavailable, TollspanError
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.prices_file import Prices
from tollspan.processor.store import Server, Store, locate, open_store
from tollspan.processor.write import Writer

log = logging.getLogger(__name__)

DRAIN_S: Final = 25.0
"""Seconds that a shutdown waits for a store that is away before it leaves the rest in the journal."""

GIVE_UP_S: Final = 2.0
"""Seconds that a call to the store gets to end once it has been given up on."""

RECONNECT_S: Final = 2.0

WINDOW: Final = "window"
"""Folder of the journal for what is known of recent spans between two runs."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What a runtime is made from.

    Attributes:
        store: store URL (``chdb://`` for the default embedded one).
        prices: the user's price book, in front of the shipped one; None for the shipped one alone.
        journal: journal directory; None for the one that belongs to the store.
        settings: batching and sampling.
    """

    store: str = "chdb://"
    prices: Path | None = None
    journal: Path | None = None
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RuntimeConfig:
        """From ``TOLLSPAN_STORE``, ``TOLLSPAN_PRICES``, ``TOLLSPAN_JOURNAL`` and ``TOLLSPAN_KEEP``.

        Raises:
            ConfigError: ``TOLLSPAN_KEEP`` is not a share between 0 and 1.
        """
        env = os.environ if environment is None else environment
        prices, journal = env.get("TOLLSPAN_PRICES"), env.get("TOLLSPAN_JOURNAL")
        return cls(
            store=env.get("TOLLSPAN_STORE") or "chdb://",
            prices=Path(prices) if prices else None,
            journal=Path(journal) if journal else None,
            settings=Settings(keep=parse_keep(env.get("TOLLSPAN_KEEP") or "0.1")),
        )


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
    # The URL may hold a password, so only its digest becomes part of a path.
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    root = os.environ.get("TOLLSPAN_DATA_DIR") or platformdirs.user_data_dir("tollspan")
    return Path(root) / "journals" / name


class Runtime:
    """Store, journal, prices and worker; `start` before use, `stop` once after.

    Args:
        config: see `RuntimeConfig`.
        counters: shared with whoever feeds the journal.
        wait_for_store: leave connecting to a server to the worker, so that one which is away or silent holds nobody
            up: the journal takes spans in until it answers. Otherwise one that does not answer is an error.

    Raises:
        TollspanError, BookError: the store, the journal or the price book cannot be used; nothing stays open.
    """

    def __init__(
        self, config: RuntimeConfig, counters: Counters | None = None, *, wait_for_store: bool = False
    ) -> None:
        self.config = config
        self.counters = counters or Counters()
        self.prices = Prices(config.prices, self.counters)
        location = locate(config.store)
        later = wait_for_store and isinstance(location, Server)
        self._store: Store | None = None if later else _open(config.store)
        home = self._store.directory if self._store is not None else None
        try:
            self.directory = config.journal or journal_directory(config.store, home)
            self.journal = Journal(self.directory, counters=self.counters)
        except BaseException:
            if self._store is not None:
                self._store.close()
            raise
        self._home = home or self.directory
        self._give_up = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tollspan-pipeline", daemon=True)

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
        """Start the worker (what the journal still held comes first) and watch the price book."""
        self._thread.start()
        self.prices.start()

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float = DRAIN_S) -> dict[str, int]:
        """Finish what was accepted, close everything, and return the counters.

        A store that stays away, or answers nothing, longer than ``timeout_s`` is given up on: the journal keeps the
        rest. This returns soon after that whatever the store does.
        """
        self._stop.set()
        self.prices.stop()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
            self._give_up.set()
            self._thread.join(GIVE_UP_S)
        self.journal.close()
        if self._thread.is_alive():
            # It hangs in a call to the store; the thread is a daemon, and closing the store under it helps nobody.
            log.warning("the store does not answer; what it has not taken stays in the journal")
        elif self._store is not None:
            self._store.close()
        stats = self.counters.snapshot()
        stats["spans_acked"] = stats.get("decoded.spans", 0) + sum(
            count for name, count in stats.items() if name.startswith("rejected.")
        )
        (self._home / "stats.json").write_text(json.dumps(stats, indent=2, sort_keys=True) + "\n")
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
            writer = Writer(store, self._give_up, self.counters)
            pipeline = Pipeline(self.journal, writer, self.prices.engine, self.config.settings, self.counters)
            self.prices.follow(pipeline.use)
            window = self.directory / WINDOW
            pipeline.resume(window, store.url)
            pipeline.take_back()
            pipeline.run(self._stop)
            pipeline.keep(window, store.url)

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
                    told = str(error)
                    level = logging.WARNING if isinstance(error, StoreUnavailable) else logging.ERROR
                    log.log(level, "%s Spans wait in the journal until it takes them.", error)
                if self._stop.wait(RECONNECT_S):
                    return None
            else:
                if told:
                    log.warning("store %s answers", self._store.url)
        return self._store

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
