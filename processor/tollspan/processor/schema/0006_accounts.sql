-- Accounts of batches, so that what was acknowledged can be held against the ledger: `tollspan reconcile`.
--
-- Which batch wrote a row (0: rows from before), and what the row cost on arrival where a repricing or a roll-up that
-- was found late has changed that: the account of its batch is held against first_cost, whatever came after.
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS revised Bool CODEC(ZSTD(1)) AFTER revision;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS arrival_cost Nullable(Decimal(38, 12)) CODEC(GCD, ZSTD(1)) AFTER revised;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS batch UInt64 CODEC(ZSTD(1)) AFTER arrival_cost;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS first_cost Nullable(Decimal(38, 12)) ALIAS if(revised, arrival_cost, cost);

-- What each batch of the journal came to, or a part of one that had to be divided. A batch that comes again after a
-- crash is processed by another process, which is another attempt; its rows are the same, and were written once. Read it
-- with FINAL.
CREATE TABLE IF NOT EXISTS batches
(
    token        String CODEC(ZSTD(1)),
    -- '' is all of it.
    part         String CODEC(ZSTD(1)),
    -- When the process began that wrote this, ms since 1970.
    attempt      UInt64 CODEC(ZSTD(1)),
    -- As in the ledger.
    batch        UInt64 CODEC(ZSTD(1)),

    -- Where it stood in the journal: the bytes from first_byte to end_byte of a segment.
    journal      LowCardinality(String) CODEC(ZSTD(1)),
    segment      UInt64 CODEC(ZSTD(1)),
    first_byte   UInt64 CODEC(ZSTD(1)),
    end_byte     UInt64 CODEC(ZSTD(1)),
    received_at  DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    processed_at DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),

    -- Its spans: every one is rejected (impossible ids), a duplicate, a conflict (a known id with other content), set
    -- aside, or new. Malformed is requests.
    requests     UInt64 CODEC(ZSTD(1)),
    spans        UInt64 CODEC(ZSTD(1)),
    rejected     UInt64 CODEC(ZSTD(1)),
    malformed    UInt64 CODEC(ZSTD(1)),
    duplicates   UInt64 CODEC(ZSTD(1)),
    conflicts    UInt64 CODEC(ZSTD(1)),
    set_aside    UInt64 CODEC(ZSTD(1)),

    -- Its rows in the ledger, those of them that have a cost and that are roll-ups, and what they cost together.
    rows         UInt64 CODEC(ZSTD(1)),
    costed       UInt64 CODEC(ZSTD(1)),
    rollups      UInt64 CODEC(ZSTD(1)),
    cost         Decimal(38, 12) CODEC(ZSTD(1)),
    -- Rows of earlier batches that it made roll-ups of.
    corrections  UInt64 CODEC(ZSTD(1)),
    -- Rows that could have been in the ledger before: they are in late_rows.
    late         UInt64 CODEC(ZSTD(1)),
    -- 1970: it has no rows.
    first_start  DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    last_start   DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    book_version LowCardinality(String) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (received_at, token, part, attempt)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Rows of spans that ended before everything that the processor remembers of recent spans, or that an earlier process
-- had before it died: each could have been in the ledger already, and then stands there as it came first. This tells
-- them from rows that are missing.
CREATE TABLE IF NOT EXISTS late_rows
(
    batch      UInt64 CODEC(ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    trace_id   FixedString(16) CODEC(NONE),
    span_id    FixedString(8) CODEC(NONE),
    cost       Nullable(Decimal(38, 12)) CODEC(GCD, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(start_time)
ORDER BY (batch, start_time, trace_id, span_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- A batch is released from the journal when it is in the store, so it has to be there after a power cut too. (A merge
-- keeps what it was made from for eight minutes.)
ALTER TABLE ledger MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1;
ALTER TABLE traces MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1;
ALTER TABLE spans MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1;
