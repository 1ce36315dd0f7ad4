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

from tollspan.pricing import PriceEngine, load_book, shipped_book
from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.store import open_store
from tollspan.processor.write import Writer

log = logging.getLogger(__name__)

DRAIN_S: Final = 25.0
"""Seconds that a shutdown waits for a store that is away before it leaves the rest in the journal."""


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

    Raises:
        TollspanError, BookError: the store, the journal or the price book cannot be used; nothing stays open.
    """

    def __init__(self, config: RuntimeConfig, counters: Counters | None = None) -> None:
        self.config = config
        self.counters = counters or Counters()
        book = shipped_book() if config.prices is None else load_book(config.prices)
        self.engine = PriceEngine(book)
        self.store = open_store(config.store, create=True)
        try:
            self.store.migrate()
            self.directory = config.journal or journal_directory(config.store, self.store.directory)
            self.journal = Journal(self.directory, counters=self.counters)
        except BaseException:
            self.store.close()
            raise
        self._give_up = threading.Event()
        self._stop = threading.Event()
        writer = Writer(self.store, self._give_up, self.counters)
        self.pipeline = Pipeline(self.journal, writer, self.engine, config.settings, self.counters)
        self._thread = threading.Thread(target=self._work, name="tollspan-pipeline", daemon=True)

    def start(self) -> None:
        """Start the worker; what the journal still held comes first."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float = DRAIN_S) -> dict[str, int]:
        """Finish what was accepted, close everything, and return the counters.

        A store that stays away longer than ``timeout_s`` is given up on: the journal keeps the rest.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
            self._give_up.set()
            self._thread.join()
        self.journal.close()
        self.store.close()
        stats = self.counters.snapshot()
        stats["spans_acked"] = stats.get("decoded.spans", 0) + sum(
            count for name, count in stats.items() if name.startswith("rejected.")
        )
        home = self.store.directory or self.directory
        (home / "stats.json").write_text(json.dumps(stats, indent=2, sort_keys=True) + "\n")
        return stats

    def _work(self) -> None:
        # Our own calls to the store must not become spans in the user's process.
        from opentelemetry.context import Context, attach
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        attach(Context())
        with suppress_instrumentation():
            self.pipeline.run(self._stop)
