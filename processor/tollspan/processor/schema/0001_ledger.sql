-- One row for each billable span, sampled or not: what it used, what that cost and why.
--
-- Every part of the key, the partition included, comes from the span itself, so that a span sent again, or corrected with
-- a higher revision, replaces itself. Read it with FINAL.
--
-- Codecs are measured (tests/benchmarks/ledger_bytes.py). GCD divides money and quantities by what they have in common
-- (the rate of one token, the 10^9 of a whole one) before ZSTD sees them; ids are random and stay as they are.
CREATE TABLE IF NOT EXISTS ledger
(
    start_time      DateTime64(9, 'UTC') CODEC(GCD, Delta, ZSTD(1)),
    trace_id        FixedString(16) CODEC(NONE),
    span_id         FixedString(8) CODEC(NONE),
    parent_span_id  FixedString(8) CODEC(ZSTD(1)),
    duration_ns     UInt64 CODEC(T64, ZSTD(1)),

    -- Whose and what; '' is not given.
    service         LowCardinality(String) CODEC(ZSTD(1)),
    environment     LowCardinality(String) CODEC(ZSTD(1)),
    region          LowCardinality(String) CODEC(ZSTD(1)),
    tenant          LowCardinality(String) CODEC(ZSTD(1)),
    team            LowCardinality(String) CODEC(ZSTD(1)),
    feature         LowCardinality(String) CODEC(ZSTD(1)),
    workflow        LowCardinality(String) CODEC(ZSTD(1)),
    variant         LowCardinality(String) CODEC(ZSTD(1)),
    provider        LowCardinality(String) CODEC(ZSTD(1)),
    model           LowCardinality(String) CODEC(ZSTD(1)),
    request_model   LowCardinality(String) CODEC(ZSTD(1)),
    operation       LowCardinality(String) CODEC(ZSTD(1)),
    kind            LowCardinality(String) CODEC(ZSTD(1)),
    service_tier    LowCardinality(String) CODEC(ZSTD(1)),
    device          LowCardinality(String) CODEC(ZSTD(1)),

    span_status     LowCardinality(String) CODEC(ZSTD(1)),
    error_type      LowCardinality(String) CODEC(ZSTD(1)),
    retries         Nullable(UInt32) CODEC(ZSTD(1)),
    cold_start      Nullable(Bool) CODEC(ZSTD(1)),
    batch_size      Nullable(UInt32) CODEC(ZSTD(1)),

    -- What it cost. NULL is unknown, never zero; cost_status says why.
    convention      LowCardinality(String) CODEC(ZSTD(1)),
    cost_status     LowCardinality(String) CODEC(ZSTD(1)),
    cost_reasons    LowCardinality(String) CODEC(ZSTD(1)),
    cost            Nullable(Decimal(38, 12)) CODEC(GCD, ZSTD(1)),

    -- Nested(…) written out, as codecs go by column: the charges that cost is the sum of.
    `charges.meter`      Array(LowCardinality(String)) CODEC(ZSTD(3)),
    `charges.component`  Array(LowCardinality(String)) CODEC(ZSTD(3)),
    `charges.quantity`   Array(Decimal(38, 9)) CODEC(GCD, ZSTD(1)),
    `charges.unit`       Array(LowCardinality(String)) CODEC(ZSTD(3)),
    `charges.unit_price` Array(Nullable(Decimal(38, 18))) CODEC(ZSTD(3)),
    `charges.per`        Array(LowCardinality(String)) CODEC(ZSTD(3)),
    `charges.cost`       Array(Nullable(Decimal(38, 12))) CODEC(GCD, ZSTD(1)),
    `charges.price_id`   Array(LowCardinality(String)) CODEC(ZSTD(3)),
    `charges.matched_by` Array(LowCardinality(String)) CODEC(ZSTD(3)),
    `charges.status`     Array(LowCardinality(String)) CODEC(ZSTD(3)),

    book_version    LowCardinality(String) CODEC(ZSTD(1)),
    revision        UInt32 CODEC(ZSTD(1)),

    -- For people who read the table; computed when asked for, NULL where the call counted no such tokens.
    trace_id_hex    String ALIAS lower(hex(trace_id)),
    span_id_hex     String ALIAS lower(hex(span_id)),
    parent_id_hex   String ALIAS if(parent_span_id = toFixedString('', 8), '', lower(hex(parent_span_id))),
    input_tokens    Nullable(UInt64) ALIAS if(
        arrayExists(meter -> startsWith(meter, 'tokens.input.'), `charges.meter`),
        toUInt64(arraySum((quantity, meter) -> if(startsWith(meter, 'tokens.input.'), quantity, 0),
                          `charges.quantity`, `charges.meter`)),
        NULL),
    output_tokens   Nullable(UInt64) ALIAS if(
        arrayExists(meter -> startsWith(meter, 'tokens.output'), `charges.meter`),
        toUInt64(arraySum((quantity, meter) -> if(startsWith(meter, 'tokens.output'), quantity, 0),
                          `charges.quantity`, `charges.meter`)),
        NULL),

    INDEX idx_trace_id trace_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(revision)
PARTITION BY toYYYYMM(start_time)
ORDER BY (start_time, trace_id, span_id)
SETTINGS non_replicated_deduplication_window = 1000;
