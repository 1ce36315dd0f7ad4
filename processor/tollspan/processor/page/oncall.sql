-- Everything of the on-call view that comes out of one look at the ledger, beside the window before. Percentiles are
-- t-digests: exact enough for a look, and no money.
SELECT
    earlier,
    GROUPING($keys) AS level,
    bucket,
    concat($values) AS value,
    sum(usd) AS cost,
    countIf(isNotNull(usd)) AS known,
    countIf(open) AS unpriced_rows,
    countIf(call AND NOT refused) AS inferences,
    countIf(call) AS calls,
    countIf(call AND open) AS unpriced,
    countIf(call AND in_part) AS partial,
    countIf(call AND failed) AS errors,
    sum(again) AS retries,
    countIf(cold) AS cold_starts,
    quantilesTDigestIf(0.5, 0.95, 0.99)(ns, call AND NOT refused) AS times_ns,
    quantileTDigestIf(0.95)(assumeNotNull(arrival_ms), isNotNull(arrival_ms)) AS arrival_p95_ms
FROM
(
    SELECT
        ledger.start_time < {since:DateTime64(9, 'UTC')} AS earlier,
        if(earlier, toInt32(-1), toInt32(intDiv(toInt64(toUnixTimestamp(ledger.start_time)) - {origin:Int64}, {step:Int64}))) AS bucket,
        $columns,
        ledger.cost AS usd,
        ledger.kind = 'inference' AND ledger.cost_status != 'rollup' AS call,
        ledger.cost_status = 'not_billed' AS refused,
        ledger.cost_status IN ('unpriced', 'invalid') AS open,
        ledger.cost_status = 'partial' AS in_part,
        ledger.span_status = 'error' AS failed,
        ledger.retries AS again,
        ledger.cold_start AS cold,
        ledger.duration_ns AS ns,
        if(earlier, NULL, dateDiff('millisecond', addNanoseconds(ledger.start_time, toInt64(ledger.duration_ns)), ledger.arrived_at)) AS arrival_ms
    FROM $ledger
    WHERE $window
)
GROUP BY GROUPING SETS ((earlier), (earlier, bucket), $sets)
ORDER BY earlier, level, errors DESC, cost DESC NULLS LAST, calls DESC, value
LIMIT 500 BY earlier, level
