-- What has no price or only part of one, and why; most frequent first.
SELECT
    nullIf(ledger.provider, '') AS provider,
    nullIf(if(ledger.model != '', ledger.model, ledger.request_model), '') AS model,
    ledger.kind AS kind,
    cost_status,
    cost_reasons AS reasons,
    sum(ledger.cost) AS known_cost,
    countIf(kind = 'inference') AS inferences,
    count() AS rows,
    min(start_time) AS first_start,
    max(start_time) AS last_start
FROM $ledger
WHERE $window
    AND cost_status IN ('unpriced', 'invalid', 'partial')
GROUP BY provider, model, kind, cost_status, reasons
ORDER BY rows DESC, provider NULLS LAST, model NULLS LAST, kind, cost_status, reasons
LIMIT {limit:UInt64}
