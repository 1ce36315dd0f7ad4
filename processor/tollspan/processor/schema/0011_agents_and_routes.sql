-- Which agent asked, on which route of a server, and in which version of the service; '' in rows from before.
ALTER TABLE ledger
    ADD COLUMN IF NOT EXISTS agent   LowCardinality(String) CODEC(ZSTD(1)) AFTER variant,
    ADD COLUMN IF NOT EXISTS route   LowCardinality(String) CODEC(ZSTD(1)) AFTER agent,
    ADD COLUMN IF NOT EXISTS version LowCardinality(String) CODEC(ZSTD(1)) AFTER route;
