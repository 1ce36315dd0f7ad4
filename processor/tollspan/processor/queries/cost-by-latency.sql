-- Cost against latency: what inferences cost in each band of percentiles of their duration.
-- measure
-- definition: inferences parted by how long they took, at the 50th, 90th, 95th and 99th percentile of their group; for
--     each band its calls, what one costs, and its share of the group's cost
-- formula: Σ cost of a band ÷ its priced inferences; a band has the durations from one percentile on and below the next
-- unit: USD for each inference; durations in nanoseconds
-- pitfall: percentiles are those of each group: a model's slowest calls, not the slowest of all. The value at a percentile
--     p of n calls is the one with the index ⌊p × n⌋ from below; equal durations stay in one band, the highest they reach.
-- pitfall: duration is the span's, which for a stream ends with its last chunk.
WITH
    calls AS
    (
        SELECT
            ${keys}ledger.duration_ns AS ns,
            ledger.cost AS known_cost,
            ledger.cost_status IN ('unpriced', 'invalid') AS open
        FROM ledger FINAL
        WHERE $window AND ledger.kind = 'inference' AND ledger.cost_status NOT IN ('rollup', 'not_billed')
    ),
    bounds AS
    (
        SELECT $texts AS at, quantilesExact(0.5, 0.9, 0.95, 0.99)(ns) AS levels
        FROM calls
        GROUP BY at
    )
SELECT
    ${by}['below p50', 'p50 to p90', 'p90 to p95', 'p95 to p99', 'p99 and above'][band] AS latency,
    min(ns) AS from_ns,
    max(ns) AS to_ns,
    count() AS inferences,
    if(countIf(isNotNull(known_cost)) = 0, NULL, sum(known_cost)) AS cost,
    'USD' AS currency,
    if(countIf(isNotNull(known_cost)) = 0, NULL, divideDecimal(
        ifNull(sum(known_cost), toDecimal128(0, 12)), toDecimal128(greatest(countIf(isNotNull(known_cost)), 1), 0), 18)) AS cost_per_inference,
    if(isNull(cost) OR ifNull(sum(sum(known_cost)) OVER ($partition), 0) = 0, NULL, divideDecimal(
        ifNull(cost, toDecimal128(0, 12)), ifNull(nullIf(sum(sum(known_cost)) OVER ($partition), 0), toDecimal128(1, 12)), 9)) AS cost_share,
    countIf(open) AS unpriced_inferences
FROM
(
    SELECT
        *,
        multiIf(ns < levels[1], 1, ns < levels[2], 2, ns < levels[3], 3, ns < levels[4], 4, 5) AS band
    FROM calls INNER JOIN bounds ON bounds.at = $texts
)
GROUP BY ${by}band
ORDER BY ${ordered}band
LIMIT {limit:UInt64}
