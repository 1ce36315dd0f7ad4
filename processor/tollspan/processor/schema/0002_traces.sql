-- One summary for each trace. Every emission carries the totals so far, and rows merge by min, max and any, so that a
-- late span, a resend or a replay counts nothing twice. Read it with FINAL. What the ledger can answer is not here but in
-- the view trace_costs.
CREATE TABLE IF NOT EXISTS traces
(
    trace_id        FixedString(16) CODEC(NONE),
    -- UTC day of the earliest span.
    day             SimpleAggregateFunction(min, Date) CODEC(ZSTD(1)),
    start_time      SimpleAggregateFunction(min, DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    end_time        SimpleAggregateFunction(max, DateTime64(9, 'UTC')) CODEC(ZSTD(1)),

    -- '' until the root is seen.
    root_name       SimpleAggregateFunction(max, String) CODEC(ZSTD(1)),
    root_service    SimpleAggregateFunction(max, String) CODEC(ZSTD(1)),
    tenant          SimpleAggregateFunction(max, String) CODEC(ZSTD(1)),

    error           SimpleAggregateFunction(max, UInt8) CODEC(ZSTD(1)),
    spans           SimpleAggregateFunction(max, UInt64) CODEC(T64, ZSTD(1)),
    telemetry_bytes SimpleAggregateFunction(max, UInt64) CODEC(T64, ZSTD(1)),
    telemetry_cost  SimpleAggregateFunction(max, Nullable(Decimal(38, 12))) CODEC(ZSTD(1)),

    kept            SimpleAggregateFunction(max, UInt8) CODEC(ZSTD(1)),
    kept_spans      SimpleAggregateFunction(max, UInt64) CODEC(T64, ZSTD(1)),
    keep_reason     SimpleAggregateFunction(max, String) CODEC(ZSTD(1)),
    threshold       SimpleAggregateFunction(max, String) CODEC(ZSTD(1)),

    trace_id_hex    String ALIAS lower(hex(trace_id))
)
ENGINE = AggregatingMergeTree
ORDER BY trace_id
SETTINGS non_replicated_deduplication_window = 1000;
