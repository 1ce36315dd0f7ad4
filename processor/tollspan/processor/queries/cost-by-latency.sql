-- Cost against latency: what inferences cost in each band of percentiles of their duration.
-- measure
-- definition: inferences parted by how long they took, at the 50th, 90th, 95th and 99th percentile of their group; for
--     each band its calls, what one costs, and its share of the group's cost
-- formula: Σ cost of a band ÷ its priced inferences; a band has the durations from one percentile on and below the next
-- unit: USD for each inference; durations in nanoseconds
-- pitfall: percentiles are those of each group: a model's slowest calls, not the slowest of all. The value at a percentile
--     p of n calls is the one with the index ⌊p × n⌋ from below.
-- pitfall: durations that differ by less than some 1.5 % (64 classes from a duration to its double) stay in one band, the
--     highest that one of them reaches, so a band can hold a few calls more than its name says. Costs are exact.
-- pitfall: duration is the span's, which for a stream ends with its last chunk.
SELECT
    ${by}['below p50', 'p50 to p90', 'p90 to p95', 'p95 to p99', 'p99 and above'][band] AS latency,
    min(shortest) AS from_ns,
    max(longest) AS to_ns,
    sum(calls) AS inferences,
    if(sum(known) = 0, NULL, sum(usd)) AS cost,
    'USD' AS currency,
    if(sum(known) = 0, NULL, divideDecimal(
        ifNull(sum(usd), toDecimal128(0, 12)), toDecimal128(greatest(sum(known), 1), 0), 18)) AS cost_per_inference,
    if(isNull(cost) OR ifNull(sum(sum(usd)) OVER ($partition), 0) = 0, NULL, divideDecimal(
        ifNull(cost, toDecimal128(0, 12)), ifNull(nullIf(sum(sum(usd)) OVER ($partition), 0), toDecimal128(1, 12)), 9)) AS cost_share,
    sum(open) AS unpriced_inferences
FROM
(
    SELECT
        *,
        sum(calls) OVER ($partition ORDER BY class) AS so_far,
        sum(calls) OVER ($partition) AS every,
        -- A class that holds the value at a percentile, or lies above it, belongs to the band that begins there.
        1 + arraySum(arrayMap(level -> so_far > toUInt64(floor(level * every)), [0.5, 0.9, 0.95, 0.99])) AS band
    FROM
    (
        SELECT
            $keys
            -- The exponent and the first six binary places, as a Float32 has them: 64 classes from a duration to its double.
            bitShiftRight(reinterpretAsUInt32(toFloat32(ledger.duration_ns)), 17) AS class,
            count() AS calls,
            min(ledger.duration_ns) AS shortest,
            max(ledger.duration_ns) AS longest,
            sum(ledger.cost) AS usd,
            countIf(isNotNull(ledger.cost)) AS known,
            countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS open
        FROM ledger FINAL
        WHERE $window AND ledger.kind = 'inference' AND ledger.cost_status NOT IN ('rollup', 'not_billed')
        GROUP BY ${by}class
    )
)
GROUP BY ${by}band
ORDER BY ${ordered}band
LIMIT {limit:UInt64}
