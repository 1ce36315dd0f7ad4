-- What each model cost, how long it took and how often it failed; dearest first. Percentiles are t-digests.
SELECT
    nullIf(toString(ledger.provider), '') AS provider,
    nullIf(toString(if(ledger.model != '', ledger.model, ledger.request_model)), '') AS model,
    if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(ledger.cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost,
    countIf(ledger.cost_status != 'not_billed') AS inferences,
    count() AS calls,
    countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced,
    countIf(ledger.cost_status = 'partial') AS partial,
    inferences - unpriced AS priced,
    if(isNull(cost) OR priced = 0, NULL, divideDecimal(assumeNotNull(cost), toDecimal128(greatest(priced, 1), 0), 18)) AS cost_per_inference,
    countIf(ledger.span_status = 'error') AS errors,
    sum(ledger.retries) AS retries,
    countIf(ledger.cold_start) AS cold_starts,
    quantilesTDigestIf(0.5, 0.95, 0.99)(ledger.duration_ns, ledger.cost_status != 'not_billed') AS times_ns
FROM $ledger
WHERE $window AND ledger.kind = 'inference' AND ledger.cost_status != 'rollup'
GROUP BY provider, model
ORDER BY cost DESC NULLS LAST, calls DESC, provider NULLS LAST, model NULLS LAST
LIMIT {limit:UInt64}
