-- Everything of the executive view that comes out of one look at the ledger: rows that are alike by step of time, and
-- values of some dimensions, both beside the window before. `level` says which: a bit for each key that a row is not of.
-- Flags: 1 counted as a call, 4 without a price, 8 priced in part, 16 with a cost, 32 earlier.
-- Steps are added up by flags and components afterwards, which reads each row once and asks of it little.
SELECT
    GROUPING($keys) AS level,
    bucket,
    priced_in,
    open_in,
    flags,
    concat($values) AS value,
    countIf(now) AS rows,
    sumIf(usd, now) AS cost,
    countIf(now AND bitTest(flags, 4)) AS known,
    countIf(now AND bitTest(flags, 2)) AS unpriced_rows,
    countIf(now AND call) AS inferences,
    countIf(now AND call AND NOT bitTest(flags, 2)) AS priced,
    countIf(now AND call AND bitTest(flags, 2)) AS unpriced,
    countIf(now AND call AND bitTest(flags, 3)) AS partial
    $before
FROM
(
    SELECT
        $now AS now,
        if(now, toInt32(intDiv($second - {origin:Int64}, {step:Int64})), -1) AS bucket,
        ledger.priced_parts AS priced_in,
        ledger.open_parts AS open_in,
        toUInt8(ledger.counted
            + 4 * (ledger.cost_status IN ('unpriced', 'invalid'))
            + 8 * (ledger.cost_status = 'partial')
            + 16 * isNotNull(ledger.cost)
            + 32 * NOT now) AS flags,
        bitTest(flags, 0) AS call,
        $columns,
        ledger.cost AS usd
    FROM $ledger
    WHERE $window
)
GROUP BY GROUPING SETS ((bucket, priced_in, open_in, flags), $sets)
ORDER BY level, $size DESC, rows DESC, value
LIMIT 10000 BY level
