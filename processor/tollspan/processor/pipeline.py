"""The line: journal batches in, rows in ClickHouse out.

    batch ─▶ decode ─▶ normalize ─▶ assemble ─▶ charge ─▶ write ledger
                                                    └▶ sample ─▶ write spans and traces ─▶ release

One thread runs it. A batch's ledger rows are written under the token that the journal froze; its place in the journal
is released when none of its spans waits for a sampling decision any more, so a crash replays whatever bodies were
still undecided, and the ledger rows that come again land on themselves.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine
from tollspan.pricing.meters import METERS
from tollspan.processor import window
from tollspan.processor.assemble import Assembler, billing_keys
from tollspan.processor.bodies import bodies
from tollspan.processor.charge import Charged, charge, plain
from tollspan.processor.counters import Counters
from tollspan.processor.decode import Decoded, decode
from tollspan.processor.errors import JournalError, StoreError, StoreUnavailable
from tollspan.processor.identity import Mask, new_seed, span_keys, trace_keys, words
from tollspan.processor.journal import Batch, Journal
from tollspan.processor.normalize import Normalized, normalize
from tollspan.processor.sample import DROPPED, REASONS, Decision, Pending, Round, TailSampler, adjusted_count
from tollspan.processor.sample import encode_threshold as encode
from tollspan.processor.summarize import Held, summarize
from tollspan.processor.tracestate import randomness, stamp_column
from tollspan.processor.window import Window
from tollspan.processor.write import Writer

log = logging.getLogger(__name__)

STORE_ATTEMPTS: Final = 3
"""Times a batch is offered to a store that refuses it for good before it is divided."""

SET_ASIDE: Final = "set-aside"
"""Folder of the journal for requests that cannot be processed, one OTLP request a file."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the line batches and samples.

    Attributes:
        keep: share of error-free traces whose bodies are kept.
        batch_bytes: payload bytes in one batch at the most.
        linger_s: how long a small batch waits for more.
        decision_wait_s, decision_timeout_s: see `TailSampler`.
        max_pending_bytes: bound on bodies that wait for a decision.
    """

    keep: float = 0.1
    batch_bytes: int = 16 << 20
    linger_s: float = 0.25
    decision_wait_s: float = 5.0
    decision_timeout_s: float = 30.0
    max_pending_bytes: int = 512 << 20


@dataclass(slots=True)
class _Source:
    """A journal batch whose parts wait for sampling decisions.

    Attributes:
        batch: to be released when nothing of it waits.
        waiting: parts whose spans are not all decided and written.
        complete: every part is in the ledger, or set aside.
    """

    batch: Batch
    waiting: int = 0
    complete: bool = False


def used(normalized: Normalized) -> Mask:
    """Spans whose token usage is right and above zero, shape (n,)."""
    found = np.zeros(normalized.table.num_rows, np.bool_)
    for meter, values in normalized.quantities.items():
        if meter.startswith("tokens."):
            found |= np.asarray(pc.fill_null(plain(values), 0)) > 0
    right: Mask = found & np.asarray(pc.is_null(plain(normalized.table["invalid"])))
    return right


def silent(normalized: Normalized) -> Mask:
    """Model calls that tell no usage at all, shape (n,): roll-ups where a call below tells any.

    A peer's span that lost it, or a wrapper's. One that tells a fee and no tokens keeps its fee. Bytes that went over
    the network are no usage of a model.
    """
    found: Mask = np.array(pc.equal(plain(normalized.table["kind"]), "inference"), np.bool_)
    for meter, values in normalized.quantities.items():
        if METERS[meter].component == "network":
            continue
        found &= ~np.asarray(pc.is_valid(plain(values)))
    return found


class Pipeline:
    """Everything behind the journal.

    Args:
        journal: where batches come from and are released to.
        writer: puts tables into the store, retrying while it is away.
        engine: prices.
        settings: see `Settings`.
        counters: shared by all stages.
    """

    def __init__(
        self, journal: Journal, writer: Writer, engine: PriceEngine, settings: Settings, counters: Counters
    ) -> None:
        self.journal, self.writer, self.engine = journal, writer, engine
        self.settings, self.counters = settings, counters
        self.assembler = Assembler()
        self.seed = new_seed()
        self._owed: list[dict[str, Any]] = []
        self.sampler = TailSampler(
            settings.keep,
            wait_s=settings.decision_wait_s,
            timeout_s=settings.decision_timeout_s,
            max_bytes=settings.max_pending_bytes,
        )

    def use(self, engine: PriceEngine) -> None:
        """Price what comes from now on with another engine; may be called from any thread."""
        # A batch is charged in one call, so it never has prices of two books.
        self.engine = engine

    def keep(self, folder: Path, store: str) -> None:
        """Put down what is known of recent spans, for the next process; see `tollspan.processor.window`."""
        window.save(folder, store, Window(self.assembler, self._owed, self.seed))

    def resume(self, folder: Path, store: str) -> None:
        """Take up what the process before knew; before the first batch."""
        found = window.load(folder, store)
        if found is not None:
            self.assembler, self._owed, self.seed = found
            self.counters.add("assemble.resumed")

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; then finish what the journal holds and decide every open trace."""
        while not stop.is_set():
            try:
                self.step(self.settings.linger_s)
            except Exception:
                # A fault of ours: what it touched stays in the journal, and the line goes on.
                log.exception("the pipeline met a fault of its own")
                self.counters.add("pipeline.faults")
                stop.wait(1.0)
        while self.step(0.0):
            pass
        self._settle(self.sampler.tick(time.monotonic(), everything=True))

    def step(self, timeout_s: float) -> bool:
        """Take one batch, if one comes within ``timeout_s``, and decide what is due. True if there was a batch."""
        batch = self.journal.next_batch(
            self.settings.batch_bytes, timeout_s, linger=min(timeout_s, self.settings.linger_s)
        )
        if batch is not None:
            self._guarded(batch)
        self._settle(self.sampler.tick(time.monotonic()))
        return batch is not None

    def _guarded(self, batch: Batch) -> None:
        """Process a batch whole or, where that fails, what of it can be."""
        source = _Source(batch)
        payloads = list(batch.payloads)
        # The journal has them; a batch that waits seconds for decisions need not hold them in memory as well.
        batch.payloads.clear()
        try:
            self._divide(source, batch.token, payloads)
        except StoreUnavailable:
            # The writer gives up on an unreachable store only when it is told to stop: the journal has the batch.
            log.warning("store still away at shutdown; batch %s stays in the journal", batch.token)
            self.counters.add("pipeline.left_in_journal")
            return
        source.complete = True
        self._release(source)

    def _divide(self, source: _Source, token: str, payloads: list[bytes]) -> None:
        """Process payloads; if that fails, halve them until what cannot be processed stands alone, and set it aside.

        Half a batch has a token of its own: the store must not take it for the whole.
        """
        try:
            self._process(source, token, payloads)
        except StoreUnavailable:
            raise
        except Exception as error:
            if len(payloads) > 1:
                log.warning("batch %s cannot be processed whole (%s); trying its halves", token, error)
                half = len(payloads) // 2
                self._divide(source, f"{token}.0", payloads[:half])
                self._divide(source, f"{token}.1", payloads[half:])
                return
            log.exception("a request of batch %s cannot be processed", token)
            self._set_aside(token, payloads[0])

    def _set_aside(self, token: str, payload: bytes) -> None:
        """Keep a request that nothing can be done with, out of the way of the others; the next start tries it again."""
        folder = self.journal.directory / SET_ASIDE
        folder.mkdir(exist_ok=True)
        path = folder / f"{token}.otlp"
        with path.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        log.error("its spans are kept in %s and tried again at the next start", path)
        self.counters.add("pipeline.set_aside")

    def take_back(self) -> None:
        """Bring what an earlier run set aside into the line again; a newer version may know what to do with it."""
        for path in sorted((self.journal.directory / SET_ASIDE).glob("*.otlp")):
            try:
                self.journal.append(path.read_bytes()).wait()
            except JournalError as error:
                # No room now: the file stays for the next start, and the worker goes on.
                log.warning("%s cannot be taken back yet: %s", path, error)
                return
            path.unlink()
            self.counters.add("pipeline.taken_back")

    def _release(self, source: _Source) -> None:
        if source.complete and not source.waiting:
            self.journal.release(source.batch)

    def _process(self, source: _Source, token: str, payloads: list[bytes]) -> None:
        received = sum(map(len, payloads))
        decoded = decode(payloads)
        if not len(decoded):
            self._count_decoded(decoded)
            return
        now = time.monotonic()
        normalized = normalize(decoded, received_ns=time.time_ns())
        table = normalized.table
        trace = words(table["trace_id"], 2)
        traces = trace_keys(trace, self.seed)
        spans = span_keys(traces, words(table["span_id"], 1)[:, 0], self.seed)
        parent = words(table["parent_span_id"], 1)[:, 0]
        root = parent == 0
        tokens = np.asarray(table["token_bearing"]) | silent(normalized)
        embeddings = np.asarray(pc.fill_null(pc.equal(plain(table["operation"]), "embeddings"), False))
        # What stands elsewhere accounts for nobody's bill, or a call with such a span beneath it would have none.
        elsewhere = np.asarray(pc.fill_null(plain(table["elsewhere"]), False))
        rollups, announced = self.assembler.mark(
            spans,
            span_keys(traces, parent, self.seed),
            root,
            tokens,
            now,
            used=used(normalized) & ~elsewhere,
            embeddings=embeddings,
        )
        rollups |= elsewhere

        charged = charge(normalized, rollups, self.engine)
        ledger = charged.ledger
        late = self.assembler.corrections(announced, ledger.schema)
        if late is not None:
            # Owed until written: a batch that fails is marked again, and its children are then no news.
            self._owed.extend(late.to_pylist())
        billed = (tokens & ~rollups)[charged.rows]
        self.assembler.remember(billing_keys(spans, embeddings)[charged.rows], ledger, billed, now)
        # Rows owed from another try take this batch's column types: which are dictionaries differs between batches.
        owed = pa.Table.from_pylist(self._owed, schema=ledger.schema)
        self._write(token, pa.concat_tables([ledger, owed]) if self._owed else ledger, None, None)
        # Counted once written: a batch that is divided comes through here again.
        self._count_decoded(decoded)
        self._count(charged)
        self._owed.clear()

        held = self._hold(decoded, normalized, charged, root, received)
        states = decoded.spans["trace_state"]
        chance, incoming = randomness(plain(states), trace)
        self.sampler.offer(
            Pending(
                source=source,
                bodies=held,
                rows=np.arange(len(decoded), dtype=np.int64),
                trace=traces,
                span=spans,
                randomness=chance,
                incoming=incoming,
                root=root,
                error=np.asarray(held.facts["error"]),
                arrived=now,
                nbytes=held.nbytes,
            )
        )
        source.waiting += 1

    def _hold(self, decoded: Decoded, normalized: Normalized, charged: Charged, root: Any, received: int) -> Held:
        table = normalized.table
        row_of = np.full(len(decoded), -1, np.int64)
        row_of[charged.rows] = np.arange(len(charged.rows))
        at = pa.array(row_of, mask=row_of < 0)
        facts = pa.table(
            {
                "trace_id": plain(table["trace_id"]),
                "start_ns": plain(table["start_ns"]),
                "end_ns": plain(table["end_ns"]),
                "root": pa.array(root),
                "error": pc.fill_null(pc.equal(plain(table["span_status"]), "error"), False),
                "name": plain(decoded.spans["name"]),
                "service": plain(table["service"]),
                "tenant": plain(table["tenant"]),
                "cost": plain(charged.ledger["cost"]).take(at),
                "cost_status": pc.cast(plain(charged.ledger["cost_status"]), pa.string()).take(at),
            }
        )
        return Held(decoded, facts, received // max(len(decoded), 1))

    def _settle(self, decided: Round) -> None:
        """Write what a round decided, then release the batches that wait for nothing more."""
        if decided.decisions:
            kept = [t for d in decided.decisions if (t := self._kept(d)) is not None]
            spans = pa.concat_tables(kept, promote_options="permissive") if kept else None
            summaries = summarize(decided.decisions, decided.traces, self.engine)
            self.counters.add("sampled.traces", decided.traces)
            self.counters.add("sampled.kept_traces", int(pc.sum(summaries["kept"]).as_py() or 0))
            self.counters.add("sampled.spans", sum(len(d.rows) for d in decided.decisions))
            self.counters.add("sampled.kept_spans", spans.num_rows if spans is not None else 0)
            try:
                # These rows replace or merge with themselves when they come again, so the token is only for retries.
                self._write(uuid.uuid4().hex, None, spans, summaries)
            except StoreError:
                log.exception("%d kept spans cannot be written; their batches stay in the journal", len(kept))
                self.counters.add("pipeline.unwritten_rounds")
                return
        for source in decided.finished:
            source.waiting -= 1
            self._release(source)

    def _kept(self, decision: Decision) -> pa.Table | None:
        """Bodies of the kept rows of one batch."""
        keep = (decision.reason != DROPPED) & ~decision.duplicate
        rows = decision.rows[keep]
        if not len(rows):
            return None
        held: Held = decision.bodies
        thresholds, codes = decision.threshold[keep], decision.reason[keep].astype(np.int64)
        levels, level = np.unique(thresholds, return_inverse=True)
        facts = held.facts.take(pa.array(rows))
        table = bodies(
            held.decoded,
            rows,
            {
                "SamplingThreshold": pa.array([encode(int(v)) for v in levels]).take(pa.array(level)),
                "AdjustedCount": pa.array([adjusted_count(int(v)) for v in levels]).take(pa.array(level)),
                "KeepReason": pa.array(list(REASONS)).take(pa.array(codes)),
                "Cost": plain(facts["cost"]),
                "CostStatus": pc.fill_null(plain(facts["cost_status"]), ""),
            },
        )
        at = table.column_names.index("TraceState")
        return table.set_column(at, "TraceState", stamp_column(table["TraceState"], thresholds))

    def _write(self, token: str, ledger: pa.Table | None, spans: pa.Table | None, traces: pa.Table | None) -> None:
        for attempt in range(1, STORE_ATTEMPTS + 1):
            try:
                self.writer.write(token, ledger, spans, traces)
                return
            except StoreUnavailable:
                raise
            except StoreError as error:
                if attempt == STORE_ATTEMPTS:
                    raise
                log.warning("store refused %s (attempt %d): %s", token, attempt, error)
                time.sleep(0.2 * attempt)

    def _count_decoded(self, decoded: Decoded) -> None:
        self.counters.add("decoded.spans", len(decoded))
        self.counters.add("decoded.malformed", len(decoded.malformed))
        for reason, count in decoded.rejected.items():
            self.counters.add(f"rejected.{reason}", count)

    def _count(self, charged: Charged) -> None:
        self.counters.add("ledger.rows", charged.ledger.num_rows)
        self.counters.add("ledger.corrections", len(self._owed))
        counts = pc.value_counts(pc.cast(plain(charged.ledger["cost_status"]), pa.string()))
        for entry in counts.to_pylist():
            self.counters.add(f"priced.{entry['values']}", entry["counts"])
