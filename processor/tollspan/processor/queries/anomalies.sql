-- Anomalies: stretches of time whose cost stands out from their own past.
-- parameter: least = 1: the least score, of either sign, that is shown
-- definition: cost by stretch of time, taken apart into trend, rhythm and rest (seriesDecomposeSTL) where the window has
--     two periods or more; outliers of the rest by Tukey's fences (seriesOutliersDetectTukey)
-- formula: score = how many interquartile ranges beyond the 10th or 90th percentile
-- unit: USD; a score, of which a sign says too much (+) or too little (−)
-- pitfall: expected is an estimate (cost less the rest) and no money. Stretches without rows count as 0 between the first
--     and the last of the window; the first and the last are usually cut, and stand out for that.
-- pitfall: with less than four stretches nothing can stand out. What has no price is not in the cost.
WITH
    toUInt32({step:UInt32}) AS step,
    toUInt32({period:UInt32}) AS period
SELECT
    ${by}toDateTime64(at * step, 0, 'UTC') AS start_time,
    toDecimal128(money, 12) AS cost,
    'USD' AS currency,
    round(toFloat64(money) - rest, 6) AS expected,
    round(score, 3) AS score,
    calls AS inferences
FROM
(
    SELECT
        *,
        arrayMap(each -> toFloat64(each), moneys) AS floats,
        if(length(moneys) >= 2 * period, 'stl', 'raw') AS way,
        if(way = 'stl', seriesDecomposeSTL(if(way = 'stl', floats, range(2 * period)), period)[3],
           arrayMap(each -> toFloat32(each - arrayReduce('quantileExact', floats)), floats)) AS rests,
        if(length(moneys) < 4, arrayResize([toFloat64(0)], length(moneys), toFloat64(0)),
           seriesOutliersDetectTukey(if(length(moneys) < 4, [1., 1., 1., 1.], rests))) AS scores
    FROM
    (
        SELECT
            $by
            min(slot) AS first_slot,
            max(slot) AS last_slot,
            range(first_slot, last_slot + 1) AS slots,
            sumMap([slot], [toDecimal256(usd, 12)], [toDecimal256(n, 0)]) AS sums,
            arrayMap(each -> if(has(sums.1, each), sums.2[indexOf(sums.1, each)], toDecimal256(0, 12)), slots) AS moneys,
            arrayMap(each -> if(has(sums.1, each), toUInt64(sums.3[indexOf(sums.1, each)]), toUInt64(0)), slots) AS counts
        FROM
        (
            SELECT
                ${keys}intDiv(toUInt32(toUnixTimestamp(ledger.start_time)), step) AS slot,
                ifNull(sum(ledger.cost), toDecimal128(0, 12)) AS usd,
                countIf(ledger.counted) AS n
            FROM $ledger
            WHERE $window
            GROUP BY ${by}slot
        )
        GROUP BY $group
    )
)
ARRAY JOIN slots AS at, moneys AS money, rests AS rest, scores AS score, counts AS calls
WHERE abs(score) >= {least:Float64} AND score != 0
ORDER BY abs(score) DESC, start_time$last
LIMIT {limit:UInt64}
