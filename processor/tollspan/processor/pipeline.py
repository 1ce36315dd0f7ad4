"""The line: journal batches in, rows in ClickHouse out.

    batch ─▶ decode ─▶ normalize ─▶ assemble ─▶ charge ─▶ write ledger
                                                    └▶ sample ─▶ write spans and traces ─▶ release
                                                          └▶ forward

One thread runs it. A batch's ledger rows are written under the token that the journal froze; its place in the journal
is released when none of its spans waits for a sampling decision any more, so a crash replays whatever bodies were
still undecided, and the ledger rows that come again land on themselves.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine
from tollspan.pricing.arrays import integers, validity
from tollspan.pricing.meters import METERS
from tollspan.processor.accounts import Accounts, batch_number, figures, late_rows
from tollspan.processor.bodies import bodies, by_number, together
from tollspan.processor.charge import Charged, charge, plain, true
from tollspan.processor.counters import Counters, Laps
from tollspan.processor.decode import Decoded, decode
from tollspan.processor.decode.tables import Stored
from tollspan.processor.errors import ConfigError, JournalError, StoreError, StoreUnavailable
from tollspan.processor.forward.costs import COLUMNS as FORWARDED
from tollspan.processor.forward.costs import Costs
from tollspan.processor.identity import U64, Mask, Rows
from tollspan.processor.journal import Batch, Journal
from tollspan.processor.normalize import Normalized, normalize
from tollspan.processor.pivot import says
from tollspan.processor.quarantine import FOLDER as QUARANTINE
from tollspan.processor.quarantine import SET_ASIDE, Entry, Quarantine, halves
from tollspan.processor.recall import Identities, Recall
from tollspan.processor.recent import RecentSettings
from tollspan.processor.sample import (
    NEVER,
    REASONS,
    RULES,
    Arrived,
    Memory,
    Pending,
    Plain,
    Round,
    Spill,
    TailSampler,
    adjusted_count,
    explicit,
    failed,
)
from tollspan.processor.sample import encode_threshold as encode
from tollspan.processor.sample.content import content_bytes
from tollspan.processor.sample.telemetry_cost import RETENTION_S, Part, Rules, Shares, arrived, row_bytes, unclaimed
from tollspan.processor.summarize import CONTENT, PIECE_BYTES, Facts, Held, Kept, Sizes, kept_of, summarize
from tollspan.processor.tracestate import randomness
from tollspan.processor.tracestate import silent as silent_states
from tollspan.processor.unknown import Unknown
from tollspan.processor.values import Between
from tollspan.processor.write import Writer

if TYPE_CHECKING:
    from tollspan.processor.forward.forwarder import Forwarder, Spooled

log = logging.getLogger(__name__)

STORE_ATTEMPTS: Final = 3
"""Times a batch is offered to a store that refuses it for good: then parts of it once, and a span that stands alone
twice."""

LAST_FAULTS: Final = 8
"""Faults of ours after which a drain ends; what is left comes again at the next start."""

SAMPLING: Final = "sampling"
"""Folder of the journal for decisions that are remembered, and for bodies that find no room in memory."""

ROUND_S: Final = 0.5
ROUND_SHARE: Final = 0.1
"""Seconds between two rounds of decisions while batches come one after the other, and which share of the wait for a
decision that may be: what a round costs beside its spans (inserts, mostly) is shared by all that it decides."""

ACCEPTED_S: Final = 600.0
"""Age from which on a row that the store has taken is not shown to it again when it refuses others."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the line batches and samples.

    Attributes:
        keep: share of error-free traces whose bodies are kept.
        batch_bytes: payload bytes in one batch at the most.
        linger_s: how long a small batch waits for more.
        compile_bytes: payload bytes in one batch from which on the decoder is compiled: it takes 120 MiB of memory, and
            then a fraction of the CPU for each span; 0 compiles it at the start.
        decision_wait_s: from the arrival of a trace's root to its sampling decision.
        decision_timeout_s: from a trace's first span to its decision where no root comes.
        quiet_timeout_s: how long a trace whose root has not come may be quiet until it counts as over; its spans are
            decided in steps meanwhile, each judged with what is known of the ones before.
        max_trace_spans: spans of one trace that wait for one decision; a longer trace is decided in steps.
        max_pending_bytes: memory of spans that wait for a decision; what is beyond waits on disk. Their bodies stay in
            the journal, where the compiled decoder has read them.
        max_pending_disk_bytes: disk space for them, beside the journal; beyond it the oldest are decided early.
        max_pending_spans: spans that wait, about 70 bytes of memory each; beyond it the oldest are decided early.
        remembered_traces: decisions that are remembered for late spans, also over a restart.
    """

    keep: Annotated[float, Between(0, 1)] = 0.1
    batch_bytes: int = 24 << 20
    linger_s: float = 0.25
    compile_bytes: int = 256 << 10
    decision_wait_s: float = 5.0
    decision_timeout_s: float = 30.0
    quiet_timeout_s: float = 900.0
    max_trace_spans: int = 100_000
    max_pending_bytes: int = 512 << 20
    max_pending_disk_bytes: int = 8 << 30
    max_pending_spans: int = 10_000_000
    remembered_traces: int = 1_000_000


class _Told(NamedTuple):
    """What samplers before us say of n spans.

    Attributes:
        randomness: of each one's trace, see `explicit`.
        incoming, slim: as in `Facts`.
    """

    randomness: U64
    incoming: U64 | None
    slim: Mask | None


_NOBODY: Final = np.zeros(1, np.bool_)


@dataclass(slots=True)
class _Source:
    """A journal batch whose parts wait for sampling decisions.

    Attributes:
        batch: to be released when nothing of it waits.
        waiting: parts whose spans are not all decided and written.
        complete: every part is in the ledger, or set aside.
        parts: what the telemetry of its parts comes to.
    """

    batch: Batch
    waiting: int = 0
    complete: bool = False
    parts: list[Part] = field(default_factory=list)


def used(normalized: Normalized) -> Mask:
    """Spans whose token usage is right and above zero, shape (n,)."""
    found = np.zeros(len(normalized), np.bool_)
    for meter, values in normalized.quantities.items():
        if meter.startswith("tokens."):
            column = plain(values)
            found |= (integers(column) > 0) & validity(column)
    right: Mask = found & ~validity(plain(normalized.columns["invalid"]))
    return right


def silent(normalized: Normalized) -> Mask:
    """Model calls that tell no usage at all, shape (n,): roll-ups where a call below tells any.

    A peer's span that lost it, or a wrapper's. One that tells a fee and no tokens keeps its fee. Bytes that went over
    the network are no usage of a model.
    """
    found = says(plain(normalized.columns["kind"]), "inference")
    for meter, values in normalized.quantities.items():
        if METERS[meter].component == "network":
            continue
        found &= ~validity(plain(values))
    return found


def _embeddings(normalized: Normalized) -> Mask:
    """Spans that embed, shape (n,)."""
    if normalized.shapes is None:
        return says(plain(normalized.columns["operation"]), "embeddings")
    return normalized.shapes.spread(says(normalized.said["operation"], "embeddings"))


def _costs(costs: Costs, rows: Rows) -> tuple[Any, Any]:
    """Cost and its status of some spans; null and '' of one that is not in the ledger."""
    at = costs.rows[rows]
    row = pa.array(at, mask=at < 0)
    status = pc.fill_null(pc.cast(plain(costs.ledger["cost_status"]).take(row), pa.string()), "")
    return plain(costs.ledger["cost"]).take(row), status


_Tally = tuple[Shares, Rows, Sizes, Sizes, Sizes, Rows]
"""Kept spans of one batch, for its telemetry: their rows there, and the arguments of `Shares.kept` behind ``of``."""


def _tallies(kept: Kept, sizes: Sizes) -> list[_Tally]:
    content = content_bytes(kept.spans)
    return [
        (held.shares, rows, sizes[part], content[part], kept.removed[part], kept.group[part])
        for held, rows, part in kept.by_origin()
        if held.shares is not None
    ]


def _parts(payloads: list[bytes]) -> list[list[bytes]] | None:
    """Payloads in two parts: by requests, or by the spans of the only one; None where a single span is left."""
    if len(payloads) > 1:
        half = len(payloads) // 2
        return [payloads[:half], payloads[half:]]
    both = halves(payloads[0])
    return None if both is None else [[both[0]], [both[1]]]


class Pipeline:
    """Everything behind the journal.

    Args:
        journal: where batches come from and are released to.
        writer: puts tables into the store, retrying while it is away.
        engine: prices.
        settings: see `Settings`.
        counters: shared by all stages.
        quarantine: for spans that nothing can be done with; the journal's own when None.
        recent: how much is known of recent spans.
    """

    def __init__(
        self,
        journal: Journal,
        writer: Writer,
        engine: PriceEngine,
        settings: Settings,
        counters: Counters,
        quarantine: Quarantine | None = None,
        recent: RecentSettings | None = None,
    ) -> None:
        self.journal, self.writer, self.engine = journal, writer, engine
        self.settings, self.counters = settings, counters
        self.quarantine = quarantine or Quarantine(journal.directory / QUARANTINE, counters)
        self._attempts = STORE_ATTEMPTS
        # A row that the store has taken, with its token, and when.
        self._accepted: tuple[str, pa.Table] | None = None
        self._accepted_at = 0.0
        self.recent = Recall(recent or RecentSettings(), writer, counters)
        self.accounts = Accounts(writer, counters)
        self.unknown = Unknown(counters)
        self.forwarder: Forwarder | None = None
        """Sends kept spans on; set before `run`."""
        self.laps = Laps(counters, "pipeline.stage.seconds")
        self._finished: list[_Source] = []
        self.clock: Callable[[], float] = time.monotonic
        """What the sampler goes by, in seconds."""
        self._next_round = -math.inf
        self.retention_s = RETENTION_S
        """How long kept spans are stored, and paid for; set before `run`."""
        self.sampler = TailSampler(
            Plain(settings.keep),
            wait_s=settings.decision_wait_s,
            timeout_s=settings.decision_timeout_s,
            quiet_s=settings.quiet_timeout_s,
            max_bytes=settings.max_pending_bytes,
            max_spans=settings.max_pending_spans,
            max_trace_spans=settings.max_trace_spans,
            spill=Spill(journal.directory / SAMPLING, settings.max_pending_disk_bytes, counters),
            strip=Held.stripped,
            memory=Memory(settings.remembered_traces, counters),
            counters=counters,
        )

    def use(self, engine: PriceEngine) -> None:
        """Price what comes from now on with another engine; may be called from any thread."""
        # A batch is charged in one call, so it never has prices of two books.
        self.engine = engine

    def tune(self, settings: Settings) -> None:
        """Sample as other settings say; may be called from any thread. How batches are cut does not change."""
        self.sampler.tune(settings.keep, settings.decision_wait_s, settings.decision_timeout_s)

    def recall(self, folder: Path, store: str) -> None:
        """Take up what the processes before knew of recent spans, and which traces they decided; before the first
        batch. See `Recall.open`."""
        self.sampler.memory.open(self.journal.directory / SAMPLING)
        self.accounts.add_attempts(self.recent.open(folder, self.journal, store))

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; then finish what the journal holds and decide every open trace."""
        while not stop.is_set():
            if self._stepped(self.settings.linger_s) is None:
                stop.wait(1.0)
        faults = 0
        while faults < LAST_FAULTS and (more := self._stepped(0.0)) is not False:
            faults += more is None
        self._decide(everything=True)
        self._let_go(everything=True)
        self.journal.save()
        self.sampler.close()

    def _stepped(self, timeout_s: float) -> bool | None:
        """As `step`; None where a fault of ours came in between: what it touched stays in the journal, and the line
        goes on."""
        try:
            return self.step(timeout_s)
        except Exception:
            log.exception("the pipeline met a fault of its own")
            self.counters.add("pipeline.faults")
            return None

    def step(self, timeout_s: float) -> bool:
        """Take one batch, if one comes within ``timeout_s``, and decide what is due. True if there was a batch."""
        batch = self.journal.next_batch(
            self.settings.batch_bytes, timeout_s, linger=min(timeout_s, self.settings.linger_s)
        )
        if batch is not None:
            self._guarded(batch)
        if batch is None or self.clock() >= self._next_round or self.sampler.short:
            self._decide()
            self._next_round = self.clock() + min(ROUND_S, ROUND_SHARE * self.sampler.wait_s)
        self._let_go()
        return batch is not None

    def _decide(self, everything: bool = False) -> None:
        """Settle what is due, some hundred thousand spans at a time."""
        more = True
        while more:
            self.laps.start()
            decided = self.sampler.tick(self.clock(), everything=everything)
            self._settle(decided)
            more = decided.more

    def _guarded(self, batch: Batch) -> None:
        """Process a batch whole or, where that fails, what of it can be."""
        source = _Source(batch)
        payloads = list(batch.payloads)
        # The journal has them; a batch that waits seconds for decisions need not hold them in memory as well.
        batch.payloads.clear()
        try:
            self._divide(source, batch.token, payloads)
        except StoreUnavailable as error:
            # The writer gives up on an unreachable store only when it is told to stop: the journal has the batch.
            log.warning("batch %s stays in the journal: %s", batch.token, error)
            self.counters.add("pipeline.left_in_journal")
            return
        source.complete = True
        self._release(source)

    def _divide(self, source: _Source, token: str, payloads: list[bytes], whole: bool = True) -> None:
        """Process payloads; if that fails, halve them until what cannot be processed stands alone, and set it aside.

        First requests are halved, then the spans of the one that fails. A part has a token of its own, which is the
        same every time: the store must not take it for the whole, and has it once when the batch comes again.

        Raises:
            StoreUnavailable: it is time to stop; or what cannot be processed cannot be set aside either.
        """
        parts = None if whole else _parts(payloads)
        self._attempts = STORE_ATTEMPTS if whole else 2 if parts is None else 1
        while True:
            try:
                self._process(source, token, payloads)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001  (whatever it is, the others go on)
                parts = parts or _parts(payloads)
                if parts is not None:
                    log.warning("batch %s cannot be processed whole (%s); trying its halves", token, error)
                    for number, part in enumerate(parts):
                        self._divide(source, f"{token}.{number}", part, whole=False)
                elif isinstance(error, StoreError) and not self._takes_others():
                    # Somebody has to mend the store; until then it is no different from one that is away.
                    self.counters.add("pipeline.held")
                    log.error("the store refuses what it took before: %s Everything waits until it is mended.", error)
                    self.writer.rest()
                    continue
                else:
                    self._set_aside(source, token, payloads[0], error)
            return

    def _takes_others(self) -> bool:
        """Whether the store takes a row that it took before; under its token it changes nothing."""
        if self._accepted is None:
            return True
        token, row = self._accepted
        try:
            self.writer.write(token, row, None, None)
        except StoreUnavailable:
            raise
        except StoreError:
            return False
        return True

    def _set_aside(self, source: _Source, token: str, payload: bytes, error: Exception) -> None:
        """Keep a request that nothing can be done with, out of the way of the others."""
        reason = "store_refused" if isinstance(error, StoreError) else "fault"
        if reason == "fault":
            log.error("a span of batch %s cannot be processed", token, exc_info=error)
        spans = self._quarantine(token, payload, reason, str(error) or type(error).__name__).spans or 0
        self.counters.add("pipeline.set_aside")
        self.accounts.add(self._account(source.batch, token, 1) | {"spans": spans, "set_aside": spans})

    def _quarantine(self, token: str, payload: bytes, reason: str, detail: str) -> Entry:
        entry = self.quarantine.put(payload, reason, detail=detail, token=token)
        if entry is None:
            # It was acknowledged, so it stays in the journal, and with it its batch.
            raise StoreUnavailable("What cannot be processed finds no room in quarantine.")
        log.error("what cannot be processed is kept as %s: see `tollspan quarantine`", entry.id)
        return entry

    def _account(self, batch: Batch, token: str, requests: int) -> dict[str, Any]:
        """An account of a part of a batch, with no figures yet."""
        part = token[len(batch.token) :]
        return self.accounts.open(batch.token, part, batch.position, batch.received_ns, self.journal.id, requests)

    def take_back(self) -> None:
        """Bring what an earlier run set aside into the line again; a newer version may know what to do with it."""
        try:
            for path in sorted((self.journal.directory / SET_ASIDE).glob("*.otlp")):
                self.journal.append(path.read_bytes()).wait()
                path.unlink()
                self.counters.add("pipeline.taken_back")
            again = [entry for entry in self.quarantine.entries() if entry.retry]
            for entry in again[: self.quarantine.limits.retry_at_start]:
                try:
                    payload = self.quarantine.payload(entry)
                except ConfigError as error:
                    log.error("%s", error)
                    continue
                self.journal.append(payload).wait()
                self.quarantine.drop(entry)
                self.counters.add("pipeline.taken_back")
        except (JournalError, OSError) as error:
            # No room now: the rest stays where it is, and the worker goes on.
            log.warning("what was set aside cannot be taken back yet: %s", error)

    def _release(self, source: _Source) -> None:
        if source.complete and not source.waiting:
            self.accounts.add_telemetry(source.parts)
            self._finished.append(source)

    def _let_go(self, everything: bool = False) -> None:
        """Release batches, of which nothing may be needed again: their accounts and what they taught are durable."""
        # Several batches share the inserts; what is finished can wait as long as its accounts do.
        if not (everything or self.accounts.due or (self._finished and not self.accounts.waiting)):
            return
        try:
            self.accounts.flush(self.engine, self.retention_s)
        except StoreUnavailable as error:
            log.warning("%d batches stay in the journal: %s", len(self._finished), error)
            return
        self.recent.sync()
        self.sampler.memory.sync()
        for source in self._finished:
            self.journal.release(source.batch)
        self._finished.clear()
        with contextlib.suppress(StoreUnavailable):
            self.unknown.flush(self.writer, everything)

    def _process(self, source: _Source, token: str, payloads: list[bytes]) -> None:
        batch = source.batch
        part = token[len(batch.token) :]
        account = self._account(batch, token, len(payloads))
        received = sum(map(len, payloads))
        self.laps.start()
        everything = decode(payloads)
        rejected = sum(everything.rejected.values())
        account |= {"spans": len(everything) + rejected, "rejected": rejected, "malformed": len(everything.malformed)}
        for index in everything.malformed:
            # Acknowledged, and no parser reads it: a fault of ours, so it is kept as it came.
            self._quarantine(token, payloads[index], "malformed", "no decoder reads it")
        self.laps.lap("decode")
        decoded, who, seen = self.recent.new(everything)
        account |= seen
        self.laps.lap("sift")
        if not len(decoded):
            self._count_decoded(everything, received, seen)
            self.accounts.add(account)
            source.parts.append(unclaimed(batch.token, part, self.accounts.attempt, batch.received_ns, received))
            return
        now = self.clock()
        normalized = normalize(decoded, received_ns=batch.received_ns)
        self.unknown.see(decoded, normalized, batch.received_ns)
        self.laps.lap("normalize")
        table = normalized.columns
        tokens = true(plain(table["token_bearing"])) | silent(normalized)
        embeddings = _embeddings(normalized)
        # What stands elsewhere accounts for nobody's bill, or a call with such a span beneath it would have none.
        elsewhere = true(plain(table["elsewhere"]))
        rollups, announced = self.recent.assembler.mark(
            who.keys,
            who.parents,
            who.root,
            tokens,
            used=used(normalized) & ~elsewhere,
            embeddings=embeddings,
            order=who.order,
        )
        rollups |= elsewhere
        self.laps.lap("assemble")

        charged = charge(normalized, rollups, self.engine, batch_number(batch.token))
        ledger = charged.ledger
        account |= figures(ledger, self.engine.book_version)
        late = self.recent.late(np.asarray(decoded.spans["end_ns"])[charged.rows], batch)
        account["late"] = int(np.count_nonzero(late))
        self.laps.lap("charge")
        told = self._told(decoded, normalized, who)
        telemetry, shares = arrived(
            batch.token, part, self.accounts.attempt, batch.received_ns, received, everything, decoded, table
        )
        # A part's payloads do not stand in the journal as they are here.
        held = self._hold(decoded, normalized, charged, who.root, told, shares, None if part else batch.stored)
        signs = self.sampler.look(Arrived(decoded, normalized, charged, who))
        billed = charged.rows[(tokens & ~rollups)[charged.rows]]
        starts = np.asarray(table["start_ns"]).astype(np.uint64)
        record = self.recent.record(batch, part, account, who, announced, billed, embeddings, starts)
        self.laps.lap("remember")
        try:
            self._write(token, ledger, None, None)
        except StoreUnavailable:
            raise
        except Exception:
            self.recent.void(record)
            raise
        self.laps.lap("write_ledger")
        account["corrections"] = self.recent.learn(record)
        # Counted once written: a batch that is divided comes through here again.
        self.accounts.add(account, late_rows(ledger, late))
        self._count_decoded(everything, received, seen)
        self._count(charged)
        if told.slim is not None:
            self.counters.add("sampled.slim_spans", int(np.count_nonzero(told.slim)))

        self.sampler.offer(
            Pending(
                source=source,
                bodies=held,
                trace=who.traces,
                ids=who.trace,
                span=who.keys,
                randomness=told.randomness,
                root=who.root,
                signs=signs,
                arrived=now,
                nbytes=held.nbytes,
            )
        )
        source.parts.append(telemetry)
        source.waiting += 1
        self.laps.lap("hold")

    def _told(self, decoded: Decoded, normalized: Normalized, who: Identities) -> _Told:
        """What samplers before us say of the spans."""
        states, table = plain(decoded.spans["trace_state"]), normalized.columns
        values, incoming = randomness(states, who.trace)
        slim: Mask | None = None
        # Those of a trace that came although its head rejected it stand for nobody, whole or slim.
        passed = validity(plain(table["slim"])) if "slim" in table.column_names else _NOBODY
        if passed.any():
            slim = np.asarray(pc.fill_null(plain(table["slim"]), False))
            incoming[passed] = NEVER
        elif silent_states(states):
            return _Told(values, None, None)
        elif not incoming.any():
            return _Told(explicit(values, who.trace), None, None)
        # A threshold above the trace's own randomness cannot be what the span was chosen by.
        odd = (incoming > values) & (incoming < np.uint64(NEVER))
        if odd.any():
            self.counters.add("sampling.inconsistent_th", int(np.count_nonzero(odd)))
            incoming[odd] = 0
        return _Told(explicit(values, who.trace), incoming, slim)

    def _hold(
        self,
        decoded: Decoded,
        normalized: Normalized,
        charged: Charged,
        root: Mask,
        told: _Told,
        shares: Shares,
        stored: Stored | None,
    ) -> Held:
        facts = Facts.of(normalized.columns, failed(decoded.spans), root, told.incoming, told.slim)
        columns = FORWARDED if self.forwarder else ("cost", "cost_status")
        costs = Costs.of(charged.ledger, charged.rows, len(decoded), columns)
        return Held(decoded.waiting(stored), facts, shares, costs)

    def _settle(self, decided: Round) -> None:
        """Write what a round decided, then release the batches that wait for nothing more."""
        if decided.decisions and not self._settled(decided):
            return
        for source in decided.finished:
            source.waiting -= 1
            self._release(source)

    def _settled(self, decided: Round) -> bool:
        """Whether what a round decided is written; if not, its batches stay in the journal."""
        self.laps.lap("sample")
        stored = np.zeros(decided.traces, np.int64)
        tables: list[pa.Table] = []
        tallies: list[_Tally] = []
        spooled: list[Spooled] = []
        count = waiting = 0
        try:
            for some in kept_of(decided.decisions):
                table = self._bodies(some)
                sizes = row_bytes(table)
                np.add.at(stored, some.group, sizes)
                tallies += _tallies(some, sizes)
                count += len(some.group)
                self.laps.lap("bodies")
                if self.forwarder is not None:
                    spooled.append(self.forwarder.keep([some]))
                    self.laps.lap("forward")
                tables.append(table)
                waiting += int(sizes.sum())
                del some, table
                if waiting >= PIECE_BYTES:
                    # A round of large bodies takes the memory of one piece, and not of all.
                    self._write_round(together(tables), None)
                    tables, waiting = [], 0
            summaries = summarize(decided, self.engine, stored)
            self.laps.lap("summarize")
            self._count_decided(decided, summaries, count)
            self._write_round(together(tables) if tables else None, summaries)
        except OSError:
            log.exception("spans that waited cannot be read again; their batches stay in the journal")
            self.counters.add("pipeline.unwritten_rounds")
            return False
        except StoreError:
            log.exception("kept spans cannot be written; their batches stay in the journal")
            self.counters.add("pipeline.unwritten_rounds")
            return False
        for each in spooled:
            # Durable before the batches that these spans came in are released.
            each.wait()
        self._tally(decided, tallies)
        self.laps.lap("tally")
        return True

    def _write_round(self, spans: pa.Table | None, summaries: pa.Table | None) -> None:
        # These rows replace or merge with themselves when they come again, so the token is only for retries.
        self._write(uuid.uuid4().hex, None, spans, summaries)
        self.laps.lap("write_bodies")

    @staticmethod
    def _tally(decided: Round, tallies: list[_Tally]) -> None:
        """Count what became of the spans into their batches' telemetry, by the rule that decided."""
        fates = decided.fates
        rules = Rules(fates.matched, fates.steered, fates.full)
        for each in decided.decisions:
            shares = each.bodies.shares
            if shares is not None:
                shares.decided(each.rows, rules, each.group)
        for shares, rows, *sizes in tallies:
            shares.kept(rows, rules, *sizes)

    @staticmethod
    def _bodies(kept: Kept) -> pa.Table:
        """Rows of ``spans``."""
        levels = pa.array(kept.threshold).dictionary_encode()
        level, thresholds = np.asarray(levels.indices), levels.dictionary.to_pylist()
        costs = [_costs(held.costs, rows) for held, rows in kept.origins]
        return bodies(
            kept.spans,
            {
                "SamplingThreshold": by_number(pa.array([encode(value) for value in thresholds], pa.string()), level),
                "AdjustedCount": pa.array(np.array([adjusted_count(value) for value in thresholds])[level]),
                "KeepReason": by_number(pa.array(REASONS), kept.reason),
                "KeepRule": by_number(pa.array(RULES), kept.reason),
                "Content": by_number(pa.array([CONTENT[kept.content]]), np.zeros(len(level), np.int32)),
                "Cost": pa.concat_arrays([cost for cost, _ in costs]),
                "CostStatus": pa.concat_arrays([status for _, status in costs]),
            },
        )

    def _count_decided(self, decided: Round, summaries: pa.Table, kept: int) -> None:
        count = self.counters.add
        count("sampled.traces", decided.traces)
        count("sampled.kept_traces", int(pc.sum(summaries["kept"]).as_py() or 0))
        count("sampled.spans", sum(len(d.rows) for d in decided.decisions))
        count("sampled.kept_spans", kept)
        # By rule: what it kept, and what it matched and chance then dropped.
        fates = decided.fates
        for number, traces in enumerate(np.bincount(fates.reason).tolist()):
            if number and traces:
                count(f"sampled.rule.{RULES[number]}", traces)
        for number, traces in enumerate(np.bincount(fates.matched[fates.reason == 0]).tolist()):
            if traces:
                count(f"sampled.dropped_by.{RULES[number] or 'none'}", traces)

    def _write(self, token: str, ledger: pa.Table | None, spans: pa.Table | None, traces: pa.Table | None) -> None:
        attempts = self._attempts if ledger is not None else STORE_ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                self.writer.write(token, ledger, spans, traces)
                if ledger is not None and ledger.num_rows and time.monotonic() - self._accepted_at > ACCEPTED_S:
                    # Copied: a slice would hold the whole batch.
                    self._accepted, self._accepted_at = (token, ledger.take(pa.array([0]))), time.monotonic()
                return
            except StoreUnavailable:
                raise
            except StoreError as error:
                if attempt == attempts:
                    raise
                log.warning("store refused %s (attempt %d): %s", token, attempt, error)
                time.sleep(0.2 * attempt)

    def _count_decoded(self, decoded: Decoded, received: int, seen: dict[str, int]) -> None:
        self.counters.add("decoded.spans", len(decoded))
        self.counters.add("decoded.bytes", received)
        self.counters.add("decoded.malformed", len(decoded.malformed))
        for name, count in seen.items():
            self.counters.add(f"recent.{name}", count)
        for reason, count in decoded.rejected.items():
            self.counters.add(f"rejected.{reason}", count)

    def _count(self, charged: Charged) -> None:
        self.counters.add("ledger.rows", charged.ledger.num_rows)
        status = plain(charged.ledger["cost_status"])
        if not pa.types.is_dictionary(status.type):
            status = status.dictionary_encode()
        states = status.dictionary.to_pylist()
        counts = np.bincount(np.asarray(status.indices), minlength=len(states)).tolist()
        for state, count in zip(states, counts, strict=True):
            if count:
                self.counters.add(f"priced.{state}", count)
