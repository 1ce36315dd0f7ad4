-- Cost by variant, dearest first; variant is NULL where the calls had none.
SELECT
    nullIf(ledger.variant, '') AS variant,
    if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost,
    'USD' AS currency,
    countIf(kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')) AS inferences,
    countIf(kind = 'inference' AND cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
    countIf(kind = 'inference' AND cost_status = 'partial') AS partial_inferences
FROM ledger FINAL
WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
GROUP BY variant
ORDER BY cost DESC NULLS LAST, variant NULLS LAST
LIMIT {limit:UInt64}
