-- Spans of one trace arrive close to each other, so that their trace id is found again within a block: measured with
-- three rows a trace, ZSTD(1) takes 10 of 60 bytes off a row and no time off a query (tests/benchmarks/clickhouse.py).
-- Parts that are there keep what they have until they are merged.
ALTER TABLE ledger MODIFY COLUMN trace_id FixedString(16) CODEC(ZSTD(1));

-- What the views of 0013 are; a view's own columns say what they are in the tables they come from.
ALTER TABLE focus MODIFY COMMENT
    'One row for each charge that has a price, with the columns of FOCUS 1.2; those that begin with x_ are ours.';
ALTER TABLE billed MODIFY COMMENT 'Lines of imported bills that count; columns as in billed_lines.';
