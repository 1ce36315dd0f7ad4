-- All rows of the ledger behind a figure, added up.
SELECT
    count() AS calls,
    if(countIf(isNotNull($amount)) = 0 AND countIf(ledger.cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum($amount), toDecimal128(0, 12))) AS cost,
    countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced
FROM ledger FINAL
WHERE $window AND ($only)
