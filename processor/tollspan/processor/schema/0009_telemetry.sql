-- What telemetry itself takes and costs: a row for each minute, tenant and service of a batch of the journal (or of a
-- part of one that had to be divided). It is written when every span of the batch is decided, before the batch is
-- released; a batch that comes again after a crash writes the same rows again, which replace these. Read it with FINAL.
CREATE TABLE IF NOT EXISTS telemetry
(
    -- In which the spans started; hours from their receipt the first of the hour, days from it the first of the day.
    minute        DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    -- '' is not given; also what bytes have that belong to no new span (duplicates, rejected spans).
    tenant        LowCardinality(String) CODEC(ZSTD(1)),
    service       LowCardinality(String) CODEC(ZSTD(1)),
    -- As in batches.
    token         String CODEC(ZSTD(1)),
    part          String CODEC(ZSTD(1)),
    attempt       UInt64 CODEC(ZSTD(1)),
    received_at   DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),

    spans         UInt64 CODEC(T64, ZSTD(1)),
    -- Received: each span's share of its request, resource and scope included.
    bytes         UInt64 CODEC(T64, ZSTD(1)),
    kept_spans    UInt64 CODEC(T64, ZSTD(1)),
    -- Rows of the table spans, not compressed; and content that was taken out of them before.
    stored_bytes  UInt64 CODEC(T64, ZSTD(1)),
    removed_bytes UInt64 CODEC(T64, ZSTD(1)),

    -- Meters telemetry.bytes, and telemetry.stored.byte_seconds for retention_s. NULL: the book has no price for it.
    received_cost Nullable(Decimal(38, 12)) CODEC(GCD, ZSTD(1)),
    stored_cost   Nullable(Decimal(38, 12)) CODEC(GCD, ZSTD(1)),
    retention_s   UInt64 CODEC(ZSTD(1)),
    book_version  LowCardinality(String) CODEC(ZSTD(1)),

    -- The same by the rule that decided, whether it kept or dropped; '' is no rule. A budget steers some of them.
    `rules.rule`          Array(LowCardinality(String)) CODEC(ZSTD(1)),
    `rules.reason`        Array(LowCardinality(String)) CODEC(ZSTD(1)),
    `rules.steered`       Array(Bool) CODEC(ZSTD(1)),
    `rules.spans`         Array(UInt64) CODEC(ZSTD(1)),
    `rules.bytes`         Array(UInt64) CODEC(ZSTD(1)),
    -- Of bytes what would have been kept, on average, if no budget had steered.
    `rules.wanted_bytes`  Array(UInt64) CODEC(ZSTD(1)),
    `rules.kept_spans`    Array(UInt64) CODEC(ZSTD(1)),
    -- Of bytes those of kept spans.
    `rules.kept_bytes`    Array(UInt64) CODEC(ZSTD(1)),
    `rules.stored_bytes`  Array(UInt64) CODEC(ZSTD(1)),
    -- Of stored_bytes what is content.
    `rules.content_bytes` Array(UInt64) CODEC(ZSTD(1)),
    `rules.removed_bytes` Array(UInt64) CODEC(ZSTD(1)),
    `rules.stored_cost`   Array(Nullable(Decimal(38, 12))) CODEC(ZSTD(1)),

    -- What is known of it; NULL when nothing is.
    cost          Nullable(Decimal(38, 12)) ALIAS
        if(isNull(received_cost) AND isNull(stored_cost), NULL,
           ifNull(received_cost, toDecimal128(0, 12)) + ifNull(stored_cost, toDecimal128(0, 12)))
)
ENGINE = ReplacingMergeTree(attempt)
PARTITION BY toYYYYMM(minute)
ORDER BY (minute, tenant, service, token, part)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;
