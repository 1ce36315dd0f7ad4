"""Recall: what the line knows of recent spans, in memory and on disk, and what it does with it.

In: decoded spans of a batch; once they are priced, the `Record` of what they add. Out: the spans that are new
(`recent`), roll-ups among them (`assemble`), and rows of earlier batches written again as roll-ups (`rollups`). All of
it outlives the process by `recent_log`. Used by the pipeline's thread alone.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tollspan.processor.assemble import CONTENT, NO_PARENT, Assembler, billing_keys
from tollspan.processor.counters import Counters
from tollspan.processor.decode import Decoded
from tollspan.processor.errors import StoreError, StoreUnavailable
from tollspan.processor.identity import U64, Mask, Rows, new_seed
from tollspan.processor.journal import Batch, Journal
from tollspan.processor.recent import ConflictLog, Keys, RecentSettings, in_order, sift
from tollspan.processor.recent_log import RecentLog, Record
from tollspan.processor.rollups import corrected
from tollspan.processor.write import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identities:
    """Who the spans of a batch are, arrays of shape (n,) unless it says otherwise.

    Attributes:
        trace: both words of the trace id, shape (n, 2); span: the span id.
        traces, keys, parents: keys of trace, span and parent (see `identity`); a root's parent key says nothing.
        root: the span has no parent.
        content: see `recent.contents`.
        order: rows by ascending key.
    """

    trace: U64
    span: U64
    traces: U64
    keys: U64
    parents: U64
    root: Mask
    content: U64
    order: Rows


class Recall:
    """Recent spans.

    Args:
        settings: how much is remembered.
        writer: the store, where rows that have to be corrected are read and written.
        counters: counts ``recent.*``, ``ledger.corrections`` and ``assemble.corrections_refused``.
    """

    def __init__(self, settings: RecentSettings, writer: Writer, counters: Counters) -> None:
        self.settings, self.writer, self.counters = settings, writer, counters
        self.assembler = Assembler(settings.window_s, settings.max_spans)
        self.seed = new_seed()
        self._log: RecentLog | None = None
        self._conflicts = ConflictLog()
        # Where rows stand that have to be corrected and are not yet.
        self._owed: U64 = np.zeros((0, 4), np.uint64)
        # When the youngest batch was received; the clock of what is remembered.
        self._now_ns = 0

    def open(self, folder: Path, journal: Journal, store: str) -> list[Mapping[str, Any]]:
        """Take up what the processes before knew, and put down from now on what this one learns; before the first
        batch. Without it nothing outlives the process.

        Args:
            folder: see `recent_log`.
            journal: as it was opened.
            store: URL of the store.

        Returns:
            Accounts of batches that come again, as an earlier process meant to write them.
        """
        settings = self.settings
        self._log = RecentLog(folder, journal.id, store, settings.window_s, settings.max_bytes, self.counters)
        known = self._log.open(journal.cursor)
        self.seed = known.seed
        # Most are corrected; one whose correction was on its way when the process died is not.
        self._owed = self.assembler.recall(known.records)
        if known.records:
            self._now_ns = max(record.received_ns for record in known.records)
            self.counters.add("recent.recalled", sum(len(record.keys) for record in known.records))
        return known.attempts

    def new(self, decoded: Decoded) -> tuple[Decoded, Identities, dict[str, int]]:
        """The spans of a batch that did not come before; who they are; and how many came before, where any did."""
        spans, seen = decoded.spans, dict[str, int]()
        who = Keys(decoded, self.seed)
        order = in_order(who.keys)
        sifted = sift(self.assembler.spans, CONTENT, who.keys, who.content, order)
        if len(sifted.fresh) < len(decoded):
            if len(sifted.conflicts):
                rows = pa.array(sifted.conflicts)
                self._conflicts.tell(spans["trace_id"].take(rows), spans["span_id"].take(rows))
            seen = {"duplicates": sifted.duplicates, "conflicts": len(sifted.conflicts)}
            decoded = decoded.select(sifted.fresh)
            who.select(sifted.fresh)
            order = in_order(who.keys)
        root = who.parent == 0
        return (
            decoded,
            Identities(who.trace, who.span, who.traces, who.keys, who.parents, root, who.content, order),
            seen,
        )

    def late(self, ends: U64, batch: Batch) -> Mask:
        """Which spans could have come before: they ended before everything that is remembered, or an earlier process
        had them, perhaps in another batch.

        Args:
            ends: ns since the epoch.
            batch: that they came in.
        """
        if batch.replayed:
            return np.ones(len(ends), np.bool_)
        return ends < np.uint64(max(0, self._since_ns(batch)))

    def record(
        self,
        batch: Batch,
        part: str,
        account: Mapping[str, Any],
        who: Identities,
        announced: U64,
        billed: Rows,
        embeddings: Mask,
        starts: U64,
    ) -> Record:
        """What a part of a batch adds, put down on disk (not synced) before its rows are written.

        Args:
            batch, part: of it.
            account: its account.
            who: its new spans.
            announced: from `Assembler.mark`.
            billed: rows of those that bear tokens and are billed.
            embeddings: which embed.
            starts: start times as in the ledger, ns.
        """
        if embeddings.any():
            keys = billing_keys(who.keys, embeddings)[billed]
            order = np.argsort(keys)
            keys, at = keys[order], billed[order]
        else:
            chosen = np.zeros(len(who.keys), np.bool_)
            chosen[billed] = True
            at = who.order[chosen.take(who.order)]
            keys = who.keys.take(at)
        parents = np.where(who.root | (who.keys == who.parents), NO_PARENT, who.parents)
        record = Record(
            place=batch.position,
            part=part,
            received_ns=batch.received_ns,
            since_ns=self._since_ns(batch),
            account=account,
            keys=who.keys.take(who.order),
            spans=_beside([parents, who.content], who.order),
            ancestors=announced,
            billed=keys,
            rows=_beside([starts, who.trace[:, 0], who.trace[:, 1], who.span], at),
        )
        if self._log is not None:
            self._log.append(record)
        return record

    def void(self, record: Record) -> None:
        """Its rows were refused."""
        if self._log is not None:
            self._log.void(record.place, record.part, record.received_ns)

    def learn(self, record: Record) -> int:
        """Take in what was written, and correct what it proves wrong; how many rows were corrected.

        Raises:
            StoreUnavailable: the store is away and it is time to stop.
        """
        self._now_ns = max(self._now_ns, record.received_ns)
        late = self.assembler.late(record.ancestors)
        self.assembler.learn(
            record.keys, record.spans, record.ancestors, record.billed, record.rows, self._now_ns / 1e9
        )
        return self._correct(late)

    def sync(self) -> None:
        """Make durable what was put down."""
        if self._log is not None:
            self._log.sync()

    def _since_ns(self, batch: Batch) -> int:
        return int(min(self.assembler.since * 1e9, max(self._now_ns, batch.received_ns)))

    def _correct(self, places: U64) -> int:
        """Write rows again as roll-ups, those that are owed from before with them."""
        places = np.concatenate([self._owed, places])
        if not len(places):
            return 0
        self._owed = places
        try:
            rows = corrected(self.writer.read, places)
            # They land on themselves, so the token is only for a repeat by the client.
            self.writer.put("ledger", rows, uuid.uuid4().hex)
        except StoreUnavailable:
            raise
        except StoreError as error:
            self.counters.add("assemble.corrections_refused")
            log.error("%d roll-ups that were found late cannot be corrected yet: %s", len(places), error)
            return 0
        self._owed = places[:0]
        self.counters.add("ledger.corrections", rows.num_rows)
        return int(rows.num_rows)


def _beside(columns: Sequence[U64], rows: Rows) -> U64:
    """Some rows of columns that stand beside each other, shape (rows, columns)."""
    out = np.empty((len(rows), len(columns)), np.uint64)
    for place, column in enumerate(columns):
        out[:, place] = column.take(rows)
    return out
