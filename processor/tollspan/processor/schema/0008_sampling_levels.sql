-- What sampling rules compare with, by minute: `tollspan query sampling-levels`. Whichever processor is first at a
-- minute writes it, the others read it, so that all of them decide alike. Figures over a window are sums over its
-- minutes. Nothing in it is a sum of money.
CREATE TABLE IF NOT EXISTS sampling_levels
(
    minute       DateTime('UTC') CODEC(Delta, ZSTD(1)),
    -- trace_cost and call_cost (10^-12 USD), duration (ns), seen (traces); base_rate and content_rate (a share).
    metric       LowCardinality(String) CODEC(ZSTD(1)),
    -- By what; '' is of everything.
    dimension    LowCardinality(String) CODEC(ZSTD(1)),
    -- '' also says that the minute was looked at.
    key          String CODEC(ZSTD(1)),
    -- Of counts that each processor has for itself; else '', and the row that was written first stays.
    source       LowCardinality(String) CODEC(ZSTD(1)),
    -- A histogram: bucket b has the values from 1.02^b to 1.02^(b+1), bucket -1 those of nothing.
    buckets      Array(Int32) CODEC(ZSTD(1)),
    counts       Array(UInt64) CODEC(ZSTD(1)),
    -- Or a plain figure.
    value        Nullable(Float64) CODEC(ZSTD(1)),
    published_at DateTime64(3, 'UTC') CODEC(ZSTD(1)),
    -- The highest one stays.
    precedence   UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(precedence)
PARTITION BY toDate(minute)
ORDER BY (metric, dimension, minute, key, source)
TTL minute + INTERVAL 8 DAY
SETTINGS non_replicated_deduplication_window = 1000;

-- The summaries of traces in the order of time, for two days: `traces` itself is in the order of ids. A trace that was
-- summarized in pieces has a row for each; read it by trace_id.
CREATE TABLE IF NOT EXISTS sampling_traces
(
    start_time   DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    end_time     DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    trace_id     FixedString(16) CODEC(NONE),
    root_service LowCardinality(String) CODEC(ZSTD(1)),
    root_name    String CODEC(ZSTD(1)),
    tenant       LowCardinality(String) CODEC(ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (start_time, trace_id)
TTL toDateTime(start_time) + INTERVAL 2 DAY
SETTINGS non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS sampling_traces_of TO sampling_traces AS
SELECT start_time, end_time, trace_id, root_service, root_name, tenant FROM traces;
