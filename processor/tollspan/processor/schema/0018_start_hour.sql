-- The hour of a start, in hours since 1970: it compresses to nothing and costs a fifth of start_time to read, so that
-- questions about whole hours need not read that (queries/slices.py). An hour before 1970 counts towards zero.
ALTER TABLE ledger
    ADD COLUMN IF NOT EXISTS start_hour Int32 MATERIALIZED
        toInt32(intDiv(toUnixTimestamp64Nano(start_time), 3600000000000))
        COMMENT 'Hour of start_time, in hours since 1970' CODEC(ZSTD(1));

-- Into the parts that are there; until then it is computed when it is read.
ALTER TABLE ledger MATERIALIZE COLUMN start_hour SETTINGS mutations_sync = 0;
