"""From spans to the bill: what the processor makes of the spans of a test, without a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.processor.charge import charge
from tollspan.processor.decode import decode
from tollspan.processor.normalize import normalize

from .http_library import httpx2

ENGINE = PriceEngine(shipped_book())


def ledger(spans: Sequence[ReadableSpan]) -> list[dict[str, Any]]:
    """Ledger rows of ``spans`` at the shipped prices, one for each key as the ledger keeps them. ``meters`` of a row
    are its quantities in units, ``cost`` is USD."""
    payload = encode_spans(spans).SerializeToString()
    normalized = normalize(decode([payload]), received_ns=time.time_ns())
    table = charge(normalized, np.zeros(len(spans), np.bool_), ENGINE).ledger
    # Nanoseconds have no place in Python's own datetime.
    place = table.column_names.index("start_time")
    made = table.set_column(place, "start_time", table["start_time"].cast(pa.int64())).to_pylist()
    rows: dict[Any, dict[str, Any]] = {}
    for row in made:
        row["meters"] = dict(zip(row["charges.meter"], row["charges.quantity"], strict=True))
        rows.setdefault((row["start_time"], row["trace_id"], row["span_id"]), row)
    return list(rows.values())


def bill(spans: Sequence[ReadableSpan]) -> tuple[dict[str, Decimal], Decimal | None, str]:
    """Meters, cost in USD and status of the one row that ``spans`` make."""
    rows = ledger(spans)
    assert len(rows) == 1, [(row["operation"], row["meters"]) for row in rows]
    return rows[0]["meters"], rows[0]["cost"], rows[0]["cost_status"]


def reply(wire: Any, body: bytes, content_type: str, status: int = 200) -> Any:
    """Have ``wire`` answer with these bytes."""
    headers = {"content-type": content_type}
    wire.replies.append(lambda: httpx2.Response(status, headers=headers, content=body))
    return wire
