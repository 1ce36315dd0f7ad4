"""What spans of other libraries cost: the fixtures' spans through the whole line, and what the ledger then says."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.processor.counters import Counters
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

from .otlp_factory import START, resource_spans, span

FOLDER = Path(__file__).parent / "dialects"


@cache
def cases() -> dict[str, dict[str, Any]]:
    """Every case of every fixture by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for case in document["cases"]:
            found[case["case"]] = {"dialect": document["dialect"], **case}
    return found


@dataclass
class Bill:
    """What is billed for a case.

    Attributes:
        rows: its rows of the ledger, roll-ups and calls that are not billed left out.
        tokens: meter → tokens billed, those of 0 left out.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)

    @property
    def cost(self) -> Decimal | None:
        costs = [row["cost"] for row in self.rows if row["cost"] is not None]
        return sum(costs, Decimal(0)) if costs else None


def request(number: int, spans: Sequence[Mapping[str, Any]], only: int | None = None) -> bytes:
    """A case's spans as a request, or one of them. ``parent`` is a place in the list, None for a root, in a trace of
    its own."""
    made = ExportTraceServiceRequest()
    for place, given in enumerate(spans):
        if only not in (None, place):
            continue
        parent = given["parent"]
        root = place
        while spans[root]["parent"] is not None:
            root = spans[root]["parent"]
        one = span(
            # JSON has no NaN, which is the AI SDK's word for a count that it was not told.
            {key: float("nan") if value is None else value for key, value in given["attributes"].items()},
            trace_id=(number + 1).to_bytes(8, "big") + (root + 1).to_bytes(8, "big"),
            span_id=(place + 1).to_bytes(8, "big"),
            parent_span_id=b"" if parent is None else (parent + 1).to_bytes(8, "big"),
            name=given["name"],
            start_time_unix_nano=START + place,
            end_time_unix_nano=START + 10**9 - place,
        )
        scope = (given["scope"], given["scope_version"])
        made.resource_spans.append(resource_spans([one], {"service.name": "app"}, scope))
    return made.SerializeToString()


def _depth(spans: Sequence[Mapping[str, Any]], place: int) -> int:
    parent = spans[place]["parent"]
    return 0 if parent is None else 1 + _depth(spans, parent)


def bills(
    given: Mapping[str, Mapping[str, Any]], store: Store, folder: Path, *, apart: bool = False
) -> dict[str, Bill]:
    """What is billed for each of some cases, all sent to one line.

    ``apart``: each span of a case in a batch after the batch of its parent.
    """
    counters = Counters()
    journal = Journal(folder / "journal", counters=counters)
    line = Pipeline(
        journal,
        Writer(store, threading.Event(), counters, pause=lambda _: None),
        PriceEngine(shipped_book()),
        Settings(keep=1.0, decision_wait_s=0.0, linger_s=0.0),
        counters,
    )
    try:
        for depth in range(9) if apart else (None,):
            for number, case in enumerate(given.values()):
                spans = case["spans"]
                if depth is None:
                    journal.append(request(number, spans)).wait()
                    continue
                for place in (place for place in range(len(spans)) if _depth(spans, place) == depth):
                    journal.append(request(number, spans, place)).wait()
            while line.step(0.0):
                pass
    finally:
        journal.close()
    reader = store.reader()
    try:
        rows = reader.query("SELECT * FROM ledger FINAL ORDER BY start_time").to_pylist()
    finally:
        reader.close()
    found = {name: Bill() for name in given}
    names = list(given)
    for row in rows:
        if row["cost_status"] in ("rollup", "not_billed"):
            continue
        bill = found[names[int.from_bytes(row["trace_id"][:8], "big") - 1]]
        bill.rows.append(row)
        for meter, quantity in zip(row["charges.meter"], row["charges.quantity"], strict=True):
            if meter.startswith("tokens.") and quantity:
                bill.tokens[meter] += int(quantity)
    return found
