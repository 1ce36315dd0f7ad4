-- Which rule kept a trace, how much of its bodies is there, and what they take.
--
-- keep_rule: name of the rule; keep_reason says its kind. content: 'full', or 'removed' where prompts, completions and
-- events were taken out; '' where nothing is kept. stored_bytes: of its rows in spans, not compressed.
ALTER TABLE traces
    ADD COLUMN IF NOT EXISTS keep_rule SimpleAggregateFunction(max, String) CODEC(ZSTD(1)) AFTER threshold,
    ADD COLUMN IF NOT EXISTS content SimpleAggregateFunction(max, String) CODEC(ZSTD(1)) AFTER keep_rule,
    ADD COLUMN IF NOT EXISTS stored_bytes SimpleAggregateFunction(max, UInt64) CODEC(T64, ZSTD(1)) AFTER content;
ALTER TABLE spans
    ADD COLUMN IF NOT EXISTS KeepRule LowCardinality(String) CODEC(ZSTD(1)) AFTER KeepReason,
    ADD COLUMN IF NOT EXISTS Content LowCardinality(String) CODEC(ZSTD(1)) AFTER KeepRule;
