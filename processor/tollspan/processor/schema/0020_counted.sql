-- Whether a row counts as a call: nearly every question about inferences asks for this, of all rows, and two texts take
-- twice as long to read and compare as one byte (.1 s of CPU for 20 million rows; tests/benchmarks/clickhouse.py).
ALTER TABLE ledger
    ADD COLUMN IF NOT EXISTS counted Bool MATERIALIZED
        kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')
        COMMENT 'Whether it counts as a call: an inference that is billed for itself' CODEC(ZSTD(1));

-- Into the parts that are there; until then it is computed when it is read.
ALTER TABLE ledger MATERIALIZE COLUMN counted SETTINGS mutations_sync = 0;
