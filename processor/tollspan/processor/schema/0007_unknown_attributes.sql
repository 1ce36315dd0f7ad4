-- Attributes that look like token counts or names of models and that no dialect knows: `tollspan query
-- unknown-attributes`. Each process adds up its own and writes the sum again; read it with FINAL. Names, no values.
CREATE TABLE IF NOT EXISTS unknown_attributes
(
    -- The instrumentation scope of the spans.
    scope         LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    attribute     String CODEC(ZSTD(1)),
    -- Whether these spans told usage in a dialect that is known: then they are priced, maybe without a part.
    usage_told    Bool CODEC(ZSTD(1)),
    -- When the process began that counted, ms since 1970.
    process       UInt64 CODEC(ZSTD(1)),
    spans         UInt64 CODEC(ZSTD(1)),
    first_seen    DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    last_seen     DateTime64(9, 'UTC') CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(spans)
ORDER BY (scope, scope_version, attribute, usage_told, process)
SETTINGS non_replicated_deduplication_window = 1000;
