"""The tables as Arrow schemas: what stages build and `write` puts into ClickHouse.

Each schema has a table's columns in its order, with the Arrow type that ClickHouse reads into the column's own type.
Strings may also come as dictionaries (that is how `LowCardinality` columns are cheapest), see
`tollspan.processor.write`. A test compares the schemas with the migrated tables.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

_INSTANT: Final = pa.timestamp("ns", "UTC")
_TEXT: Final = pa.string()
_TEXTS: Final = pa.list_(pa.string())
_MONEY: Final = pa.decimal128(38, 12)
_MAP: Final = pa.map_(pa.string(), pa.string())

LEDGER: Final = pa.schema(
    [
        pa.field("start_time", _INSTANT, nullable=False),
        pa.field("trace_id", pa.binary(16), nullable=False),
        pa.field("span_id", pa.binary(8), nullable=False),
        pa.field("parent_span_id", pa.binary(8), nullable=False),
        pa.field("duration_ns", pa.uint64(), nullable=False),
        *(
            pa.field(name, _TEXT, nullable=False)
            for name in (
                "service",
                "environment",
                "region",
                "tenant",
                "team",
                "feature",
                "workflow",
                "variant",
                "agent",
                "route",
                "version",
                "provider",
                "model",
                "request_model",
                "operation",
                "kind",
                "service_tier",
                "processing",
                "cloud_provider",
                "host_type",
                "device",
                "purchase",
                "residency",
                "span_status",
                "error_type",
            )
        ),
        pa.field("retries", pa.uint32()),
        pa.field("cold_start", pa.bool_()),
        pa.field("batch_size", pa.uint32()),
        pa.field("convention", _TEXT, nullable=False),
        pa.field("cost_status", _TEXT, nullable=False),
        pa.field("cost_reasons", _TEXT, nullable=False),
        pa.field("cost", _MONEY),
        pa.field("reported_cost", _MONEY),
        pa.field("charges.meter", _TEXTS, nullable=False),
        pa.field("charges.component", _TEXTS, nullable=False),
        pa.field("charges.quantity", pa.list_(pa.decimal128(38, 9)), nullable=False),
        pa.field("charges.unit", _TEXTS, nullable=False),
        pa.field("charges.unit_price", pa.list_(pa.decimal128(38, 18)), nullable=False),
        pa.field("charges.per", _TEXTS, nullable=False),
        pa.field("charges.cost", pa.list_(_MONEY), nullable=False),
        pa.field("charges.negotiated", pa.list_(_MONEY), nullable=False),
        pa.field("charges.committed", pa.list_(_MONEY), nullable=False),
        pa.field("charges.price_id", _TEXTS, nullable=False),
        pa.field("charges.matched_by", _TEXTS, nullable=False),
        pa.field("charges.status", _TEXTS, nullable=False),
        pa.field("book_version", _TEXT, nullable=False),
        pa.field("revision", pa.uint64(), nullable=False),
        pa.field("revised", pa.bool_(), nullable=False),
        pa.field("arrival_cost", _MONEY),
        pa.field("batch", pa.uint64(), nullable=False),
    ]
)
"""``ledger``: one row for each billable span."""

TRACES: Final = pa.schema(
    [
        pa.field("trace_id", pa.binary(16), nullable=False),
        pa.field("day", pa.date32(), nullable=False),
        pa.field("start_time", _INSTANT, nullable=False),
        pa.field("end_time", _INSTANT, nullable=False),
        pa.field("root_name", _TEXT, nullable=False),
        pa.field("root_service", _TEXT, nullable=False),
        pa.field("tenant", _TEXT, nullable=False),
        pa.field("error", pa.uint8(), nullable=False),
        pa.field("spans", pa.uint64(), nullable=False),
        pa.field("telemetry_bytes", pa.uint64(), nullable=False),
        pa.field("telemetry_cost", _MONEY),
        pa.field("kept", pa.uint8(), nullable=False),
        pa.field("kept_spans", pa.uint64(), nullable=False),
        pa.field("keep_reason", _TEXT, nullable=False),
        pa.field("threshold", _TEXT, nullable=False),
        pa.field("keep_rule", _TEXT, nullable=False),
        pa.field("content", _TEXT, nullable=False),
        pa.field("stored_bytes", pa.uint64(), nullable=False),
    ]
)
"""``traces``: one summary for each trace."""

SPANS: Final = pa.schema(
    [
        pa.field("Timestamp", _INSTANT, nullable=False),
        pa.field("TraceId", _TEXT, nullable=False),
        pa.field("SpanId", _TEXT, nullable=False),
        pa.field("ParentSpanId", _TEXT, nullable=False),
        pa.field("TraceState", _TEXT, nullable=False),
        pa.field("SpanName", _TEXT, nullable=False),
        pa.field("SpanKind", _TEXT, nullable=False),
        pa.field("ServiceName", _TEXT, nullable=False),
        pa.field("ResourceAttributes", _MAP, nullable=False),
        pa.field("ScopeName", _TEXT, nullable=False),
        pa.field("ScopeVersion", _TEXT, nullable=False),
        pa.field("SpanAttributes", _MAP, nullable=False),
        pa.field("Duration", pa.uint64(), nullable=False),
        pa.field("StatusCode", _TEXT, nullable=False),
        pa.field("StatusMessage", _TEXT, nullable=False),
        pa.field("Events.Timestamp", pa.list_(_INSTANT), nullable=False),
        pa.field("Events.Name", _TEXTS, nullable=False),
        pa.field("Events.Attributes", pa.list_(_MAP), nullable=False),
        pa.field("Links.TraceId", _TEXTS, nullable=False),
        pa.field("Links.SpanId", _TEXTS, nullable=False),
        pa.field("Links.TraceState", _TEXTS, nullable=False),
        pa.field("Links.Attributes", pa.list_(_MAP), nullable=False),
        pa.field("SamplingThreshold", _TEXT, nullable=False),
        pa.field("AdjustedCount", pa.float64(), nullable=False),
        pa.field("KeepReason", _TEXT, nullable=False),
        pa.field("KeepRule", _TEXT, nullable=False),
        pa.field("Content", _TEXT, nullable=False),
        pa.field("Cost", _MONEY),
        pa.field("CostStatus", _TEXT, nullable=False),
    ]
)
"""``spans``: bodies of kept spans."""

BATCHES: Final = pa.schema(
    [
        pa.field("token", _TEXT, nullable=False),
        pa.field("part", _TEXT, nullable=False),
        pa.field("attempt", pa.uint64(), nullable=False),
        pa.field("batch", pa.uint64(), nullable=False),
        pa.field("journal", _TEXT, nullable=False),
        *(pa.field(name, pa.uint64(), nullable=False) for name in ("segment", "first_byte", "end_byte")),
        *(pa.field(name, _INSTANT, nullable=False) for name in ("received_at", "processed_at")),
        *(
            pa.field(name, pa.uint64(), nullable=False)
            for name in (
                "requests",
                "spans",
                "rejected",
                "malformed",
                "duplicates",
                "conflicts",
                "set_aside",
                "rows",
                "costed",
                "rollups",
            )
        ),
        pa.field("cost", _MONEY, nullable=False),
        *(pa.field(name, pa.uint64(), nullable=False) for name in ("corrections", "late")),
        *(pa.field(name, _INSTANT, nullable=False) for name in ("first_start", "last_start")),
        pa.field("book_version", _TEXT, nullable=False),
    ]
)
"""``batches``: what each batch came to."""

LATE_ROWS: Final = pa.schema(
    [
        pa.field("batch", pa.uint64(), nullable=False),
        pa.field("start_time", _INSTANT, nullable=False),
        pa.field("trace_id", pa.binary(16), nullable=False),
        pa.field("span_id", pa.binary(8), nullable=False),
        pa.field("cost", _MONEY),
    ]
)
"""``late_rows``: rows that could have been in the ledger before."""

UNKNOWN_ATTRIBUTES: Final = pa.schema(
    [
        *(pa.field(name, _TEXT, nullable=False) for name in ("scope", "scope_version", "attribute")),
        pa.field("usage_told", pa.bool_(), nullable=False),
        *(pa.field(name, pa.uint64(), nullable=False) for name in ("process", "spans")),
        *(pa.field(name, _INSTANT, nullable=False) for name in ("first_seen", "last_seen")),
    ]
)
"""``unknown_attributes``: names that no dialect knows."""

TELEMETRY: Final = pa.schema(
    [
        pa.field("minute", _INSTANT, nullable=False),
        *(pa.field(name, _TEXT, nullable=False) for name in ("tenant", "service", "token", "part")),
        pa.field("attempt", pa.uint64(), nullable=False),
        pa.field("received_at", _INSTANT, nullable=False),
        *(
            pa.field(name, pa.uint64(), nullable=False)
            for name in ("spans", "bytes", "kept_spans", "stored_bytes", "removed_bytes")
        ),
        *(pa.field(name, _MONEY) for name in ("received_cost", "stored_cost")),
        pa.field("retention_s", pa.uint64(), nullable=False),
        pa.field("book_version", _TEXT, nullable=False),
        *(pa.field(f"rules.{name}", _TEXTS, nullable=False) for name in ("rule", "reason")),
        pa.field("rules.steered", pa.list_(pa.bool_()), nullable=False),
        *(
            pa.field(f"rules.{name}", pa.list_(pa.uint64()), nullable=False)
            for name in (
                "spans",
                "bytes",
                "wanted_bytes",
                "kept_spans",
                "kept_bytes",
                "stored_bytes",
                "content_bytes",
                "removed_bytes",
            )
        ),
        pa.field("rules.stored_cost", pa.list_(_MONEY), nullable=False),
    ]
)
"""``telemetry``: what telemetry itself takes and costs."""

SAMPLING_LEVELS: Final = pa.schema(
    [
        pa.field("minute", pa.timestamp("s", "UTC"), nullable=False),
        *(pa.field(name, _TEXT, nullable=False) for name in ("metric", "dimension", "key", "source")),
        pa.field("buckets", pa.list_(pa.int32()), nullable=False),
        pa.field("counts", pa.list_(pa.uint64()), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("published_at", pa.timestamp("ms", "UTC"), nullable=False),
        pa.field("precedence", pa.uint64(), nullable=False),
    ]
)
"""``sampling_levels``: what sampling rules compare with, by minute."""

SCHEMAS: Final[dict[str, pa.Schema]] = {
    "ledger": LEDGER,
    "traces": TRACES,
    "spans": SPANS,
    "batches": BATCHES,
    "late_rows": LATE_ROWS,
    "unknown_attributes": UNKNOWN_ATTRIBUTES,
    "telemetry": TELEMETRY,
    "sampling_levels": SAMPLING_LEVELS,
}
"""Schema of each table that stages write to."""

INSERTED_AS: Final[dict[str, dict[str, str]]] = {"ledger": {"charges.cost": "charges.given_cost"}}
"""Table → columns that it computes when they are read → what their values are called in an INSERT."""
