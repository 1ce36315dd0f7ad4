"""Levels: figures that move and that sampling rules compare with, the same for every processor of a store.

In: the levels that a policy needs, a store, and sources of published rates (the budget's controller). Out: for a trace
that starts in minute t the figures of the newest minute that is `LAG` minutes older, read from the table
``sampling_levels``; nothing depends on when or where the trace is decided.

    minute m ends ─ 20 s ─▶ sources publish ─ 120 s ─▶ histograms of m from the store, published ─ 200 s ─▶ read back
                                                                                  in force for traces from m + 5 on

Whoever is first at a minute publishes it, and all read back what stands in the table. A thread of its own does that:
the pipeline never waits for it, and a store that is away leaves the last figures in force. They are on disk beside the
journal too (``levels.json``), so a restart without a store has them. Rules ask `Levels` from the pipeline's thread;
what they read is replaced whole and never changed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from tollspan.processor.counters import Counters
from tollspan.processor.errors import TollspanError
from tollspan.processor.sample import level_table
from tollspan.processor.sample.conditions import Level
from tollspan.processor.sample.figures import Window, figure, total
from tollspan.processor.sample.level_table import Figure, Series
from tollspan.processor.sample.policy import Tally
from tollspan.processor.sample.spans_seen import key_of, keys_of
from tollspan.processor.sample.states import states_by
from tollspan.processor.sample.traces_seen import Table

if TYPE_CHECKING:
    from tollspan.processor.store import Reader, Store

__all__ = ["CHUNK", "LAG", "Figure", "Levels", "Source", "table_of"]

log = logging.getLogger(__name__)

FILE: Final = "levels.json"

LAG: Final = 5
"""Minutes from the one that a figure is of to the first whose traces it judges."""
SOURCES_S: Final = 20
STATES_S: Final = 120
READ_S: Final = 200
"""Seconds after a minute's end at which sources are asked, its histograms are made, and what stands is read back."""

STEP_S: Final = 5.0
"""Seconds between two looks at the clock."""

CHUNK: Final = 60
"""Minutes that one query is asked for."""

KEPT: Final = 360
"""Minutes whose figures are kept for traces that come late; one that is older is judged by the oldest."""


class Source(Protocol):
    """Publishes plain figures; the controller of a budget is one.

    Attributes:
        metrics: what it publishes.
        ahead: minutes from the one that has ended to the one that its figures are of: nobody is asked again when that
            minute has one of the first metric.
    """

    metrics: tuple[str, ...]
    ahead: int

    def figures(self, reader: Reader, minute: int, levels: Levels) -> list[Figure]:
        """Figures after a minute has ended; called on the levels' thread, by whichever processor comes first."""
        ...


