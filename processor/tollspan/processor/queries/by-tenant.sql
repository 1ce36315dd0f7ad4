-- Cost by tenant, dearest first; tenant is NULL where the calls had none.
SELECT
    nullIf(ledger.tenant, '') AS tenant,
    if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost,
    'USD' AS currency,
    countIf(kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')) AS inferences,
    countIf(kind = 'inference' AND cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
    countIf(kind = 'inference' AND cost_status = 'partial') AS partial_inferences
FROM ledger FINAL
WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
GROUP BY tenant
ORDER BY cost DESC NULLS LAST, tenant NULLS LAST
LIMIT {limit:UInt64}
