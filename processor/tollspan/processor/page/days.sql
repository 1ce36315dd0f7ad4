-- What each day cost, as the query forecast reads it.
SELECT
    toDate(ledger.start_time) AS day_of,
    sum(ledger.cost) AS usd,
    countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced
FROM $ledger
WHERE $window
GROUP BY day_of
