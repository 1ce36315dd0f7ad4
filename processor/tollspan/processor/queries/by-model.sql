-- Cost by provider and model, dearest first; the model as served, or as asked for where the answer named none.
SELECT
    nullIf(ledger.provider, '') AS provider,
    nullIf(if(ledger.model != '', ledger.model, ledger.request_model), '') AS model,
    if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost,
    'USD' AS currency,
    countIf(kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')) AS inferences,
    countIf(kind = 'inference' AND cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
    countIf(kind = 'inference' AND cost_status = 'partial') AS partial_inferences
FROM ledger FINAL
WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
GROUP BY provider, model
ORDER BY cost DESC NULLS LAST, provider NULLS LAST, model NULLS LAST
LIMIT {limit:UInt64}
