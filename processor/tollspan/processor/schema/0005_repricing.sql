-- First price stays, repricing, and what was saved.
--
-- The selectors that a price is chosen by and the ledger did not hold yet, so that a row can be priced again.
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS processing     LowCardinality(String) CODEC(ZSTD(1)) AFTER service_tier;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS cloud_provider LowCardinality(String) CODEC(ZSTD(1)) AFTER processing;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS host_type      LowCardinality(String) CODEC(ZSTD(1)) AFTER cloud_provider;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS purchase       LowCardinality(String) CODEC(ZSTD(1)) AFTER device;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS residency      LowCardinality(String) CODEC(ZSTD(1)) AFTER purchase;

-- What the provider says the call cost, in USD: kept beside our figure, never in its place. That of a roll-up repeats
-- its descendants'.
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS reported_cost Nullable(Decimal(38, 12)) CODEC(GCD, ZSTD(1)) AFTER cost;

-- What a contract took off the list price, and what commitments and included usage took off the contract's. NULL where
-- there is no list or no contracted price to compare with; rows from before have NULL throughout.
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS `charges.negotiated`
    Array(Nullable(Decimal(38, 12))) CODEC(GCD, ZSTD(1)) AFTER `charges.cost`;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS `charges.committed`
    Array(Nullable(Decimal(38, 12))) CODEC(GCD, ZSTD(1)) AFTER `charges.negotiated`;
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS contracted_cost Nullable(Decimal(38, 12)) ALIAS
    if(arrayExists(x -> isNull(x), `charges.committed`),
       NULL, cost + arraySum(x -> assumeNotNull(x), `charges.committed`));
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS list_cost Nullable(Decimal(38, 12)) ALIAS
    if(arrayExists(x -> isNull(x), `charges.negotiated`),
       NULL, contracted_cost + arraySum(x -> assumeNotNull(x), `charges.negotiated`));

-- The parts of a revision (processor/revisions.py): roll-up, number of the repricing, arrival. Rows from before have
-- 0, 1 or 2; when they arrived is not known.
ALTER TABLE ledger MODIFY COLUMN revision UInt64 CODEC(ZSTD(1));
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS rolled_up Bool ALIAS bitTest(revision, 62) OR revision IN (1, 2);
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS repriced UInt16 ALIAS toUInt16(bitAnd(bitShiftRight(revision, 46), 65535));
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS arrived_at Nullable(DateTime64(3, 'UTC')) ALIAS
    if(bitAnd(revision, 70368744177663) <= 2, NULL,
       fromUnixTimestamp64Milli(toInt64(1577836800000 + 70368744177663 - bitAnd(revision, 70368744177663)), 'UTC'));

-- Every run of `tollspan reprice` that wrote, or began to. A row comes twice: with the plan before anything is written,
-- and with finished_at after. Read it with FINAL.
CREATE TABLE IF NOT EXISTS repricings
(
    number          UInt16,
    -- Of the run, to notice two that took the same number.
    run             String,
    started_at      DateTime64(3, 'UTC'),
    -- 1970-01-01: it broke off; the same command again completes it under the same number.
    finished_at     DateTime64(3, 'UTC'),
    since           DateTime64(9, 'UTC'),
    until           DateTime64(9, 'UTC'),
    -- '' is all.
    tenant          String,
    model           String,
    book_version    String,
    rows            UInt64,
    unpriced_before UInt64,
    unpriced_after  UInt64,
    old_total       Decimal(38, 12),
    new_total       Decimal(38, 12),
    -- The same by tenant and model, JSON.
    totals          String
)
ENGINE = ReplacingMergeTree(finished_at)
ORDER BY (number, run);

-- Periods whose figures are final: `tollspan reprice` refuses them. Read it with FINAL; reopened ones have closed = 0.
CREATE TABLE IF NOT EXISTS closed_periods
(
    since      DateTime64(9, 'UTC'),
    until      DateTime64(9, 'UTC'),
    closed     UInt8,
    changed_at DateTime64(3, 'UTC'),
    note       String
)
ENGINE = ReplacingMergeTree(changed_at)
ORDER BY (since, until);

-- What came for a period after it was closed: in the ledger like everything else, and listed here.
CREATE VIEW IF NOT EXISTS late_arrivals AS
SELECT
    period.since AS period_since,
    period.until AS period_until,
    period.changed_at AS closed_at,
    entry.arrived_at AS arrived_at,
    entry.start_time AS start_time,
    entry.trace_id_hex AS trace_id_hex,
    entry.span_id_hex AS span_id_hex,
    entry.tenant AS tenant,
    entry.provider AS provider,
    entry.model AS model,
    entry.cost_status AS cost_status,
    entry.cost AS cost
FROM
(
    SELECT start_time, trace_id_hex, span_id_hex, tenant, provider, model, cost_status, cost, arrived_at
    FROM ledger FINAL
    WHERE start_time >= (SELECT min(since) FROM closed_periods FINAL WHERE closed = 1)
      AND start_time < (SELECT max(until) FROM closed_periods FINAL WHERE closed = 1)
) AS entry
CROSS JOIN (SELECT since, until, changed_at FROM closed_periods FINAL WHERE closed = 1) AS period
WHERE entry.start_time >= period.since AND entry.start_time < period.until AND entry.arrived_at > period.changed_at;

-- As in 0004, with the parts of the bill that came since.
DROP VIEW IF EXISTS trace_costs;
CREATE VIEW IF NOT EXISTS trace_costs AS
SELECT
    trace_id,
    lower(hex(trace_id)) AS trace_id_hex,
    min(start_time) AS first_start,
    max(tenant) AS tenant,
    if(countIf(isNotNull(cost)) = 0 AND countIf(cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(cost), toDecimal128(0, 12))) AS total_cost,
    sumArray(arrayFilter((x, component) -> component = 'model', charges.cost, charges.component)) AS model_cost,
    sumArray(arrayFilter((x, component) -> component = 'compute', charges.cost, charges.component)) AS compute_cost,
    sumArray(arrayFilter((x, component) -> component = 'network', charges.cost, charges.component)) AS network_cost,
    sumArray(arrayFilter((x, component) -> component = 'storage', charges.cost, charges.component)) AS storage_cost,
    sumArray(arrayFilter((x, component) -> component = 'telemetry', charges.cost, charges.component)) AS telemetry_cost,
    sumArray(arrayFilter((x, component) -> component = 'overhead', charges.cost, charges.component)) AS overhead_cost,
    countIf(kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')) AS inferences,
    countIf(kind = 'inference' AND cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
    countIf(kind = 'inference' AND cost_status = 'partial') AS partial_inferences,
    countIf(span_status = 'error') AS failed_calls,
    sum(retries) AS retried_attempts,
    countIf(cold_start) AS cold_starts
FROM ledger FINAL
GROUP BY trace_id;
