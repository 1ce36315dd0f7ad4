-- Cost against latency: what inferences cost in each band of percentiles of their duration.
-- measure
-- definition: inferences parted by how long they took, at the 50th, 90th, 95th and 99th percentile of their group; for
--     each band its calls, what one costs, and its share of the group's cost
-- formula: Σ cost of a band ÷ its priced inferences; a band has the durations from one percentile on and below the next
-- unit: USD for each inference; durations in nanoseconds
-- pitfall: percentiles are those of each group: a model's slowest calls, not the slowest of all. The value at a percentile
--     p of n calls is the one with the index ⌊p × n⌋ from below.
-- pitfall: durations that differ by less than some 1.5 % (64 classes from a duration to its double; one for all below a
--     microsecond) stay in one band, the highest that one of them reaches, so a band can hold a few calls more than its
--     name says. Costs are exact.
-- pitfall: duration is the span's, which for a stream ends with its last chunk.
WITH
    -- Where bands begin, by group. A class is an exponent and the first six binary places, as a Float32 has them, counted
    -- from 1,024 ns on. Two looks at few groups take less than one at as many groups as there are classes.
    (
        SELECT (groupArray(one), groupArray(begins[1]), groupArray(begins[2]), groupArray(begins[3]), groupArray(begins[4]))
        FROM
        (
            WITH
                bitShiftRight(reinterpretAsUInt32(toFloat32(greatest(ledger.duration_ns, 1024))), 17) - 8768 AS class
            SELECT
                $one_alone AS one,
                -- Made for milliseconds, it counts numbers below 1024 one by one and from there to 30,000 sixteen together,
                -- in a table as small as caches like it, and says of these which sixteen, give or take eight: room for
                -- 2,834 classes, 200 days. Levels are a trifle above the percentiles, as the value at one has the index
                -- ⌊p × n⌋, also where p × n is whole.
                quantilesTiming(0.500000000001, 0.900000000001, 0.950000000001, 0.990000000001)(
                    if(class < 1024, class, least(class * 16 - 15344, 29984))) AS counted,
                arrayMap(number -> if(number < 1024, number, floor((number - 1016) / 16) + 1023), counted) AS classes,
                arrayMap(
                    number -> if(number = 0, 0, reinterpretAsFloat32(bitShiftLeft(toUInt32(number + 8768), 17))),
                    classes) AS begins
            FROM $ledger
            WHERE $window AND ledger.counted
            GROUP BY $one
        )
    ) AS edges
SELECT
    ${by}['below p50', 'p50 to p90', 'p90 to p95', 'p95 to p99', 'p99 and above'][band] AS latency,
    from_ns,
    to_ns,
    inferences,
    if(known = 0, NULL, usd) AS cost,
    'USD' AS currency,
    if(known = 0, NULL, divideDecimal(
        ifNull(usd, toDecimal128(0, 12)), toDecimal128(greatest(known, 1), 0), 18)) AS cost_per_inference,
    if(isNull(cost) OR ifNull(sum(usd) OVER ($partition), 0) = 0, NULL, divideDecimal(
        ifNull(cost, toDecimal128(0, 12)), ifNull(nullIf(sum(usd) OVER ($partition), 0), toDecimal128(1, 12)), 9)) AS cost_share,
    unpriced_inferences
FROM
(
    WITH
        $nth AS nth,
        arrayEnumerate(edges.1) AS all_,
        toFloat32(ledger.duration_ns) AS took,
        -- One number for group and band is half as dear a key. A group that was not there yet at the first look has none.
        toUInt32(toUInt32(nth) * 8 + 1
            + (took >= transform(nth, all_, edges.2, inf)) + (took >= transform(nth, all_, edges.3, inf))
            + (took >= transform(nth, all_, edges.4, inf)) + (took >= transform(nth, all_, edges.5, inf))) AS place
    SELECT
        edges.1[intDiv(place, 8)] AS one,
        ${any}toUInt8(place % 8) AS band,
        count() AS inferences,
        min(ledger.duration_ns) AS from_ns,
        max(ledger.duration_ns) AS to_ns,
        sum(ledger.cost) AS usd,
        count(ledger.cost) AS known,
        countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences
    FROM $ledger
    WHERE $window AND ledger.counted
    GROUP BY place
    HAVING place > 8
)
ORDER BY ${ordered}band
LIMIT {limit:UInt64}
