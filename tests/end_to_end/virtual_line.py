"""The real line behind a journal, on a real store, in virtual time: an hour of spans goes by in seconds.

Whoever drives it moves the clock; nothing in it waits or starts a thread. What is virtual is the time of receipt, the
clock by which the engine waits for traces, and the minute that levels and budget stand at.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from incident_day import BEGAN, MINUTE

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.pricing.book import PriceBook
from tollspan.processor.charge import charge
from tollspan.processor.counters import Counters
from tollspan.processor.decode import decode
from tollspan.processor.identity import span_keys, trace_keys, words
from tollspan.processor.journal import Batch, Journal
from tollspan.processor.normalize import normalize
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.recall import Identities
from tollspan.processor.sample import Arrived
from tollspan.processor.sample.budget import Budget, BudgetSettings
from tollspan.processor.sample.levels import Levels
from tollspan.processor.sample.policy import RulePolicy
from tollspan.processor.sample.rules import Sampling
from tollspan.processor.store import Store
from tollspan.processor.write import Writer


class Received:
    """A journal whose batches were received at a virtual time."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.now_ns = BEGAN

    def next_batch(self, *arguments: Any, **more: Any) -> Batch | None:
        batch = self._journal.next_batch(*arguments, **more)
        return None if batch is None else replace(batch, received_ns=self.now_ns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


class VirtualLine:
    """A pipeline that is driven minute by minute.

    Attributes:
        seconds: virtual time since the day began.
    """

    def __init__(self, store: Store, folder: Path, book: PriceBook | None = None, **settings: Any) -> None:
        self.store = store
        self.counters = Counters()
        self.journal = Journal(folder, counters=self.counters)
        self.received = Received(self.journal)
        self.give_up = threading.Event()
        self.pipeline = Pipeline(
            self.received,  # type: ignore[arg-type]
            Writer(store, self.give_up, self.counters, pause=lambda _: None),
            PriceEngine(book or shipped_book()),
            Settings(linger_s=0.0, **settings),
            self.counters,
        )
        self.seconds = 0.0
        self.pipeline.clock = lambda: self.seconds
        self.levels: Levels | None = None
        self.budget: Budget | None = None

    def sample_by(self, sampling: Sampling, budget: str | None = None) -> None:
        """Keep by rules, levels and a budget, as a service does that is given a sampling file."""
        self.levels = Levels(lambda: self.store, None, self.counters, clock=lambda: BEGAN / 1e9 + self.seconds)
        settings = BudgetSettings(budget)
        if budget is not None:
            timeout_s = self.pipeline.settings.decision_timeout_s
            self.budget = Budget(settings, lambda: self.pipeline.engine, self.counters, timeout_s)
            self.levels.add(self.budget)
        policy = RulePolicy(sampling, self.levels, steered=budget is not None)
        self.levels.want(policy.levels_needed)
        self.pipeline.sampler.use(policy)

    def at(self, seconds: float) -> None:
        """Move the clocks."""
        self.seconds = seconds
        self.received.now_ns = BEGAN + round(seconds * 1e9)

    def send(self, payload: bytes) -> None:
        self.journal.append(payload).wait()

    def work(self) -> None:
        """Take in what was sent, and decide what is due."""
        while self.pipeline.step(0.0):
            pass

    def minute(self, number: int, payload: bytes, renew: bool = True) -> None:
        """The spans of one minute of the day arrive at its end; half a minute later levels are renewed."""
        self.at((number + 1) * MINUTE / 1e9)
        if payload:
            self.send(payload)
        self.work()
        self.at((number + 1) * MINUTE / 1e9 + 30)
        self.work()
        if self.levels is not None and renew:
            self.levels.step()
            assert not self.levels.trouble, self.levels.trouble

    def end(self) -> None:
        """Decide all that is open, and write and release everything."""
        stop = threading.Event()
        stop.set()
        self.pipeline.run(stop)

    def close(self) -> None:
        if self.levels is not None:
            self.levels.stop()
        self.journal.close()


def arrived_of(payloads: list[bytes], book: PriceBook) -> tuple[Arrived, npt.NDArray[np.uint64]]:
    """Spans as a policy sees them when they arrive, all at once; and the key of each span's trace."""
    decoded = decode(payloads)
    trace, span = words(decoded.spans["trace_id"], 2), words(decoded.spans["span_id"], 1)[:, 0]
    parent = words(decoded.spans["parent_span_id"], 1)[:, 0]
    traces = trace_keys(trace)
    keys = span_keys(traces, span)
    who = Identities(
        trace,
        span,
        traces,
        keys,
        span_keys(traces, parent),
        parent == 0,
        np.zeros(len(keys), np.uint64),
        np.argsort(keys),
    )
    normalized = normalize(decoded, received_ns=BEGAN + 30 * 24 * 60 * MINUTE)
    charged = charge(normalized, np.zeros(len(keys), np.bool_), PriceEngine(book))
    return Arrived(decoded, normalized, charged, who), traces