class Levels(Tally):
    """Figures in force, and the thread that renews them.

    Args:
        store: gives the open store, None while there is none.
        folder: where the last figures are kept; None: nowhere.
        counters: gets ``sampling.levels.*``.
        clock: seconds since 1970; for tests.
    """

    def __init__(
        self,
        store: Callable[[], Store | None] = lambda: None,
        folder: Path | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._open, self._folder, self._clock = store, folder, clock
        self.counters = counters or Counters()
        self._guard = threading.Lock()
        self._sources: list[Source] = []
        self._wanted: dict[Level, None] = {}
        self._windows: dict[Level, Window] = {}
        # Minutes, ascending, and the figures of each: one object, for the pipeline's thread reads it without a lock.
        self._standing_now: tuple[list[int], dict[int, dict[Level, Table]]] = ([], {})
        self._rates: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
        self._rate_tables: dict[str, tuple[list[int], list[dict[str, Table]]]] = {}
        self._tallies: dict[tuple[str, str, int], dict[str, int]] = {}
        self._told: dict[tuple[str, str, int], dict[str, int]] = {}
        self._name = uuid.uuid4().hex[:12]
        self._asked: int | None = None
        self._read: int | None = None
        self._reader: Reader | None = None
        self._reads_from: Store | None = None
        self._stop = threading.Event()
        self._started = False
        self._thread: threading.Thread | None = None
        self.trouble = ""
        """Why the figures are not renewed; '' while they are."""
        self._restore()

    @classmethod
    def by_hand(
        cls, figures: Iterable[Figure] = (), tables: Mapping[int, Mapping[Level, Table]] | None = None
    ) -> Levels:
        """Levels that nobody renews: published rates, and figures of rules by minute."""
        made = cls()
        made._take_rates(figures)
        for minute, of_minute in sorted((tables or {}).items()):
            made._put(minute, dict(of_minute))
        return made

    # -- what is in force ----------------------------------------------------------------------------------------------

    def table(self, level: Level, minute: int) -> Table | None:
        """Keys and figures of a level for traces that start in a minute; None where there are none yet."""
        minutes, figures = self._standing_now
        if not minutes:
            return None
        return figures[minutes[max(bisect_right(minutes, minute - LAG) - 1, 0)]].get(level)

    def known(self) -> tuple[int, int]:
        """The first and the last minute with figures of their own."""
        minutes, _ = self._standing_now
        of_rules = [minute + LAG for minute in (*minutes[:1], *minutes[-1:])]
        of_rates = [minute for known, _ in self._rate_tables.values() for minute in (*known[:1], *known[-1:])]
        everything = [*of_rules, *of_rates] or [0]
        return min(everything), max(everything)

    def rates(self, metric: str, minute: int) -> Mapping[str, Table]:
        """Published rates by dimension for traces that start in a minute: the newest of that minute or before."""
        minutes, tables = self._rate_tables.get(metric, ([], []))
        if not minutes:
            return {}
        return tables[max(bisect_right(minutes, minute) - 1, 0)]

    def value(self, metric: str, dimension: str, key: str, minute: int) -> float | None:
        """A published figure in force for a trace that starts in a minute."""
        table = self.rates(metric, minute).get(dimension)
        if table is None:
            return None
        at = np.flatnonzero(table[0] == np.uint64(key_of(key)))
        return float(table[1][at[0]]) if len(at) else None

    def published(self, metric: str, dimension: str, key: str, since: int) -> dict[int, float]:
        """What was published from a minute on, by minute."""
        with self._guard:
            of_metric = self._rates.get(metric, {})
            return {
                minute: of_metric[minute][dimension][key]
                for minute in sorted(of_metric)
                if minute >= since and key in of_metric[minute].get(dimension, {})
            }

    def count(self, metric: str, dimension: str, minute: int, key: str, traces: int) -> None:
        """Take a count that only this process has; see `policy.Tally`."""
        now = int(self._clock()) // 60
        with self._guard:
            # What comes after its minute was told counts in the running one, or nobody would hear of it.
            late = self._read is not None and minute <= self._read
            counts = self._tallies.setdefault((metric, dimension, now if late else min(minute, now)), {})
            counts[key] = counts.get(key, 0) + traces
            while len(self._tallies) > KEPT:
                del self._tallies[min(self._tallies, key=lambda at: at[2])]

    # -- what is wanted ------------------------------------------------------------------------------------------------

    def want(self, levels: Iterable[Level]) -> None:
        """Keep these up, instead of those that were wanted before; may be called from any thread."""
        with self._guard:
            self._wanted = dict.fromkeys(levels)
        self._begin()

    def add(self, source: Source) -> None:
        """Ask a source too; before `start`."""
        self._sources.append(source)

    def start(self) -> None:
        """Renew from now on, as soon as somebody wants something."""
        self._started = True
        self._begin()

    def _begin(self) -> None:
        with self._guard:
            needed = bool(self._wanted or self._sources)
            if self._started and needed and self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="tollspan-levels", daemon=True)
                self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Renew no more; again is harmless. False while a query hangs: the store must not be closed under it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        return True

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Our own calls to the store must not become spans in the user's process.
        from opentelemetry.context import Context, attach
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        attach(Context())
        with suppress_instrumentation():
            while not self._stop.wait(STEP_S):
                self.step()

    def step(self) -> None:
        """Do what is due. Nothing raises: figures that are not renewed stay."""
        if not self._wanted and not self._sources:
            return
        store = self._open()
        if store is None:
            return
        try:
            reader = self._reading(store)
            now = self._clock()
            self._ask_sources(store, reader, int((now - SOURCES_S) // 60) - 1)
            self._read_rates(reader, int(now // 60))
            self._renew(store, reader, int((now - STATES_S) // 60) - 1, int((now - READ_S) // 60) - 1)
        except TollspanError as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("sampling levels are not renewed")
            self._fail(f"{type(error).__name__}: {error}")
        else:
            if self.trouble:
                log.info("sampling levels are renewed again")
            self.trouble = ""

    def _fail(self, why: str) -> None:
        if why != self.trouble:
            log.warning("sampling levels are not renewed, the last ones stay in force: %s", why)
        self.trouble = why
        self.counters.add("sampling.levels.failures")
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _reading(self, store: Store) -> Reader:
        if self._reader is None or self._reads_from is not store:
            self._reader, self._reads_from = store.reader(), store
        return self._reader

    def _ask_sources(self, store: Store, reader: Reader, minute: int) -> None:
        """Have sources publish after a minute has ended, unless somebody has."""
        if self._asked is not None and minute <= self._asked:
            return
        for source in self._sources:
            if not level_table.has_figures(reader, source.metrics[0], minute + source.ahead):
                self._write(store, source.figures(reader, minute, self))
        self._asked = minute

    def publish(self, figures: Iterable[Figure]) -> None:
        """Write plain figures; the first that is written of a minute and key stays.

        Raises:
            StoreError, StoreUnavailable: they are not written.
        """
        store = self._open()
        if store is not None:
            self._write(store, figures)

    def _write(self, store: Store, figures: Iterable[Figure]) -> None:
        now = self._clock()
        level_table.publish(store, [level_table.figure_row(now, each) for each in figures])

    def _read_rates(self, reader: Reader, now: int) -> None:
        """Take in the rates that stand in the table, those of minutes to come with them."""
        metrics = sorted({metric for source in self._sources for metric in source.metrics})
        if not metrics:
            return
        with self._guard:
            known = max((max(of_metric) for of_metric in self._rates.values() if of_metric), default=now - KEPT)
        self._take_rates(level_table.figures(reader, metrics, min(known, now) - 2))

    def _take_rates(self, figures: Iterable[Figure]) -> None:
        changed = set()
        with self._guard:
            for each in figures:
                of_minute = self._rates.setdefault(each.metric, {}).setdefault(each.minute, {})
                of_minute.setdefault(each.dimension, {})[each.key] = each.value
                changed.add(each.metric)
            for metric in changed:
                of_metric = self._rates[metric]
                for old in sorted(of_metric)[:-KEPT]:
                    del of_metric[old]
                minutes = sorted(of_metric)
                self._rate_tables[metric] = (minutes, [_rate_tables(of_metric[minute]) for minute in minutes])

    # -- histograms ----------------------------------------------------------------------------------------------------

    def _renew(self, store: Store, reader: Reader, made: int, settled: int) -> None:
        """Publish the histograms of minutes up to ``made``, and take in what stands of those up to ``settled``."""
        with self._guard:
            wanted = list(self._wanted)
        self._windows = {level: window for level, window in self._windows.items() if level in wanted}
        self._tell(store, made)
        if not wanted or (self._read is not None and settled <= self._read and self._windows.keys() >= set(wanted)):
            return
        fresh = [level for level in wanted if level not in self._windows]
        windows = {level: Window(level.window) for level in fresh}
        by_series: dict[Series, list[tuple[Level, Window]]] = {}
        for level, window in (*self._windows.items(), *windows.items()):
            by_series.setdefault((level.metric, level.dimension), []).append((level, window))
        begins = {
            series: min(
                # The figures of the last hour are wanted too.
                window.first(settled - CHUNK) if window.last is None else max(window.last + 1, window.first(settled))
                for _, window in members
            )
            for series, members in by_series.items()
        }
        for metric in dict.fromkeys(metric for metric, _ in begins):
            of_metric = {dimension: begin for (each, dimension), begin in begins.items() if each == metric}
            for since in range(min(of_metric.values()), made + 1, CHUNK):
                if self._stop.is_set():
                    return
                until = min(since + CHUNK, made + 1)
                self._make(
                    store, reader, metric, [by for by, begin in of_metric.items() if begin < until], since, until
                )
        for series, members in by_series.items():
            for since in range(begins[series], settled + 1, CHUNK):
                if self._stop.is_set():
                    return
                found = level_table.histograms(reader, series, since, min(since + CHUNK, settled + 1))
                for minute, state in sorted(found.items()):
                    for _, window in members:
                        if window.last is None or minute > window.last:
                            window.push(minute, state)
                            if minute > settled - CHUNK:
                                self._note(minute, settled, members)
        self._windows |= windows
        self._put(settled, {level: table_of(level, window) for level, window in self._windows.items()})
        self._read = settled
        self.counters.add("sampling.levels.renewed")
        self._save()

    def _note(self, minute: int, settled: int, members: list[tuple[Level, Window]]) -> None:
        """Keep the figures of a minute on the way to the newest, for traces that come late."""
        if minute < settled and all(window.last == minute for _, window in members):
            of_minute = self._standing_now[1].get(minute, {}) | {
                level: table_of(level, window) for level, window in members
            }
            self._put(minute, of_minute)

    def _make(self, store: Store, reader: Reader, metric: str, dimensions: list[str], since: int, until: int) -> None:
        """Publish the histograms of minutes that nobody has published."""
        asked = set(range(since, until))
        missing = {by: sorted(asked - level_table.looked_at(reader, (metric, by), since, until)) for by in dimensions}
        missing = {by: minutes for by, minutes in missing.items() if minutes}
        if not missing:
            return
        first, last = min(each[0] for each in missing.values()), max(each[-1] for each in missing.values())
        found = states_by(reader, metric, list(missing), first, last + 1)
        now, rows = self._clock(), []
        for by, minutes in missing.items():
            for minute in minutes:
                state = {"": {}, **found[by][minute]}
                rows += [
                    level_table.histogram_row(now, minute, (metric, by), key, histogram)
                    for key, histogram in state.items()
                ]
        level_table.publish(store, rows)

    def _tell(self, store: Store, made: int) -> None:
        """Publish the counts that only this process has, of minutes that are over."""
        with self._guard:
            ready = {at: counts for at, counts in self._tallies.items() if at[2] <= made}
            for at in ready:
                del self._tallies[at]
        now, rows, sums = self._clock(), [], {}
        for (metric, dimension, minute), counts in ready.items():
            # All that was counted of the minute, for the row takes the place of an earlier one.
            before = self._told.get((metric, dimension, minute), {})
            sums[metric, dimension, minute] = before | {key: before.get(key, 0) + n for key, n in counts.items()}
            rows += [
                level_table.histogram_row(
                    now, minute, (metric, dimension), key, {0: sums[metric, dimension, minute][key]}, self._name
                )
                for key in counts
            ]
        try:
            level_table.publish(store, rows)
        except BaseException:
            with self._guard:
                for at, counts in ready.items():
                    again = self._tallies.setdefault(at, {})
                    for key, n in counts.items():
                        again[key] = again.get(key, 0) + n
            raise
        self._told |= sums
        for at in [at for at in self._told if at[2] < made - 10]:
            del self._told[at]

    def _put(self, minute: int, of_minute: dict[Level, Table]) -> None:
        figures = {at: found for at, found in self._standing_now[1].items() if at > minute - KEPT}
        figures[minute] = of_minute
        self._standing_now = (sorted(figures), figures)

    # -- on disk -------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write the newest figures down."""
        if self._folder is None:
            return
        minutes, figures = self._standing_now
        minute = minutes[-1]
        content = {
            "minute": minute,
            "figures": [[list(level), [part.tolist() for part in table]] for level, table in figures[minute].items()],
            "rates": [
                list(Figure(at, metric, dimension, key, value))
                for metric, of_metric in self._rates.items()
                for at in sorted(of_metric)[-1:]
                for dimension, values in of_metric[at].items()
                for key, value in values.items()
            ],
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / f"{FILE}.new"
            draft.write_text(json.dumps(content))
            draft.replace(self._folder / FILE)
        except OSError as error:
            log.warning("sampling levels cannot be written to %s: %s", self._folder, error)

    def _restore(self) -> None:
        if self._folder is None:
            return
        try:
            content = json.loads((self._folder / FILE).read_text())
            figures = {
                Level(level[0], level[1], level[2], level[3], level[4], tuple(level[5])): (
                    np.array(table[0], np.uint64),
                    np.array(table[1], np.int64),
                )
                for level, table in content["figures"]
            }
            self._take_rates([Figure(*each) for each in content["rates"]])
            self._put(int(content["minute"]), figures)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
            log.warning("sampling levels of before cannot be read from %s: %s", self._folder / FILE, error)


def table_of(level: Level, window: Window) -> Table:
    """Figures of a level from its window, keys ascending; none of keys with too few observations."""
    names = [key for key, counts in window.totals.items() if total(counts) >= max(level.least, 1)]
    keys = keys_of(names)
    values = np.array([figure(level.statistic, window.totals[name], level.parameters) for name in names], np.int64)
    order = np.argsort(keys)
    return keys[order], values[order]


def _rate_tables(of_minute: Mapping[str, Mapping[str, float]]) -> dict[str, Table]:
    out = {}
    for dimension, values in of_minute.items():
        keys = keys_of(values)
        order = np.argsort(keys)
        out[dimension] = (keys[order], np.array(list(values.values()), np.float64)[order])
    return out
