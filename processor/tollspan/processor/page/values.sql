-- Values of a dimension, dearest first.
SELECT
    nullIf(toString($dimension), '') AS value,
    count() AS rows,
    if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(ledger.cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost
FROM ledger FINAL
WHERE $window AND ({contains:String} = '' OR positionCaseInsensitiveUTF8(toString($dimension), {contains:String}) > 0)
GROUP BY value
ORDER BY cost DESC NULLS LAST, rows DESC, value NULLS LAST
LIMIT {limit:UInt64}
